//! Rows and envelopes: how an event is written, and read back.

use crate::offsets::size;
use bytes::Bytes;
use crc32fast::Hasher;
use eventbus_core::{DecodeError, Envelope, EventId, Headers, Topic};
use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, Value, ValueRef};
use rusqlite::{Row, ToSql};
use serde_json::Value as Json;
use std::sync::Arc;

/// The columns that [`read`] takes, in its order.
pub(crate) const COLUMNS: &str = "e.offset, e.topic, e.id, e.source, e.type, e.version, e.time, e.subject, e.key, \
     e.content_type, e.correlation, e.causation, e.causation_depth, e.headers, e.payload, e.checksum, e.nanosecond, \
     e.stored";
/// How many columns these are; others follow.
pub(crate) const COLUMN_COUNT: usize = 18;

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

    /// The checksum of the row at `offset`, stored at `stored`.
    pub(crate) fn checksum(&self, offset: i64, stored: i64) -> u32 {
        let envelope = &self.envelope;
        let mut sum = Checksum::new(&[offset, envelope.version().into(), stored]);
        let (seconds, nanosecond) = seconds(envelope.time());
        sum.number(seconds);
        sum.number(nanosecond);
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

impl Record {
    /// How many bytes it takes.
    pub(crate) fn size(&self) -> usize {
        self.payload.len() + self.envelope.attributes_size()
    }
}

/// An event that was read.
pub(crate) struct Stored {
    pub(crate) offset: i64,
    /// In its final place, since it is handed on several times.
    pub(crate) envelope: Arc<Envelope>,
    /// Its size: the payload, and what stands around it.
    pub(crate) size: usize,
    /// Whether the row is what was written.
    pub(crate) intact: bool,
    /// Whether the payload is another one than the row's.
    pub(crate) mended: bool,
}

impl Stored {
    /// What is left of an event whose row cannot be read.
    pub(crate) fn unreadable(row: &Row<'_>, topic: Option<Topic>) -> rusqlite::Result<Self> {
        let topic = topic.unwrap_or(Topic::from_static("unreadable"));
        let payload = row.get_ref(14).ok().and_then(|payload| payload.as_bytes().ok()).unwrap_or_default();
        let payload = Bytes::copy_from_slice(payload);
        let envelope = Envelope::stored(topic, EventId::new(""), Timestamp::UNIX_EPOCH, payload);
        let size = size(&envelope);
        Ok(Self { offset: row.get(0)?, envelope: Arc::new(envelope), size, intact: false, mended: false })
    }

    /// The event with a payload that was mended, as far as that is `intact`.
    pub(crate) fn mend(&mut self, payload: Vec<u8>, intact: bool) {
        // Nobody else has it yet.
        let envelope = Envelope::clone(&self.envelope).with_payload(Bytes::from(payload));
        self.size = size(&envelope);
        self.envelope = Arc::new(envelope);
        self.intact &= intact;
        self.mended = true;
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
    let (seconds, nanosecond): (i64, i64) = (row.get(6)?, row.get(16)?);
    let subject = row.get_ref(7)?.as_str_or_null()?;
    let key = row.get_ref(8)?.as_str_or_null()?;
    let content_type = row.get_ref(9)?.as_str_or_null()?;
    let correlation = read_id(row.get_ref(10)?)?;
    let causation = read_id(row.get_ref(11)?)?;
    let depth: u32 = row.get(12)?;
    let headers = row.get_ref(13)?.as_str_or_null()?;
    let payload = row.get_ref(14)?.as_bytes()?;
    let checksum: i64 = row.get(15)?;
    let stored: i64 = row.get(17)?;

    let mut sum = Checksum::new(&[offset, version.into(), stored]);
    sum.number(seconds);
    sum.number(nanosecond);
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

    // One that is none does not fit the checksum either.
    let time = i32::try_from(nanosecond).ok().and_then(|nanosecond| Timestamp::new(seconds, nanosecond).ok());
    let intact = intact && time.is_some();
    let time = time.unwrap_or(Timestamp::UNIX_EPOCH);
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
    if correlation.is_some() || causation.is_some() || depth > 0 {
        let correlation = correlation.unwrap_or_else(|| envelope.id().clone());
        envelope = envelope.with_causes(correlation, causation, depth);
    }
    if let Some(headers) = headers {
        *envelope.headers_mut() = read_headers(headers);
    }
    let size = size(&envelope);
    Ok(Stored { offset, envelope: Arc::new(envelope), size, intact, mended: false })
}

/// The time of an event as it is written: the second since 1970 in which it lies, and the nanosecond of that second.
pub(crate) fn seconds(time: Timestamp) -> (i64, i64) {
    // Before 1970 both are negative.
    match (time.as_second(), i64::from(time.subsec_nanosecond())) {
        (second, nanosecond @ ..0) => (second - 1, nanosecond + 1_000_000_000),
        whole => whole,
    }
}

/// The time of a failure or of a retry, as it is written: nanoseconds since 1970, or its text where these do not fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredTime(pub(crate) Timestamp);

impl ToSql for StoredTime {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Owned(match i64::try_from(self.0.as_nanosecond()) {
            Ok(nanoseconds) => Value::Integer(nanoseconds),
            Err(_) => Value::Text(self.0.to_string()),
        }))
    }
}

impl FromSql for StoredTime {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let time = match value {
            ValueRef::Integer(nanoseconds) => Timestamp::from_nanosecond(nanoseconds.into()),
            text => text.as_str()?.parse(),
        };
        time.map(Self).map_err(FromSqlError::other)
    }
}

/// The checksum of what does not stand in the checksum of a row: its long texts, and its payload.
pub(crate) fn content<'a>(texts: impl IntoIterator<Item = &'a [u8]>, payload: Option<&[u8]>) -> u32 {
    let mut sum = Checksum::new(&[]);
    for text in texts {
        sum.number(text.len() as i64);
        sum.bytes(text);
    }
    sum.number(payload.map_or(-1, |payload| payload.len() as i64));
    sum.finish(payload.unwrap_or_default())
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
    fn new(numbers: &[i64]) -> Self {
        let mut sum = Self { sum: Hasher::new(), gathered: [0; 192], length: 0 };
        numbers.iter().for_each(|number| sum.number(*number));
        sum
    }

    #[inline]
    fn number(&mut self, number: i64) {
        self.short(number.to_le_bytes());
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
            Some((Some(uuid), _)) => self.short(uuid.to_le_bytes()),
            Some((None, id)) => self.text(Some(&id.to_string())),
            None => self.number(-1),
        }
    }

    /// As [`bytes`](Self::bytes), for so few of them that they are copied in place.
    #[inline]
    fn short<const N: usize>(&mut self, bytes: [u8; N]) {
        match self.gathered.get_mut(self.length..self.length + N) {
            Some(free) => {
                free.copy_from_slice(&bytes);
                self.length += N;
            }
            None => self.bytes(&bytes),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_its_second_also_before_1970() {
        for nanoseconds in [-2_000_000_001, -2_000_000_000, -1, 0, 1, 999_999_999, 1_000_000_000] {
            let (second, nanosecond) = seconds(Timestamp::from_nanosecond(nanoseconds).unwrap());
            assert!((0..1_000_000_000).contains(&nanosecond), "{nanoseconds}: {second} s, {nanosecond} ns");
            assert_eq!(i128::from(second) * 1_000_000_000 + i128::from(nanosecond), nanoseconds);
        }
        for time in [Timestamp::MIN, Timestamp::MAX] {
            let (second, nanosecond) = seconds(time);
            assert_eq!(Timestamp::new(second, i32::try_from(nanosecond).unwrap()).unwrap(), time);
        }
    }
}
