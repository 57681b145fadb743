//! The audit log: queries over the table of events.

use crate::broker::Store;
use crate::offsets::{offset_of, place};
use crate::reader::Reader;
use crate::wire::{COLUMNS, Stored, StoredId, content, seconds};
use bytes::Bytes;
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
    fn of(reader: &Reader, query: &'a AuditQuery) -> rusqlite::Result<Self> {
        let mut asked =
            Asked { sql: format!("select {COLUMNS} from event e where true"), parameters: Vec::new() };
        if let Some(pattern) = query.pattern.as_ref().filter(|pattern| pattern.as_str() != ">") {
            match reader.topics(pattern)?[..] {
                [topic] => asked.and("e.topic = ?", topic),
                ref topics => {
                    // Whoever goes on behind a place reads on from there: by the index, each page would sort all that
                    // is left.
                    let topic = if query.after.is_some() { "+e.topic" } else { "e.topic" };
                    let topics = json!(topics).to_string();
                    asked.and(&format!("{topic} in (select value from json_each(?))"), topics);
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
        Ok(asked)
    }

    /// Adds a condition on `parameter`, which stands at each question mark.
    fn and<P: ToSql + Clone + 'a>(&mut self, condition: &str, parameter: P) {
        self.sql.push_str(" and ");
        self.sql.push_str(condition);
        for _ in condition.matches('?') {
            self.parameters.push(Box::new(parameter.clone()));
        }
    }
}

/// What is not what was published is left out, and what comes behind it takes its place: fewer than were asked for are
/// all there are.
fn query(reader: &mut Reader, query: &AuditQuery) -> rusqlite::Result<Vec<Recorded>> {
    let (mut rest, mut found) = (query.clone(), Vec::new());
    loop {
        rest.limit = query.limit - found.len();
        let read = select(reader, &rest)?;
        let is_all = read.len() < rest.limit;
        rest.after = read.last().map(|event| offset_of(event.offset));
        let intact = read.into_iter().filter(|event| event.intact || tell_damaged(event.offset));
        found.extend(
            intact.map(|event| Recorded { offset: offset_of(event.offset), envelope: event.envelope }),
        );
        if is_all || found.len() == query.limit {
            return Ok(found);
        }
    }
}

/// The events that `query` describes, whatever has become of them.
fn select(reader: &mut Reader, query: &AuditQuery) -> rusqlite::Result<Vec<Stored>> {
    let Asked { sql, parameters } = Asked::of(reader, query)?;
    let parameters: Vec<&dyn ToSql> = parameters.iter().map(|parameter| &**parameter).collect();
    let found = reader.select(&sql, &parameters[..], |_| Ok(()))?;
    Ok(found.into_iter().map(|(event, ())| event).collect())
}

/// The payloads that the event at `offset` was mended with, by their groups; those that are damaged are left out.
fn mended(reader: &Reader, offset: i64) -> rusqlite::Result<Vec<(String, Bytes)>> {
    let mut statement = reader.connection.prepare_cached(
        "select \"group\", payload, content, intact from mended where offset = ?1 order by \"group\"",
    )?;
    let mut rows = statement.query([offset])?;
    let mut mended = Vec::new();
    while let Some(row) = rows.next()? {
        let payload: Vec<u8> = row.get(1)?;
        if row.get::<_, bool>(3)? && row.get::<_, i64>(2)? == i64::from(content([], Some(&payload))) {
            mended.push((row.get(0)?, payload.into()));
        } else {
            log::error!(
                target: "eventbus", offset,
                "a mended payload in the log is damaged: its checksum is wrong; the audit log leaves it out"
            );
        }
    }
    Ok(mended)
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

    fn mended(&self, offset: Offset) -> BrokerFuture<Result<Vec<(String, Bytes)>, BrokerError>> {
        let readers = Arc::clone(&self.readers);
        BrokerFuture::new(async move { readers.read(move |reader| mended(reader, place(offset))).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteBroker;
    use eventbus_core::broker::Broker;
    use eventbus_core::{Envelope, Pattern, Topic};

    #[tokio::test]
    async fn what_is_behind_a_place_is_read_from_there_and_not_sorted_first() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        for topic in ["order.placed", "order.paid", "user.created"] {
            let event = Envelope::from_bytes(Topic::new(topic).unwrap(), "application/json", "{}".into());
            broker.publish(Arc::new(event)).await.unwrap();
        }
        let plan = async |pattern: &str, newest_first| {
            let mut query = AuditQuery::default();
            (query.pattern, query.after) = (Some(Pattern::new(pattern).unwrap()), Some(offset_of(1)));
            query.newest_first = newest_first;
            let explain = move |reader: &mut Reader| {
                let Asked { sql, parameters } = Asked::of(reader, &query)?;
                let mut plan = reader.connection.prepare(&format!("explain query plan {sql}"))?;
                let parameters: Vec<&dyn ToSql> = parameters.iter().map(|parameter| &**parameter).collect();
                let lines = plan.query_map(&parameters[..], |row| row.get::<_, String>("detail"))?;
                lines.collect::<rusqlite::Result<Vec<_>>>()
            };
            broker.store().readers.read(explain).await.unwrap().join("\n")
        };
        for pattern in ["order.>", "order.paid", "*.*", ">"] {
            for newest_first in [false, true] {
                let plan = plan(pattern, newest_first).await;
                assert!(!plan.contains("TEMP B-TREE"), "{pattern}, newest first {newest_first}: {plan}");
            }
        }
    }
}
