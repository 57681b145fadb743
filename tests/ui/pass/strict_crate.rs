//! What the macros write passes under the strictest lints that a crate may set for itself.

#![forbid(unsafe_code)]
#![deny(warnings, missing_docs, unreachable_pub, unused_qualifications, single_use_lifetimes, unused_lifetimes)]
#![deny(trivial_casts, unused_results, let_underscore_drop, elided_lifetimes_in_paths, rust_2018_idioms)]
#![deny(clippy::all, clippy::pedantic, clippy::nursery)]

use eventbus::{Envelope, Event, State, subscribe, subscriber, topics};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

topics! {
    /// Orders begin here.
    ORDER_PLACED = "order.placed",
    ORDER_SHIPPED = "order.shipped",
}

/// An order.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = ORDER_PLACED, key = id, subject = id)]
pub struct OrderPlaced {
    /// Its number.
    pub id: u64,
}

/// An order with its customer.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", version = 2, upcast_from = OrderPlaced, key = 0)]
pub struct OrderPlacedV2(pub u64, pub String);

impl From<OrderPlaced> for OrderPlacedV2 {
    fn from(old: OrderPlaced) -> Self {
        Self(old.id, String::new())
    }
}

/// Takes the event by value, and publishes another.
///
/// # Errors
/// Never.
#[subscribe("order.placed", retries = 8, backoff = "200ms..1m", timeout = "10s", concurrency = 2)]
#[subscribe("order.placed", group = "again", start = "earliest", dead_letter = false, replay = false)]
pub async fn ship(order: OrderPlacedV2) -> Result<OrderPlaced, String> {
    std::future::ready(Ok(OrderPlaced { id: order.0 })).await
}

/// Takes many.
#[subscribe(batch = 10, linger = "1s")]
pub async fn gather(orders: Vec<OrderPlaced>) {
    std::future::ready(drop(orders)).await;
}

/// Is called in place.
#[subscribe("order.*")]
pub fn audit(envelope: &Envelope) {
    println!("{}", envelope.topic());
}

/// Is called where it may block.
#[subscribe(blocking)]
pub fn write_down(order: Arc<OrderPlaced>) {
    drop(order);
}

/// Holds the methods.
#[derive(Debug)]
pub struct Shop {
    open: bool,
}

#[subscriber]
impl Shop {
    /// Takes the receiver from the state.
    #[subscribe]
    pub async fn on_order(&self, order: &OrderPlaced, other: State<u32>) {
        let open = std::future::ready(self.open).await;
        println!("{open} {} {}", order.id, *other);
    }
}

fn main() {}
