use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topik = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

#[eventbus::subscribe("order.placed")]
async fn on_order(order: &OrderPlaced) {
    println!("{}", order.id);
}

#[eventbus::subscribe]
async fn cause(order: OrderPlaced) -> Option<OrderPlaced> {
    (order.id > 7).then_some(order)
}

async fn publish(bus: &Bus) {
    let _ = bus.publish(&OrderPlaced { id: 7 }).await;
}

fn main() {}
