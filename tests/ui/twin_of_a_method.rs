#[path = "shop/mod.rs"]
mod shop;

struct Shop;

#[eventbus::subscriber]
impl Shop {
    #[eventbus::subscribe(as = OnOrder)]
    async fn on_order(&self, _order: shop::OrderPlaced) {}
}

fn main() {}
