//! What is known of a retry that waits, in a key-value bucket: it survives a crash of the process that waits.

use crate::config::Settings;
use crate::connection::{Link, Refusal};
use crate::intake::Which;
use crate::publish::Other;
use crate::subscription::{Stale, Subscription};
use crate::suspects::Begun;
use crate::unreadable;
use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::Parked;
use eventbus_core::log;
use eventbus_core::printable::printable;
use futures_util::future::try_join;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So long after it could not be looked at the bucket is asked again; longer each time, up to ten times that.
const PAUSE: Duration = Duration::from_millis(100);

/// A note, as it is written.
#[derive(Debug, Serialize)]
struct Note {
    /// The next attempt.
    attempt: u32,
    first_failed_at: String,
    last_failed_at: String,
    due: String,
    /// When the event was stored: it is not the one of that number in a stream that is made later.
    stored: String,
}

/// The message that writes a note.
pub(crate) fn write(
    settings: &Settings,
    consumer: &str,
    which: Which,
    attempt: u32,
    parked: Parked,
) -> Other {
    let note = serde_json::to_vec(&Note {
        attempt,
        first_failed_at: parked.first_failed_at.to_string(),
        last_failed_at: parked.last_failed_at.to_string(),
        due: parked.due.to_string(),
        stored: which.stored.to_string(),
    });
    Other {
        subject: settings.note_subject(consumer, which.sequence),
        headers: HeaderMap::new(),
        payload: note.expect("numbers and texts have a form in JSON").into(),
    }
}

/// Whether a note is of an event that was stored then, as far as the note says that.
fn is_of(note: &[u8], stored: Timestamp) -> bool {
    #[derive(Deserialize)]
    struct Of {
        stored: String,
    }
    serde_json::from_slice::<Of>(note).map_or(true, |of| of.stored == stored.to_string())
}

/// Reads a note: the next attempt, and what it waits for. Of one that cannot be read as a whole the attempt, if that can be
/// told.
pub(crate) fn read(note: &[u8]) -> Result<(u32, Option<Parked>), Option<u32>> {
    let value: serde_json::Value = serde_json::from_slice(note).map_err(|_| None)?;
    let attempt = value.get("attempt").and_then(serde_json::Value::as_u64);
    let attempt = attempt.map(|attempt| u32::try_from(attempt).unwrap_or(u32::MAX).max(1)).ok_or(None)?;
    let time = |name: &str| value.get(name)?.as_str()?.parse::<Timestamp>().ok();
    let parked = || {
        let (first_failed_at, last_failed_at) = (time("first_failed_at")?, time("last_failed_at")?);
        Some(Parked { first_failed_at, last_failed_at, due: time("due")? })
    };
    parked().map(|parked| (attempt, Some(parked))).ok_or(Some(attempt))
}

/// Which notes there are of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// When it is to be tried again.
    retry: bool,
    /// That a handler was called with it.
    begun: bool,
}

impl Noted {
    /// It is not known, so both are looked for.
    pub(crate) const ALL: Self = Self { retry: true, begun: true };
}

impl Subscription {
    /// What was noted of an event that was delivered before, and that a handler was called with it, as far as there are such
    /// notes.
    pub(crate) async fn note(
        &self,
        epoch: u64,
        sequence: u64,
        noted: Noted,
    ) -> (Option<Bytes>, Option<Begun>) {
        let (link, consumer) = (&self.link, &self.consumer);
        let retry = || async { if noted.retry { link.note(consumer, sequence).await } else { Ok(None) } };
        let begun = || async { if noted.begun { link.begun(consumer, sequence).await } else { Ok(None) } };
        let found = self.ask_bucket(epoch, || try_join(retry(), begun())).await;
        // What is noted of an event of a former stream had the same number.
        let stored = self.state.lock().intake.stored(sequence);
        let (Some((note, begun)), Some(stored)) = (found, stored) else { return (None, None) };
        (note.filter(|note| is_of(note, stored)), begun.filter(|begun| begun.is_of(stored)))
    }

    /// Of which events something is noted.
    pub(crate) async fn which_are_noted(&self) -> HashMap<u64, Noted> {
        let epoch = self.epoch.load(Ordering::Acquire);
        self.ask_bucket(epoch, || self.link.which_are_noted(&self.consumer)).await.unwrap_or_default()
    }

    /// Asks the bucket until it answers, or nothing is held any more of that epoch: an event that was tried before is not
    /// taken for a new one because the bucket was away.
    async fn ask_bucket<T, F>(&self, epoch: u64, ask: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        for tried in 1_u32.. {
            // An answer may be lost with a connection.
            let refusal = match self.link.insist(&ask).await {
                Ok(found) => return Some(found),
                Err(refusal) => refusal,
            };
            if !self.is_of(epoch) {
                break;
            }
            if tried == 3 {
                let what = format_args!(
                    "look how often an event of the group `{}` was tried, which waits for that",
                    self.group
                );
                self.state.fail(self.link.explain(what, refusal));
            }
            tokio::time::sleep(PAUSE * tried.min(10)).await;
        }
        None
    }

    /// What is noted and does not hold any more, goes.
    pub(crate) async fn forget(&self, stale: Stale) {
        match stale {
            Stale::Retry(sequence) => self.link.remove_note(&self.consumer, sequence).await,
            Stale::Begun(sequence, after) => self.take_back(sequence, after).await,
        }
    }
}

impl Link {
    /// What was noted of an event for a consumer.
    pub(crate) async fn note(&self, consumer: &str, sequence: u64) -> Result<Option<Bytes>, Refusal> {
        self.noted(&self.settings.note_subject(consumer, sequence)).await
    }

    /// Of which events of a consumer something is noted.
    pub(crate) async fn noted_sequences(&self, consumer: &str) -> Result<HashSet<u64>, BrokerError> {
        let noted = self.which_are_noted(consumer).await;
        let what = format_args!("look at the stream `KV_{}`", self.settings.parked());
        Ok(noted.map_err(|refusal| self.explain(what, refusal))?.into_keys().collect())
    }

    /// The same, and what it is. A bucket that is gone has nothing.
    async fn which_are_noted(&self, consumer: &str) -> Result<HashMap<u64, Noted>, Refusal> {
        let bucket = format!("KV_{}", self.settings.parked());
        let counts = match self.counts(&bucket, &self.settings.notes_subject(consumer)).await {
            Err(refusal) if refusal.is(ErrorCode::STREAM_NOT_FOUND) => return Ok(HashMap::new()),
            counts => counts?,
        };
        let mut noted: HashMap<u64, Noted> = HashMap::new();
        for (subject, _) in counts {
            let mut tokens = subject.split('.').skip(3);
            let Some(sequence) = tokens.next().and_then(|token| token.parse().ok()) else { continue };
            let of_event = noted.entry(sequence).or_default();
            match tokens.next() {
                None => of_event.retry = true,
                Some(_) => of_event.begun = true,
            }
        }
        Ok(noted)
    }

    /// What the bucket has under a subject. A bucket that is gone has nothing.
    pub(crate) async fn noted(&self, subject: &str) -> Result<Option<Bytes>, Refusal> {
        let bucket = format!("KV_{}", self.settings.parked());
        match self.stored(&bucket, unreadable::Which { seq: 1, next_by_subj: Some(subject) }).await {
            Ok(found) => Ok(found.filter(|found| !is_removed(&found.headers)).map(|found| found.payload)),
            Err(refusal) if refusal.is(ErrorCode::STREAM_NOT_FOUND) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Removes everything that was noted of events of a consumer.
    pub(crate) async fn remove_notes(&self, consumer: &str) -> Result<(), BrokerError> {
        self.purge_notes(&self.settings.notes_subject(consumer), None).await
    }

    /// Removes what was noted of an event that is settled. Where it stays, it is of no use to anybody, and goes with the
    /// group.
    pub(crate) async fn remove_note(&self, consumer: &str, sequence: u64) {
        let removed = self.purge_notes(&self.settings.note_subject(consumer, sequence), None).await;
        if let Err(error) = removed {
            log::debug!(
                target: "eventbus", error = %printable(&error.to_string()),
                "what was noted of an event that is settled could not be removed"
            );
        }
    }
}

/// Whether it says that what was there is removed, as `nats kv del` writes it.
fn is_removed(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is_one() {
        let settings = crate::config::NatsBrokerBuilder::parse("nats://a").unwrap().0;
        let time = |second| Timestamp::from_second(second).unwrap();
        let parked = Parked { first_failed_at: time(1), last_failed_at: time(2), due: time(3) };
        let which = Which { sequence: 7, stored: Timestamp::from_nanosecond(4_000_000_005).unwrap() };
        let message = write(&settings, "group-1", which, 4, parked);
        assert_eq!(message.subject, "$KV.EVENTBUS-PARKED.group-1.7");
        assert_eq!(read(&message.payload), Ok((4, Some(parked))));
        assert!(is_of(&message.payload, which.stored) && !is_of(&message.payload, time(4)));
        assert!(is_of(b"{\"attempt\":4}", time(4)), "it does not say of which it is");
        for other in ["", "{}", "[1]", "{\"attempt\":-1}"] {
            assert_eq!(read(other.as_bytes()), Err(None), "{other}");
        }
        for part in ["{\"attempt\":4}", "{\"attempt\":4,\"due\":\"soon\"}"] {
            assert_eq!(read(part.as_bytes()), Err(Some(4)), "{part}");
        }
    }
}
