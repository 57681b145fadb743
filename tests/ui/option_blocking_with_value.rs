mod shop;

#[eventbus::subscribe("order.placed", blocking = true)]
fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
