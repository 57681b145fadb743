//! The id of an event.

use jiff::Timestamp;
use smol_str::SmolStr;
use std::fmt;
use uuid::Uuid;

/// The id of an event, unique together with its source (CloudEvents `id`).
///
/// Events published here get a UUID v7 ([RFC 9562](https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7)),
/// so ids sort by publish time; an event from outside keeps whatever text it came with.
///
/// ```
/// use eventbus_core::EventId;
///
/// let id = EventId::new("order-1042/placed");
/// assert_eq!(id.to_string(), "order-1042/placed");
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Repr);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Uuid(Uuid),
    Text(SmolStr),
}

impl EventId {
    /// An id that comes from outside.
    #[must_use]
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        match Uuid::try_parse(text) {
            // Other spellings of a UUID stay text, so that an id is written back exactly as it was read.
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text => {
                Self(Repr::Uuid(uuid))
            }
            _ => Self(Repr::Text(SmolStr::new(text))),
        }
    }

    /// A fresh UUID v7 for an event that happened at `time`.
    pub(crate) fn at(time: Timestamp) -> Self {
        let millis = u64::try_from(time.as_millisecond()).unwrap_or(0);
        let (low, high) = (fastrand::u64(..).to_le_bytes(), fastrand::u16(..).to_le_bytes());
        let random = [low[0], low[1], low[2], low[3], low[4], low[5], low[6], low[7], high[0], high[1]];
        Self(Repr::Uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()))
    }

    /// The id of a UUID that a broker stored as a number.
    #[must_use]
    pub const fn from_u128(uuid: u128) -> Self {
        Self(Repr::Uuid(Uuid::from_u128(uuid)))
    }

    /// The id as a number of 128 bits, where it is a UUID.
    #[must_use]
    pub fn as_u128(&self) -> Option<u128> {
        match &self.0 {
            Repr::Uuid(uuid) => Some(uuid.as_u128()),
            Repr::Text(_) => None,
        }
    }
}

impl EventId {
    /// How many bytes its text has.
    pub(crate) fn size(&self) -> usize {
        match &self.0 {
            Repr::Uuid(_) => uuid::fmt::Hyphenated::LENGTH,
            Repr::Text(text) => text.len(),
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Repr::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_survive_text() {
        let early = EventId::at(Timestamp::from_second(1_700_000_000).unwrap());
        let late = EventId::at(Timestamp::from_second(1_700_000_001).unwrap());
        assert!(early < late);
        assert_eq!(EventId::new(early.to_string()), early);
        assert_eq!(&early.to_string()[14..15], "7");
    }

    #[test]
    fn a_foreign_id_is_kept_to_the_letter() {
        for text in ["A234-1234-1234", "01934F6C-7E2A-7B3C-8D4E-5F6A7B8C9D0E", "é"] {
            assert_eq!(EventId::new(text).to_string(), text);
        }
    }
}
