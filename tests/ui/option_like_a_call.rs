#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe("order.placed", retries(3), retry(7))]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
