//! Events that may have ended the process: what the server says of them, and when. What is decided by it stands in
//! `eventbus_core::broker::suspects`.
//!
//! A note has the consumer that the delivery is with. Only where an unfinished delivery is still with the consumer of its
//! note, which was noted as alone in a handler, has that process ended beside it: who leaves in order gives what it has
//! to the consumer [`LEFT`].

use crate::claim::Claim;
use crate::place::Place;
use crate::script;
use eventbus_core::broker::suspects::{Attempt, Suspect};
use eventbus_core::broker::{Begin, BrokerFuture, Receipt};
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Who has what processes left in order.
const LEFT: &str = "left";
/// Who has what came from another group (`scripts/change.lua`).
const MOVED: &str = "moved";

/// A delivery: the number of its stream, and its place there.
pub(crate) type Spot = (usize, Place);
/// A delivery among those of all claims of the process.
pub(crate) type Suspected = (u64, Spot);

/// What the server says of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Who has it.
    consumer: String,
    begun: Begun,
    suspect: Suspect,
}

/// Whether a handler was called with it since this consumer has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    No,
    BesideOthers,
    Alone,
}

impl Note {
    fn new(consumer: &str, begun: Begun, suspect: Suspect) -> Self {
        Self { consumer: consumer.to_owned(), begun, suspect }
    }

    fn write(&self) -> String {
        let Self { consumer, begun, suspect: Suspect { crashes, outlasted } } = self;
        format!("{consumer} {} {crashes} {outlasted}", *begun as u8)
    }

    /// None, where somebody else wrote it.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let consumer = parts.next()?.to_owned();
        let begun = match parts.next()? {
            "0" => Begun::No,
            "1" => Begun::BesideOthers,
            "2" => Begun::Alone,
            _ => return None,
        };
        let mut count = || parts.next()?.parse().ok();
        Some(Self { consumer, begun, suspect: Suspect { crashes: count()?, outlasted: count()? } })
    }
}

/// What is found of unfinished deliveries as they are taken over.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) suspects: BTreeMap<Spot, Suspect>,
    /// Some process has ended, and not in order.
    pub(crate) crashed: bool,
    /// What is to be written, by the fields.
    pub(crate) writes: Vec<(String, String)>,
    /// The fields that say nothing any more.
    pub(crate) removes: Vec<String>,
}

impl Found {
    /// Looks at a delivery that was with `consumer`, and that `own` takes over; `notes` are those of its group.
    pub(crate) fn look_at(
        &mut self,
        spot: Spot,
        field: impl FnOnce() -> String,
        (consumer, own): (&str, &str),
        notes: &HashMap<String, Note>,
    ) {
        let in_order = matches!(consumer, LEFT | MOVED);
        self.crashed |= consumer != own && !in_order;
        if notes.is_empty() {
            return;
        }
        let field = field();
        let Some(Note { consumer: noted, begun, mut suspect }) = notes.get(&field).cloned() else { return };
        if consumer == own {
            self.suspects.insert(spot, suspect);
            return;
        }
        suspect.crashes += u32::from(!in_order && noted == consumer && begun == Begun::Alone);
        if in_order && suspect.crashes == 0 {
            self.removes.push(field);
        } else {
            self.writes.push((field, Note::new(own, Begun::No, suspect).write()));
            self.suspects.insert(spot, suspect);
        }
    }
}

impl Claim {
    /// A handler is about to be called: notes that, if anything is to be noted.
    pub(crate) fn begin_attempt(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        if !self.careful.load(Ordering::Acquire) {
            return None;
        }
        let mut call = script::NOTE.call(&self.store.keys);
        let (note, crashes);
        {
            let mut state = self.state();
            let spot = state.spot(receipt)?;
            if !state.suspects.are_there() {
                self.careful.store(false, Ordering::Release);
                return None;
            }
            if state.drains {
                let crashes = state.suspects.crashes(spot);
                return Some(BrokerFuture::ready(Begin::Now { crashes }));
            }
            let mut turn = self.store.turn();
            (note, crashes) = match state.suspects.begin(spot, (self.number, spot), &mut turn, Instant::now())
            {
                Attempt::Free => return None,
                Attempt::Later(delay) => return Some(BrokerFuture::ready(Begin::Later(delay))),
                Attempt::Noted { note, crashes } => (note, crashes),
            };
            let begun = if note.alone { Begun::Alone } else { Begun::BesideOthers };
            let text = Note::new(&self.consumer, begun, state.suspects.find(spot)).write();
            call.arg(&self.group).arg(state.sources[spot.0].field(spot.1)).arg(text);
        }
        if let Some((claim, spot)) = note.outlasted
            && let Some(claim) = self.store.claim(claim)
            && let Some((field, text)) = claim.outlast(spot)
        {
            call.arg(&claim.group).arg(field).arg(text);
        }
        let store = Arc::clone(&self.store);
        Some(BrokerFuture::new(async move {
            // If it cannot be noted, the event is handled nevertheless.
            if let Err(trouble) = store.link.value("cannot note an attempt", &call).await {
                log::debug!(target: "eventbus", error = %printable(trouble), "an attempt is not noted");
            }
            Begin::Now { crashes }
        }))
    }

    /// Others did not wait any longer for this one; its note says so.
    fn outlast(&self, spot: Spot) -> Option<(String, String)> {
        let mut state = self.state();
        let suspect = state.suspects.outlast(spot)?;
        let text = Note::new(&self.consumer, Begun::BesideOthers, suspect).write();
        Some((state.sources[spot.0].field(spot.1), text))
    }

    /// An attempt at this one has ended, and the server knows: the next one has its turn.
    pub(crate) fn end_turn(&self, spot: Spot) {
        self.store.turn().end((self.number, spot));
    }

    /// The process is about to end in order: that it ends is no event's fault from now on, whatever ends it.
    pub(crate) fn drain(self: &Arc<Self>) {
        let mut call = script::NOTE.call(&self.store.keys);
        {
            let mut state = self.state();
            if std::mem::replace(&mut state.drains, true) {
                return;
            }
            let mut none = true;
            for (spot, suspect) in state.suspects.noted() {
                let text = Note::new(&self.consumer, Begun::No, suspect).write();
                call.arg(&self.group).arg(state.sources[spot.0].field(spot.1)).arg(text);
                none = false;
            }
            if none {
                return;
            }
        }
        let claim = Arc::clone(self);
        // Nothing waits for that: who ends the process before it is written counts it as a crash.
        tokio::spawn(async move { claim.store.link.value("cannot note a shutdown", &call).await });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOT: Spot = (0, Place { millis: 5, number: 1 });

    fn look(consumer: &str, note: Option<Note>) -> Found {
        let notes = note.into_iter().map(|note| ("a/5-1".to_owned(), note)).collect();
        let mut found = Found::default();
        found.look_at(SPOT, || "a/5-1".to_owned(), (consumer, "own"), &notes);
        found
    }

    #[test]
    fn a_note_comes_back_and_what_is_none_is_told_from_one() {
        let note = Note::new("7-0-1", Begun::Alone, Suspect { crashes: 3, outlasted: 1 });
        assert_eq!(Note::read(&note.write()), Some(note));
        for text in ["", "a", "a 3 0 0", "a 2 x 0", "a 2 1"] {
            assert_eq!(Note::read(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_was_alone_in_a_handler_of_the_process_that_has_ended_is_charged() {
        let suspect = Suspect { crashes: 1, outlasted: 0 };
        for (consumer, noted, begun, crashes) in [
            ("other", "other", Begun::Alone, Some(2)),
            ("other", "other", Begun::BesideOthers, Some(1)),
            ("other", "other", Begun::No, Some(1)),
            // Whoever had it in between has not begun with it.
            ("third", "other", Begun::Alone, Some(1)),
            (LEFT, "other", Begun::Alone, Some(1)),
            (MOVED, "other", Begun::Alone, Some(1)),
            ("own", "own", Begun::Alone, Some(1)),
        ] {
            let found = look(consumer, Some(Note::new(noted, begun, suspect)));
            assert_eq!(found.suspects.get(&SPOT).map(|one| one.crashes), crashes, "{consumer} {begun:?}");
        }
    }

    #[test]
    fn a_process_that_left_in_order_leaves_no_suspects_and_nobody_careful() {
        let found = look(LEFT, Some(Note::new("other", Begun::Alone, Suspect::default())));
        assert!(found.suspects.is_empty() && !found.crashed && found.removes == ["a/5-1"]);
        assert!(look("other", None).crashed && !look("own", None).crashed && !look(MOVED, None).crashed);
    }
}
