//! Taking a group over, and leaving it: which process handles its events.
//!
//! Jobs of the writer read and write the rows; what they return is applied once that is committed.

use super::receive::READ_AHEAD;
use super::rows::{self, Unfinished, Which};
use super::suspects;
use super::{Claim, Saving};
use crate::inherit;
use crate::lease::Lease;
use crate::reader;
use crate::writes::Work;
use eventbus_core::BrokerError;
use eventbus_core::broker::stance;
use eventbus_core::broker::suspects::Suspects;
use eventbus_core::broker::{BrokerFuture, Progress, Start};
use eventbus_core::log;
use eventbus_core::printable::printable;
use rusqlite::Connection;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a job found: the row of a group, and all that is needed to go on from it if the group was free.
struct Found {
    row: i64,
    told: Begun,
    taken: Option<Taken>,
}

/// What is to be told of how a group has begun.
#[derive(Default)]
pub(crate) struct Begun {
    /// It is new, and everything up to here was published before.
    pub(crate) behind: Option<i64>,
    /// Who has it, where it has to wait for another one.
    pub(crate) owner: Option<String>,
}

/// A group that was taken over, as the file has it.
struct Taken {
    place: inherit::Row,
    /// The last event whose payload was mended for the group.
    mended: i64,
    unfinished: Vec<Unfinished>,
    /// None: they are known already.
    suspects: Option<suspects::Found>,
    /// Until when the lease holds, in milliseconds since the store was opened.
    until: u64,
}

impl Claim {
    /// Makes sure that the group has its row, and takes it over if it is free.
    pub(crate) fn begin(self: &Arc<Self>) -> BrokerFuture<Result<Begun, BrokerError>> {
        let (beginning, begun) = (Arc::clone(self), Arc::clone(self));
        self.store.writes.run_then(
            move |work| beginning.find(work),
            move |mut found| {
                begun.store.add(&begun);
                let told = std::mem::take(&mut found.told);
                begun.apply(found);
                told
            },
        )
    }

    /// Takes the group over, if nobody handles it.
    pub(crate) fn take_over(self: &Arc<Self>) {
        let (taking, taken) = (Arc::clone(self), Arc::clone(self));
        drop(self.store.writes.run_then(
            move |work| if taking.is_active() { Ok(None) } else { taking.find(work).map(Some) },
            move |found| found.into_iter().for_each(|found| taken.apply(found)),
        ));
    }

    /// Begins again from what is saved, where some deliveries were dropped while the lease was over, and nobody else
    /// has taken the group meanwhile.
    pub(crate) fn begin_again(self: &Arc<Self>) {
        let (beginning, begun) = (Arc::clone(self), Arc::clone(self));
        drop(self.store.writes.run_then(
            move |work| {
                let Some(row) = beginning.row().filter(|_| beginning.is_active() && beginning.has_refused())
                else {
                    return Ok(None);
                };
                // What is settled is not to be repeated.
                let saving = Saving::of(&beginning);
                let owner = rows::owner(work.connection, row)?.map(|(owner, _)| owner);
                let ours = owner == Some(beginning.owner());
                if let Some(saving) = saving.as_ref().filter(|_| ours) {
                    saving.write(work.connection)?;
                }
                let found = if ours { Some(beginning.take(work, row, true)?) } else { None };
                Ok(Some((saving, found, beginning.held.epoch())))
            },
            move |result| {
                let Some((saving, found, epoch)) = result else { return };
                saving.into_iter().for_each(|saving| saving.finish(Ok(found.is_some())));
                match found {
                    Some(found) => begun.apply(found),
                    None => begun.lose(epoch),
                }
            },
        ));
    }

    /// Finds the row of this group, or makes one, and takes the group over if it is free.
    fn find(&self, work: &mut Work<'_>) -> rusqlite::Result<Found> {
        let connection = work.connection;
        let mut told = Begun::default();
        let row = match self.row() {
            Some(row) if rows::exists(connection, row, &self.group, &self.pattern)? => row,
            _ => {
                let start = match self.start {
                    Start::Earliest => 0,
                    _ => reader::head(connection)?,
                };
                let (row, new) = inherit::find_or_begin(connection, &self.group, &self.pattern, start)?
                    .map_err(|_| self.damaged())?;
                told.behind = Some(start).filter(|_| new);
                row
            }
        };
        told.owner = self.held_by(connection, |owner, lease| work.is_free(&self.store, owner, lease))?;
        match told.owner {
            Some(_) => Ok(Found { row, told, taken: None }),
            None => Ok(Found { told, ..self.take(work, row, false)? }),
        }
    }

    /// Takes the group over, or what it has not finished `again`.
    fn take(&self, work: &mut Work<'_>, row: i64, again: bool) -> rusqlite::Result<Found> {
        let connection = work.connection;
        let crashed = !again && self.has_crashed(connection)?;
        let place = inherit::inherit(connection, &self.group, &self.pattern, row)?;
        let place = place.map_err(|_| self.damaged())?;
        let given = Lease::of(self.store.settings.lease);
        let until = self.store.clock().saturating_add(given.length.unsigned_abs());
        rows::own(connection, row, &self.owner(), given)?;
        work.taken.push(self.number);
        let unfinished = Unfinished::read(connection, work.names, row, Which::Own)?;
        let suspects =
            if again { None } else { Some(suspects::find(connection, &self.group, &place, crashed)?) };
        let mended = reader::last_mended(connection, &self.group)?;
        Ok(Found {
            row,
            told: Begun::default(),
            taken: Some(Taken { place, mended, unfinished, suspects, until }),
        })
    }

    /// Whether a process that handled the group on this pattern has ended and not left it, or has not answered for
    /// longer than its lease: what is about to be killed for its memory may stand still before. It is asked once.
    fn has_crashed(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let mut crashed = false;
        for row in inherit::ids(connection, &self.group, &self.pattern)? {
            let owner = rows::owner(connection, row)?.map(|(owner, _)| owner);
            let stranger = owner.is_some_and(|owner| self.store.process.number(&owner).is_none());
            crashed |= rows::forget_crash(connection, row, stranger)?;
        }
        Ok(crashed)
    }

    /// What was found is committed.
    fn apply(self: &Arc<Self>, found: Found) {
        let Found { row, taken, .. } = found;
        let taken = self.change(|state| {
            state.row = Some(row);
            let Some(Taken { place, mended, unfinished, suspects, until }) = taken else {
                state.stands_by = true;
                return None;
            };
            let known = std::mem::take(&mut state.suspects);
            state.forget();
            self.held.begin(until);
            state.active = true;
            let inherit::Row { cursor, reached, parts, .. } = place;
            state.reading.resume(reached);
            state.mended = mended;
            state.parts = parts;
            state.progress = Progress::resume(rows::resumed(cursor, reached, &unfinished));
            state.letters.set_more(true);
            state.suspects = suspects.map_or(known, |found| Suspects::new(found.suspects, found.crashed));
            self.careful.store(state.suspects.are_there(), Ordering::Release);
            self.store.turn().end_if(|(number, _)| number == self.number);
            state.take_in(unfinished);
            state.call();
            Some(std::mem::replace(&mut state.stands_by, false))
        });
        if taken == Some(true) {
            stance::has_taken_over(&self.group, self.pattern.as_str());
        }
        if taken.is_some() {
            self.find_republished();
        }
    }

    /// The row of the group is not what was written.
    fn damaged(&self) -> rusqlite::Error {
        let message = format!(
            "in the log `{}`, how far the group `{}` has come is damaged; `seek` it to where it is to go on",
            self.store.settings.path.display(),
            self.group
        );
        log::error!(target: "eventbus", "{}", printable(&message));
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        rusqlite::Error::SqliteFailure(code, Some(message))
    }

    /// Who handles the group, on this pattern or on one that overlaps with it; `free` tells of an owner.
    fn held_by(
        &self,
        connection: &Connection,
        free: impl Fn(&str, Lease) -> bool,
    ) -> rusqlite::Result<Option<String>> {
        for row in inherit::ids(connection, &self.group, &self.pattern)? {
            if let Some((owner, lease)) = rows::owner(connection, row)?
                && !free(&owner, lease)
            {
                return Ok(Some(owner));
            }
        }
        Ok(None)
    }

    /// Whether the group may be taken over.
    pub(crate) fn may_take_over(&self, connection: &Connection) -> rusqlite::Result<bool> {
        Ok(self.held_by(connection, |owner, lease| self.store.is_free(owner, lease))?.is_none())
    }

    /// Whether some delivery was not handled because the lease was over.
    pub(crate) fn has_refused(&self) -> bool {
        self.held.has_refused()
    }

    /// The lease was extended until `until`, in milliseconds since the store was opened.
    pub(crate) fn hold_until(&self, until: u64) {
        self.held.extend(until);
    }

    /// The epoch, for [`lose`](Self::lose).
    pub(crate) fn epoch(&self) -> u64 {
        self.held.epoch()
    }

    /// The lease of `epoch` is somebody else's: nothing here is ours any more.
    pub(crate) fn lose(&self, epoch: u64) {
        let lost = self.change(|state| {
            let lost = state.active && epoch == self.held.epoch();
            if lost {
                self.held.end();
                state.forget();
                self.store.turn().end_if(|(number, _)| number == self.number);
            }
            lost
        });
        if lost {
            log::warn!(
                target: "eventbus", group = %printable(&self.group),
                "another process has taken the group over, since this one did not answer for longer than its lease"
            );
        }
    }

    /// Saves what is settled, and leaves the group to whoever comes next.
    pub(crate) fn leave(self: &Arc<Self>) {
        if self.store.writes.are_over() {
            return self.store.remove(self.number);
        }
        let (leaving, left) = (Arc::clone(self), Arc::clone(self));
        drop(self.store.writes.run_then(
            move |work| {
                let mut saved = None;
                if leaving.is_active() {
                    leaving.skip_to(leaving.store.head());
                    if let Some(saving) = Saving::of(&leaving) {
                        let ours = saving.write(work.connection)?;
                        saved = Some((saving, ours));
                    }
                }
                // Even where it is not active yet: it may have been taken over a moment ago, in this transaction.
                rows::disown(work.connection, &leaving.owner())?;
                Ok(saved)
            },
            move |saved| {
                saved.into_iter().for_each(|(saving, ours)| saving.finish(Ok(ours)));
                left.store.remove(left.number);
                left.change(|state| {
                    left.held.end();
                    state.forget();
                    left.store.turn().end_if(|(number, _)| number == left.number);
                });
            },
        ));
    }

    /// The dead letter of the event at `offset` was published again for `row`.
    pub(crate) fn expect_republished(self: &Arc<Self>, row: i64, offset: i64) {
        let expected = self.change(|state| {
            let ours = state.active && state.row == Some(row);
            let room = ours && state.letters.has_room(READ_AHEAD);
            match (ours, room) {
                (true, true) => state.letters.expect(offset),
                (true, false) => state.letters.set_more(true),
                (false, _) => {}
            }
            room
        });
        if expected {
            self.find_republished();
        }
    }

    /// Other processes have published dead letters of `rows` again.
    pub(crate) fn look_for_republished(self: &Arc<Self>, rows: &HashSet<i64>) {
        self.change(|state| {
            if state.row.is_some_and(|row| rows.contains(&row)) {
                state.letters.set_more(true);
            }
        });
        if self.wants_republished() {
            self.find_republished();
        }
    }

    /// Whether more was published again than is known here, and there is room for it.
    pub(crate) fn wants_republished(&self) -> bool {
        let state = self.state.lock();
        state.active && state.letters.wants_more(READ_AHEAD / 2)
    }

    /// Looks for dead letters that were published again, unless a search is under way.
    pub(crate) fn find_republished(self: &Arc<Self>) {
        if self.change(|state| std::mem::replace(&mut state.searching, true)) {
            return;
        }
        let (searching, found) = (Searching(Arc::clone(self)), Arc::clone(self));
        drop(self.store.writes.run_then(
            move |work| {
                let Some(search) = searching.0.search() else { return Ok(None) };
                let mut unfinished = Vec::new();
                let elsewhere = search.limit.map(Which::Republished);
                for which in search.expected.iter().map(|at| Which::At(*at)).chain(elsewhere) {
                    unfinished.push(Unfinished::read(work.connection, work.names, search.row, which)?);
                }
                Ok(Some((searching, search, unfinished)))
            },
            move |read| {
                let Some((searching, search, unfinished)) = read else { return };
                found.change(|state| {
                    if search.epoch == found.held.epoch() {
                        state.letters.looked(&search.expected);
                        if let Some(limit) = search.limit {
                            state.letters.set_more(unfinished.last().is_some_and(|last| last.len() == limit));
                        }
                        unfinished.into_iter().for_each(|unfinished| state.take_in(unfinished));
                    }
                });
                drop(searching);
                if found.wants_republished() {
                    found.find_republished();
                }
                found.store.saved.tell();
            },
        ));
    }

    /// Where to look for dead letters that were published again; none where there are no more, or too many are known.
    fn search(&self) -> Option<Search> {
        let state = self.state.lock();
        let row = state.row.filter(|_| state.active && state.letters.has_more())?;
        let known = state.letters.known();
        let elsewhere = state.letters.has_more_elsewhere() && state.letters.has_room(READ_AHEAD);
        let limit = elsewhere.then_some(known + READ_AHEAD);
        Some(Search { row, epoch: self.held.epoch(), expected: state.letters.expected(), limit })
    }
}

/// A search is under way, until this is dropped.
struct Searching(Arc<Claim>);

impl Drop for Searching {
    fn drop(&mut self) {
        self.0.change(|state| state.searching = false);
    }
}

/// A search for dead letters that were published again.
struct Search {
    row: i64,
    epoch: u64,
    /// Where some are.
    expected: Vec<i64>,
    /// How many to look for elsewhere; none: not there.
    limit: Option<usize>,
}
