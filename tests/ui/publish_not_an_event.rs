struct Order;

async fn run(bus: eventbus::Bus) {
    let _ = bus.publish(Order).await;
}

fn main() {}
