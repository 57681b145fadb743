//! Rows and envelopes: how an event is written, and read back.

use bytes::Bytes;
use crc32fast::Hasher;
use eventbus_core::{DecodeError, Envelope, EventId, Headers, Topic};
use jiff::Timestamp;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Row, ToSql};
use serde_json::Value as Json;
use std::sync::Arc;

/// The columns that [`read`] takes, in its order.
pub(crate) const COLUMNS: &str = "e.offset, e.topic, e.id, e.source, e.type, e.version, e.time, e.subject, e.key, \
     e.content_type, e.correlation, e.causation, e.causation_depth, e.headers, e.payload, e.checksum";

/// What `datacontenttype` is where the column is empty.
const JSON: &str = "application/json";

/// An envelope as it is written; encoded by whoever publishes, so that the writer only writes.
pub(crate) struct Record {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) payload: Bytes,
    pub(crate) headers: Option<String>,
}

impl Record {
    pub(crate) fn new(envelope: Arc<Envelope>) -> Result<Self, DecodeError> {
        let payload = envelope.payload()?.clone();
        let headers = (!envelope.headers().is_empty()).then(|| write_headers(envelope.headers()));
        Ok(Self { envelope, payload, headers })
    }

    pub(crate) fn event_type(&self) -> Option<&str> {
        let event_type = self.envelope.event_type();
        (event_type != self.envelope.topic().as_str()).then_some(event_type)
    }

    pub(crate) fn content_type(&self) -> Option<&str> {
        Some(self.envelope.content_type()).filter(|content_type| *content_type != JSON)
    }

    pub(crate) fn correlation(&self) -> Option<&EventId> {
        Some(self.envelope.correlation_id()).filter(|id| *id != self.envelope.id())
    }

    /// The checksum of the row at `offset`.
    pub(crate) fn checksum(&self, offset: i64) -> u32 {
        let envelope = &self.envelope;
        let mut sum = Checksum::new(offset, envelope.version(), nanoseconds(envelope.time()));
        sum.text(Some(envelope.topic().as_str()));
        sum.text(Some(envelope.source()));
        sum.id(Some(envelope.id()));
        sum.text(self.event_type());
        sum.text(envelope.subject());
        sum.text(envelope.key());
        sum.text(self.content_type());
        sum.id(self.correlation());
        sum.id(envelope.causation_id());
        sum.number(envelope.causation_depth().into());
        sum.text(self.headers.as_deref());
        sum.finish(&self.payload)
    }
}

/// An event that was read.
pub(crate) struct Stored {
    pub(crate) offset: i64,
    pub(crate) envelope: Envelope,
    /// Whether the row is what was written.
    pub(crate) intact: bool,
}

impl Stored {
    /// What is left of an event whose row cannot be read.
    pub(crate) fn unreadable(row: &Row<'_>, topic: Option<Topic>) -> rusqlite::Result<Self> {
        let topic = topic.unwrap_or(Topic::from_static("unreadable"));
        let payload = row.get_ref(14).ok().and_then(|payload| payload.as_bytes().ok()).unwrap_or_default();
        let payload = Bytes::copy_from_slice(payload);
        let envelope = Envelope::stored(topic, EventId::new(""), Timestamp::UNIX_EPOCH, payload);
        Ok(Self { offset: row.get(0)?, envelope, intact: false })
    }
}

/// Whether an error tells of bytes that are not what was written, where SQLite has no objection to them.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
    )
}

/// Reads a row of [`COLUMNS`]; `topic` and `source` are the names behind its numbers.
pub(crate) fn read(row: &Row<'_>, topic: Topic, source: &str) -> rusqlite::Result<Stored> {
    let offset: i64 = row.get(0)?;
    let id = read_id(row.get_ref(2)?)?.unwrap_or_else(|| EventId::new(""));
    let event_type = row.get_ref(4)?.as_str_or_null()?;
    let version: u32 = row.get(5)?;
    let time: i64 = row.get(6)?;
    let subject = row.get_ref(7)?.as_str_or_null()?;
    let key = row.get_ref(8)?.as_str_or_null()?;
    let content_type = row.get_ref(9)?.as_str_or_null()?;
    let correlation = read_id(row.get_ref(10)?)?;
    let causation = read_id(row.get_ref(11)?)?;
    let depth: u32 = row.get(12)?;
    let headers = row.get_ref(13)?.as_str_or_null()?;
    let payload = row.get_ref(14)?.as_bytes()?;
    let checksum: i64 = row.get(15)?;

    let mut sum = Checksum::new(offset, version, time);
    sum.text(Some(topic.as_str()));
    sum.text(Some(source));
    sum.id(Some(&id));
    sum.text(event_type);
    sum.text(subject);
    sum.text(key);
    sum.text(content_type);
    sum.id(correlation.as_ref());
    sum.id(causation.as_ref());
    sum.number(depth.into());
    sum.text(headers);
    let intact = i64::from(sum.finish(payload)) == checksum;

    let time = Timestamp::from_nanosecond(time.into()).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut envelope = Envelope::stored(topic, id, time, Bytes::copy_from_slice(payload))
        .with_source(source)
        .with_version(version);
    if let Some(event_type) = event_type {
        envelope = envelope.with_type(event_type);
    }
    if let Some(subject) = subject {
        envelope = envelope.with_subject(subject);
    }
    if let Some(key) = key {
        envelope = envelope.with_key(key);
    }
    if let Some(content_type) = content_type {
        envelope = envelope.with_content_type(content_type);
    }
    if correlation.is_some() || causation.is_some() {
        let correlation = correlation.unwrap_or_else(|| envelope.id().clone());
        envelope = envelope.with_causes(correlation, causation, depth);
    }
    if let Some(headers) = headers {
        *envelope.headers_mut() = read_headers(headers);
    }
    Ok(Stored { offset, envelope, intact })
}

/// A time as it is written.
pub(crate) fn nanoseconds(time: Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// A time as it was written.
pub(crate) fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// An id as it is written: 16 bytes for a UUID, its text otherwise.
#[derive(Clone, Copy)]
pub(crate) struct StoredId<'a>(pub(crate) &'a EventId);

impl ToSql for StoredId<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self.0.as_u128() {
            Some(uuid) => ToSqlOutput::Owned(Value::Blob(uuid.to_be_bytes().to_vec())),
            None => ToSqlOutput::Owned(Value::Text(self.0.to_string())),
        })
    }
}

fn read_id(value: ValueRef<'_>) -> rusqlite::Result<Option<EventId>> {
    Ok(match value {
        ValueRef::Null => None,
        ValueRef::Blob(bytes) => match <[u8; 16]>::try_from(bytes) {
            Ok(bytes) => Some(EventId::from_u128(u128::from_be_bytes(bytes))),
            Err(_) => Some(EventId::new(String::from_utf8_lossy(bytes))),
        },
        text => Some(EventId::new(text.as_str()?)),
    })
}

/// Headers as a JSON object; a name that has several values stands in it several times.
fn write_headers(headers: &Headers) -> String {
    let pairs: Vec<_> =
        headers.iter().map(|(name, value)| format!("{}:{}", Json::from(name), Json::from(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

fn read_headers(text: &str) -> Headers {
    let mut reader = serde_json::Deserializer::from_str(text);
    serde::Deserializer::deserialize_map(&mut reader, Pairs).unwrap_or_default()
}

struct Pairs;

impl<'de> serde::de::Visitor<'de> for Pairs {
    type Value = Headers;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Headers::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            headers.append(name, value);
        }
        Ok(headers)
    }
}

/// The checksum of a row: of each field with its length, so that no two rows spell the same bytes.
struct Checksum {
    sum: Hasher,
    /// Short fields are gathered here first, since each call to the hasher has its price.
    gathered: [u8; 192],
    length: usize,
}

impl Checksum {
    fn new(offset: i64, version: u32, time: i64) -> Self {
        let mut sum = Self { sum: Hasher::new(), gathered: [0; 192], length: 0 };
        sum.number(offset);
        sum.number(version.into());
        sum.number(time);
        sum
    }

    fn number(&mut self, number: i64) {
        self.bytes(&number.to_le_bytes());
    }

    fn text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => {
                self.number(text.len() as i64);
                self.bytes(text.as_bytes());
            }
            None => self.number(-1),
        }
    }

    fn id(&mut self, id: Option<&EventId>) {
        match id.map(|id| (id.as_u128(), id)) {
            Some((Some(uuid), _)) => self.bytes(&uuid.to_le_bytes()),
            Some((None, id)) => self.text(Some(&id.to_string())),
            None => self.number(-1),
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > self.gathered.len() {
            self.sum.update(&self.gathered[..self.length]);
            self.length = 0;
        }
        match self.gathered.get_mut(self.length..self.length + bytes.len()) {
            Some(free) => {
                free.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.sum.update(bytes),
        }
    }

    fn finish(mut self, payload: &[u8]) -> u32 {
        self.sum.update(&self.gathered[..self.length]);
        self.sum.update(payload);
        self.sum.finalize()
    }
}
