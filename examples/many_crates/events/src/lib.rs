//! The events that the services share, and the catalog of their topics.

#![forbid(unsafe_code)]

use eventbus::{Event, topics};
use serde::{Deserialize, Serialize};

topics! {
    /// A customer placed an order.
    ORDER_PLACED = "order.placed",
    /// An order was billed.
    ORDER_BILLED = "order.billed",
}

/// A customer placed an order.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = ORDER_PLACED, key = id)]
pub struct OrderPlaced {
    /// The number of the order.
    pub id: u64,
    /// What it costs.
    pub cents: u64,
}

/// An order was billed.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = ORDER_BILLED, key = order_id)]
pub struct OrderBilled {
    /// The number of the order.
    pub order_id: u64,
    /// The number of the invoice.
    pub invoice: String,
}
