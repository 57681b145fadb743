mod shop;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: &shop::OrderShipped) {}

fn main() {}
