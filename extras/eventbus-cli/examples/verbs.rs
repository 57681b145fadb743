//! The shortest program that has the command line.
//!
//! ```text
//! cargo run --package eventbus-cli --example verbs -- publish order.placed '{"id":1,"email":"ada@example.com"}'
//! cargo run --package eventbus-cli --example verbs -- run
//! ```

use eventbus::{Bus, Event, subscribe};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
    email: String,
}

/// Mails the customer.
#[subscribe("order.placed", start = "earliest")]
async fn send_confirmation(order: OrderPlaced) {
    println!("order {} confirmed to {}", order.id, order.email);
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    eventbus_cli::main(Bus::builder()).await
}
