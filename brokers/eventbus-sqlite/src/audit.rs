//! The audit log: queries over the table of events.

use crate::broker::Store;
use crate::offsets::{offset_of, place};
use crate::reader::Reader;
use crate::wire::{COLUMNS, StoredId, seconds};
use eventbus_core::BrokerError;
use eventbus_core::broker::{AuditLog, AuditQuery, BrokerFuture, Offset, Recorded};
use eventbus_core::log;
use rusqlite::ToSql;
use serde_json::json;
use std::sync::Arc;

/// A query as it grows.
struct Asked<'a> {
    sql: String,
    parameters: Vec<Box<dyn ToSql + 'a>>,
}

impl<'a> Asked<'a> {
    /// Adds a condition on `parameter`, which stands at each question mark.
    fn and<P: ToSql + Clone + 'a>(&mut self, condition: &str, parameter: P) {
        self.sql.push_str(" and ");
        self.sql.push_str(condition);
        for _ in condition.matches('?') {
            self.parameters.push(Box::new(parameter.clone()));
        }
    }
}

fn query(reader: &mut Reader, query: &AuditQuery) -> rusqlite::Result<Vec<Recorded>> {
    let mut asked =
        Asked { sql: format!("select {COLUMNS} from event e where true"), parameters: Vec::new() };
    if let Some(pattern) = query.pattern.as_ref().filter(|pattern| pattern.as_str() != ">") {
        match reader.topics(pattern)?[..] {
            [topic] => asked.and("e.topic = ?", topic),
            ref topics => {
                asked.and("e.topic in (select value from json_each(?))", json!(topics).to_string());
            }
        }
    }
    if let Some(id) = &query.id {
        asked.and("e.id = ?", StoredId(id));
    }
    if let Some(key) = &query.key {
        asked.and("e.key = ?", key);
    }
    if let Some(event_type) = &query.event_type {
        asked.and("coalesce(e.type, (select name from topic where id = e.topic)) = ?", event_type);
    }
    if let Some(id) = &query.correlation_id {
        asked.and("(e.correlation = ? or (e.correlation is null and e.id = ?))", StoredId(id));
    }
    for (time, comparison) in [(query.since, ">="), (query.before, "<")] {
        if let Some((seconds, nanosecond)) = time.map(seconds) {
            asked.and(&format!("(e.time, e.nanosecond) {comparison} ({seconds}, ?)"), nanosecond);
        }
    }
    if let Some(offset) = query.offset {
        asked.and("e.offset = ?", place(offset));
    }
    if let Some(after) = query.after {
        asked.and(if query.newest_first { "e.offset < ?" } else { "e.offset > ?" }, place(after));
    }
    let order = if query.newest_first { "desc" } else { "asc" };
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    asked.sql.push_str(&format!(" order by e.offset {order} limit {limit}"));
    let parameters: Vec<&dyn ToSql> = asked.parameters.iter().map(|parameter| &**parameter).collect();
    let found = reader.select(&asked.sql, &parameters[..], |_| Ok(()))?;
    Ok(found
        .into_iter()
        .filter(|(event, ())| event.intact || tell_damaged(event.offset))
        .map(|(event, ())| Recorded { offset: offset_of(event.offset), envelope: event.envelope })
        .collect())
}

/// What is not what was published is not shown as if it were.
fn tell_damaged(offset: i64) -> bool {
    log::error!(
        target: "eventbus", offset,
        "an event in the log is damaged: its checksum is wrong; the audit log leaves it out"
    );
    false
}

impl AuditLog for Store {
    fn query(&self, asked: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let readers = Arc::clone(&self.readers);
        BrokerFuture::new(async move { readers.read(move |reader| query(reader, &asked)).await })
    }

    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        let Some(store) = self.this() else { return BrokerFuture::ready(Err(crate::writes::closed())) };
        BrokerFuture::new(async move { store.stored_after(offset.map_or(0, place)).await })
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let readers = Arc::clone(&self.readers);
        BrokerFuture::new(async move {
            let head = readers.read(|reader| reader.head()).await?;
            Ok((head > 0).then(|| offset_of(head)))
        })
    }
}
