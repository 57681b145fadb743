//! Options take any constant expression of their type, and topics any constant path.

#![deny(warnings)]

use eventbus::{Backoff, Event, Start, subscribe};
use serde::{Deserialize, Serialize};
use std::time::Duration;

mod topics {
    pub const ORDER_PLACED: &str = "order.placed";

    pub struct Names;

    impl Names {
        pub const ALL: &'static str = "order.>";
        pub const PLACED: &'static str = "order.placed";
    }
}

const RETRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);
const GROUP: &str = concat!("mails", "-2");
const FEW: usize = if cfg!(debug_assertions) { 2 } else { 4 };

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = topics::ORDER_PLACED)]
struct OrderPlaced;

#[subscribe(
    topics::ORDER_PLACED,
    group = GROUP,
    retries = RETRIES + 1,
    backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1)),
    timeout = TIMEOUT,
    concurrency = FEW * 2,
    start = Start::Earliest,
    dead_letter = !true,
    replay = cfg!(test),
)]
async fn on_order(_order: OrderPlaced) {}

#[subscribe(crate::topics::Names::PLACED, batch = FEW, linger = Duration::from_millis(7))]
async fn on_orders(_orders: Vec<OrderPlaced>) {}

#[subscribe(crate::topics::ORDER_PLACED, timeout = "1500ms")]
#[eventbus::subscribe(topics::Names::ALL, group = "other", name = "another")]
#[subscribe("*.placed", group = "third")]
async fn several(_envelope: &eventbus::Envelope) {}

fn main() {
    let subscription = &on_order::SUBSCRIBER.subscription;
    let options = subscription.options;
    assert_eq!((&*subscription.group, &*subscription.pattern), ("mails-2", "order.placed"));
    assert_eq!((options.retries, options.timeout), (Some(4), Some(TIMEOUT)));
    assert_eq!((options.start, options.dead_letter), (Some(Start::Earliest), Some(false)));
    assert_eq!(on_orders::SUBSCRIBER.subscription.options.linger, Some(Duration::from_millis(7)));
    let patterns: Vec<_> = several::SUBSCRIBERS.iter().map(|one| &*one.subscription.pattern).collect();
    assert_eq!(patterns, ["order.placed", "order.>", "*.placed"]);
}
