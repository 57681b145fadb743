mod shop;

struct Shop;

impl Shop {
    #[eventbus::subscribe]
    async fn on_order(_order: shop::OrderPlaced) {}
}

fn main() {}
