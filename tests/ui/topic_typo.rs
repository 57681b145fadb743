mod shop;

#[eventbus::subscribe("order.plcaed")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
