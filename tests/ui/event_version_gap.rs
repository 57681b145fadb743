mod shop;

#[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", version = 3, upcast_from = shop::OrderPlaced)]
struct OrderPlaced;

impl From<shop::OrderPlaced> for OrderPlaced {
    fn from(_: shop::OrderPlaced) -> Self {
        Self
    }
}

fn main() {}
