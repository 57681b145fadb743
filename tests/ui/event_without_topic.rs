use eventbus::Event;

#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]
struct OrderPlaced;

fn main() {}
