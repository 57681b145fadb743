async fn run(bus: eventbus::Bus) {
    let _ = eventbus::publish!(krate = ::eventbus; bus, "order.placed", { "id": 7 }).await;
}

fn main() {}
