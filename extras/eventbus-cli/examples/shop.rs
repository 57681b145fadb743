//! A shop whose binary has the whole command line, with one line in `main`.
//!
//! ```text
//! cargo run --package eventbus-cli --example shop -- subscriptions
//! cargo run --package eventbus-cli --example shop -- run --url memory:
//! ```

use eventbus::{Bus, Event, Outcome, State, subscribe};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
    item: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "item.reserved", key = order)]
struct ItemReserved {
    order: u64,
}

struct Stock {
    items: Vec<&'static str>,
}

/// Takes the item out of the stock, or gives the order up.
#[subscribe(group = "stock")]
async fn reserve(order: &OrderPlaced, stock: State<Stock>) -> Outcome {
    if stock.items.contains(&order.item.as_str()) {
        Outcome::publish(ItemReserved { order: order.id })
    } else {
        Outcome::Reject(format!("`{}` is not in stock", order.item).into())
    }
}

/// Tells the customer.
#[subscribe(group = "mail", replay = false)]
async fn confirm(item: &ItemReserved) {
    eprintln!("mail: order {} is on its way", item.order);
}

#[tokio::main]
async fn main() -> ExitCode {
    eventbus_cli::main!(Bus::builder().state(Stock { items: vec!["book", "pen"] })).await
}
