//! A subscription at work: scenarios of its workers, whoever publishes, the watchdog, and the end.

use crate::broker::{Deliveries, Receipt, Received};
use crate::delivery::{Delivery, Envelope, Scope};
use crate::error::BrokerError;
use crate::event::Key;
use crate::handler::{BatchHandler, Handler};
use crate::outcome::{Outcome, Reason};
use crate::subscription::{Policy, Subscription};
use crate::sync::Notify;
use crate::worker::{Lanes, Layered, Watchdog, Worker};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use shuttle::thread;
use std::collections::{BTreeMap, VecDeque};
use std::slice::from_ref;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What is published, and what its handler does.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) key: Option<Key>,
    act: Act,
}

/// What a handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Answers,
    /// It waits for a moment.
    Waits,
    /// It waits until that one is settled.
    WaitsFor(usize),
    /// It computes for a moment.
    Computes,
    /// It holds up its thread until that one is settled.
    ComputesUntil(usize),
    /// It fails at its first attempt.
    Fails,
    /// It panics: in each batch with others, and once alone.
    Breaks,
    /// It answers, and the broker takes that once that one is settled.
    AckedAfter(usize),
    /// It is not called: the broker has given the event to somebody else.
    Lapses,
}

use Act::{AckedAfter, Answers, Breaks, Computes, ComputesUntil, Fails, Lapses, Waits, WaitsFor};

/// An event of a key, `-` for none.
fn event(key: char, act: Act) -> Event {
    Event { key: (key != '-').then_some(Key(key)), act }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acked,
    /// Given back to the broker.
    Released,
    /// Given to somebody else by the broker.
    Lapsed,
}

/// Who is at work on what, and what became of everything; checks what a subscription promises.
#[derive(Default)]
pub(crate) struct Ledger {
    concurrency: usize,
    /// Batches wait for their last member, however long that takes, so none may be sent away.
    complete: bool,
    pages: Mutex<Pages>,
    turned: Condvar,
    told: Notify,
}

#[derive(Default)]
struct Pages {
    published: Vec<Event>,
    fates: BTreeMap<usize, Fate>,
    /// What is inside of a handler: the events of each call.
    inside: BTreeMap<usize, Vec<usize>>,
    calls: usize,
    workers: usize,
}

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("whoever panics with it ends the model")
    }

    fn turn<T>(&self, turn: impl FnOnce(&mut Pages) -> T) -> T {
        let turned = turn(&mut self.pages());
        self.turned.notify_all();
        self.told.notify_waiters();
        turned
    }

    /// Waits on this thread.
    fn wait(&self, until: impl Fn(&Pages) -> bool) {
        let mut pages = self.pages();
        while !until(&pages) {
            pages = self.turned.wait(pages).expect("whoever panics with it ends the model");
        }
    }

    /// Waits as a task.
    async fn settled(&self, number: usize) {
        loop {
            let told = self.told.notified();
            if self.pages().fates.contains_key(&number) {
                return;
            }
            told.await;
        }
    }

    fn end(&self, envelope: &Envelope, fate: Fate) {
        let former = self.turn(|pages| pages.fates.insert(envelope.number, fate));
        assert_eq!(former, None, "{} is settled again, as {fate:?}", envelope.number);
    }

    pub(crate) async fn takes_answer(&self, envelope: &Envelope) {
        if let AckedAfter(number) = envelope.event.act {
            self.settled(number).await;
        }
    }

    /// Whether others go first, as they do now and then.
    pub(crate) fn sends_away(&self) -> bool {
        !self.complete && thread_rng().gen_ratio(1, 16)
    }

    pub(crate) fn acked(&self, envelope: &Envelope) {
        self.pages().check_order(envelope.number, &[]);
        self.end(envelope, Fate::Acked);
    }

    pub(crate) fn released(&self, envelope: &Envelope) {
        self.end(envelope, Fate::Released);
    }

    pub(crate) fn holds(&self, envelope: &Envelope) -> bool {
        let holds = envelope.event.act != Lapses;
        if !holds {
            self.end(envelope, Fate::Lapsed);
        }
        holds
    }

    /// A worker, until the answer is dropped.
    pub(crate) fn hire(self: &Arc<Self>) -> impl Drop + Send + 'static {
        struct Hired(Arc<Ledger>);
        impl Drop for Hired {
            fn drop(&mut self) {
                self.0.turn(|pages| pages.workers -= 1);
            }
        }

        self.turn(|pages| pages.workers += 1);
        Hired(Arc::clone(self))
    }

    /// A call of the handler, until the answer is dropped.
    fn call(&self, deliveries: &[Delivery]) -> impl Drop + Send {
        struct Inside<'a>(&'a Ledger, usize);
        impl Drop for Inside<'_> {
            fn drop(&mut self) {
                self.0.turn(|pages| pages.inside.remove(&self.1));
            }
        }

        let numbers: Vec<_> = deliveries.iter().map(|delivery| delivery.envelope().number).collect();
        let call = self.turn(|pages| {
            pages.check_call(&numbers);
            pages.calls += 1;
            pages.inside.insert(pages.calls, numbers);
            assert!(pages.inside.len() <= self.concurrency, "too many at once: {:?}", pages.inside);
            pages.calls
        });
        Inside(self, call)
    }
}

impl Pages {
    /// Whether all of these may be called at once: none of them is settled or being handled.
    fn check_call(&self, numbers: &[usize]) {
        let inside = |number: &usize| self.inside.values().flatten().any(|other| other == number);
        for (at, number) in numbers.iter().enumerate() {
            assert!(!self.fates.contains_key(number), "{number} was settled before");
            assert!(!inside(number), "{number} is handled twice");
            self.check_order(*number, &numbers[..at]);
        }
    }

    /// Everything that was published before with its key is settled, or is handled in the same batch before it; so no
    /// two of a key are handled at once either.
    fn check_order(&self, number: usize, with: &[usize]) {
        let Some(key) = &self.published[number].key else { return };
        for (before, event) in self.published[..number].iter().enumerate() {
            let done = self.fates.contains_key(&before) || with.contains(&before);
            assert!(done || event.key.as_ref() != Some(key), "{number} is handled before {before}");
        }
    }
}

/// The handler.
pub(crate) struct Model {
    pub(crate) ledger: Arc<Ledger>,
}

impl Model {
    async fn act(&self, delivery: &Delivery) -> Outcome {
        match delivery.envelope().event.act {
            Answers | AckedAfter(_) | Lapses | Breaks => {}
            Waits => shuttle::future::yield_now().await,
            WaitsFor(number) => self.ledger.settled(number).await,
            Computes => thread::yield_now(),
            ComputesUntil(number) => self.ledger.wait(|pages| pages.fates.contains_key(&number)),
            Fails if delivery.attempt() == 1 => return Outcome::Retry(Reason),
            Fails => {}
        }
        Outcome::Ack
    }

    fn breaks(deliveries: &[Delivery]) -> bool {
        let breaks = |delivery: &Delivery| {
            delivery.envelope().event.act == Breaks && (deliveries.len() > 1 || delivery.attempt() == 1)
        };
        deliveries.iter().any(breaks)
    }
}

impl Handler for Model {
    async fn call(&self, delivery: &Delivery) -> Outcome {
        let _inside = self.ledger.call(from_ref(delivery));
        let outcome = self.act(delivery).await;
        if Self::breaks(from_ref(delivery)) {
            delivery.be_broken();
        }
        outcome
    }
}

impl BatchHandler for Model {
    fn admit(&self, _delivery: &Delivery) -> Result<(), Outcome> {
        Ok(())
    }

    async fn call(&self, deliveries: &[Delivery]) -> Vec<Outcome> {
        let _inside = self.ledger.call(deliveries);
        let mut failed = false;
        for delivery in deliveries {
            failed |= matches!(self.act(delivery).await, Outcome::Retry(_));
        }
        if Self::breaks(deliveries) {
            deliveries[0].be_broken();
        }
        // They succeed or fail together, so that a batch may have several of one key.
        deliveries.iter().map(|_| if failed { Outcome::Retry(Reason) } else { Outcome::Ack }).collect()
    }
}

/// A queue of the broker, with room for everything.
struct Queue {
    ledger: Arc<Ledger>,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    waiting: VecDeque<Arc<Envelope>>,
    bell: Option<Waker>,
    ended: bool,
    /// It fails so many times more.
    fails: usize,
}

impl Queue {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("nobody panics with it")
    }

    fn publish(&self, event: Event) {
        let bell = {
            let mut inbox = self.inbox();
            let number = self.ledger.turn(|pages| {
                pages.published.push(event.clone());
                pages.published.len() - 1
            });
            inbox.waiting.push_back(Arc::new(Envelope { number, event }));
            inbox.bell.take()
        };
        bell.into_iter().for_each(Waker::wake);
    }

    /// Nothing more is published.
    fn end(&self) {
        let bell = {
            let mut inbox = self.inbox();
            inbox.ended = true;
            inbox.bell.take()
        };
        bell.into_iter().for_each(Waker::wake);
    }
}

/// Who reads a queue.
struct Reader(Arc<Queue>);

impl Deliveries for Reader {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        if thread_rng().gen_ratio(1, 8) {
            // As one whose task has spent its budget.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut inbox = self.0.inbox();
        if inbox.fails > 0 {
            inbox.fails -= 1;
            return Poll::Ready(Err("no connection"));
        }
        if inbox.waiting.is_empty() {
            if inbox.ended {
                return Poll::Ready(Ok(()));
            }
            inbox.bell = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = inbox.waiting.len().min(thread_rng().gen_range(1..=limit));
        into.extend(inbox.waiting.drain(..count).map(|envelope| Received {
            receipt: Receipt { envelope, attempt: 1 },
            replayed: false,
            parked: None,
            alone: false,
            settler: Arc::clone(&self.0.ledger),
        }));
        Poll::Ready(Ok(()))
    }

    fn close(self: Box<Self>) -> usize {
        0
    }
}

const POLICY: Policy = Policy {
    retries: 4,
    concurrency: 2,
    in_flight: 2,
    held_back: 4,
    batch: 1,
    linger: Duration::from_millis(50),
};

/// A subscription that has started.
struct Group {
    ledger: Arc<Ledger>,
    queue: Arc<Queue>,
    lanes: Arc<Lanes>,
    watchdog: Arc<Watchdog>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Group {
    /// Starts a subscription beside publishers, each of which has some of the events. Whether the watchdog `looks`:
    /// without it every event is still to be handled, unless a handler waits for another one on its thread.
    fn start(policy: Policy, looks: bool, publishers: &[&[Event]]) -> Self {
        Self::start_with(policy, looks, publishers, Inbox::default())
    }

    fn start_with(policy: Policy, looks: bool, publishers: &[&[Event]], inbox: Inbox) -> Self {
        let complete = policy.linger == Duration::MAX;
        let ledger = Ledger { concurrency: policy.concurrency, complete, ..Ledger::default() };
        let ledger = Arc::new(ledger);
        let queue = Arc::new(Queue { ledger: Arc::clone(&ledger), inbox: Mutex::new(inbox) });
        let watchdog = Arc::new(Watchdog::default());
        let worker = Worker(Arc::new(Model { ledger: Arc::clone(&ledger) }));
        let lanes = Lanes::new(
            Arc::new(Scope { subscription: Subscription { name: "model", group: "model" } }),
            policy,
            Layered { worker, batch_layers: None, blocking: false, together: true },
            Box::new(Reader(Arc::clone(&queue))),
            Arc::clone(&watchdog),
        );
        let mut threads = Vec::new();
        for events in publishers {
            let (queue, events) = (Arc::clone(&queue), events.to_vec());
            threads.push(thread::spawn(move || events.into_iter().for_each(|event| queue.publish(event))));
        }
        if looks {
            let watchdog = Arc::clone(&watchdog);
            threads.push(thread::spawn(move || watchdog.run()));
        }
        lanes.start();
        Self { ledger, queue, lanes, watchdog, threads }
    }

    /// Waits until so many are settled.
    fn wait(&self, settled: usize) {
        self.ledger.wait(|pages| pages.fates.len() == settled);
    }

    /// Stops, and waits for those at work.
    fn stop(self) {
        self.lanes.stop();
        self.end();
    }

    /// The end of lanes that were stopped: nothing is handled, everything that was received was settled or given back,
    /// and all workers have ended.
    fn end(self) {
        let Self { ledger, queue, lanes, watchdog, threads } = self;
        block_on(lanes.idle());
        assert_eq!(lanes.handled(), 0);
        lanes.close();
        ledger.wait(|pages| pages.workers == 0);
        watchdog.end();
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        let (tally, left) = (lanes.tally(), queue.inbox().waiting.len());
        drop(lanes);
        let pages = ledger.pages();
        assert!(pages.inside.is_empty(), "{:?}", pages.inside);
        assert_eq!(pages.fates.len() + left, pages.published.len(), "{:?}", pages.fates);
        assert_eq!(tally.acked as usize, pages.fates.values().filter(|fate| **fate == Fate::Acked).count());
    }
}

/// Two publish to a subscription of two workers, with room for as many events. Nobody but the workers sees to it that
/// all of them are handled: the watchdog does not look.
pub fn everything_published_is_handled() {
    let first = [event('a', Waits), event('b', Answers), event('a', Computes)];
    let second = [event('-', Computes), event('b', Lapses), event('-', Waits)];
    let group = Group::start(POLICY, false, &[&first, &second]);
    group.wait(6);
    group.stop();
}

/// The same beside the watchdog, which calls workers and puts others in the place of those that are late.
pub fn everything_published_is_handled_beside_the_watchdog() {
    let events = [event('a', Waits), event('b', Answers), event('a', Computes), event('-', Waits)];
    let group = Group::start(POLICY, true, &[&events]);
    group.wait(4);
    group.stop();
}

/// A handler that holds up its thread until another one was called: the watchdog sees to it.
pub fn a_handler_that_computes_does_not_hold_up_the_others() {
    let events = [event('a', ComputesUntil(2)), event('a', Answers), event('b', Answers)];
    let group = Group::start(Policy { in_flight: 3, ..POLICY }, true, &[&events]);
    group.wait(3);
    group.stop();
}

/// A handler that waits for another one to be called: its worker's time is used, and nobody else sees to it.
pub fn a_handler_that_waits_does_not_hold_up_the_others() {
    let events = [event('a', WaitsFor(2)), event('a', Answers), event('b', Answers)];
    let group = Group::start(Policy { in_flight: 3, ..POLICY }, false, &[&events]);
    group.wait(3);
    group.stop();
}

/// A failed attempt holds back what follows it in its lane, and nothing else.
pub fn what_failed_is_tried_again_before_what_follows_it() {
    let events = [event('a', Fails), event('a', Waits), event('b', Breaks), event('b', Answers)];
    let group = Group::start(POLICY, false, &[&events]);
    group.wait(4);
    group.stop();
}

/// Batches, some of whose members fail or are to blame for a panic: in their order, and no two with the same key at
/// once.
pub fn batches_keep_the_order_of_their_keys() {
    let first = [event('a', Waits), event('a', Fails), event('a', Answers)];
    let second = [event('b', Breaks), event('b', Computes), event('-', Lapses)];
    let policy = Policy { batch: 2, in_flight: 3, ..POLICY };
    let group = Group::start(policy, false, &[&first, &second]);
    group.wait(6);
    group.stop();
}

/// One member of a batch is settled, and the broker takes its time with the next: what the first one has held back, in
/// its lane, is handled meanwhile. Batches are complete, however old they get.
pub fn what_follows_a_settled_member_does_not_wait_for_the_rest_of_its_batch() {
    let events = [event('a', Answers), event('b', AckedAfter(2)), event('a', Answers), event('a', Answers)];
    let policy = Policy { batch: 2, in_flight: 4, linger: Duration::MAX, ..POLICY };
    let group = Group::start(policy, true, &[&events]);
    group.wait(4);
    group.stop();
}

/// The same, where the first one has held back others by its place in flight.
pub fn what_has_room_after_a_settled_member_does_not_wait_for_the_rest_of_its_batch() {
    let events = [event('a', Answers), event('b', AckedAfter(2)), event('c', Answers), event('d', Answers)];
    let policy = Policy { batch: 2, in_flight: 3, linger: Duration::MAX, ..POLICY };
    let group = Group::start(policy, true, &[&events]);
    group.wait(4);
    group.stop();
}

/// While the only worker asks the broker for more members of a batch, a retry becomes due.
pub fn a_retry_that_comes_due_while_the_broker_is_asked_is_not_forgotten() {
    let events = [event('a', Fails), event('b', Fails)];
    let group = Group::start(Policy { concurrency: 1, batch: 2, ..POLICY }, false, &[&events]);
    group.wait(2);
    group.stop();
}

/// Stopped at any moment: what is handled is settled, what is not is given back, and all workers end.
pub fn whoever_is_stopped_gives_back_what_is_not_handled() {
    let events = [event('a', Waits), event('a', Fails), event('b', Computes), event('-', Answers)];
    Group::start(POLICY, true, &[&events]).stop();
}

/// As above, with batches that are gathered while they are stopped; what was gathered is dropped at the end.
pub fn whoever_is_stopped_gives_back_a_batch_that_is_gathered() {
    let events = [event('a', Waits), event('a', Answers), event('b', Fails), event('b', Answers)];
    let group = Group::start(Policy { batch: 3, in_flight: 3, ..POLICY }, true, &[&events]);
    group.lanes.stop();
    group.lanes.abort();
    group.end();
}

/// Handlers that never answer are dropped, and what they had is given back.
pub fn handlers_that_are_dropped_give_back_what_they_had() {
    const NEVER: usize = usize::MAX;
    let events = [event('a', WaitsFor(NEVER)), event('b', WaitsFor(NEVER))];
    let group = Group::start(POLICY, false, &[&events]);
    group.lanes.stop();
    group.lanes.abort();
    group.end();
}

/// The same, once a handler has been called whose worker has only just begun.
pub fn a_worker_that_has_only_just_begun_is_dropped_as_well() {
    let group = Group::start(POLICY, false, &[&[event('a', WaitsFor(usize::MAX))]]);
    group.ledger.wait(|pages| pages.calls == 1);
    group.lanes.stop();
    group.lanes.abort();
    group.end();
}

/// A source that fails once and then ends, as that of a replay: whoever waits for the end of everything learns of it.
pub fn whoever_waits_for_the_end_of_a_source_learns_of_it() {
    let events = [event('a', Waits), event('a', Fails), event('b', Computes)];
    let group = Group::start_with(POLICY, false, &[&events], Inbox { fails: 1, ..Inbox::default() });
    let queue = Arc::clone(&group.queue);
    let ends = thread::spawn(move || {
        queue.ledger.wait(|pages| pages.published.len() == 3);
        queue.end();
    });
    assert!(block_on(group.lanes.finished()), "nobody has stopped it");
    ends.join().expect("it ends");
    group.wait(3);
    group.stop();
}
