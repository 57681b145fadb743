mod shop;

#[eventbus::subscribe]
async fn on_order(_order: eventbus::Json<shop::OrderPlaced>) {}

fn main() {}
