//! Replay: reading the history with a cursor that is thrown away.

use crate::broker::Store;
use crate::claim::{DAMAGED, READ_AHEAD_BYTES};
use crate::offsets::{offset_of, place, size};
use crate::reader::{EVENTS, Page, Reader};
use crate::wire::seconds;
use crate::writes::{WAKER, closed};
use eventbus_core::broker::{
    Begin, BrokerFuture, DeadLetter, Deliveries, FailureKind, Receipt, Received, Replay, ReplayFrom,
    ReplayRequest, ReplayUntil, Replayable, Settler,
};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, Pattern, foreign};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle;

/// One replay.
struct History {
    store: Arc<Store>,
    /// Whose mended payloads are delivered.
    group: String,
    pattern: Pattern,
    /// The last place that is delivered; none: it goes on live.
    until: Option<i64>,
    runtime: Handle,
    /// There is something in `damaged`.
    has_damaged: AtomicBool,
    state: Lock<HistoryState>,
}

struct HistoryState {
    position: i64,
    complete: bool,
    fetching: bool,
    at_hand: VecDeque<(i64, Arc<Envelope>, u32)>,
    at_hand_bytes: usize,
    /// What no handler may see, of all that was read.
    damaged: BTreeSet<i64>,
    waker: Option<Waker>,
    error: Option<BrokerError>,
}

/// The places before the first and of the last event of a replay, how many there are, and the latest of all.
fn bounds(reader: &mut Reader, request: &ReplayRequest) -> rusqlite::Result<(i64, i64, u64, i64)> {
    let head = reader.head()?;
    let connection = &reader.connection;
    let before = |time| -> rusqlite::Result<Option<i64>> {
        connection
            .prepare_cached("select min(offset) from event where (time, nanosecond) >= (?1, ?2)")?
            .query_row(seconds(time), |row| row.get(0))
    };
    let from = match request.from {
        ReplayFrom::Offset(offset) => place(offset) - 1,
        ReplayFrom::After(offset) => place(offset),
        ReplayFrom::Time(time) => before(time)?.map_or(head, |offset| offset - 1),
        _ => 0,
    };
    let until = match request.until {
        ReplayUntil::Offset(offset) => place(offset).min(head),
        ReplayUntil::Time(time) => before(time)?.map_or(head, |offset| offset - 1),
        _ => head,
    };
    let mut events = 0;
    for topic in reader.topics(&request.pattern)? {
        events += connection
            .prepare_cached("select count(*) from event where topic = ?1 and offset > ?2 and offset <= ?3")?
            .query_row((topic, from, until), |row| row.get::<_, u64>(0))?;
    }
    Ok((from, until, events, head))
}

impl Replayable for Store {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let Some(store) = self.this() else { return BrokerFuture::ready(Err(closed())) };
        BrokerFuture::new(async move {
            let (group, pattern) = (request.group.clone(), request.pattern.clone());
            let live = request.until == ReplayUntil::Live;
            let (from, until, events, head) =
                store.readers.read(move |reader| bounds(reader, &request)).await?;
            let history = Arc::new(History {
                store,
                group,
                pattern,
                until: (!live).then_some(until),
                runtime: Handle::current(),
                has_damaged: AtomicBool::new(false),
                state: Lock::new(
                    Rank::BROKER,
                    HistoryState {
                        position: from,
                        complete: false,
                        fetching: false,
                        at_hand: VecDeque::new(),
                        at_hand_bytes: 0,
                        damaged: BTreeSet::new(),
                        waker: None,
                        error: None,
                    },
                ),
            });
            let deliveries =
                Box::new(HistoryDeliveries { settler: Arc::clone(&history) as Arc<dyn Settler>, history });
            Ok(Replay { deliveries, events, latest: (head > 0).then(|| offset_of(head)) })
        })
    }
}

impl History {
    /// Changes the state and wakes the reader, without the lock.
    fn change(&self, change: impl FnOnce(&mut HistoryState)) {
        let mut state = self.state.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            foreign::tell(WAKER, || waker.wake());
        }
    }

    /// Reads ahead, from `position` on.
    fn fetch(self: &Arc<Self>, position: i64) {
        let history = Arc::clone(self);
        self.runtime.spawn(async move {
            let (group, pattern, until) = (history.group.clone(), history.pattern.clone(), history.until);
            if until.is_none()
                && let Err(error) = history.store.stored_after(position).await
            {
                return history.change(|state| state.fail(error));
            }
            let read = move |reader: &mut Reader| {
                let mut page = reader.read_after(&pattern, position, until)?;
                reader.mend(&group, &mut page.events)?;
                Ok(page)
            };
            let read = history.store.readers.read(read).await;
            history.change(|state| match read {
                Ok(page) => history.take_in(state, page),
                Err(error) => state.fail(error),
            });
        });
    }

    fn take_in(&self, state: &mut HistoryState, page: Page) {
        state.fetching = false;
        state.position = page.position;
        state.complete = page.complete && self.until.is_some();
        for event in page.events {
            if !event.intact {
                state.damaged.insert(event.offset);
                self.has_damaged.store(true, Ordering::Release);
            }
            state.at_hand_bytes += event.size;
            state.at_hand.push_back((event.offset, event.envelope, 1));
        }
    }
}

impl HistoryState {
    /// Nothing was read ahead.
    fn fail(&mut self, error: BrokerError) {
        self.fetching = false;
        self.error = Some(error);
    }

    /// Where to read ahead from, if that is called for; then it is being done.
    fn begin_fetch(&mut self) -> Option<i64> {
        let enough = self.at_hand.len() >= EVENTS || self.at_hand_bytes >= READ_AHEAD_BYTES;
        if self.fetching || self.complete || enough {
            return None;
        }
        self.fetching = true;
        Some(self.position)
    }

    /// Moves at most `limit` of what is at hand into `into`; `true`: there was something, or there is no more.
    fn hand_out(&mut self, into: &mut Vec<Received>, limit: usize, settler: &Arc<dyn Settler>) -> bool {
        let count = limit.min(self.at_hand.len());
        let taken: usize = self.at_hand.iter().take(count).map(|(_, envelope, _)| size(envelope)).sum();
        self.at_hand_bytes -= taken;
        into.extend(self.at_hand.drain(..count).map(|(offset, envelope, attempt)| Received {
            receipt: Receipt { envelope, offset: offset_of(offset), attempt, token: 0 },
            replayed: true,
            parked: None,
            alone: false,
            settler: Arc::clone(settler),
        }));
        count > 0 || (self.complete && self.at_hand.is_empty())
    }
}

/// The reader of a replay.
struct HistoryDeliveries {
    history: Arc<History>,
    settler: Arc<dyn Settler>,
}

impl Deliveries for HistoryDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        // A waker is code of others, and is neither cloned nor dropped under the lock.
        let waker = context.waker().clone();
        let mut state = self.history.state.lock();
        if let Some(error) = state.error.take() {
            return Poll::Ready(Err(error));
        }
        let received = state.hand_out(into, limit, &self.settler);
        let fetch = state.begin_fetch();
        let earlier = if received { Some(waker) } else { state.waker.replace(waker) };
        drop(state);
        drop(earlier);
        fetch.into_iter().for_each(|position| self.history.fetch(position));
        if received { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Settler for History {
    fn ack(&self, _receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    /// Not called by a bus: what fails in a replay is in its report.
    fn reject(&self, _receipt: Receipt, _dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    /// What is damaged is handed out, so that it is counted, and told here that it is.
    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        if !self.has_damaged.load(Ordering::Acquire) {
            return None;
        }
        let damaged = self.state.lock().damaged.contains(&place(receipt.offset));
        let never = Begin::Never { kind: FailureKind::Damaged, reason: DAMAGED };
        damaged.then(|| BrokerFuture::ready(never))
    }

    fn release(&self, receipt: Receipt) {
        let Receipt { envelope, offset, attempt, .. } = receipt;
        self.change(|state| {
            state.at_hand_bytes += size(&envelope);
            // Several may come back, in any order.
            let place = place(offset);
            let before = state.at_hand.partition_point(|(other, ..)| *other < place);
            state.at_hand.insert(before, (place, envelope, attempt));
        });
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History")
            .field("pattern", &self.pattern)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
