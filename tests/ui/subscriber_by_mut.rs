mod shop;

struct Shop;

#[eventbus::subscriber]
impl Shop {
    #[eventbus::subscribe]
    async fn on_order(&mut self, _order: shop::OrderPlaced) {}
}

fn main() {}
