//! Events that may have ended the process.
//!
//! Nothing is written when an event is handed to a handler, so the first unclean end does not tell which one was to
//! blame. After it, a subscription is careful for a while, and for some thousand events: each event is noted in the file
//! right before its handler is called. So the next unclean end leaves behind what was in a handler: the suspects. They
//! are handled one after the other in the whole process ([`Turn`](crate::turn::Turn)), as long as none takes long;
//! everything else goes on beside them. The suspect whose turn it is when the process ends is charged with that, and
//! nothing else is. Each time it comes later than before, so that whoever kills processes at some time after their start
//! does not meet the same one again and again.
//!
//! A note goes once the attempt has ended, with the save that says so.

use super::Claim;
use super::receive::UNSAVED;
use crate::inherit;
use crate::offsets::place;
use crate::turn::{Note, Which};
use eventbus_core::broker::{Begin, BrokerFuture, Receipt};
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// So long after a take-over that follows on an unclean end everything is noted, at least.
const CAREFUL: Duration = Duration::from_secs(10);
/// So many attempts are noted then at least, however late they come: what was in a handler comes behind what was settled
/// and not saved, and what has been handled beside it.
const ENOUGH: usize = 2 * UNSAVED;
/// So long a suspect keeps others waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// When a suspect that waits asks again.
const AGAIN: Duration = Duration::from_millis(10);

/// So much later it comes after each end of the process that it is charged with.
const LATER: Duration = Duration::from_millis(200);

/// What `begun` says in a row of `suspect`.
const NOT_BEGUN: u8 = 0;
const BESIDE_OTHERS: u8 = 1;
const ALONE: u8 = 2;

/// What is known of an event that may have ended the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspect {
    /// How often the process ended while it had its turn.
    crashes: u32,
    /// How often others did not wait for it any longer.
    outlasted: u32,
}

impl Suspect {
    /// How long others wait for it. It doubles, so that in the end one of two slow ones has been alone for long enough.
    fn patience(self) -> Duration {
        PATIENCE * (1 << self.outlasted.min(8))
    }

    /// How long after the take-over it comes at the earliest: one that took long lets the others go first.
    fn delay(self) -> Duration {
        let outlasted = if self.outlasted == 0 { Duration::ZERO } else { self.patience() };
        outlasted + LATER * self.crashes.min(8)
    }
}

/// What the file says when a group is taken over.
pub(super) struct Found {
    suspects: BTreeMap<i64, Suspect>,
    crashed: bool,
}

/// What a claim knows of its suspects.
#[derive(Debug)]
pub(super) struct Suspects {
    /// When the group was taken over.
    since: Instant,
    /// The last process was not ended in order.
    crashed: bool,
    /// How many attempts were noted since.
    attempts: usize,
    /// Those that are not settled.
    known: BTreeMap<i64, Suspect>,
    /// What is noted in the file.
    noted: BTreeSet<i64>,
    /// What the next save removes there.
    ended: Vec<i64>,
}

impl Default for Suspects {
    fn default() -> Self {
        Self::new(Found { suspects: BTreeMap::new(), crashed: false })
    }
}

impl Suspects {
    pub(super) fn new(found: Found) -> Self {
        let Found { suspects, crashed } = found;
        let noted = suspects.keys().copied().collect();
        Self { since: Instant::now(), crashed, attempts: 0, known: suspects, noted, ended: Vec::new() }
    }

    /// Whether they are to be asked about each event.
    pub(super) fn are_there(&self) -> bool {
        !self.known.is_empty() || self.is_careful()
    }

    /// Whether everything is noted.
    fn is_careful(&self) -> bool {
        self.crashed && (self.attempts < ENOUGH || self.since.elapsed() < CAREFUL)
    }

    /// Whether the event at `at` is a suspect.
    pub(super) fn contains(&self, at: i64) -> bool {
        self.known.contains_key(&at)
    }

    /// How often the process ended while the event at `at` was alone in a handler.
    pub(super) fn crashes(&self, at: i64) -> u32 {
        self.known.get(&at).map_or(0, |suspect| suspect.crashes)
    }

    /// The attempt of a delivery that was handed out without the crashes, which are added when it is handed out again.
    pub(super) fn uncounted(&self, receipt: &Receipt) -> u32 {
        receipt.attempt.saturating_sub(self.crashes(place(receipt.offset))).max(1)
    }

    /// The event at `at` is being noted.
    fn note(&mut self, at: i64) {
        self.attempts += 1;
        self.noted.insert(at);
        self.ended.retain(|ended| *ended != at);
    }

    /// An attempt at the event at `at` has ended: it is no suspect any more. `true`: it was one.
    pub(super) fn clear(&mut self, at: i64) -> bool {
        if self.noted.remove(&at) {
            self.ended.push(at);
        }
        self.known.remove(&at).is_some()
    }

    /// The event at `at` was given up, and with it what the file says of it.
    pub(super) fn forget(&mut self, at: i64) {
        self.known.remove(&at);
        self.noted.remove(&at);
    }

    /// What a save is to remove from the file.
    pub(super) fn begin_save(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.ended)
    }

    /// That was not saved.
    pub(super) fn put_back(&mut self, ended: Vec<i64>) {
        // What was noted anew meanwhile stays.
        self.ended.extend(ended.into_iter().filter(|at| !self.noted.contains(at)));
    }
}

impl Claim {
    /// A handler is about to be called: notes that, if anything is to be noted.
    pub(super) fn note_attempt(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        if !self.careful.load(Ordering::Acquire) {
            return None;
        }
        let at = place(receipt.offset);
        let mut state = self.state.lock();
        self.ours(receipt)?;
        if !state.suspects.are_there() {
            self.careful.store(false, Ordering::Release);
            return None;
        }
        let row = state.row?;
        let suspect = state.suspects.known.get(&at).copied();
        if suspect.is_none() && !state.suspects.is_careful() {
            return None;
        }
        let left =
            suspect.map_or(Duration::ZERO, Suspect::delay).saturating_sub(state.suspects.since.elapsed());
        if !left.is_zero() {
            return Some(BrokerFuture::ready(Begin::Later(left)));
        }
        let mut turn = self.store.turn();
        let note = match suspect {
            Some(suspect) => turn.begin(self.which(at), suspect.patience(), Instant::now()),
            None => Some(Note { alone: false, outlasted: None }),
        };
        let Some(note) = note else { return Some(BrokerFuture::ready(Begin::Later(AGAIN))) };
        state.suspects.note(at);
        let (owner, owners) = (self.owner(), self.store.process.owners());
        let outlasted = note.outlasted.map(|(number, at)| (self.store.process.owner(number), at));
        // Notes are written in the order of turns.
        let noted = self.store.writes.run(move |work| {
            if let Some((owner, at)) = outlasted {
                outlast(work.connection, &owner, at)?;
            }
            write(work.connection, row, (&owner, &owners), at, note)
        });
        drop(turn);
        drop(state);
        let crashes = suspect.map_or(0, |suspect| suspect.crashes);
        Some(BrokerFuture::new(async move {
            // If it cannot be noted, the event is handled nevertheless.
            drop(noted.await);
            Begin::Now { crashes }
        }))
    }

    /// This delivery.
    pub(super) fn which(&self, at: i64) -> Which {
        (self.number, at)
    }
}

/// Notes that a handler is called with the event at `at`, unless the group is somebody else's.
fn write(
    connection: &Connection,
    row: i64,
    (owner, owners): (&str, &str),
    at: i64,
    note: Note,
) -> rusqlite::Result<()> {
    if note.alone {
        // The one before it has ended, and that may not be saved yet.
        connection
            .prepare_cached(
                "update suspect set begun = ?2 where begun = ?3 and \"group\" in \
                 (select \"group\" from subscription where owner glob ?1)",
            )?
            .execute((owners, BESIDE_OTHERS, ALONE))?;
    }
    connection
        .prepare_cached(
            "insert into suspect (\"group\", offset, begun) \
             select \"group\", ?3, ?4 from subscription where id = ?1 and owner = ?2 \
             on conflict do update set begun = excluded.begun",
        )?
        .execute((row, owner, at, if note.alone { ALONE } else { BESIDE_OTHERS }))?;
    Ok(())
}

/// Others did not wait any longer for the suspect at `at`, so that it is not alone any more.
fn outlast(connection: &Connection, owner: &str, at: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "update suspect set begun = ?3, outlasted = outlasted + 1 where offset = ?2 \
             and \"group\" = (select \"group\" from subscription where owner = ?1)",
        )?
        .execute((owner, at, BESIDE_OTHERS))?;
    Ok(())
}

/// Removes what is known of events whose attempts have ended.
pub(super) fn delete(connection: &Connection, row: i64, places: &[i64]) -> rusqlite::Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let mut delete = connection.prepare_cached(
        "delete from suspect where offset = ?2 and \"group\" = (select \"group\" from subscription where id = ?1)",
    )?;
    for place in places {
        delete.execute((row, place))?;
    }
    Ok(())
}

/// Finds the suspects of a group when it is taken over; `crashed`: its last process has ended and not left it.
pub(super) fn find(
    connection: &Connection,
    group: &str,
    row: &inherit::Row,
    crashed: bool,
) -> rusqlite::Result<Found> {
    let mut suspects = BTreeMap::new();
    let mut statement = connection.prepare_cached(
        "select s.offset, s.crashes, s.outlasted, s.begun, s.intact, t.name, \
         exists (select 1 from delivery d where d.subscription = ?2 and d.offset = s.offset) \
         from suspect s left join event e on e.offset = s.offset left join topic t on t.id = e.topic \
         where s.\"group\" = ?1",
    )?;
    let mut rows = statement.query((group, row.id))?;
    let mut update = connection
        .prepare_cached("update suspect set crashes = ?3, begun = ?4 where \"group\" = ?1 and offset = ?2")?;
    let mut delete = connection.prepare_cached("delete from suspect where \"group\" = ?1 and offset = ?2")?;
    // They are read to the end before any is changed.
    let mut found = Vec::new();
    while let Some(one) = rows.next()? {
        let topic: Option<String> = one.get(5)?;
        if topic.as_ref().is_some_and(|topic| !row.pattern.matches(topic)) {
            continue;
        }
        let (at, suspect): (i64, _) = (one.get(0)?, Suspect { crashes: one.get(1)?, outlasted: one.get(2)? });
        let settled = at <= row.reached && !one.get::<_, bool>(6)?;
        let gone = settled || topic.is_none() || !one.get::<_, bool>(4)?;
        found.push((at, suspect, one.get::<_, u8>(3)?, gone));
    }
    for (at, mut suspect, begun, gone) in found {
        suspect.crashes += u32::from(crashed && begun == ALONE);
        if gone || (!crashed && suspect.crashes == 0) {
            delete.execute((group, at))?;
        } else {
            update.execute((group, at, suspect.crashes, NOT_BEGUN))?;
            suspects.insert(at, suspect);
        }
    }
    Ok(Found { suspects, crashed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_unclean_end_many_attempts_are_noted_however_late_they_come() {
        let mut suspects = Suspects::new(Found { suspects: BTreeMap::new(), crashed: true });
        let late = Instant::now().checked_sub(CAREFUL).expect("the machine runs for longer");
        for at in 0..ENOUGH {
            suspects.since = late;
            assert!(suspects.are_there(), "after {at}");
            suspects.note(i64::try_from(at).unwrap());
        }
        assert!(!suspects.are_there());
        suspects.since = Instant::now();
        assert!(suspects.are_there(), "and all that come soon");
    }
}
