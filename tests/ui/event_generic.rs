use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed")]
struct OrderPlaced<T>(T);

fn main() {}
