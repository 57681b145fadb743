#[eventbus::subscribe("order.placed")]
async fn on_order(_order: impl Send) {}

fn main() {}
