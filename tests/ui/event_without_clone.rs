use eventbus::Event;

#[derive(Event, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed")]
struct OrderPlaced;

fn main() {}
