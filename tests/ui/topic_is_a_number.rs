#[eventbus::subscribe(7)]
async fn on_order(_event: &eventbus::Envelope) {}

fn main() {}
