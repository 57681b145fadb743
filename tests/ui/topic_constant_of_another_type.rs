const NUMBER: u32 = 7;

#[eventbus::subscribe(NUMBER)]
async fn on_order(_envelope: &eventbus::Envelope) {}

fn main() {}
