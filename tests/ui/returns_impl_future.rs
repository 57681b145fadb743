#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe]
fn on_order(_order: shop::OrderPlaced) -> impl Future<Output = ()> {
    async {}
}

fn main() {}
