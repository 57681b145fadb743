mod shop;

async fn publish(bus: &eventbus::Bus) {
    let _ = eventbus::publish!(bus, shop::OrderPlaced { id: 1 }).await;
}

fn main() {}
