use eventbus::Event;

#[derive(Event, Clone, serde::Serialize)]
#[event(topic = "order.placed")]
struct OrderPlaced;

fn main() {}
