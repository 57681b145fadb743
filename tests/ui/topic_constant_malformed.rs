const SPACED: &str = "order placed";

#[eventbus::subscribe(SPACED)]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
