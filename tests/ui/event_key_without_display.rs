use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", key = ids)]
struct OrderPlaced {
    ids: Vec<u64>,
}

fn main() {}
