mod shop;

#[eventbus::subscribe("order.placed", blocking)]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
