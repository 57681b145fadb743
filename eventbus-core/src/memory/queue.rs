//! The queue of one group: publishers push, the group's readers take everything at once.

use super::Outstanding;
use super::dead_letters::MemoryDeadLetters;
use super::places::Places;
use super::routes::Routes;
use crate::broker::{BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Settler, taken};
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::foreign::Wakers;
use crate::lock::{Lock, Rank, SharedLock};
use crate::topic::Pattern;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// What waits for delivery to one group.
pub(super) struct Queue {
    group: String,
    pattern: Pattern,
    /// Taken by what waits and by what is about to be pushed.
    pub(super) places: Places,
    inbox: Lock<Inbox>,
    /// How many deliveries came in, those apart that came back. Changed under the lock of the inbox.
    accepted: AtomicU64,
    /// How many of those that came in are settled.
    settled: AtomicU64,
    /// Those who publish here were told that nobody reads, and nobody has read since.
    told: AtomicBool,
    outstanding: Arc<Outstanding>,
    dead_letters: Arc<MemoryDeadLetters>,
}

struct Inbox {
    /// What readers gave back, by its place. It was taken before everything that waits, so it goes first.
    returned: VecDeque<Waiting>,
    waiting: VecDeque<Waiting>,
    /// The reader that sleeps in each place; a reader that leaves gives its place back.
    readers: Vec<Option<Waker>>,
    open_readers: usize,
    /// How often something was taken, to see whether anybody reads.
    reads: u64,
}

/// A delivery that waits for a reader.
pub(super) struct Waiting {
    pub(super) envelope: Arc<Envelope>,
    pub(super) offset: Offset,
    pub(super) attempt: u32,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.waiting.is_empty()
    }

    /// Moves at most `limit` deliveries into `taken`, which is empty.
    fn take(&mut self, limit: usize, taken: &mut VecDeque<Waiting>) {
        if self.returned.is_empty() && self.waiting.len() <= limit {
            return std::mem::swap(&mut self.waiting, taken);
        }
        taken.extend(self.returned.drain(..limit.min(self.returned.len())));
        taken.extend(self.waiting.drain(..(limit - taken.len()).min(self.waiting.len())));
    }

    /// Takes back what a reader had, in its place among what was given back, in whatever order that comes.
    fn put_back(&mut self, delivery: Waiting) {
        let place = self.returned.partition_point(|other| other.offset < delivery.offset);
        self.returned.insert(place, delivery);
    }

    /// The readers that sleep.
    fn rouse(&mut self, wakers: &mut Wakers) {
        wakers.extend(self.readers.iter_mut().filter_map(Option::take));
    }
}

impl Queue {
    pub(super) fn new(
        group: String,
        pattern: Pattern,
        deliveries: Vec<Waiting>,
        outstanding: Arc<Outstanding>,
        dead_letters: Arc<MemoryDeadLetters>,
    ) -> Arc<Self> {
        let inbox = Inbox {
            returned: VecDeque::new(),
            waiting: VecDeque::new(),
            readers: Vec::new(),
            open_readers: 0,
            reads: 0,
        };
        Arc::new(Self {
            group,
            pattern,
            places: Places::new(deliveries.len()),
            accepted: AtomicU64::new(deliveries.len() as u64),
            inbox: Lock::new(Rank::BROKER_LAST, Inbox { waiting: deliveries.into(), ..inbox }),
            settled: AtomicU64::new(0),
            told: AtomicBool::new(false),
            outstanding,
            dead_letters,
        })
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Gives places back.
    pub(super) fn give_back(&self, places: usize) {
        let mut wakers = Wakers::default();
        wakers.extend(self.places.give_back(places));
        wakers.wake();
    }

    /// Adds a delivery at the end; its place is taken already. Whom to wake is added to `wakers`. `false`: the
    /// subscription has ended since the look at the routes, and the delivery goes nowhere.
    pub(super) fn push(&self, delivery: Waiting, wakers: &mut Wakers) -> bool {
        // The guard is a local of this block, so that what is not taken is dropped without it.
        {
            let mut inbox = self.inbox.lock();
            if inbox.open_readers > 0 {
                inbox.waiting.push_back(delivery);
                self.accept(1);
                inbox.rouse(wakers);
                return true;
            }
        }
        wakers.extend(self.places.give_back(1));
        false
    }

    /// Adds a delivery that was here before at the front, beyond the limit if need be. `false`: the subscription has
    /// ended, and the delivery goes nowhere.
    pub(super) fn push_again(&self, delivery: Waiting) -> bool {
        self.put_back(delivery, 0)
    }

    /// The same, for what was settled before and is delivered once more.
    pub(super) fn push_once_more(&self, delivery: Waiting) -> bool {
        self.put_back(delivery, 1)
    }

    fn put_back(&self, delivery: Waiting, accepted: u64) -> bool {
        let mut wakers = Wakers::default();
        {
            let mut inbox = self.inbox.lock();
            if inbox.open_readers == 0 {
                return false;
            }
            self.places.take_beyond();
            self.accept(accepted);
            inbox.put_back(delivery);
            inbox.rouse(&mut wakers);
        }
        wakers.wake();
        true
    }

    pub(super) fn add_reader(&self) {
        self.inbox.lock().open_readers += 1;
    }

    /// How often something was taken from here.
    pub(super) fn reads(&self) -> u64 {
        self.inbox.lock().reads
    }

    /// Whether this is the first to ask since something was taken from here, so that one is told and not each.
    pub(super) fn is_first_to_be_told(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// More came in; to be called under the lock of the inbox.
    fn accept(&self, deliveries: u64) {
        self.accepted.store(self.accepted() + deliveries, Ordering::Release);
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Acquire)
    }

    fn settle(&self) {
        taken::note();
        let settled = self.settled.fetch_add(1, Ordering::SeqCst) + 1;
        self.outstanding.remove(1);
        if settled >= self.accepted() {
            self.outstanding.of_some.tell();
        }
    }

    /// How many of those that have come in are not settled.
    pub(super) fn unsettled(&self) -> u64 {
        self.accepted().saturating_sub(self.settled.load(Ordering::SeqCst))
    }

    /// What has come in so far, if all of it is settled, or left to others: a queue with another reader goes on.
    fn settled(&self) -> Option<u64> {
        let accepted = self.accepted();
        let settled = self.settled.load(Ordering::SeqCst) >= accepted;
        (settled || self.is_left_to_others()).then_some(accepted)
    }

    fn is_left_to_others(&self) -> bool {
        self.inbox.lock().open_readers != 1
    }
}

/// Whether nothing is left in any of these queues, at one moment. What is handled in one may come into another before
/// it is settled, so one look at each could miss it. But both numbers of a queue only grow: where all that had come in
/// was settled, and nothing has come in since, nothing was left in between.
pub(super) fn are_settled(queues: &[Arc<Queue>]) -> bool {
    let settled: Option<Vec<_>> = queues.iter().map(|queue| queue.settled()).collect();
    let same =
        |(queue, accepted): (&Arc<Queue>, u64)| queue.accepted() == accepted || queue.is_left_to_others();
    settled.is_some_and(|accepted| queues.iter().zip(accepted).all(same))
}

impl Settler for Queue {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        drop(receipt);
        self.settle();
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, _receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.dead_letters.keep(dead_letter);
        self.settle();
        BrokerFuture::ready(Ok(()))
    }

    fn release(&self, receipt: Receipt) {
        taken::note();
        if !self.push_again(receipt.into()) {
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
    routes: Arc<SharedLock<Routes>>,
    reader: Option<usize>,
    kind: Kind,
    left: bool,
    warning: Option<String>,
    /// Swapped with the queue's own list, so that neither allocates in the long run.
    taken: VecDeque<Waiting>,
}

impl MemoryDeliveries {
    /// A reader of a queue that has counted it.
    pub(super) fn new(queue: Arc<Queue>, routes: Arc<SharedLock<Routes>>, kind: Kind) -> Self {
        let settler = Arc::clone(&queue) as Arc<dyn Settler>;
        Self {
            queue,
            settler,
            routes,
            reader: None,
            kind,
            left: false,
            warning: None,
            taken: VecDeque::new(),
        }
    }

    /// The same, with something to tell.
    pub(super) fn warn(mut self, warning: Option<String>) -> Self {
        self.warning = warning;
        self
    }

    /// Lets the reader sleep. The answer is its former waker, to be dropped once the lock is released.
    fn sleep(&mut self, inbox: &mut Inbox, waker: Waker) -> Option<Waker> {
        let reader = *self.reader.get_or_insert_with(|| {
            inbox.readers.push(None);
            inbox.readers.len() - 1
        });
        inbox.readers[reader].replace(waker)
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
        let mut waker = None;
        loop {
            let mut inbox = queue.inbox.lock();
            if !inbox.is_empty() {
                inbox.take(limit, &mut self.taken);
                inbox.reads += 1;
                break;
            }
            if self.kind == Kind::Replay {
                return Poll::Ready(Ok(()));
            }
            let Some(waker) = waker.take() else {
                // To copy a waker is to call code of others.
                drop(inbox);
                waker = Some(context.waker().clone());
                continue;
            };
            let former = self.sleep(&mut inbox, waker);
            drop(inbox);
            drop(former);
            return Poll::Pending;
        }
        if queue.told.load(Ordering::Relaxed) {
            queue.told.store(false, Ordering::Relaxed);
        }
        queue.give_back(self.taken.len());
        into.extend(self.taken.drain(..).map(|Waiting { envelope, offset, attempt }| Received {
            receipt: Receipt { envelope, offset, attempt, token: 0 },
            replayed: self.kind != Kind::Live,
            parked: None,
            alone: false,
            settler: Arc::clone(&self.settler),
        }));
        Poll::Ready(Ok(()))
    }

    fn warnings(&mut self) -> Vec<String> {
        self.warning.take().into_iter().collect()
    }

    fn close(mut self: Box<Self>) -> usize {
        self.leave()
    }
}

impl MemoryDeliveries {
    /// When the last reader leaves, the queue closes: a queue that nobody reads would fill up and stop publishers.
    /// How many deliveries are lost by that, those included that are still being handled.
    fn leave(&mut self) -> usize {
        if std::mem::replace(&mut self.left, true) {
            return 0;
        }
        let mut wakers = Wakers::default();
        let mut lost = 0;
        let (own, left) = {
            let mut routes = self.routes.write();
            let mut inbox = self.queue.inbox.lock();
            let own = self.reader.and_then(|reader| inbox.readers[reader].take());
            inbox.open_readers -= 1;
            if inbox.open_readers == 0 {
                routes.remove(&self.queue);
                // What a replay has not taken is not lost: it was delivered before.
                if self.kind == Kind::Live {
                    lost = self.queue.unsettled() as usize;
                }
                (own, [std::mem::take(&mut inbox.returned), std::mem::take(&mut inbox.waiting)])
            } else {
                // What this reader was woken for is there for the others.
                inbox.rouse(&mut wakers);
                (own, [VecDeque::new(), VecDeque::new()])
            }
        };
        drop(own);
        wakers.wake();
        self.queue.outstanding.of_some.tell();
        let deliveries = left.iter().map(VecDeque::len).sum();
        drop(left);
        if deliveries > 0 {
            self.queue.give_back(deliveries);
            self.queue.outstanding.remove(deliveries);
        }
        lost
    }
}

impl Drop for MemoryDeliveries {
    fn drop(&mut self) {
        self.leave();
    }
}
