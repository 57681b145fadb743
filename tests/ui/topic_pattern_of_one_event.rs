mod shop;

#[eventbus::subscribe("order.*")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
