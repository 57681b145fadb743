//! The table of the documentation says what the broker declares.

mod support;

use eventbus::broker::{Attempts, Backlog, Broker};
use std::collections::BTreeMap;
use support::Place;

#[tokio::test]
async fn the_table_of_semantics_says_what_the_broker_declares() {
    let documentation = include_str!("../src/lib.rs");
    let rows = documentation.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let said: BTreeMap<_, _> = rows
        .filter_map(|row| row.split_once("` | "))
        .map(|(name, rest)| (name, rest.split(" |").next().unwrap()))
        .collect();
    let place = Place::new();
    let features = place.broker().await.features();
    let word = |flag| if flag { "yes" } else { "no" };
    let attempts = match features.attempts {
        Attempts::Noted => "noted",
        Attempts::Counted => "counted",
        _ => "lost",
    };
    let backlog = match features.backlog {
        Backlog::Exactly => "exactly",
        Backlog::Nearly => "nearly",
        _ => "unknown",
    };
    let declared = BTreeMap::from([
        ("durable", word(features.durable)),
        ("key_order", word(features.key_order)),
        ("patterns", word(features.patterns)),
        ("start_earliest", word(features.start_earliest)),
        ("multi_process", word(features.multi_process)),
        ("competing", word(features.competing)),
        ("shared_by_key", word(features.shared_by_key)),
        ("deduplicates", word(features.deduplicates)),
        ("attempts", attempts),
        ("backlog", backlog),
        ("max_payload", "of the server"),
    ]);
    assert_eq!(said, declared);
    // What is declared is in the table: each field, by its name.
    let debug = format!("{features:?}");
    let fields = debug.matches(": ").count();
    assert_eq!(fields, declared.len(), "{debug}");
}
