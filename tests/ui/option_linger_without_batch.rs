mod shop;

#[eventbus::subscribe("order.placed", linger = "1s")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
