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
use eventbus::Bus;
use eventbus::bus::BusBuilder;

/// The bus of the shop, on whichever broker it is then connected to.
///
/// The source is said, because the log tells events apart by source and id: an order that the server and the import
/// both publish is one event only if both say `/shop`.
pub fn bus(database: &Database) -> BusBuilder {
    Bus::builder().source("/shop").state(database.clone())
}
