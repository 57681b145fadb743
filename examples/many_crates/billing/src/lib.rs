//! Bills what was placed. It knows the events, and nobody else.

#![forbid(unsafe_code)]

use eventbus::subscribe;
use many_crates_events::{OrderBilled, OrderPlaced};

/// Writes an invoice for every order.
#[subscribe]
async fn bill(order: OrderPlaced) -> OrderBilled {
    println!("billing: order {} costs {} cents", order.id, order.cents);
    OrderBilled { order_id: order.id, invoice: format!("2026-{:04}", order.id) }
}
