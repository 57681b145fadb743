#[eventbus::subscribe]
async fn on_order<E: eventbus::Event>(_order: E) {}

fn main() {}
