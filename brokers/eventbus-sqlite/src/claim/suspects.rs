//! Events that may have ended the process: what the file says of them, and when. What is decided by it stands in
//! `eventbus_core::broker::suspects`.

use super::Claim;
use super::receive::UNSAVED;
use crate::inherit;
use crate::offsets::place;
use eventbus_core::broker::suspects::{Attempt, ENOUGH, Note, Suspect};
use eventbus_core::broker::{Begin, BrokerFuture, Receipt};
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

// What is settled and not saved comes again first, and what has been handled beside it.
const _: () = assert!(ENOUGH >= 2 * UNSAVED);

/// A delivery: the number of its subscription, and its place.
pub(crate) type Suspected = (u64, i64);

/// What `begun` says in a row of `suspect`.
const NOT_BEGUN: u8 = 0;
const BESIDE_OTHERS: u8 = 1;
const ALONE: u8 = 2;

/// What the file says when a group is taken over.
pub(super) struct Found {
    pub(super) suspects: BTreeMap<i64, Suspect>,
    pub(super) crashed: bool,
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
        let mut turn = self.store.turn();
        let (note, crashes) = match state.suspects.begin(at, self.which(at), &mut turn, Instant::now()) {
            Attempt::Free => return None,
            Attempt::Later(delay) => return Some(BrokerFuture::ready(Begin::Later(delay))),
            Attempt::Noted { note, crashes } => (note, crashes),
        };
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
        Some(BrokerFuture::new(async move {
            // If it cannot be noted, the event is handled nevertheless.
            drop(noted.await);
            Begin::Now { crashes }
        }))
    }

    /// This delivery.
    pub(super) fn which(&self, at: i64) -> Suspected {
        (self.number, at)
    }
}

/// Notes that a handler is called with the event at `at`, unless the group is somebody else's.
fn write(
    connection: &Connection,
    row: i64,
    (owner, owners): (&str, &str),
    at: i64,
    note: Note<Suspected>,
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
