use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", version = 0)]
struct OrderPlaced;

fn main() {}
