mod shop;

#[eventbus::subscribe("user.*")]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
