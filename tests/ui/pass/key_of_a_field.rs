//! A key may be a field of a field.

#![deny(warnings)]

use eventbus::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize)]
struct Address {
    id: u64,
    lines: (String, String),
}

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "address.changed", key = address.id, subject = address.lines.1)]
struct AddressChanged {
    address: Address,
}

fn main() {
    let lines = ("1 High Street".to_owned(), "Leeds".to_owned());
    let changed = AddressChanged { address: Address { id: 7, lines } };
    assert_eq!(changed.key().as_deref(), Some("7"));
    assert_eq!(changed.subject().as_deref(), Some("Leeds"));
}
