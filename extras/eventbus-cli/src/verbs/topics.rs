//! `topics`: what the program says that it publishes.

use crate::failure::Result;
use crate::json::{self, Object};
use crate::output::{DIM, TOPIC};
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use eventbus_core::census;
use eventbus_core::{EventMeta, Pattern};
use std::collections::BTreeMap;

const COLUMNS: &[Column] = &[
    Column::name("TOPIC"),
    Column::name("EVENT"),
    Column::number("VERSION").goes(1),
    Column::place("DECLARED AT").goes(2),
    Column::text("LISTENERS"),
];

/// A topic, with the event types on it and the packages that declare it with `topics!`.
#[derive(Default)]
struct Declared {
    events: Vec<&'static EventMeta>,
    packages: Vec<&'static str>,
}

pub(super) fn execute(session: &mut Session) -> Result {
    let mut topics: BTreeMap<&str, Declared> = BTreeMap::new();
    for event in census::events() {
        topics.entry(event.topic).or_default().events.push(event);
    }
    for catalog in census::catalogs() {
        for topic in catalog.topics {
            topics.entry(topic).or_default().packages.push(catalog.package);
        }
    }
    let out = &mut session.out;
    if out.json {
        for (topic, declared) in &topics {
            let events = declared.events.iter().map(|event| {
                Object::new()
                    .text("name", event.name)
                    .number("version", event.version)
                    .text("package", event.package)
                    .text("file", event.file)
                    .number("line", event.line)
                    .finish()
            });
            let object = Object::new()
                .text("topic", topic)
                .list("events", events)
                .list("declared_by", declared.packages.iter().map(|package| json::string(package)))
                .list("groups", listeners(topic).into_iter().map(json::string));
            out.object(object)?;
        }
        return Ok(());
    }
    let mut table = Table::new(COLUMNS);
    for (topic, declared) in &topics {
        let listeners = listeners(topic).join(" ");
        let listeners = if listeners.is_empty() { "-".to_owned() } else { listeners };
        for event in &declared.events {
            table.push(vec![
                styled(TOPIC, topic),
                cell(event.name),
                cell(event.version.to_string()),
                styled(DIM, format!("{}:{}", event.file, event.line)),
                cell(&listeners),
            ]);
        }
        if declared.events.is_empty() {
            let place = format!("topics! of {}", declared.packages.join(", "));
            table.push(vec![
                styled(TOPIC, topic),
                cell("-"),
                cell("-"),
                styled(DIM, place),
                cell(&listeners),
            ]);
        }
    }
    out.table(&table, "this program declares no event type and no topic")
}

/// The groups that listen on a topic.
fn listeners(topic: &str) -> Vec<&'static str> {
    let subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
    subscriptions
        .filter(|subscription| {
            Pattern::new(&subscription.pattern).is_ok_and(|pattern| pattern.matches(topic))
        })
        .map(|subscription| &*subscription.group)
        .collect()
}
