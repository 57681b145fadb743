mod shop;

#[derive(eventbus::Event, Clone, serde::Serialize, serde::Deserialize)]
#[event(topic = "order.placed", version = 2, upcast_from = shop::OrderShipped)]
struct OrderPlaced;

impl From<shop::OrderShipped> for OrderPlaced {
    fn from(_: shop::OrderShipped) -> Self {
        Self
    }
}

fn main() {}
