//! Subscribing: which events are at hand for a subscription's reader, and which are handed out.

use crate::delivery::Opened;
use crate::reader::{self, Batch, Names};
use crate::saving::{Noted, Unfinished, Which};
use crate::subscription::{State, Subscription};
use crate::tail::Caught;
use crate::wire::Stored;
use crate::writes::WAKER;
use eventbus_core::broker::{Deliveries, Offset, Parked, Receipt, Received, Settler};
use eventbus_core::{BrokerError, Envelope, foreign};
use rusqlite::Connection;
use std::sync::Arc;
use std::task::{Context, Poll};

/// With fewer events at hand than this, more are read ahead.
const READ_AHEAD: usize = reader::EVENTS;
/// With more bytes of payload at hand than this, no more are read ahead.
pub(crate) const READ_AHEAD_BYTES: usize = 4 << 20;
/// With more bytes of payload handed out than this, no more are handed out until some are settled.
const OPEN_BYTES: usize = 64 << 20;
/// How many events are taken from the tail at once.
const FROM_TAIL: usize = 256;
/// While so many settled deliveries are not saved yet, no more are handed out: a crash repeats them.
const UNSAVED: usize = 1_024;

/// The reader of a subscription.
pub(crate) struct SqliteDeliveries {
    subscription: Arc<Subscription>,
    settler: Arc<dyn Settler>,
}

impl SqliteDeliveries {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        let settler = Arc::clone(&subscription) as Arc<dyn Settler>;
        Self { subscription, settler }
    }
}

impl Deliveries for SqliteDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let subscription = &self.subscription;
        let mut state = subscription.lock();
        if let Some(error) = state.error.take() {
            return Poll::Ready(Err(error));
        }
        if state.active && state.unsaved < UNSAVED {
            subscription.refill(&mut state);
            let epoch = subscription.epoch();
            let before = into.len();
            while into.len() - before < limit && (state.open_bytes < OPEN_BYTES || state.open.is_empty()) {
                let Some(waiting) = state.at_hand.pop_front() else { break };
                into.push(state.hand_out(waiting, &self.settler, epoch));
            }
            let count = into.len() - before;
            state.stalled = !state.at_hand.is_empty() && state.open_bytes >= OPEN_BYTES;
            if state.at_hand.is_empty() && state.handed < state.position {
                state.handed = state.position;
            }
            if count > 0 {
                subscription.refill(&mut state);
                return Poll::Ready(Ok(()));
            }
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for SqliteDeliveries {
    /// Leaves the group to whoever comes next.
    fn drop(&mut self) {
        self.subscription.lock().ended = true;
        self.subscription.leave();
    }
}

/// A delivery that is at hand.
pub(crate) struct Waiting {
    offset: i64,
    envelope: Arc<Envelope>,
    attempt: u32,
    parked: Option<Parked>,
}

impl Waiting {
    fn size(&self) -> usize {
        size(&self.envelope)
    }
}

impl Subscription {
    /// Makes sure that something is at hand, if there is anything: from the tail, or out of the file.
    fn refill(self: &Arc<Self>, state: &mut State) {
        let enough = state.at_hand.len() >= READ_AHEAD || state.at_hand_bytes >= READ_AHEAD_BYTES;
        if !state.behind || state.fetching || enough {
            return;
        }
        let caught = self.store.tail().after(state.position, &self.pattern, FROM_TAIL);
        if let Some(caught) = caught {
            if state.at_hand.is_empty() {
                state.catch_up(caught);
            }
            return;
        }
        state.fetching = true;
        let (position, called, epoch) = (state.position, state.called, self.epoch());
        let subscription = Arc::clone(self);
        self.runtime.spawn(async move {
            let pattern = subscription.pattern.clone();
            let batch = subscription
                .store
                .readers
                .read(move |reader| reader.read_after(&pattern, position, None))
                .await;
            subscription.fetched(batch, called, epoch);
        });
    }

    fn fetched(self: &Arc<Self>, batch: Result<Batch, BrokerError>, called: u64, epoch: u64) {
        self.change(|state| {
            if epoch != self.epoch() {
                return;
            }
            state.fetching = false;
            match batch {
                Ok(Batch { events, position, complete }) => {
                    state.position = position;
                    state.behind = !complete || state.called != called;
                    for event in events {
                        if state.is_ours(event.offset, event.envelope.topic()) {
                            self.take_in(state, event, Noted::FIRST);
                        }
                    }
                }
                Err(error) => state.error = Some(error),
            }
            state.ring = true;
        });
        foreign::tell(WAKER, || self.store.saved.notify_waiters());
    }

    /// Puts an event at hand that was read.
    fn take_in(self: &Arc<Self>, state: &mut State, event: Stored, noted: Noted) {
        let Stored { offset, envelope, intact } = event;
        let envelope = Arc::new(envelope);
        if intact {
            let Noted { attempt, parked, .. } = noted;
            return state.put_at_hand(Waiting { offset, envelope, attempt, parked });
        }
        state.open.entry(offset).or_insert(Opened::FIRST);
        self.give_up_damaged(offset, envelope, noted.attempt);
    }

    /// Puts a delivery at hand again that was handed out before.
    pub(crate) fn put_back(&self, receipt: Receipt, parked: Option<Parked>) {
        let Receipt { envelope, offset, attempt, token } = receipt;
        let offset = place(offset);
        self.change(|state| {
            let Some(opened) = state.open.get_mut(&offset) else { return };
            if token == self.epoch() && !state.ended {
                // It is handed out again later, and counted then.
                let size = std::mem::take(&mut opened.size);
                state.open_bytes -= size;
                state.put_at_hand(Waiting { offset, envelope, attempt, parked });
                state.ring = true;
            }
        });
    }

    /// The dead letter of the event at `offset` was published again.
    pub(crate) fn take_republished(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
        offset: i64,
    ) -> rusqlite::Result<()> {
        let row = {
            let mut state = self.lock();
            state.more_republished |= state.republished() >= READ_AHEAD;
            state.row.filter(|_| state.active && !state.more_republished)
        };
        let Some(row) = row else { return Ok(()) };
        let unfinished = Unfinished::read(connection, names, row, Which::At(offset))?;
        self.change(|state| self.take_in_unfinished(state, unfinished));
        Ok(())
    }

    /// Looks for dead letters that were published again, by other processes or more than were taken at once.
    pub(crate) fn find_republished(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        let (row, limit) = {
            let state = self.lock();
            let (true, Some(row)) = (state.active, state.row) else { return Ok(()) };
            (row, state.republished() + READ_AHEAD)
        };
        let unfinished = Unfinished::read(connection, names, row, Which::Republished(limit))?;
        self.change(|state| {
            state.more_republished = unfinished.len() == limit;
            self.take_in_unfinished(state, unfinished);
        });
        Ok(())
    }

    /// Whether more was published again than is known here, and there is room for it.
    pub(crate) fn wants_republished(&self) -> bool {
        let state = self.lock();
        state.more_republished && state.republished() < READ_AHEAD / 2
    }

    /// Opens the deliveries that have a row and are not known yet.
    pub(crate) fn take_in_unfinished(self: &Arc<Self>, state: &mut State, unfinished: Vec<Unfinished>) {
        state.ring |= !unfinished.is_empty();
        for Unfinished { event, noted, mended } in unfinished {
            let offset = event.offset;
            if !state.open.contains_key(&offset) && state.saved.rows.insert(offset, noted).is_none() {
                let opened = Opened { noted, mended, ..Opened::FIRST };
                state.open.insert(offset, opened);
                self.take_in(state, event, noted);
            }
        }
    }
}

impl State {
    /// How many deliveries are known that were published again.
    fn republished(&self) -> usize {
        self.saved.rows.values().filter(|noted| noted.republished).count()
    }

    /// In the order of the log, since earlier events of a key go first.
    fn put_at_hand(&mut self, waiting: Waiting) {
        let place = match self.at_hand.back() {
            Some(last) if last.offset >= waiting.offset => {
                self.at_hand.partition_point(|other| other.offset < waiting.offset)
            }
            _ => self.at_hand.len(),
        };
        if self.at_hand.get(place).is_none_or(|other| other.offset != waiting.offset) {
            self.at_hand_bytes += waiting.size();
            self.at_hand.insert(place, waiting);
        }
    }

    /// Takes what was just published.
    fn catch_up(&mut self, caught: Caught) {
        self.position = caught.position;
        self.behind = !caught.complete;
        for (offset, envelope) in caught.events {
            if self.is_ours(offset, envelope.topic()) {
                self.put_at_hand(Waiting { offset, envelope, attempt: 1, parked: None });
            }
        }
    }

    /// Takes a delivery out of those that are open.
    pub(crate) fn close(&mut self, offset: i64) -> Option<Opened> {
        let opened = self.open.remove(&offset)?;
        self.open_bytes -= opened.size;
        self.ring |= std::mem::take(&mut self.stalled);
        Some(opened)
    }

    fn hand_out(&mut self, waiting: Waiting, settler: &Arc<dyn Settler>, epoch: u64) -> Received {
        let size = waiting.size();
        let Waiting { offset, envelope, attempt, parked } = waiting;
        self.open.entry(offset).or_insert(Opened::FIRST).size = size;
        self.at_hand_bytes -= size;
        self.open_bytes += size;
        // What was published again, or comes from an earlier row, may lie ahead of what was read.
        if offset <= self.position {
            self.handed = self.handed.max(offset);
        }
        let receipt = Receipt { envelope, offset: offset_of(offset), attempt, token: epoch };
        Received { receipt, replayed: false, parked, settler: Arc::clone(settler) }
    }
}

/// The size of a payload that was read.
pub(crate) fn size(envelope: &Envelope) -> usize {
    envelope.payload().map_or(0, |payload| payload.len())
}

/// A place in the file as an offset of the contract.
pub(crate) fn offset_of(place: i64) -> Offset {
    Offset::new(u128::try_from(place).unwrap_or_default())
}

/// An offset of the contract as a place in the file.
pub(crate) fn place(offset: Offset) -> i64 {
    i64::try_from(offset.get()).unwrap_or(i64::MAX)
}
