#[eventbus::subscribe("order.pla*")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
