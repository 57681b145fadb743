#[path = "shop/mod.rs"]
mod shop;

#[eventbus::subscribe(topic = "order.placed")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
