//! Mails what happened. It knows the events, and nobody else.

#![forbid(unsafe_code)]

use eventbus::{Envelope, subscribe};
use many_crates_events::OrderBilled;

// Literals of this crate are checked against the shared catalog, also where no type says what they should be.
eventbus::topics! { extends many_crates_events; }

/// Mails the invoice.
#[subscribe]
async fn mail_invoice(billed: &OrderBilled) {
    println!("email:   invoice {} for order {}", billed.invoice, billed.order_id);
}

/// Keeps a copy of everything about orders.
#[subscribe("order.*")]
async fn keep_copy(envelope: &Envelope) {
    println!("email:   copy of {}", envelope.topic());
}
