//! A web shop on the embedded log. `README.md` tells how to run it; `main.rs` is where it starts.
//!
//! The producer (`orders`) saves an order and publishes that it was placed. The consumers (`mail`, `analytics`,
//! `inventory`, `orders_by_day`, `status`) do not know it, nor each other: `events` is all that they share.

#![forbid(unsafe_code)]

pub mod catalogue;
pub mod cli;
pub mod database;
pub mod events;
pub mod generate;
pub mod http;
pub mod import;
pub mod order;
pub mod orders;
pub mod serve;

// The consumers. Nobody calls them: `#[subscribe]` is how the bus finds them.
pub mod analytics;
pub mod inventory;
pub mod mail;
pub mod orders_by_day;
pub mod status;

mod inbox;

use database::Database;
use eventbus::bus::BusBuilder;
use eventbus::{Bus, Start};

/// The addresses of brokers that keep no event for a consumer that comes later: queues, and the memory of a process.
const BEGIN_EMPTY: [&str; 4] = ["amqp:", "amqps:", "memory:", "sns:"];

/// The bus of the shop, to be connected to the broker at `url`.
///
/// The source is said, because the log tells events apart by source and id: an order that the server and the import
/// both publish is one event only if both say `/shop`.
///
/// A consumer that is new begins with the first order. Where a broker keeps none, it has to be there before the orders,
/// and begins with the next one: on queues `shop serve` or `shop run` comes before the first `shop import`.
pub fn bus(database: &Database, url: &str) -> BusBuilder {
    let begins_empty = BEGIN_EMPTY.iter().any(|scheme| url.starts_with(scheme));
    let start = if begins_empty { Start::Latest } else { Start::Earliest };
    Bus::builder().source("/shop").start(start).state(database.clone())
}
