//! The first program of the README: `cargo run --example hello`.

use eventbus::{Bus, Event, subscribe};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
    email: String,
}

/// Mails the customer.
#[subscribe("order.placed")]
async fn send_confirmation(order: OrderPlaced) {
    println!("order {} confirmed to {}", order.id, order.email);
}

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let bus = Bus::connect("memory:").await?; // or sqlite:shop.db
    bus.start()?;
    bus.publish(OrderPlaced { id: 1, email: "ada@example.com".into() }).await?;
    bus.settled().await?; // a service awaits `bus.run()` instead, until Ctrl-C or SIGTERM
    bus.shutdown().await
}
