use eventbus::Event;

#[derive(Event, Clone, serde::Deserialize)]
#[event(topic = "order.placed")]
struct OrderPlaced;

fn main() {}
