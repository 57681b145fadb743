//! The in-process broker: bounded queues in this program's memory, and the reference implementation of the
//! [contract](crate::broker).

mod dead_letters;
mod history;
mod queue;
mod routes;

use crate::broker::{
    AuditLog, AuditQuery, Broker, BrokerFuture, DeadLetters, Deliveries, Features, Offset, Receipt, Recorded,
    Replay, ReplayRequest, ReplayUntil, Replayable, Start, SubscribeRequest,
};
use crate::envelope::Envelope;
use crate::error::{BrokerError, PublishError};
use crate::topic::Pattern;
use dead_letters::MemoryDeadLetters;
use history::History;
use queue::{Kind, MemoryDeliveries, Queue, Waiting};
use routes::Routes;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::Notify;

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
        let routes = Arc::new(RwLock::new(Routes::default()));
        let outstanding = Arc::new(Outstanding::default());
        MemoryBroker(Arc::new(Shared {
            dead_letters: Arc::new(MemoryDeadLetters::new(
                self.dead_letter_capacity,
                Arc::clone(&routes),
                Arc::clone(&outstanding),
            )),
            routes,
            capacity: self.capacity,
            overflow: self.overflow,
            offsets: AtomicU64::new(0),
            outstanding,
            history: (self.history > 0).then(|| History::new(self.history)),
        }))
    }
}

struct Shared {
    routes: Arc<RwLock<Routes>>,
    capacity: usize,
    overflow: Overflow,
    offsets: AtomicU64,
    outstanding: Arc<Outstanding>,
    dead_letters: Arc<MemoryDeadLetters>,
    history: Option<History>,
}

impl Shared {
    /// Puts the envelope into the queue of each group that listens, or into none of them.
    fn offer(&self, envelope: &Arc<Envelope>) -> Result<(), Arc<Queue>> {
        let history = self.history.as_ref().map(|history| (history, history.lock()));
        let queues = routes::matching(&self.routes, envelope.topic());
        if queues.is_empty() && history.is_none() {
            return Ok(());
        }
        let caused = envelope.causation_depth() > 0;
        let limit = if caused { self.capacity.saturating_mul(2) } else { self.capacity };
        for (reserved, queue) in queues.iter().enumerate() {
            if !queue.reserve(limit) {
                queues[..reserved].iter().for_each(|queue| queue.unreserve(1));
                return Err(Arc::clone(queue));
            }
        }
        self.outstanding.add(queues.len());
        let offset = Offset::new(self.offsets.fetch_add(1, Ordering::Relaxed).into());
        if let Some((history, mut events)) = history {
            history.keep(&mut events, offset, envelope);
        }
        for queue in queues.iter() {
            queue.push(Waiting { envelope: Arc::clone(envelope), offset, attempt: 1 });
        }
        Ok(())
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
        features.replay = self.0.history.is_some();
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        let Err(queue) = self.0.offer(&envelope) else { return BrokerFuture::ready(Ok(())) };
        // A handler that waited here could be waiting for itself.
        if self.0.overflow == Overflow::Error || envelope.causation_depth() > 0 {
            return BrokerFuture::ready(Err(self.0.full(&queue, &envelope)));
        }
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let mut next = queue;
            loop {
                let full = next;
                let mut room = std::pin::pin!(full.room());
                // From here on no room that is made is missed; some may have been made already.
                room.as_mut().enable();
                next = match shared.offer(&envelope) {
                    Ok(()) => return Ok(()),
                    Err(queue) => queue,
                };
                if Arc::ptr_eq(&next, &full) {
                    room.await;
                }
            }
        })
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let SubscribeRequest { group, pattern, start } = request;
        let history = self.0.history.as_ref().filter(|_| start == Start::Earliest).map(History::lock);
        let earlier = history.as_ref().map(|events| events.matching(&pattern)).unwrap_or_default();
        let mut routes = self.0.routes.write().unwrap_or_else(PoisonError::into_inner);
        let queue = routes.queue(&group, &pattern, || self.0.queue(&group, &pattern, earlier));
        BrokerFuture::ready(Ok(Box::new(MemoryDeliveries::new(
            queue,
            Arc::clone(&self.0.routes),
            Kind::Live,
        ))))
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

    fn drain(&self) -> BrokerFuture<()> {
        let outstanding = Arc::clone(&self.0.outstanding);
        BrokerFuture::new(async move { outstanding.settled().await })
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
            self.0.routes.write().unwrap_or_else(PoisonError::into_inner).add_replay(&queue);
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
}

fn no_history() -> BrokerError {
    BrokerError::new("the in-process broker keeps no history; build it with `.history(events)`")
}

/// How many deliveries are accepted and not settled yet, in the whole broker: one number, because a cascade moves
/// from queue to queue.
#[derive(Default)]
struct Outstanding {
    count: AtomicUsize,
    none: Notify,
}

impl Outstanding {
    fn add(&self, deliveries: usize) {
        self.count.fetch_add(deliveries, Ordering::AcqRel);
    }

    fn remove(&self, deliveries: usize) {
        if self.count.fetch_sub(deliveries, Ordering::AcqRel) == deliveries {
            self.none.notify_waiters();
        }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    async fn settled(&self) {
        loop {
            let mut none = std::pin::pin!(self.none.notified());
            none.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

impl From<Receipt> for Waiting {
    /// What was delivered waits again, as its next attempt.
    fn from(receipt: Receipt) -> Self {
        Self {
            envelope: receipt.envelope,
            offset: receipt.offset,
            attempt: receipt.attempt.saturating_add(1),
        }
    }
}
