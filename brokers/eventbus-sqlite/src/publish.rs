//! Publishing: rows of events, written by the writer's transaction.

use crate::cache::Recent;
use crate::wire::{Record, StoredId, seconds};
use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, ErrorCode, OptionalExtension};

const INSERT: &str = "insert into event (offset, topic, id, source, type, version, time, nanosecond, stored, subject, \
     key, content_type, correlation, causation, causation_depth, headers, payload, checksum) \
     values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18) \
     on conflict (id, source) do nothing";

const TOPIC_OF: &str =
    "select t.name from event e join topic t on t.id = e.topic where e.id = ?1 and e.source = ?2";

/// The numbers of the names that were written so far.
#[derive(Default)]
pub(crate) struct NumbersByName {
    topics: Recent<String, i64>,
    sources: Recent<String, i64>,
}

impl NumbersByName {
    fn topic(&mut self, connection: &Connection, name: &str) -> rusqlite::Result<i64> {
        self.topics.get_or(name, || number(connection, "topic", name))
    }

    fn source(&mut self, connection: &Connection, name: &str) -> rusqlite::Result<i64> {
        self.sources.get_or(name, || number(connection, "source", name))
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

/// Writes events, one after the other.
pub(crate) struct Insert<'a> {
    connection: &'a Connection,
    statement: CachedStatement<'a>,
    names: &'a mut NumbersByName,
    stored: i64,
}

impl<'a> Insert<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        names: &'a mut NumbersByName,
        stored: Timestamp,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            statement: connection.prepare_cached(INSERT)?,
            names,
            stored: stored.as_microsecond(),
        })
    }

    /// Writes an event at `offset`. `false`: it is there already.
    pub(crate) fn write(&mut self, offset: i64, record: &Record) -> rusqlite::Result<bool> {
        let envelope = &record.envelope;
        let topic = self.names.topic(self.connection, envelope.topic().as_str())?;
        let source = self.names.source(self.connection, envelope.source())?;
        let (time, nanosecond) = seconds(envelope.time());
        let written = self.statement.execute(rusqlite::params![
            offset,
            topic,
            StoredId(envelope.id()),
            source,
            record.event_type(),
            envelope.version(),
            time,
            nanosecond,
            self.stored,
            envelope.subject(),
            envelope.key(),
            record.content_type(),
            record.correlation().map(StoredId),
            envelope.causation_id().map(StoredId),
            envelope.causation_depth(),
            record.headers,
            &record.payload[..],
            record.checksum(offset, self.stored),
        ])?;
        Ok(written > 0)
    }

    /// What to say of an event that is there already, where it is not the one on this topic.
    pub(crate) fn is_another(&mut self, record: &Record) -> rusqlite::Result<Option<String>> {
        let envelope = &record.envelope;
        let source = self.names.source(self.connection, envelope.source())?;
        let topic: String = self
            .connection
            .prepare_cached(TOPIC_OF)?
            .query_row(rusqlite::params![StoredId(envelope.id()), source], |row| row.get(0))?;
        Ok((topic != envelope.topic().as_str()).then(|| {
            format!(
                "its id `{}` is that of another event of its source, on \"{topic}\"; give each event an id of its own",
                envelope.id()
            )
        }))
    }
}

/// Whether an error is about the one event, so that others in the transaction are not touched by it.
pub(crate) fn is_of_one(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
    )
}
