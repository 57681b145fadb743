mod shop;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: &'static shop::OrderPlaced) {}

fn main() {}
