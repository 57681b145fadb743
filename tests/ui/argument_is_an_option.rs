mod shop;

#[eventbus::subscribe("order.placed")]
async fn on_order(_order: Option<shop::OrderPlaced>) {}

fn main() {}
