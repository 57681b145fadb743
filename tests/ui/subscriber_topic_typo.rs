mod shop;

struct Shop;

#[eventbus::subscriber]
impl Shop {
    #[eventbus::subscribe("order.plcaed", retires = 3)]
    async fn on_order(&self, _order: shop::OrderPlaced) {}

    #[eventbus::subscribe("order.shiped")]
    async fn on_shipped(&self, _order: shop::OrderShipped) {}
}

fn main() {}
