//! The queue of one group: publishers push, the group's readers take everything at once.

use super::Outstanding;
use super::dead_letters::MemoryDeadLetters;
use super::routes::Routes;
use crate::broker::{BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Settler};
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::printable::printable;
use crate::topic::Pattern;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;

/// What waits for delivery to one group.
pub(super) struct Queue {
    group: String,
    pattern: Pattern,
    /// Places that are taken, by what waits and by what is about to be pushed.
    taken: AtomicUsize,
    room: Notify,
    inbox: Mutex<Inbox>,
    outstanding: Arc<Outstanding>,
    dead_letters: Arc<MemoryDeadLetters>,
    /// The queue itself, for what comes back to it later.
    queue: Weak<Self>,
}

struct Inbox {
    waiting: VecDeque<Waiting>,
    /// The reader that sleeps in each place; a reader that leaves gives its place back.
    readers: Vec<Option<Waker>>,
    open_readers: usize,
}

/// A delivery that waits for a reader.
pub(super) struct Waiting {
    pub(super) envelope: Arc<Envelope>,
    pub(super) offset: Offset,
    pub(super) attempt: u32,
}

impl Queue {
    pub(super) fn new(
        group: String,
        pattern: Pattern,
        deliveries: Vec<Waiting>,
        outstanding: Arc<Outstanding>,
        dead_letters: Arc<MemoryDeadLetters>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|queue| Self {
            group,
            pattern,
            taken: AtomicUsize::new(deliveries.len()),
            room: Notify::new(),
            inbox: Mutex::new(Inbox { waiting: deliveries.into(), readers: Vec::new(), open_readers: 0 }),
            outstanding,
            dead_letters,
            queue: Weak::clone(queue),
        })
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Takes a place, if fewer than `limit` are taken.
    pub(super) fn reserve(&self, limit: usize) -> bool {
        let had_room = self.taken.fetch_add(1, Ordering::AcqRel) < limit;
        if !had_room {
            self.taken.fetch_sub(1, Ordering::AcqRel);
        }
        had_room
    }

    /// Gives places back.
    pub(super) fn unreserve(&self, places: usize) {
        self.taken.fetch_sub(places, Ordering::AcqRel);
        self.room.notify_waiters();
    }

    /// Resolves when a place is given back.
    pub(super) fn room(&self) -> tokio::sync::futures::Notified<'_> {
        self.room.notified()
    }

    /// Adds a delivery at the end; its place is reserved already.
    pub(super) fn push(&self, delivery: Waiting) {
        let mut inbox = self.lock();
        if inbox.open_readers == 0 {
            // The subscription ended between the look at the routes and now.
            drop(inbox);
            self.unreserve(1);
            return self.outstanding.remove(1);
        }
        inbox.waiting.push_back(delivery);
        Self::wake_readers(inbox);
    }

    /// Adds a delivery that was here before at the front, beyond the limit if need be.
    pub(super) fn push_again(&self, delivery: Waiting) {
        self.taken.fetch_add(1, Ordering::AcqRel);
        let mut inbox = self.lock();
        inbox.waiting.push_front(delivery);
        Self::wake_readers(inbox);
    }

    pub(super) fn add_reader(&self) {
        self.lock().open_readers += 1;
    }

    fn wake_readers(mut inbox: MutexGuard<'_, Inbox>) {
        match inbox.readers.as_mut_slice() {
            // Almost always a queue has one reader, which is woken outside of the lock.
            [reader] => {
                let waker = reader.take();
                drop(inbox);
                waker.into_iter().for_each(Waker::wake);
            }
            readers => readers.iter_mut().filter_map(Option::take).for_each(Waker::wake),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settler for Queue {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        drop(receipt);
        self.outstanding.remove(1);
        BrokerFuture::ready(Ok(()))
    }

    fn nack(&self, receipt: Receipt, delay: Duration) -> BrokerFuture<Result<(), BrokerError>> {
        if delay.is_zero() {
            self.push_again(receipt.into());
            return BrokerFuture::ready(Ok(()));
        }
        let (queue, outstanding) = (Weak::clone(&self.queue), Arc::clone(&self.outstanding));
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            match queue.upgrade() {
                Some(queue) => queue.release(receipt),
                None => outstanding.remove(1),
            }
        });
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, _receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.dead_letters.keep(dead_letter);
        self.outstanding.remove(1);
        BrokerFuture::ready(Ok(()))
    }

    fn release(&self, receipt: Receipt) {
        if self.lock().open_readers > 0 {
            self.push_again(receipt.into());
        } else {
            self.outstanding.remove(1);
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("group", &self.group)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

/// What a reader reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is published.
    Live,
    /// A part of the history, and nothing after it.
    Replay,
    /// The history, and then what is published.
    LiveReplay,
}

/// One reader of a queue.
pub(super) struct MemoryDeliveries {
    queue: Arc<Queue>,
    settler: Arc<dyn Settler>,
    routes: Arc<RwLock<Routes>>,
    reader: Option<usize>,
    kind: Kind,
    /// Swapped with the queue's own list, so that neither allocates in the long run.
    taken: VecDeque<Waiting>,
}

impl MemoryDeliveries {
    /// A reader of a queue that has counted it.
    pub(super) fn new(queue: Arc<Queue>, routes: Arc<RwLock<Routes>>, kind: Kind) -> Self {
        let settler = Arc::clone(&queue) as Arc<dyn Settler>;
        Self { queue, settler, routes, reader: None, kind, taken: VecDeque::new() }
    }

    fn sleep(&mut self, inbox: &mut Inbox, waker: &Waker) {
        let reader = *self.reader.get_or_insert_with(|| {
            inbox.readers.push(None);
            inbox.readers.len() - 1
        });
        match &mut inbox.readers[reader] {
            Some(asleep) => asleep.clone_from(waker),
            awake => *awake = Some(waker.clone()),
        }
    }
}

impl Deliveries for MemoryDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let queue = Arc::clone(&self.queue);
        let mut inbox = queue.lock();
        if inbox.waiting.is_empty() && self.kind == Kind::Replay {
            return Poll::Ready(Ok(()));
        }
        if inbox.waiting.is_empty() {
            self.sleep(&mut inbox, context.waker());
            return Poll::Pending;
        }
        if inbox.waiting.len() <= limit {
            std::mem::swap(&mut inbox.waiting, &mut self.taken);
        } else {
            self.taken.extend(inbox.waiting.drain(..limit));
        }
        drop(inbox);
        queue.unreserve(self.taken.len());
        into.extend(self.taken.drain(..).map(|Waiting { envelope, offset, attempt }| Received {
            receipt: Receipt { envelope, offset, attempt, token: 0 },
            replayed: self.kind != Kind::Live,
            parked: None,
            settler: Arc::clone(&self.settler),
        }));
        Poll::Ready(Ok(()))
    }
}

impl Drop for MemoryDeliveries {
    /// When the last reader leaves, the queue closes: a queue that nobody reads would fill up and stop publishers.
    fn drop(&mut self) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let mut inbox = self.queue.lock();
        if let Some(reader) = self.reader {
            inbox.readers[reader] = None;
        }
        inbox.open_readers -= 1;
        if inbox.open_readers == 0 {
            routes.remove(&self.queue);
            let left = std::mem::take(&mut inbox.waiting);
            drop(inbox);
            self.queue.unreserve(left.len());
            // What a replay has not taken is not lost: it was delivered before.
            if !left.is_empty() && self.kind == Kind::Live {
                tracing::warn!(
                    target: "eventbus", group = %printable(&self.queue.group), deliveries = left.len(),
                    "the subscription ended with deliveries that it had not taken, and they are lost"
                );
            }
            if !left.is_empty() {
                self.queue.outstanding.remove(left.len());
            }
        } else {
            Queue::wake_readers(inbox);
        }
    }
}
