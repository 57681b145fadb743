mod shop;

const ORDERS: &str = "order.>";

#[eventbus::subscribe(ORDERS, batch = 10)]
async fn on_orders(_orders: eventbus::Batch<shop::OrderPlaced>) {}

fn main() {}
