//! What a broker declares, as the table of its documentation and that of the README say it.

#![allow(dead_code, reason = "not every broker has a page with a table")]

use eventbus::broker::{Attempts, Backlog, Broker};
use std::collections::BTreeMap;

const README: &str = include_str!("../../../../README.md");

/// Asserts that the table of the broker's page tells what it declares, in a column behind the names.
pub(crate) fn page_tells(page: &str, column: usize, broker: &impl Broker, max_payload: &str) {
    let lines = page.lines().filter_map(|line| line.strip_prefix("//! "));
    let (_, rows) = table(lines, |headings| headings.ends_with("| how |"));
    assert_eq!(told(rows, column), declared(broker, max_payload), "column {column} of the page");
}

/// Asserts that the README's table of brokers tells it, in the column with this heading.
pub(crate) fn readme_tells(heading: &str, broker: &impl Broker, max_payload: &str) {
    let (headings, rows) = table(README.lines(), |headings| headings.starts_with("| | `memory:` |"));
    let column = headings.split('|').skip(2).position(|cell| cell.trim() == heading).expect("a column");
    assert_eq!(told(rows, column), declared(broker, max_payload), "column {heading} of the README");
}

/// A table, by its first line, and its other lines.
fn table<'a>(
    mut lines: impl Iterator<Item = &'a str>,
    is_it: impl Fn(&str) -> bool,
) -> (&'a str, impl Iterator<Item = &'a str>) {
    let headings = lines.find(|line| is_it(line)).expect("a table");
    (headings, lines.take_while(|line| line.starts_with('|')))
}

/// The rows whose first cells end with the name of a field, with one of the other cells.
fn told<'a>(rows: impl Iterator<Item = &'a str>, column: usize) -> BTreeMap<&'a str, &'a str> {
    let cells = rows.filter_map(|row| row.strip_prefix("| ")?.split_once(" | "));
    let named = cells.filter_map(|(first, rest)| {
        let name = first.strip_suffix('`').or_else(|| first.strip_suffix("`)"))?.rsplit('`').next()?;
        Some((name, rest.split(" |").nth(column)?.trim()))
    });
    named.collect()
}

/// What is declared, in the words of the tables.
fn declared<'a>(broker: &impl Broker, max_payload: &'a str) -> BTreeMap<&'static str, &'a str> {
    let features = broker.features();
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
        ("transactions", word(features.transactions)),
        ("attempts", attempts),
        ("counts_crashes", word(features.counts_crashes)),
        ("backlog", backlog),
        ("max_payload", max_payload),
    ]);
    // What is declared is in the table: each field, by its name.
    let debug = format!("{features:?}");
    assert_eq!(debug.matches(": ").count(), declared.len(), "{debug}");
    let more = [
        ("replayable", word(broker.replayable().is_some())),
        ("audit_log", word(broker.audit_log().is_some())),
    ];
    declared.into_iter().chain(more).collect()
}
