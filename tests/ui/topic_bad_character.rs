#[eventbus::subscribe("order placed")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
