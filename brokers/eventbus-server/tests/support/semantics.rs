//! What a broker declares, as the table of its documentation says it.

use eventbus::broker::{Attempts, Backlog, Features};
use std::collections::BTreeMap;

/// The rows of a table whose first cells are names of fields, with one of the other cells.
pub(crate) fn said(documentation: &str, column: usize) -> BTreeMap<&str, &str> {
    let rows = documentation.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once("` | "));
    rows.map(|(name, rest)| (name, rest.split(" |").nth(column).expect("it has so many cells").trim()))
        .collect()
}

/// What each field of `features` is called there.
pub(crate) fn declared<'a>(features: &Features, max_payload: &'a str) -> BTreeMap<&'static str, &'a str> {
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
        ("seek", word(features.seek)),
        ("rename", word(features.rename)),
        ("attempts", attempts),
        ("counts_crashes", word(features.counts_crashes)),
        ("backlog", backlog),
        ("max_payload", max_payload),
    ]);
    // What is declared is in the table: each field, by its name.
    let debug = format!("{features:?}");
    assert_eq!(debug.matches(": ").count(), declared.len(), "{debug}");
    declared
}
