mod shop;

#[eventbus::subscribe("order.placed", backoff = "1m..200ms")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
