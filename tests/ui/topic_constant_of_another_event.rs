mod shop;

const SHIPPED: &str = "order.shipped";

#[eventbus::subscribe(SHIPPED)]
async fn on_order(_order: std::sync::Arc<shop::OrderPlaced>) {}

fn main() {}
