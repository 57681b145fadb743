mod shop;

#[eventbus::subscribe("order.placed")]
async fn on_orders(_orders: Vec<shop::OrderPlaced>) {}

fn main() {}
