mod shop;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: shop::OrderPlaced, _shipped: shop::OrderShipped) {}

fn main() {}
