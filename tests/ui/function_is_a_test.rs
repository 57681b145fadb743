#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe]
#[tokio::test]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
