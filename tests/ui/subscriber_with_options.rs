mod shop;

struct Shop;

#[eventbus::subscriber(retries = 3)]
impl Shop {
    #[eventbus::subscribe]
    async fn on_order(&self, _order: shop::OrderPlaced) {}
}

fn main() {}
