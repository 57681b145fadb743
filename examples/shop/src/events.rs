//! The events: what producers and consumers share.

use crate::order::{Customer, Item, Order};
use eventbus::{Envelope, Event, EventId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A customer placed an order, and it is saved.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.placed", key = order_id, subject = order_id)]
pub struct OrderPlaced {
    /// The order.
    pub order_id: String,
    /// Who placed it.
    pub customer: Customer,
    /// What was ordered.
    pub items: Vec<Item>,
    /// What all of it costs.
    pub total_cents: u64,
    /// When.
    pub placed_at: Timestamp,
}

impl OrderPlaced {
    /// The event of an order, as it is published.
    ///
    /// Its id follows from the order's. Whoever publishes it again, after a lost answer or in a second import,
    /// publishes the same event, and the log keeps one of them.
    pub fn envelope(order: Order) -> Envelope {
        let id = EventId::new(format!("order-{}/placed", order.id));
        let placed_at = order.placed_at;
        let total_cents = order.total_cents();
        let Order { id: order_id, customer, items, placed_at: _ } = order;
        let placed = Self { order_id, customer, items, total_cents, placed_at };
        Envelope::from_event(placed).with_id(id).with_time(placed_at)
    }
}

/// The items of an order were taken out of the stock.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "inventory.reserved", key = order_id, subject = order_id)]
pub struct InventoryReserved {
    /// The order.
    pub order_id: String,
}
