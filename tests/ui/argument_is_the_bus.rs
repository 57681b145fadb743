mod shop;

#[eventbus::subscribe]
async fn on_order(_order: shop::OrderPlaced, _bus: eventbus::Bus) {}

fn main() {}
