mod shop;

#[eventbus::subscribe("order.placed", qos = 3)]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
