//! The history of the in-process broker: the latest events, for groups that begin early, and for replays.

use super::queue::Waiting;
use crate::broker::{AuditQuery, Offset, Recorded, ReplayFrom, ReplayRequest, ReplayUntil, SKIPPED};
use crate::envelope::Envelope;
use crate::lock::{Lock, Locked, Rank};
use crate::topic::Pattern;
use crate::waiters::Waiters;
use std::collections::VecDeque;
use std::sync::Arc;

/// The latest events, up to a number. Whoever publishes or opens a group holds the lock throughout, so that no event
/// is both in the history of a new group and in its queue, or in neither.
pub(super) struct History {
    events: Lock<Events>,
    /// Tells those who follow the log that it grew.
    grown: Waiters,
}

/// The events that are kept, oldest first.
pub(super) struct Events {
    limit: usize,
    kept: VecDeque<Kept>,
}

/// An event that is kept.
pub(super) struct Kept {
    offset: Offset,
    envelope: Arc<Envelope>,
    /// The event with another payload, for the groups that got it so as they published its dead letter again.
    mended: Vec<(String, Arc<Envelope>)>,
}

impl Kept {
    /// The event as `group` gets it.
    fn of(&self, group: &str) -> &Arc<Envelope> {
        let mended = self.mended.iter().find(|(other, _)| other == group);
        mended.map_or(&self.envelope, |(_, mended)| mended)
    }
}

impl History {
    pub(super) fn new(limit: usize) -> Self {
        let events = Events { limit, kept: VecDeque::new() };
        Self { events: Lock::new(Rank::BROKER, events), grown: Waiters::new() }
    }

    pub(super) fn lock(&self) -> Locked<'_, Events> {
        self.events.lock()
    }

    /// Wakes those who follow the log.
    pub(super) fn tell(&self) {
        self.grown.tell();
    }

    /// Resolves once there is an event behind `offset`.
    pub(super) async fn wait(&self, offset: Option<Offset>) {
        self.grown.until(|| (self.lock().latest() > offset).then_some(())).await;
    }
}

impl Events {
    /// Adds the latest event. The answer is what had to make room for it, to be dropped once no lock is held.
    pub(super) fn keep(&mut self, offset: Offset, envelope: &Arc<Envelope>) -> Option<Kept> {
        let full = self.kept.len() == self.limit;
        let forgotten = if full { self.kept.pop_front() } else { None };
        self.kept.push_back(Kept { offset, envelope: Arc::clone(envelope), mended: Vec::new() });
        forgotten
    }

    /// From now on `group` gets the event at `offset` as it is in `mended`. The answer is what it got before, to be
    /// dropped once no lock is held.
    pub(super) fn mend(
        &mut self,
        group: &str,
        offset: Offset,
        mended: &Arc<Envelope>,
    ) -> Option<Arc<Envelope>> {
        let place = self.kept.binary_search_by_key(&offset, |kept| kept.offset).ok()?;
        let all = &mut self.kept[place].mended;
        if let Some((_, earlier)) = all.iter_mut().find(|(other, _)| other == group) {
            return Some(std::mem::replace(earlier, Arc::clone(mended)));
        }
        all.push((group.to_owned(), Arc::clone(mended)));
        None
    }

    /// How many events a group skips that begins now and listens on `pattern`.
    pub(super) fn skipped(&self, pattern: &Pattern) -> usize {
        let matching = self.kept.iter().filter(|kept| pattern.matches(kept.envelope.topic().as_str()));
        matching.take(SKIPPED + 1).count()
    }

    /// What `group` begins with, which listens on `pattern`.
    pub(super) fn matching(&self, group: &str, pattern: &Pattern) -> Vec<Waiting> {
        self.select(group, pattern, |_, _| true)
    }

    /// What a replay delivers.
    pub(super) fn requested(&self, request: &ReplayRequest) -> Vec<Waiting> {
        let begins = |offset: Offset, envelope: &Envelope| match request.from {
            ReplayFrom::Earliest => true,
            ReplayFrom::Offset(from) => offset >= from,
            ReplayFrom::After(behind) => offset > behind,
            ReplayFrom::Time(from) => envelope.time() >= from,
        };
        let ends = |offset: Offset, envelope: &Envelope| match request.until {
            ReplayUntil::Now | ReplayUntil::Live => false,
            ReplayUntil::Offset(until) => offset > until,
            ReplayUntil::Time(until) => envelope.time() >= until,
        };
        let wanted = |offset, envelope: &Envelope| begins(offset, envelope) && !ends(offset, envelope);
        self.select(&request.group, &request.pattern, wanted)
    }

    /// What an audit asks for.
    pub(super) fn queried(&self, query: &AuditQuery) -> Vec<Recorded> {
        let recorded = |Kept { offset, envelope, .. }: &Kept| {
            query.matches(envelope).then(|| Recorded { offset: *offset, envelope: Arc::clone(envelope) })
        };
        let behind = |event: &Recorded| {
            let after = query.after.is_none_or(|after| match query.newest_first {
                true => event.offset < after,
                false => event.offset > after,
            });
            after && query.offset.is_none_or(|place| event.offset == place)
        };
        if query.newest_first {
            self.kept.iter().rev().filter_map(recorded).filter(behind).take(query.limit).collect()
        } else {
            self.kept.iter().filter_map(recorded).filter(behind).take(query.limit).collect()
        }
    }

    /// What the event at `offset` was mended to, by the groups that get it so.
    pub(super) fn mended(&self, offset: Offset) -> Vec<(String, Arc<Envelope>)> {
        let place = self.kept.binary_search_by_key(&offset, |kept| kept.offset);
        place.map(|place| self.kept[place].mended.clone()).unwrap_or_default()
    }

    /// The place of the latest event.
    pub(super) fn latest(&self) -> Option<Offset> {
        self.kept.back().map(|kept| kept.offset)
    }

    fn select(
        &self,
        group: &str,
        pattern: &Pattern,
        wanted: impl Fn(Offset, &Envelope) -> bool,
    ) -> Vec<Waiting> {
        let matching = self.kept.iter().filter(|kept| {
            pattern.matches(kept.envelope.topic().as_str()) && wanted(kept.offset, &kept.envelope)
        });
        matching
            .map(|kept| Waiting { envelope: Arc::clone(kept.of(group)), offset: kept.offset, attempt: 1 })
            .collect()
    }
}
