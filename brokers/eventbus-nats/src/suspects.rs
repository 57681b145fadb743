//! Events that may have ended a process.
//!
//! JetStream says of a delivery how often it was made, and with that which events were open when a process ended; not which
//! of them was in a handler. So what is delivered again is noted in the bucket right before its handler is called. What is
//! noted by another process, and not settled, is a suspect: suspects have turns, one at a time in the whole process, and the
//! one whose turn it is when the process ends is charged with that, and nothing else is.
//!
//! What is delivered for the first time costs nothing: it is not noted.

use crate::connection::Link;
use crate::publish::{Other, Outlet};
use crate::subscription::Subscription;
use async_nats::HeaderMap;
use eventbus_core::BrokerError;
use eventbus_core::broker::suspects::{self as shared, Attempt, Note, Suspect, Turn};
use eventbus_core::broker::{Begin, BrokerFuture};
use eventbus_core::log;
use eventbus_core::printable::printable;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is tried to take back what is noted of an event that has ended no process.
const TRIES: u32 = 5;
/// How long before each of these tries, times its number.
const PAUSE: Duration = Duration::from_millis(100);

/// What is noted of an event before its handler is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// The process that has called it.
    process: String,
    /// Its handler was called, and did not end as far as that process knew.
    begun: bool,
    /// No other suspect was in a handler.
    alone: bool,
    crashes: u32,
    outlasted: u32,
    /// When the event was stored: it is not the one of that number in a stream that is made later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored: Option<String>,
}

impl Begun {
    /// Whether it was noted of an event that was stored then, as far as it says that.
    pub(crate) fn is_of(&self, stored: Timestamp) -> bool {
        self.stored.as_ref().is_none_or(|text| *text == stored.to_string())
    }
}

/// A delivery: the number of its subscription in this process, and its place.
type Which = (u64, u64);

/// What a subscription knows of events that were delivered before, by their places. A plain value.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Those that are noted before their handlers are called, and whether something of them is in the bucket.
    again: HashMap<u64, bool>,
    /// Those of them that may have ended a process.
    suspects: shared::Suspects<u64>,
}

impl Suspects {
    /// An event was delivered again, and this is noted of it; `process` is this one.
    pub(crate) fn find(&mut self, sequence: u64, begun: Option<&Begun>, process: &str) {
        self.suspects.forget(sequence);
        self.again.insert(sequence, begun.is_some());
        if let Some(begun) = begun {
            // What this process has begun has not ended it.
            let elsewhere = begun.begun && begun.process != process;
            let crashes = begun.crashes.saturating_add(u32::from(elsewhere && begun.alone));
            if elsewhere || crashes > 0 {
                self.suspects.add(sequence, Suspect { crashes, outlasted: begun.outlasted });
            }
        }
    }

    fn are_there(&self) -> bool {
        !self.again.is_empty()
    }

    /// Whether it is to be handled alone.
    pub(crate) fn contains(&self, sequence: u64) -> bool {
        self.suspects.contains(sequence)
    }

    /// How often the process ended while it had its turn.
    pub(crate) fn crashes(&self, sequence: u64) -> u32 {
        self.suspects.crashes(sequence)
    }

    /// The attempt of a delivery that was handed out without the crashes, which are added when it is handed out again.
    pub(crate) fn uncounted(&self, sequence: u64, attempt: u32) -> u32 {
        self.suspects.uncounted(sequence, attempt)
    }

    /// A handler is about to be called.
    fn begin(&mut self, which: Which, turn: &mut Turn<Which>) -> Attempt<Which> {
        let (_, sequence) = which;
        let Some(noted) = self.again.get_mut(&sequence) else { return Attempt::Free };
        let attempt = match self.suspects.begin(sequence, which, turn, Instant::now()) {
            Attempt::Free => Attempt::Noted { note: Note { alone: false, outlasted: None }, crashes: 0 },
            attempt => attempt,
        };
        *noted |= matches!(attempt, Attempt::Noted { .. });
        attempt
    }

    /// An attempt has ended, and with it the process has not. Whether something of it is in the bucket.
    pub(crate) fn clear(&mut self, sequence: u64) -> bool {
        self.suspects.forget(sequence);
        self.again.remove(&sequence).unwrap_or_default()
    }

    /// Whether something of it is in the bucket.
    fn is_noted(&self, sequence: u64) -> bool {
        self.again.get(&sequence).copied().unwrap_or_default()
    }

    /// Everything may be another process's by now. From now on it counts how long suspects are to come later.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// The turns of this process, and what is noted of those that have one or are not waited for any more.
pub(crate) struct Turns {
    turn: Turn<Which>,
    noted: BTreeMap<Which, (String, Begun)>,
    /// What tells this process from others.
    pub(crate) process: String,
}

impl Turns {
    pub(crate) fn new(process: String) -> Self {
        Self { turn: Turn::default(), noted: BTreeMap::new(), process }
    }

    fn end(&mut self, which: Which) {
        self.turn.end(which);
        self.noted.remove(&which);
    }

    /// Nothing of the subscription `number` is in a handler that counts.
    pub(crate) fn forget(&mut self, number: u64) {
        self.turn.end_if(|which| which.0 == number);
        self.noted.retain(|which, _| which.0 != number);
    }
}

/// What is to become of what is noted of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It is settled, or its attempt has ended: nothing is noted of it any more.
    Ended,
    /// Its handler was not called, or was cut off: it counts nothing.
    CutOff(u32),
}

impl Subscription {
    fn which(&self, sequence: u64) -> Which {
        (self.number, sequence)
    }

    /// A handler is about to be called: notes that, if anything is to be noted.
    pub(crate) fn note_attempt(&self, sequence: u64) -> Option<BrokerFuture<Begin>> {
        if !self.careful.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        if !state.suspects.are_there() {
            self.careful.store(false, Ordering::Release);
            return None;
        }
        let mut turns = self.link.turns.lock();
        let (which, turns) = (self.which(sequence), &mut *turns);
        let (note, crashes) = match state.suspects.begin(which, &mut turns.turn) {
            Attempt::Free => return None,
            Attempt::Later(later) => return Some(BrokerFuture::ready(Begin::Later(later))),
            Attempt::Noted { note, crashes } => (note, crashes),
        };
        let outlasted = note.outlasted.and_then(|earlier| {
            let (subject, begun) = turns.noted.get_mut(&earlier)?;
            (begun.alone, begun.outlasted) = (false, begun.outlasted.saturating_add(1));
            Some((subject.clone(), begun.clone()))
        });
        let subject = self.link.settings.begun_subject(&self.consumer, sequence);
        let begun = Begun {
            process: turns.process.clone(),
            // While a shutdown goes on, nothing is charged.
            begun: !state.drains,
            alone: note.alone && !state.drains,
            crashes,
            outlasted: state.suspects.suspects.find(sequence).outlasted,
            stored: state.intake.stored(sequence).map(|stored| stored.to_string()),
        };
        if state.suspects.contains(sequence) {
            turns.noted.insert(which, (subject.clone(), begun.clone()));
        }
        let outlet = Arc::clone(&self.outlet);
        Some(BrokerFuture::new(async move {
            // The one that has had its turn is not to be charged from now on, so that comes first. If anything of it cannot
            // be noted, the event is handled nevertheless.
            for (subject, begun) in outlasted.into_iter().chain([(subject, begun)]) {
                drop(store(&outlet, subject, &begun).await);
            }
            Begin::Now { crashes }
        }))
    }

    /// Takes back what is noted of an event, and ends its turn then: as long as it is noted, another one in its turn could
    /// not be told from it.
    pub(crate) async fn take_back(&self, sequence: u64, after: After) {
        let subject = self.link.settings.begun_subject(&self.consumer, sequence);
        for tried in 1..=TRIES {
            let taken_back = match after {
                After::Ended | After::CutOff(0) => self.link.purge_notes(&subject, None).await,
                After::CutOff(crashes) => {
                    let process = self.link.turns.lock().process.clone();
                    let stored = self.state.lock().intake.stored(sequence).map(|stored| stored.to_string());
                    let begun = Begun { process, begun: false, alone: false, crashes, outlasted: 0, stored };
                    store(&self.outlet, subject.clone(), &begun).await
                }
            };
            match taken_back {
                Ok(()) => break,
                Err(error) if tried == TRIES => log::warn!(
                    target: "eventbus", group = %printable(&self.group), sequence, error = %printable(&error.to_string()),
                    "what was noted of an event before its handler was called could not be taken back; should the event be \
                     delivered again, it may be taken for one that ended a process"
                ),
                Err(_) => tokio::time::sleep(PAUSE * tried).await,
            }
        }
        self.link.turns.lock().end(self.which(sequence));
    }

    /// The attempt at an event has ended. Whether something of it is to be taken back.
    pub(crate) fn end_attempt(&self, sequence: u64) -> bool {
        self.careful.load(Ordering::Acquire) && self.state.lock().suspects.clear(sequence)
    }

    /// A delivery was dropped unsettled, so that no handler has it: what is to be taken back of it.
    pub(crate) fn cut_off(&self, sequence: u64) -> Option<After> {
        if !self.careful.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        let crashes = state.suspects.crashes(sequence);
        state.suspects.is_noted(sequence).then_some(After::CutOff(crashes))
    }

    /// A shutdown begins: whoever ends the process from now on has no patience, and charges nobody.
    pub(crate) async fn drain(&self) {
        self.state.lock().drains = true;
        let noted: Vec<_> = {
            let mut turns = self.link.turns.lock();
            let mine = turns.noted.iter_mut().filter(|(which, _)| which.0 == self.number);
            mine.map(|(_, (subject, begun))| {
                (begun.begun, begun.alone) = (false, false);
                (subject.clone(), begun.clone())
            })
            .collect()
        };
        for (subject, begun) in noted {
            drop(store(&self.outlet, subject, &begun).await);
        }
    }
}

async fn store(outlet: &Outlet, subject: String, begun: &Begun) -> Result<(), BrokerError> {
    let payload = serde_json::to_vec(begun).expect("numbers and texts have a form in JSON");
    let note = Other { subject, headers: HeaderMap::new(), payload: payload.into() };
    outlet.store("that a handler is called", note).await
}

impl Link {
    /// What was noted before a handler was called with an event.
    pub(crate) async fn begun(
        &self,
        consumer: &str,
        sequence: u64,
    ) -> Result<Option<Begun>, crate::connection::Refusal> {
        let noted = self.noted(&self.settings.begun_subject(consumer, sequence)).await?;
        // What is none says nothing of a process.
        Ok(noted.and_then(|noted| serde_json::from_slice(&noted).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(process: &str, alone: bool, crashes: u32) -> Option<Begun> {
        Some(Begun { process: process.to_owned(), begun: true, alone, crashes, outlasted: 0, stored: None })
    }

    #[test]
    fn only_what_another_process_had_alone_in_a_handler_is_charged() {
        let mut suspects = Suspects::default();
        for (sequence, noted, is_suspect, crashes) in [
            (1, None, false, 0),
            (2, begun("other", false, 0), true, 0),
            (3, begun("other", true, 1), true, 2),
            (4, begun("this", true, 0), false, 0),
            (5, begun("this", true, 2), true, 2),
            (6, begun("other", true, 0).map(|begun| Begun { begun: false, ..begun }), false, 0),
        ] {
            suspects.find(sequence, noted.as_ref(), "this");
            assert_eq!(
                (suspects.contains(sequence), suspects.crashes(sequence)),
                (is_suspect, crashes),
                "{sequence}"
            );
        }
        assert!(suspects.clear(3) && !suspects.contains(3) && !suspects.clear(1));
        suspects.forget();
        assert!(!suspects.are_there());
    }
}
