//! Lanes: which delivery of a subscription may be handled now.
//!
//! Deliveries with one key share a lane. A lane has at most one delivery open, from its first attempt until it is
//! settled, so that the next one waits while it is handled or parked for a retry; deliveries without a key wait
//! for nobody. Workers take what may be handled; which of them comes is decided by the crew (`crew.rs`).

use super::Layered;
use super::crew::{Call, Crew};
use super::watchdog::{Pulse, Watchdog};
use crate::broker::{Acker, Deliveries, Parked, Received};
use crate::delivery::{Delivery, Scope};
use crate::error::BrokerError;
use crate::event::Key;
use crate::foreign;
use crate::printable::printable;
use crate::subscription::{Policy, Subscription};
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// After the broker failed to deliver, it is asked again this much later.
const RECEIVE_AGAIN: Duration = Duration::from_secs(1);

/// One subscription at work.
pub(crate) struct Lanes {
    pub(super) scope: Arc<Scope>,
    pub(super) policy: Policy,
    pub(super) layered: Layered,
    /// Held by the one worker that gathers a batch.
    pub(super) gathering: tokio::sync::Mutex<()>,
    watchdog: Arc<Watchdog>,
    runtime: Handle,
    state: Mutex<State>,
    /// Wakes a worker when the broker has something.
    bell: Waker,
    idle: Notify,
    finished: Notify,
}

/// What became of the deliveries so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Taken from the broker.
    pub(crate) received: u64,
    /// Handled with success.
    pub(crate) acked: u64,
    /// Given up.
    pub(crate) given_up: u64,
    /// Handled, and the broker did not take the answer; or not held any more.
    pub(crate) unsettled: u64,
}

/// A delivery that is not settled yet.
pub(super) struct Open {
    pub(super) acker: Acker,
    replayed: bool,
    /// What was noted when it last failed.
    pub(super) parked: Option<Parked>,
    /// When it is due, where it came while it waited for its next attempt.
    due: Option<Instant>,
    /// When it came, for the age of a batch.
    pub(super) since: Option<Instant>,
    /// A batch with it has panicked: it is tried again alone, so that only the member panics that is to blame.
    pub(super) alone: bool,
}

impl Open {
    /// The next attempt, as the handler sees it.
    pub(super) fn delivery(&self, scope: &Arc<Scope>) -> Delivery {
        Delivery::new(self.acker.receipt(), self.replayed, Arc::clone(scope))
    }

    fn key(&self) -> Option<&Key> {
        self.acker.receipt().envelope.lane_key()
    }
}

struct State {
    source: Box<dyn Deliveries>,
    received: Vec<Received>,
    /// What may be handled now.
    ready: VecDeque<Open>,
    /// What waits in each lane that has a delivery open.
    waiting: HashMap<Key, VecDeque<Open>>,
    /// What waits for its next attempt; its lane stays closed.
    parked: HashMap<u64, Open>,
    last_parked: u64,
    /// Ready, waiting, parked and being handled.
    held: usize,
    handled: usize,
    crew: Crew,
    tasks: Vec<AbortHandle>,
    tally: Tally,
    receiving: bool,
    /// The broker has said that there is no more.
    ended: bool,
    stopped: bool,
}

/// What became of a delivery, for its lane.
pub(super) enum Settled {
    /// It is done; the next of its lane may be handled, as after the two that follow.
    Acked(Option<Key>),
    /// It was given up.
    GivenUp(Option<Key>),
    /// The broker did not take the answer.
    Unsettled(Option<Key>),
    /// It is tried again later.
    Parked,
}

impl Lanes {
    pub(crate) fn new(
        scope: Arc<Scope>,
        policy: Policy,
        layered: Layered,
        source: Box<dyn Deliveries>,
        watchdog: Arc<Watchdog>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|lanes: &Weak<Self>| Self {
            scope,
            policy,
            layered,
            gathering: tokio::sync::Mutex::new(()),
            watchdog,
            runtime: Handle::current(),
            state: Mutex::new(State {
                source,
                received: Vec::new(),
                ready: VecDeque::new(),
                waiting: HashMap::new(),
                parked: HashMap::new(),
                last_parked: 0,
                held: 0,
                handled: 0,
                crew: Crew::new(policy.concurrency),
                tasks: Vec::new(),
                tally: Tally::default(),
                receiving: true,
                ended: false,
                stopped: false,
            }),
            bell: Waker::from(Arc::new(Bell(lanes.clone()))),
            idle: Notify::new(),
            finished: Notify::new(),
        })
    }

    /// The same subscription once more, on another source: beside these lanes, or in place of them.
    pub(crate) fn again(
        &self,
        scope: Arc<Scope>,
        concurrency: Option<usize>,
        source: Box<dyn Deliveries>,
    ) -> Arc<Self> {
        let mut policy = self.policy;
        policy.concurrency = concurrency.unwrap_or(policy.concurrency);
        policy.in_flight = policy.in_flight.max(policy.concurrency);
        Self::new(scope, policy, self.layered.clone(), source, Arc::clone(&self.watchdog))
    }

    /// What the deliveries of these lanes share.
    pub(crate) fn scope(&self) -> &Arc<Scope> {
        &self.scope
    }

    /// The rules of these lanes.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is subscribed.
    pub(crate) fn subscription(&self) -> &Subscription {
        &self.scope.subscription
    }

    /// Begins to receive. Workers start when there is something to do.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut state = self.lock();
        let _ = self.receive(&mut state);
        let call = if state.ready.is_empty() { Call::Nobody } else { self.call(&mut state) };
        drop(state);
        self.make(call);
    }

    /// Takes nothing more; what is not being handled goes back to the broker.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        // What is given back now was not settled, so these lanes do not finish any more.
        state.ended = state.is_finished();
        state.stopped = true;
        let given_back = (
            std::mem::take(&mut state.ready),
            std::mem::take(&mut state.waiting),
            std::mem::take(&mut state.parked),
        );
        state.held = state.handled;
        let idle = state.crew.dismiss();
        drop(state);
        drop(given_back);
        idle.into_iter().for_each(Waker::wake);
        self.idle.notify_waiters();
        self.finished.notify_waiters();
    }

    /// Lets go of the source of lanes that were stopped, so that the broker knows that nobody reads here any more.
    pub(crate) fn close(&self) {
        // It is dropped outside of the lock: a broker may take locks then under which it rings the bell.
        let source = std::mem::replace(&mut self.lock().source, Box::new(NoMore));
        foreign::tell("a broker", || drop(source));
    }

    /// Resolves once the source has ended and everything from it is settled; also when the lanes are stopped.
    /// `false`: they were stopped before.
    pub(crate) async fn finished(&self) -> bool {
        loop {
            let mut finished = std::pin::pin!(self.finished.notified());
            finished.as_mut().enable();
            {
                let state = self.lock();
                if state.is_finished() || state.stopped {
                    return state.is_finished();
                }
            }
            finished.await;
        }
    }

    /// What became of the deliveries so far.
    pub(crate) fn tally(&self) -> Tally {
        self.lock().tally
    }

    /// Resolves once nothing is being handled.
    pub(crate) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.handled() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// How many deliveries are being handled.
    pub(crate) fn handled(&self) -> usize {
        self.lock().handled
    }

    /// Drops what is still being handled, unsettled.
    pub(crate) fn abort(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// The pulse of the worker in `slot`.
    pub(super) fn pulse(&self, slot: usize) -> Arc<Pulse> {
        self.lock().crew.pulse(slot)
    }

    /// The next delivery for the worker in `slot`, which says what became of its last one. `None`: stop.
    pub(super) fn poll_next(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        slot: usize,
        last: &mut Option<Settled>,
    ) -> Poll<Option<Open>> {
        let budget = std::task::ready!(tokio::task::coop::poll_proceed(context));
        let mut state = self.lock();
        state.crew.arrive(slot);
        if let Some(settled) = last.take() {
            self.note(&mut state, settled);
        }
        let Some(open) = self.take(&mut state) else {
            return self.rest(state, slot, context);
        };
        budget.made_progress();
        // Whoever leaves with work makes sure that somebody comes for what is left, and for what comes next.
        if state.ready.is_empty() && self.policy.concurrency > 1 {
            let _ = self.receive(&mut state);
        }
        state.crew.took();
        if !state.ready.is_empty() {
            self.defer(&mut state);
        }
        Poll::Ready(Some(open))
    }

    /// The worker in `slot` has started, and waits for its turn to gather.
    pub(super) fn arrive(&self, slot: usize) {
        self.lock().crew.arrive(slot);
    }

    /// Moves what is ready into `batch`, up to `size`; ready once there is something. `false`: stop.
    pub(super) fn poll_gather(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        slot: usize,
        batch: &mut Vec<Open>,
        size: usize,
    ) -> Poll<bool> {
        let mut state = self.lock();
        state.crew.arrive(slot);
        let before = batch.len();
        while batch.len() < size
            && let Some(open) = self.take(&mut state)
        {
            batch.push(open);
        }
        if batch.len() == before {
            return self.rest(state, slot, context).map(|nothing: Option<()>| nothing.is_some());
        }
        Poll::Ready(true)
    }

    /// The worker in `slot` has its batch; another one is to gather the next while this one is handled.
    pub(super) fn call_successor(self: &Arc<Self>, slot: usize) {
        let mut state = self.lock();
        // It may have been asleep when its batch became old enough, and is not to be woken in another one's place.
        state.crew.arrive(slot);
        self.defer(&mut state);
    }

    /// A handler waits for something, so that another worker can use the time.
    pub(super) fn handler_waits(self: &Arc<Self>, pulse: &Pulse) {
        pulse.pause();
        let mut state = self.lock();
        let call = if state.crew.is_deferred() { self.call(&mut state) } else { Call::Nobody };
        drop(state);
        self.make(call);
    }

    /// Calls another worker, on behalf of the watchdog, if those at work take too long. `false`: nothing waits.
    pub(super) fn look(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        let call = if state.crew.takes_long() { self.call(&mut state) } else { Call::Nobody };
        let look_again = state.crew.mind_again();
        drop(state);
        self.make(call);
        look_again
    }

    /// Notes what became of a delivery, outside of `poll_next`. Whoever gathers may sleep until its lane opens, or
    /// until there is room for more; of that the broker's bell does not tell.
    pub(super) fn settled(self: &Arc<Self>, settled: Settled) {
        let mut state = self.lock();
        let was_full = state.held >= self.policy.in_flight;
        self.note(&mut state, settled);
        let call = if state.ready.is_empty() && !was_full { Call::Nobody } else { self.call(&mut state) };
        drop(state);
        self.make(call);
    }

    /// Parks a delivery until its next attempt is due; its lane stays closed, nothing else waits.
    pub(super) fn park(self: &Arc<Self>, open: Open, delay: Duration) {
        let mut state = self.lock();
        if state.stopped {
            drop(state);
            return drop(open);
        }
        self.park_in(&mut state, open, delay);
    }

    fn park_in(self: &Arc<Self>, state: &mut State, open: Open, delay: Duration) {
        state.last_parked += 1;
        let parked = state.last_parked;
        state.parked.insert(parked, open);
        let lanes = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(lanes) = lanes.upgrade() {
                lanes.unpark(parked);
            }
        });
    }

    fn unpark(self: &Arc<Self>, parked: u64) {
        let mut state = self.lock();
        let Some(open) = state.parked.remove(&parked) else { return };
        state.ready.push_front(open);
        let call = self.call_or_defer(&mut state);
        drop(state);
        self.make(call);
    }

    fn note(&self, state: &mut State, settled: Settled) {
        state.handled -= 1;
        let (key, count) = match settled {
            Settled::Acked(key) => (key, &mut state.tally.acked),
            Settled::GivenUp(key) => (key, &mut state.tally.given_up),
            Settled::Unsettled(key) => (key, &mut state.tally.unsettled),
            Settled::Parked => return self.note_rest(state),
        };
        *count += 1;
        if state.stopped {
            state.held = state.handled;
        } else {
            state.held -= 1;
            state.open_lane(key);
        }
        self.note_rest(state);
    }

    /// Tells those who wait for it that nothing is handled, or nothing is left.
    fn note_rest(&self, state: &State) {
        if state.handled == 0 {
            self.idle.notify_waiters();
            if state.is_finished() {
                self.finished.notify_waiters();
            }
        }
    }

    /// Takes what may be handled now, from the broker where nothing is at hand.
    fn take(self: &Arc<Self>, state: &mut State) -> Option<Open> {
        loop {
            while state.ready.is_empty() && self.receive(state).is_ready() {}
            let mut open = state.ready.pop_front()?;
            if !open.acker.holds() {
                state.forget(open);
                self.note_rest(state);
            } else if let Some(due) = open.due.take().filter(|due| *due > Instant::now()) {
                self.park_in(state, open, due - Instant::now());
            } else {
                state.handled += 1;
                return Some(open);
            }
        }
    }

    /// Takes in what the broker has, within the limit of what is held. Pending: the bell rings when there is more.
    fn receive(&self, state: &mut State) -> Poll<()> {
        let limit = self.policy.in_flight.saturating_sub(state.held);
        if limit == 0 || !state.receiving || state.ended || state.stopped {
            return Poll::Pending;
        }
        let State { source, received, .. } = &mut *state;
        let mut context = Context::from_waker(&self.bell);
        let polled = foreign::call_under_lock(|| source.poll_receive(&mut context, received, limit));
        let broken = |panicked| Poll::Ready(Err(BrokerError::new(format!("the broker {panicked}"))));
        match std::task::ready!(polled.unwrap_or_else(broken)) {
            Ok(()) if state.received.is_empty() => {
                state.ended = true;
                self.note_rest(state);
                return Poll::Pending;
            }
            Ok(()) => state.admit(self.policy.batch > 1),
            Err(error) => {
                tracing::warn!(
                    target: "eventbus", group = %printable(&self.scope.subscription.group), error = %printable(error),
                    "the broker cannot deliver; asking again in {RECEIVE_AGAIN:?}"
                );
                state.receiving = false;
                let bell = self.bell.clone();
                self.runtime.spawn(async move {
                    tokio::time::sleep(RECEIVE_AGAIN).await;
                    bell.wake();
                });
            }
        }
        Poll::Ready(())
    }

    /// Nothing to do for the worker in `slot`: it sleeps, or ends.
    fn rest<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        slot: usize,
        context: &Context<'_>,
    ) -> Poll<Option<T>> {
        if state.stopped {
            return Poll::Ready(None);
        }
        state.crew.rest(slot, context.waker().clone());
        Poll::Pending
    }

    /// Chooses a worker to come for work, unless one that computes comes back for it.
    fn call_or_defer(self: &Arc<Self>, state: &mut State) -> Call {
        if !state.crew.computes() {
            return self.call(state);
        }
        self.defer(state);
        Call::Nobody
    }

    /// Leaves what is at hand to the worker that computes, until its handler waits or the watchdog is out of patience.
    fn defer(self: &Arc<Self>, state: &mut State) {
        if !state.stopped && state.crew.defer() {
            self.watchdog.mind(self);
        }
    }

    /// Chooses a worker to come for work.
    fn call(&self, state: &mut State) -> Call {
        if state.stopped { Call::Nobody } else { state.crew.call(|| self.watchdog.watch(&self.scope)) }
    }

    fn make(self: &Arc<Self>, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Wake(waker) => waker.wake(),
            Call::Start(slot) => {
                let task = self.runtime.spawn(self.layered.worker.run(Arc::clone(self), slot));
                self.lock().tasks.push(task.abort_handle());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes what was received into its lanes.
    fn admit(&mut self, timed: bool) {
        let since = timed.then(Instant::now);
        self.held += self.received.len();
        self.tally.received += self.received.len() as u64;
        for Received { receipt, replayed, parked, settler } in self.received.drain(..) {
            let due = parked.map(|parked| Instant::now() + parked.delay(Timestamp::now()));
            let acker = Acker::new(settler, receipt);
            let open = Open { acker, replayed, parked, due, since, alone: false };
            match open.key() {
                None => self.ready.push_back(open),
                Some(key) => match self.waiting.get_mut(key) {
                    Some(lane) => lane.push_back(open),
                    None => {
                        self.waiting.insert(key.clone(), VecDeque::new());
                        self.ready.push_back(open);
                    }
                },
            }
        }
    }

    /// Whether there is nothing left, and nothing more to come.
    fn is_finished(&self) -> bool {
        self.ended && self.held == 0
    }

    /// Somebody else has the delivery now.
    fn forget(&mut self, open: Open) {
        self.held -= 1;
        self.tally.unsettled += 1;
        self.open_lane(open.acker.forget().envelope.lane_key().cloned());
    }

    /// The delivery that was open in the lane of `key` is done.
    fn open_lane(&mut self, key: Option<Key>) {
        let Some(key) = key else { return };
        match self.waiting.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => {
                self.waiting.remove(&key);
            }
        }
    }
}

/// The source of lanes that were closed.
struct NoMore;

impl Deliveries for NoMore {
    fn poll_receive(
        &mut self,
        _context: &mut Context<'_>,
        _into: &mut Vec<Received>,
        _limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        Poll::Ready(Ok(()))
    }
}

/// Wakes a worker when the broker has something, whichever worker is free then.
struct Bell(Weak<Lanes>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(lanes) = self.0.upgrade() {
            let mut state = lanes.lock();
            state.receiving = true;
            let call = lanes.call_or_defer(&mut state);
            drop(state);
            lanes.make(call);
        }
    }
}
