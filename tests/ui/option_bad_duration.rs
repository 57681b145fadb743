mod shop;

#[eventbus::subscribe("order.placed", timeout = "5 parsecs")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
