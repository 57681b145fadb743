use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", key = oder_id)]
struct OrderPlaced {
    order_id: u64,
}

fn main() {}
