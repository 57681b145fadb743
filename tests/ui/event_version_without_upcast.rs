use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", version = 2)]
struct OrderPlaced;

fn main() {}
