//! Receiving: which events are put at hand for a subscription's reader, and handed out.

use super::at_hand::{Origin, Waiting};
use super::reading::Ticket;
use super::rows::{Noted, Unfinished};
use super::{Claim, ClaimState};
use crate::offsets::{behind, offset_of, size};
use crate::reader::{self, Page};
use crate::tail::Caught;
use crate::wire::Stored;
use crate::writes::When;
use eventbus_core::BrokerError;
use eventbus_core::broker::{Deliveries, Receipt, Received, Settler};
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// With fewer events at hand than this, more are read ahead.
pub(super) const READ_AHEAD: usize = reader::EVENTS;
/// With more bytes of payload at hand than this, no more are read ahead.
pub(crate) const READ_AHEAD_BYTES: usize = 4 << 20;
/// How many events are taken from the tail at once.
const FROM_TAIL: usize = 256;
/// While so many settled deliveries are not saved yet, no more are handed out: a crash repeats them.
pub(super) const UNSAVED: usize = 1_024;

/// The reader of a subscription.
pub(crate) struct SqliteDeliveries {
    claim: Arc<Claim>,
    settler: Arc<dyn Settler>,
    pub(crate) warnings: Vec<String>,
    /// Who handles the group, where that is somebody else.
    pub(crate) owner: Option<String>,
}

impl SqliteDeliveries {
    pub(crate) fn new(claim: Arc<Claim>) -> Self {
        let settler = Arc::clone(&claim) as Arc<dyn Settler>;
        Self { claim, settler, warnings: Vec::new(), owner: None }
    }

    /// Receives what is at hand. None: there is nothing, and `waker` is told when there is.
    fn receive(
        &self,
        into: &mut Vec<Received>,
        limit: usize,
        waker: Option<Waker>,
    ) -> Option<Result<(), BrokerError>> {
        let claim = &self.claim;
        let mut damaged = Vec::new();
        let (received, fetch, earlier) = claim.change(|state| {
            if let Some(error) = state.error.take() {
                return (Some(Err(error)), None, None);
            }
            let mut fetch = None;
            if state.active && state.unsaved() < UNSAVED {
                fetch = claim.refill(state);
                if self.hand_out(state, into, limit, &mut damaged) > 0 {
                    fetch = fetch.or_else(|| claim.refill(state));
                    return (Some(Ok(())), fetch, None);
                }
            }
            let earlier = waker.and_then(|waker| state.waker.replace(waker));
            (None, fetch, earlier)
        });
        // Code of others, too.
        drop(earlier);
        fetch.into_iter().for_each(|ticket| claim.fetch(ticket));
        if !damaged.is_empty() {
            claim.save(Some(When::Now));
        }
        for offset in damaged {
            log::error!(
                target: "eventbus", group = %printable(&claim.group), offset,
                "an event in the log is damaged: its checksum is wrong; it becomes a dead letter"
            );
        }
        received
    }

    /// Hands out at most `limit` deliveries; tells how many, and the places of those that are given up instead.
    fn hand_out(
        &self,
        state: &mut ClaimState,
        into: &mut Vec<Received>,
        limit: usize,
        damaged: &mut Vec<i64>,
    ) -> usize {
        let epoch = self.claim.held.epoch();
        let before = into.len();
        while into.len() - before < limit {
            let Some(waiting) = state.at_hand.pop() else { break };
            let offset = offset_of(waiting.offset);
            if waiting.origin == Origin::Read && !state.progress.open(offset, waiting.noted) {
                state.after.dropped.push(waiting.envelope);
                continue;
            }
            if !waiting.intact {
                damaged.push(waiting.offset);
                self.claim.give_up_damaged(state, waiting);
                continue;
            }
            state.at_hand.hand_out(waiting.size);
            let alone = state.suspects.contains(waiting.offset);
            let crashes = state.suspects.crashes(waiting.offset);
            let Waiting { envelope, noted: Noted { attempt, parked, .. }, origin, .. } = waiting;
            let attempt = attempt.saturating_add(crashes);
            let token = Token { epoch, republished: origin == Origin::Letter };
            let receipt = Receipt { envelope, offset, attempt, token: token.into() };
            let settler = Arc::clone(&self.settler);
            into.push(Received { receipt, replayed: false, parked, alone, settler });
        }
        if state.at_hand.is_empty() {
            // Whatever else was read is not ours.
            state.progress.skip_to(behind(state.reading.position()));
        }
        into.len() - before
    }
}

impl Deliveries for SqliteDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        if let Some(received) = self.receive(into, limit, None) {
            return Poll::Ready(received);
        }
        // A waker is code of others, and is not to be cloned under the lock.
        let waker = context.waker().clone();
        self.receive(into, limit, Some(waker)).map_or(Poll::Pending, Poll::Ready)
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn stands_by_for(&mut self) -> Option<String> {
        self.owner.take()
    }
}

impl Drop for SqliteDeliveries {
    /// Leaves the group to whoever comes next.
    fn drop(&mut self) {
        self.claim.change(|state| state.ended = true);
        self.claim.leave();
    }
}

/// What the token of a receipt says: in which epoch the delivery was handed out, and whether it was published again.
#[derive(Clone, Copy)]
pub(super) struct Token {
    pub(super) epoch: u64,
    pub(super) republished: bool,
}

impl From<u64> for Token {
    fn from(token: u64) -> Self {
        Self { epoch: token >> 1, republished: token & 1 == 1 }
    }
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        token.epoch << 1 | u64::from(token.republished)
    }
}

impl Claim {
    /// Makes sure that something is at hand, if there is anything: from the tail, or with a ticket for what is to be
    /// fetched out of the file.
    fn refill(&self, state: &mut ClaimState) -> Option<Ticket> {
        let enough = state.at_hand.len() >= READ_AHEAD || state.at_hand.bytes() >= READ_AHEAD_BYTES;
        if !state.reading.wants_more() || enough {
            return None;
        }
        // The tail has events as they were published.
        let mended = state.reading.position() < state.mended;
        let tail = || self.store.tail().after(state.reading.position(), &self.pattern, FROM_TAIL);
        let caught = if mended { None } else { tail() };
        let Some(caught) = caught else { return Some(state.reading.begin_fetch()) };
        match state.at_hand.is_empty() {
            true => state.catch_up(caught),
            false => state.after.dropped.extend(caught.events.into_iter().map(|(_, envelope)| envelope)),
        }
        None
    }

    /// Fetches events out of the file.
    fn fetch(self: &Arc<Self>, ticket: Ticket) {
        let claim = Arc::clone(self);
        self.runtime.spawn(async move {
            let (group, pattern) = (claim.group.clone(), claim.pattern.clone());
            let read = move |reader: &mut reader::Reader| {
                let mut page = reader.read_after(&pattern, ticket.position, None)?;
                reader.mend(&group, &mut page.events)?;
                Ok(page)
            };
            let page = claim.store.readers.read(read).await;
            claim.fetched(ticket, page);
        });
    }

    fn fetched(&self, ticket: Ticket, page: Result<Page, BrokerError>) {
        self.change(|state| {
            let read = page.as_ref().ok().map(|page| (page.position, page.complete));
            let events = match page {
                Ok(page) => page.events,
                Err(error) => {
                    state.error = Some(error);
                    Vec::new()
                }
            };
            if state.reading.end_fetch(ticket, read) {
                for event in events {
                    if !state.is_ours(event.offset, event.envelope.topic()) {
                        continue;
                    }
                    state.put_at_hand(Waiting::read(event));
                }
                state.after.ring = true;
            }
        });
        self.store.saved.tell();
    }
}

impl Waiting {
    /// An event that was read, and is delivered for the first time.
    fn read(event: Stored) -> Self {
        let noted = Noted { mended: event.mended, ..Noted::FIRST };
        Self::of(event, noted, Origin::Read)
    }

    pub(super) fn of(event: Stored, noted: Noted, origin: Origin) -> Self {
        let Stored { offset, envelope, size, intact, mended: _ } = event;
        Self { offset, envelope, size, noted, origin, intact }
    }
}

impl ClaimState {
    /// Takes what was just published.
    fn catch_up(&mut self, caught: Caught) {
        self.reading.advance(caught.position, caught.complete);
        for (offset, envelope) in caught.events {
            if !self.is_ours(offset, envelope.topic()) {
                self.after.dropped.push(envelope);
                continue;
            }
            self.put_at_hand(Waiting {
                offset,
                size: size(&envelope),
                envelope,
                noted: Noted::FIRST,
                origin: Origin::Read,
                intact: true,
            });
        }
    }

    /// Puts what has a row at hand again.
    pub(super) fn take_in(&mut self, unfinished: Vec<Unfinished>) {
        self.after.ring |= !unfinished.is_empty();
        for Unfinished { event, noted, republished } in unfinished {
            let origin = if republished { Origin::Letter } else { Origin::Open };
            if !republished || self.letters.open(event.offset, noted) {
                self.put_at_hand(Waiting::of(event, noted, origin));
            }
        }
    }
}
