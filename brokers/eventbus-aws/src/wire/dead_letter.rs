//! Dead letters: an event as it was, and beside it what is said of its failure.

use super::{ContentMode, FAILURE, Message, Pairs, Written, pairs, read, write};
use eventbus_core::broker::{DeadLetter, FailureKind};
use eventbus_core::{DecodeError, Pattern};
use jiff::Timestamp;
use std::sync::Arc;

/// The queue that a dead letter goes again to.
const QUEUE: &str = "queue";

/// How much of a dead letter has found room beside its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Whole,
    /// Its reason, or the name of its handler too, is cut.
    Shortened,
    /// Only the payload is there: a message of another program left no room.
    Bare,
}

/// Writes a dead letter of at most so many bytes, for the queue of dead letters of its group. `queue` is the one it came
/// from.
pub(crate) fn write_dead_letter(
    letter: &DeadLetter,
    queue: &str,
    largest: usize,
) -> Result<(Written, Fit), DecodeError> {
    let mut written = write(&letter.envelope, ContentMode::Binary)?;
    let room = largest.saturating_sub(written.size() + FAILURE.len() + "String".len());
    let said = |reason: &str, handler: &str| {
        let mut said = Pairs::default();
        said.push(QUEUE, queue);
        for (name, value) in letter.headers().iter() {
            let name = name.trim_start_matches("eventbus-dead-letter-");
            said.push(
                name,
                match name {
                    "reason" => reason,
                    "handler" => handler,
                    _ => value,
                },
            );
        }
        said.0
    };
    let (mut reason, mut handler) = (letter.reason.as_str(), letter.handler.as_str());
    let mut failure = said(reason, handler);
    while failure.len() > room && !(reason.is_empty() && handler.is_empty()) {
        match reason {
            "" => handler = half(handler),
            _ => reason = half(reason),
        }
        failure = said(reason, handler);
    }
    if failure.len() > room {
        written.attributes.clear();
        return Ok((written, Fit::Bare));
    }
    written.attributes.push((FAILURE, failure));
    let whole = reason.len() == letter.reason.len() && handler.len() == letter.handler.len();
    Ok((written, if whole { Fit::Whole } else { Fit::Shortened }))
}

/// About the first half of a text.
fn half(text: &str) -> &str {
    let half = text.len() / 2;
    let cut = (0..=half).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[..cut]
}

/// A dead letter that was read, and the queue that it came from. None, where the message is none.
pub(crate) fn read_dead_letter(message: &Message<'_>) -> Option<(DeadLetter, String)> {
    let said = message.attributes.iter().find(|(name, _)| *name == FAILURE)?.1;
    let said: Vec<_> = pairs(said).collect();
    let take = |name: &str| said.iter().find(|(other, _)| other == name).map(|(_, value)| value.to_string());
    let time = |name: &str| take(name)?.parse::<Timestamp>().ok();
    let topic = take("topic")?;
    let envelope = read(message, &Pattern::new(&topic).ok()?);
    let letter = DeadLetter {
        envelope: Arc::new(envelope),
        group: take("group")?,
        handler: take("handler")?,
        kind: FailureKind::parse(&take("kind")?)?,
        reason: take("reason")?,
        attempts: take("attempts")?.parse().ok()?,
        first_failed_at: time("first-failed-at")?,
        last_failed_at: time("last-failed-at")?,
        offset: take("offset")?.parse().ok()?,
    };
    Some((letter, take(QUEUE)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batches::LARGEST;
    use crate::wire::tests::{any, message, parts, pattern};
    use crate::wire::{LARGEST_EVENT, MAX_PAYLOAD};
    use eventbus_core::broker::Offset;
    use eventbus_core::{Envelope, Topic};

    #[test]
    fn a_dead_letter_comes_back_and_fits_beside_the_largest_event() {
        let mut random = fastrand::Rng::with_seed(9);
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        for size in [0, 1_000, MAX_PAYLOAD] {
            let mut letter = DeadLetter {
                envelope: Arc::new(any(&mut random).with_payload(vec![7; size].into())),
                group: "shop.mail".to_owned(),
                handler: "shop::mail (src/main.rs:7)".to_owned(),
                kind: FailureKind::Failed,
                reason: "ü & = % \n".to_owned(),
                attempts: 3,
                first_failed_at: time,
                last_failed_at: time,
                offset: Offset::new(u128::MAX),
            };
            let (written, fit) = write_dead_letter(&letter, "q", LARGEST).unwrap();
            assert!(written.attributes.len() <= 10 && fit == Fit::Whole);
            let (read, queue) = read_dead_letter(&message(&written)).unwrap();
            assert_eq!((queue.as_str(), &read.reason), ("q", &letter.reason));
            assert_eq!(format!("{:?}", read.headers()), format!("{:?}", letter.headers()));
            assert_eq!(parts(&read.envelope), parts(&letter.envelope));
            letter.reason = "ü".repeat(4_096);
            let (written, fit) = write_dead_letter(&letter, "q", LARGEST).unwrap();
            assert!(written.size() <= LARGEST, "{}", written.size());
            assert_eq!(fit == Fit::Whole, size < MAX_PAYLOAD);
            assert!(letter.reason.starts_with(&read_dead_letter(&message(&written)).unwrap().0.reason));
        }
    }

    #[test]
    fn each_event_that_is_published_or_that_sqs_carries_has_a_dead_letter_that_can_be_stored() {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        for room in (0..6_000).step_by(97) {
            // Filled up with a header to some bytes below the largest message.
            let event = Envelope::from_bytes(Topic::from_static("a.b"), "text/plain", vec![b'x'; 9].into());
            let with = |note: usize| event.clone().with_header("note", "n".repeat(note));
            let empty = write(&with(0), ContentMode::Binary).unwrap().size();
            let event = with(LARGEST - room - empty);
            let size = write(&event, ContentMode::Binary).unwrap().size();
            assert_eq!(size, LARGEST - room);
            let letter = DeadLetter {
                envelope: Arc::new(event),
                group: "shop.mail".repeat(10),
                handler: "shop::mail (src/main.rs:7)".repeat(9),
                kind: FailureKind::Failed,
                reason: "ü".repeat(9_000),
                attempts: 3,
                first_failed_at: time,
                last_failed_at: time,
                offset: Offset::new(u128::MAX),
            };
            let (written, fit) = write_dead_letter(&letter, &"q".repeat(80), LARGEST).unwrap();
            assert!(written.size() <= LARGEST, "{}", written.size());
            let read = read_dead_letter(&message(&written));
            assert_eq!(read.is_some(), fit == Fit::Shortened, "{room}");
            if size <= LARGEST_EVENT {
                let reason = read.unwrap().0.reason;
                assert!(reason.len() > 99, "there is room for a reason: {reason}");
            }
            let (written, fit) = write_dead_letter(&letter, "q", 4 * LARGEST).unwrap();
            assert!(fit == Fit::Whole && read_dead_letter(&message(&written)).is_some());
        }
        // A message of another program that is as large as a message may be.
        let message =
            Message { id: "42", time, group: None, attributes: Vec::new(), body: &"x".repeat(LARGEST) };
        let envelope = Arc::new(read(&message, &pattern("a.b")));
        let letter = DeadLetter {
            envelope,
            group: "mail".to_owned(),
            handler: "mail".to_owned(),
            kind: FailureKind::Damaged,
            reason: "why".to_owned(),
            attempts: 0,
            first_failed_at: time,
            last_failed_at: time,
            offset: Offset::new(1),
        };
        let (written, fit) = write_dead_letter(&letter, "q", LARGEST).unwrap();
        assert!(fit == Fit::Bare && written.size() == LARGEST && written.body == message.body);
    }
}
