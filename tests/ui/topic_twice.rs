#[eventbus::subscribe("order.placed", "order.shipped")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
