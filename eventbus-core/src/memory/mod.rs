//! The in-process broker: bounded queues in this program's memory, and the reference implementation of the
//! [contract](crate::broker).

mod dead_letters;
mod history;
mod patience;
mod places;
mod queue;
mod routes;

use crate::broker::{
    self, AuditLog, AuditQuery, Broker, BrokerFuture, DeadLetters, Deliveries, Features, Offset, Receipt,
    Recorded, Replay, ReplayRequest, ReplayUntil, Replayable, Start, SubscribeRequest,
};
use crate::envelope::Envelope;
use crate::error::{BrokerError, PublishError};
use crate::foreign::Wakers;
use crate::lock::{Rank, SharedLock};
use crate::topic::Pattern;
use crate::waiters::Waiters;
use bytes::Bytes;
use dead_letters::MemoryDeadLetters;
use history::History;
use patience::Patience;
use queue::{Kind, MemoryDeliveries, Queue, Waiting};
use routes::Routes;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// A broker in this process's memory: for programs that need no durability, and for tests.
///
/// Each group has a bounded queue. What is in the queues when the process ends is lost: `shutdown` handles the
/// backlog first, and says what it could not. A group that begins here sees what is published from then on.
///
/// ```
/// use eventbus_core::memory::{MemoryBroker, Overflow};
///
/// let broker = MemoryBroker::builder().capacity(1_000).overflow(Overflow::Error).build();
/// ```
#[derive(Clone)]
pub struct MemoryBroker(Arc<Shared>);

/// What publishing does while the queue of some group is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It waits until there is room.
    #[default]
    Wait,
    /// It fails with [`PublishError::Full`], and no group gets the event.
    Error,
}

/// The settings of a [`MemoryBroker`].
#[derive(Clone, Debug)]
pub struct MemoryBrokerBuilder {
    capacity: usize,
    overflow: Overflow,
    dead_letter_capacity: usize,
    history: usize,
}

impl MemoryBroker {
    /// A broker with the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A broker with settings of its own.
    #[must_use]
    pub fn builder() -> MemoryBrokerBuilder {
        MemoryBrokerBuilder {
            capacity: 16_384,
            overflow: Overflow::default(),
            dead_letter_capacity: 10_000,
            history: 0,
        }
    }

    /// Resolves once nothing is queued, being handled, or parked for a retry. Tests await this instead of time.
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed.
    pub async fn settled(&self) {
        self.0.outstanding.settled().await;
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker")
            .field("outstanding", &self.0.outstanding.count())
            .finish_non_exhaustive()
    }
}

impl MemoryBrokerBuilder {
    /// How many events the queue of one group may hold. Default: 16,384.
    ///
    /// What handlers publish may fill a queue to twice as much, so that handlers that publish to each other
    /// through full queues do not wait for themselves; beyond that their publish fails, and they are retried.
    #[must_use]
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events.max(1);
        self
    }

    /// What publishing does while the queue of some group is full. Default: [`Overflow::Wait`].
    #[must_use]
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// How many dead letters are kept; beyond that the oldest is dropped, with an error in the log.
    /// Default: 10,000.
    #[must_use]
    pub fn dead_letter_capacity(mut self, dead_letters: usize) -> Self {
        self.dead_letter_capacity = dead_letters.max(1);
        self
    }

    /// How many events are kept after they were handled, for replays, for the audit log, and for groups with
    /// `start = "earliest"`; beyond that the oldest is forgotten. Default: 0, which leaves these to brokers with a log.
    #[must_use]
    pub fn history(mut self, events: usize) -> Self {
        self.history = events;
        self
    }

    /// The broker.
    #[must_use]
    pub fn build(self) -> MemoryBroker {
        let routes = Arc::new(SharedLock::new(Rank::BROKER_INNER, Routes::default()));
        let outstanding = Arc::new(Outstanding::new());
        let history = (self.history > 0).then(|| Arc::new(History::new(self.history)));
        MemoryBroker(Arc::new(Shared {
            dead_letters: Arc::new(MemoryDeadLetters::new(
                self.dead_letter_capacity,
                Arc::clone(&routes),
                Arc::clone(&outstanding),
                history.clone(),
            )),
            routes,
            capacity: self.capacity,
            overflow: self.overflow,
            offsets: AtomicU64::new(0),
            outstanding,
            history,
        }))
    }
}

struct Shared {
    routes: Arc<SharedLock<Routes>>,
    capacity: usize,
    overflow: Overflow,
    offsets: AtomicU64,
    outstanding: Arc<Outstanding>,
    dead_letters: Arc<MemoryDeadLetters>,
    history: Option<Arc<History>>,
}

impl Shared {
    /// Puts the envelope into the queue of each group that listens, or into none of them.
    fn offer(&self, envelope: &Arc<Envelope>) -> Result<(), Arc<Queue>> {
        let caused = envelope.causation_depth() > 0;
        let limit = if caused { self.capacity.saturating_mul(2) } else { self.capacity };
        let exact = !self.waits(envelope);
        // What is dropped or called at the end, with no lock held.
        let (queues, forgotten);
        let (mut wakers, mut refused) = (Wakers::default(), 0);
        {
            let mut history = self.history.as_deref().map(History::lock);
            queues = match routes::take_places(&self.routes, envelope.topic(), limit, exact, &mut wakers) {
                Ok(queues) if queues.is_empty() && history.is_none() => return Ok(()),
                Ok(queues) => queues,
                Err(full) => {
                    drop(history);
                    wakers.wake();
                    return Err(full);
                }
            };
            self.outstanding.add(queues.len());
            let offset = Offset::new(self.offsets.fetch_add(1, Ordering::Relaxed).into());
            forgotten = history.as_mut().and_then(|events| events.keep(offset, envelope));
            for queue in queues.iter() {
                let delivery = Waiting { envelope: Arc::clone(envelope), offset, attempt: 1 };
                refused += usize::from(!queue.push(delivery, &mut wakers));
            }
        }
        wakers.wake();
        drop(forgotten);
        if refused > 0 {
            self.outstanding.remove(refused);
        }
        if let Some(history) = &self.history {
            history.tell();
        }
        Ok(())
    }

    /// Publishes, unless the publisher has to wait for room in this queue.
    fn publish_now(&self, envelope: &Arc<Envelope>) -> Result<Result<(), PublishError>, Arc<Queue>> {
        match self.offer(envelope) {
            Ok(()) => Ok(Ok(())),
            Err(full) if self.waits(envelope) => Err(full),
            Err(full) => Ok(Err(self.full(&full, envelope))),
        }
    }

    /// Whether the publisher of this waits for room. A handler could be waiting for itself.
    fn waits(&self, envelope: &Envelope) -> bool {
        self.overflow == Overflow::Wait && envelope.causation_depth() == 0
    }

    /// A queue that begins with `deliveries`.
    fn queue(&self, group: &str, pattern: &Pattern, deliveries: Vec<Waiting>) -> Arc<Queue> {
        self.outstanding.add(deliveries.len());
        let (outstanding, dead_letters) = (Arc::clone(&self.outstanding), Arc::clone(&self.dead_letters));
        Queue::new(group.to_owned(), pattern.clone(), deliveries, outstanding, dead_letters)
    }

    fn full(&self, queue: &Queue, envelope: &Envelope) -> PublishError {
        PublishError::Full {
            topic: envelope.topic().to_string(),
            group: queue.group().to_owned(),
            capacity: self.capacity,
        }
    }
}

impl Broker for MemoryBroker {
    fn name(&self) -> &str {
        "in-process"
    }

    fn features(&self) -> Features {
        let mut features = Features::none();
        features.key_order = true;
        features.patterns = true;
        features.start_earliest = self.0.history.is_some();
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        match self.0.publish_now(&envelope) {
            Ok(answer) => BrokerFuture::ready(answer),
            Err(full) => BrokerFuture::new(wait(Arc::clone(&self.0), envelope, full)),
        }
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        let (shared, mut left) = (Arc::clone(&self.0), envelopes.into_iter());
        let mut answers = Vec::with_capacity(left.len());
        while let Some(envelope) = left.next() {
            match shared.publish_now(&envelope) {
                Ok(answer) => answers.push(answer),
                Err(full) => {
                    // Whatever comes after one that waits comes after it in the queues as well.
                    return BrokerFuture::new(async move {
                        answers.push(wait(Arc::clone(&shared), envelope, full).await);
                        for envelope in left {
                            answers.push(match shared.publish_now(&envelope) {
                                Ok(answer) => answer,
                                Err(full) => wait(Arc::clone(&shared), envelope, full).await,
                            });
                        }
                        answers
                    });
                }
            }
        }
        BrokerFuture::ready(answers)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let SubscribeRequest { group, pattern, start, .. } = request;
        let mut skips = 0;
        let queue = {
            let history = self.0.history.as_deref().map(History::lock);
            let mut routes = self.0.routes.write();
            routes.queue(&group, &pattern, || {
                let (mut earlier, events) = (Vec::new(), history.as_ref());
                match start {
                    Start::Earliest => earlier
                        .extend(events.into_iter().flat_map(|events| events.matching(&group, &pattern))),
                    Start::Latest => skips = events.map_or(0, |events| events.skipped(&pattern)),
                }
                self.0.queue(&group, &pattern, earlier)
            })
        };
        let deliveries = MemoryDeliveries::new(queue, Arc::clone(&self.0.routes), Kind::Live);
        BrokerFuture::ready(Ok(Box::new(deliveries.warn(broker::skipped(&group, &pattern, skips, None)))))
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::clone(&self.0.dead_letters) as Arc<dyn DeadLetters>)
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        self.0.history.is_some().then(|| Arc::new(self.clone()) as Arc<dyn Replayable>)
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        self.0.history.is_some().then(|| Arc::new(self.clone()) as Arc<dyn AuditLog>)
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let outstanding = Arc::clone(&self.0.outstanding);
        Some(BrokerFuture::new(async move { outstanding.settled().await }))
    }

    fn backlog(&self, request: &SubscribeRequest) -> Option<u64> {
        let queue = self.0.routes.read().live(&request.group, &request.pattern);
        queue.map(|queue| queue.unsettled())
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        let outstanding = Arc::clone(&self.0.outstanding);
        let queues: Vec<_> = {
            let routes = self.0.routes.read();
            subscriptions.iter().filter_map(|one| routes.live(&one.group, &one.pattern)).collect()
        };
        BrokerFuture::new(async move {
            outstanding.of_some.until(|| queue::are_settled(&queues).then_some(())).await;
        })
    }
}

impl Replayable for MemoryBroker {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let Some(history) = &self.0.history else { return BrokerFuture::ready(Err(no_history())) };
        // It is held until the queue of a live replay can be found, so that the next event comes into it.
        let history = history.lock();
        let (deliveries, latest) = (history.requested(&request), history.latest());
        let events = deliveries.len() as u64;
        let queue = self.0.queue(&request.group, &request.pattern, deliveries);
        queue.add_reader();
        let kind = if request.until == ReplayUntil::Live {
            self.0.routes.write().add_replay(&queue);
            Kind::LiveReplay
        } else {
            Kind::Replay
        };
        let deliveries = Box::new(MemoryDeliveries::new(queue, Arc::clone(&self.0.routes), kind));
        BrokerFuture::ready(Ok(Replay { deliveries, events, latest }))
    }
}

impl AuditLog for MemoryBroker {
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let found = self.0.history.as_ref().map(|history| history.lock().queried(&query));
        BrokerFuture::ready(found.ok_or_else(no_history))
    }

    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        let broker = self.clone();
        BrokerFuture::new(async move {
            broker.0.history.as_ref().ok_or_else(no_history)?.wait(offset).await;
            Ok(())
        })
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let latest = self.0.history.as_ref().map(|history| history.lock().latest());
        BrokerFuture::ready(latest.ok_or_else(no_history))
    }

    fn mended(&self, offset: Offset) -> BrokerFuture<Result<Vec<(String, Bytes)>, BrokerError>> {
        let mended = self.0.history.as_ref().map(|history| history.lock().mended(offset));
        BrokerFuture::ready(mended.ok_or_else(no_history).map(|mended| {
            // It was mended with bytes, so there are bytes.
            let bytes = |envelope: &Envelope| envelope.payload().cloned().ok();
            mended.into_iter().filter_map(|(group, event)| Some((group, bytes(&event)?))).collect()
        }))
    }
}

/// Publishes once there is room, first of all in the queue that was full.
async fn wait(shared: Arc<Shared>, envelope: Arc<Envelope>, full: Arc<Queue>) -> Result<(), PublishError> {
    let mut line = InLine { queue: full, number: None };
    let mut patience = Patience::new(&line.queue);
    poll_fn(|context| {
        loop {
            // From here on no room that is made is missed; some may have been made already.
            line.enter(context);
            match shared.offer(&envelope) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(full) if Arc::ptr_eq(&full, &line.queue) => {
                    patience.watch(context, &line.queue, shared.capacity);
                    return Poll::Pending;
                }
                Err(full) => {
                    patience = Patience::new(&full);
                    line = InLine { queue: full, number: None };
                }
            }
        }
    })
    .await
}

/// A publisher that waits for room in a queue; dropped, it waits no more.
struct InLine {
    queue: Arc<Queue>,
    number: Option<u64>,
}

impl InLine {
    fn enter(&mut self, context: &Context<'_>) {
        self.number = Some(self.queue.places.line.enter(self.number, context.waker().clone()));
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.queue.places.line.leave(number);
        }
    }
}

fn no_history() -> BrokerError {
    BrokerError::new("the in-process broker keeps no history; build it with `.history(events)`")
}

/// How many deliveries are accepted and not settled yet, in the whole broker: one number, because a cascade moves
/// from queue to queue.
struct Outstanding {
    count: AtomicUsize,
    none: Waiters,
    /// Those who wait until nothing is left in some of the queues.
    of_some: Waiters,
}

impl Outstanding {
    fn new() -> Self {
        Self { count: AtomicUsize::new(0), none: Waiters::new(), of_some: Waiters::new() }
    }

    fn add(&self, deliveries: usize) {
        self.count.fetch_add(deliveries, Ordering::SeqCst);
    }

    fn remove(&self, deliveries: usize) {
        if self.count.fetch_sub(deliveries, Ordering::SeqCst) == deliveries {
            self.none.tell();
        }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    async fn settled(&self) {
        self.none.until(|| (self.count() == 0).then_some(())).await;
    }
}

impl From<Receipt> for Waiting {
    /// What was delivered waits again.
    fn from(receipt: Receipt) -> Self {
        let Receipt { envelope, offset, attempt, .. } = receipt;
        Self { envelope, offset, attempt }
    }
}
