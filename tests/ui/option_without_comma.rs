mod shop;

#[eventbus::subscribe("order.placed" retries = 3)]
async fn on_order(_order: shop::OrderPlaced) {}

fn main() {}
