use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: Option<u64>,
}

fn main() {}
