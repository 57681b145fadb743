mod shop;

#[eventbus::subscribe("order.placed", start = "begin")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
