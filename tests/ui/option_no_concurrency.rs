mod shop;

#[eventbus::subscribe("order.placed", concurrency = 0)]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
