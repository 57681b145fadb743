use eventbus::{Bus, Event};

#[derive(Event, Clone)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

#[eventbus::subscribe("order.placed")]
async fn on_order(order: OrderPlaced) {
    println!("{}", order.id);
}

#[eventbus::subscribe("order.placed", batch = 10, group = "batches")]
async fn on_orders(orders: Vec<OrderPlaced>) {
    println!("{}", orders.len());
}

async fn publish(bus: &Bus) {
    let _ = bus.publish(&OrderPlaced { id: 7 }).await;
    let _ = bus.publish(OrderPlaced { id: 8 }).await;
}

fn main() {}
