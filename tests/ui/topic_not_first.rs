#[eventbus::subscribe(retries = 3, "order.placed")]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
