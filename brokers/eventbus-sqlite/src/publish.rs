//! Publishing: rows of events, written by the writer's transaction.

use crate::wire::{Record, StoredId, nanoseconds};
use eventbus_core::Topic;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use std::collections::HashMap;

const INSERT: &str = "insert into event (offset, topic, id, source, type, version, time, stored, subject, key, \
     content_type, correlation, causation, causation_depth, headers, payload, checksum) \
     values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17) \
     on conflict (id, source) do nothing";

/// The numbers of the names that were written so far.
#[derive(Default)]
pub(crate) struct Names {
    topics: HashMap<Topic, i64>,
    sources: HashMap<String, i64>,
}

impl Names {
    fn topic(&mut self, connection: &Connection, topic: &Topic) -> rusqlite::Result<i64> {
        if let Some(number) = self.topics.get(topic) {
            return Ok(*number);
        }
        let number = number(connection, "topic", topic.as_str())?;
        self.topics.insert(topic.clone(), number);
        Ok(number)
    }

    fn source(&mut self, connection: &Connection, source: &str) -> rusqlite::Result<i64> {
        if let Some(number) = self.sources.get(source) {
            return Ok(*number);
        }
        let number = number(connection, "source", source)?;
        self.sources.insert(source.to_owned(), number);
        Ok(number)
    }
}

fn number(connection: &Connection, table: &str, name: &str) -> rusqlite::Result<i64> {
    let known = connection
        .prepare_cached(&format!("select id from {table} where name = ?1"))?
        .query_row([name], |row| row.get(0))
        .optional()?;
    match known {
        Some(number) => Ok(number),
        None => {
            connection.prepare_cached(&format!("insert into {table} (name) values (?1)"))?.execute([name])?;
            Ok(connection.last_insert_rowid())
        }
    }
}

/// Writes an event at `offset`. `false`: it is there already.
pub(crate) fn insert(
    connection: &Connection,
    names: &mut Names,
    offset: i64,
    stored: Timestamp,
    record: &Record,
) -> rusqlite::Result<bool> {
    let envelope = &record.envelope;
    let (topic, source) =
        (names.topic(connection, envelope.topic())?, names.source(connection, envelope.source())?);
    let written = connection.prepare_cached(INSERT)?.execute(rusqlite::params![
        offset,
        topic,
        StoredId(envelope.id()),
        source,
        record.event_type(),
        envelope.version(),
        nanoseconds(envelope.time()),
        nanoseconds(stored),
        envelope.subject(),
        envelope.key(),
        record.content_type(),
        record.correlation().map(StoredId),
        envelope.causation_id().map(StoredId),
        envelope.causation_depth(),
        record.headers,
        &record.payload[..],
        record.checksum(offset),
    ])?;
    Ok(written > 0)
}

/// Whether an error is about the one event, so that others in the transaction are not touched by it.
pub(crate) fn is_of_one(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
    )
}
