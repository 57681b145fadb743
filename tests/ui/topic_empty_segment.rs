#[eventbus::subscribe("order..x")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
