//! The table of the documentation says what the broker declares.

mod support;

use eventbus::broker::{Attempts, Backlog, Broker, Features};
use std::collections::BTreeMap;

#[tokio::test]
async fn the_table_of_semantics_says_what_the_broker_declares() {
    for (column, fifo) in [(0, false), (1, true)] {
        let documentation = include_str!("../src/lib.rs");
        let rows = documentation.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once("` | "));
        let said: BTreeMap<_, _> = rows
            .filter(|(_, rest)| rest.matches(" |").count() == 3)
            .map(|(name, rest)| (name, rest.split(" | ").nth(column).unwrap()))
            .collect();
        let broker = support::builder(&support::prefix(), fifo).connect().await.unwrap();
        assert_eq!(said, declared(broker.features()), "fifo: {fifo}");
    }
}

fn declared(features: Features) -> BTreeMap<&'static str, &'static str> {
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
    let max_payload = match features.max_payload {
        Some(184_320) => "180 KiB",
        _ => "another limit",
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
        ("max_payload", max_payload),
    ]);
    // What is declared is in the table: each field, by its name.
    let debug = format!("{features:?}");
    assert_eq!(debug.matches(": ").count(), declared.len(), "{debug}");
    declared
}
