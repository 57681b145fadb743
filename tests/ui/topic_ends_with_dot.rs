#[eventbus::subscribe("order.")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
