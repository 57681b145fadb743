//! What is known of a retry that waits, in a key-value bucket: it survives a crash of the process that waits.

use crate::config::Settings;
use crate::publish::Other;
use async_nats::HeaderMap;
use eventbus_core::broker::Parked;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A note, as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The next attempt.
    attempt: u32,
    first_failed_at: String,
    last_failed_at: String,
    due: String,
}

/// The message that writes a note.
pub(crate) fn write(
    settings: &Settings,
    consumer: &str,
    sequence: u64,
    attempt: u32,
    parked: Parked,
) -> Other {
    let note = serde_json::to_vec(&Note {
        attempt,
        first_failed_at: parked.first_failed_at.to_string(),
        last_failed_at: parked.last_failed_at.to_string(),
        due: parked.due.to_string(),
    });
    Other {
        subject: settings.note_subject(consumer, sequence),
        headers: HeaderMap::new(),
        payload: note.expect("numbers and texts have a form in JSON").into(),
    }
}

/// Reads a note. None, where it is not one: attempts are counted anew then.
pub(crate) fn read(note: &[u8]) -> Option<(u32, Parked)> {
    let note: Note = serde_json::from_slice(note).ok()?;
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let (first_failed_at, last_failed_at) = (time(&note.first_failed_at)?, time(&note.last_failed_at)?);
    Some((note.attempt.max(1), Parked { first_failed_at, last_failed_at, due: time(&note.due)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is_one() {
        let settings = crate::config::NatsBrokerBuilder::parse("nats://a").unwrap().0;
        let time = |second| Timestamp::from_second(second).unwrap();
        let parked = Parked { first_failed_at: time(1), last_failed_at: time(2), due: time(3) };
        let message = write(&settings, "group-1", 7, 4, parked);
        assert_eq!(message.subject, "$KV.EVENTBUS-PARKED.group-1.7");
        assert_eq!(read(&message.payload), Some((4, parked)));
        for other in ["", "{}", "[1]", "{\"attempt\":-1}"] {
            assert_eq!(read(other.as_bytes()), None);
        }
    }
}
