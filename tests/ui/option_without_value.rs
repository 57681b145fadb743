mod shop;

#[eventbus::subscribe("order.placed", retries)]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
