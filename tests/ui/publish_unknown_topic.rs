eventbus::topics! { ORDER_PLACED = "order.placed" }

async fn run(bus: eventbus::Bus) {
    let _ = eventbus::publish!(bus, "order.plcaed", { "id": 7 }).await;
}

fn main() {}
