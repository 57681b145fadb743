mod shop;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: &mut shop::OrderPlaced) {}

fn main() {}
