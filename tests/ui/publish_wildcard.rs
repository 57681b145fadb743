async fn run(bus: eventbus::Bus) {
    let _ = eventbus::publish!(bus, "order.*", { "id": 7 }).await;
}

fn main() {}
