mod shop;

#[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", version = 2, upcast_from = shop::OrderPlaced)]
struct OrderPlaced;

fn main() {}
