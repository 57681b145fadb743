//! A subscription at work: the lock around its lanes, its source and its crew.
//!
//! Which delivery may be handled is decided by the table (`table.rs`), where more come from by the source
//! (`source.rs`), which worker comes by the crew (`crew.rs`). What each of them says is to be done is done here, once
//! the lock is released.
//!
//! `models/` runs these files under every order of their steps that shuttle finds.

use super::Layered;
use super::crew::{Call, Caller, Crew, Place};
use super::pulse::Pulse;
use super::source::{Answer, Next, Reader, Source};
use super::table::LaneTable;
use super::threads::Threads;
use super::vitals::Vitals;
use super::watchdog::{Look, Minded, Watchdog};
use crate::broker::{Acker, DeadLetter, Deliveries, Parked, Received};
use crate::delivery::{Delivery, Scope};
use crate::error::StartupError;
use crate::event::Key;
use crate::foreign;
use crate::lock::{Lock, Locked, Rank};
use crate::log;
use crate::printable::printable;
use crate::subscription::{Policy, Subscription};
use crate::waiters::Waiters;
use jiff::Timestamp;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep_until};

/// After the broker failed to deliver, it is asked again this much later.
const RECEIVE_AGAIN: Duration = Duration::from_secs(1);

/// One subscription at work.
pub(crate) struct Lanes {
    pub(super) scope: Arc<Scope>,
    pub(super) policy: Policy,
    pub(super) layered: Layered,
    /// On which its handlers are polled.
    pub(super) threads: Threads,
    watchdog: Arc<Watchdog>,
    runtime: Handle,
    state: Lock<State>,
    /// Wakes a worker when the broker has something.
    bell: Waker,
    /// Those who wait until nothing is handled, or the source was let go of.
    idle: Waiters,
    finished: Waiters,
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

/// How a subscription is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    /// How many deliveries are at hand, ready or handled.
    pub(crate) at_hand: usize,
    /// How many wait behind others of their key, or for their next attempt.
    pub(crate) held_back: usize,
    /// How many of those wait for their next attempt.
    pub(crate) parked: usize,
    /// How long ago an attempt has ended; nothing, where none has.
    pub(crate) last_ended: Option<Duration>,
    /// How long something has been at hand without that an attempt has ended.
    pub(crate) stuck: Duration,
}

/// A delivery that is not settled yet.
pub(super) struct Open {
    pub(super) acker: Acker,
    replayed: bool,
    /// What was noted when it last failed. In a box, since that is rare and a delivery is moved often.
    pub(super) failed: Option<Box<Failed>>,
    /// When it is due, where it came while it waited for its next attempt.
    due: Option<Instant>,
    /// When it came, for the age of a batch.
    since: Option<Instant>,
    /// How many came before it.
    order: u64,
    /// A batch with it has panicked or hung, or an earlier process ended beside it: it is handled alone, so that only
    /// the member fails that is to blame.
    pub(super) alone: bool,
}

/// What is noted of a delivery that has failed.
pub(super) enum Failed {
    /// It is tried again.
    Parked(Parked),
    /// It is given up, and its dead letter could not be stored yet, so often.
    Unkept(DeadLetter, u32),
    /// It is done, and the broker has panicked as it was told so, so often.
    Untold(Done, u32),
}

/// What a delivery is done by.
pub(super) enum Done {
    /// It was handled.
    Handled,
    /// It was given up for this reason, without a dead letter.
    Dropped(String),
    /// It was given up by a replay, which keeps this for its report.
    LeftOut(Box<DeadLetter>),
}

impl Open {
    #[inline]
    fn new(received: Received, since: Option<Instant>, order: u64) -> Self {
        let Received { receipt, replayed, parked, alone, settler } = received;
        let due = parked.map(|parked| after(parked.delay(Timestamp::now())));
        let failed = parked.map(|parked| Box::new(Failed::Parked(parked)));
        Self { acker: Acker::new(settler, receipt), replayed, failed, due, since, order, alone }
    }

    /// Whether no handler is called with it any more, but the broker has to be told so.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        matches!(self.failed.as_deref(), Some(Failed::Unkept(..) | Failed::Untold(..)))
    }

    /// The next attempt, as the handler sees it.
    pub(super) fn delivery(&self, scope: &Arc<Scope>) -> Delivery {
        Delivery::new(self.acker.receipt(), self.replayed, Arc::clone(scope))
    }

    pub(super) fn key(&self) -> Option<&Key> {
        self.acker.receipt().envelope.lane_key()
    }

    /// How long it is to wait for its next attempt.
    fn waits(&self) -> Option<Duration> {
        let delay = self.due?.saturating_duration_since(Instant::now());
        (!delay.is_zero()).then_some(delay)
    }

    /// Whether it may be handled in one batch with others of its key: not where its attempt is to be one by itself.
    fn may_join(&self) -> bool {
        !self.alone && self.waits().is_none()
    }
}

/// Puts the layers of a subscription around its handler: code of others.
pub(crate) fn layered(
    subscription: &Subscription,
    make: impl FnOnce() -> Layered,
) -> Result<Layered, StartupError> {
    foreign::call("a layer", make).map_err(|panicked| {
        let (name, place) = (&subscription.name, subscription.location());
        StartupError::new(vec![format!("a layer {panicked}, as it was put around `{name}` ({place})")])
    })
}

/// So much later; what is farther away than any timer is as good as never.
fn after(delay: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    Instant::now() + delay.min(NEVER)
}

struct State {
    table: LaneTable<Open>,
    source: Source,
    crew: Crew,
    tasks: Vec<AbortHandle>,
    /// The batch that is being gathered, by whichever worker comes: none of them waits for another one's turn, and
    /// none has it in hand while it sleeps.
    gathered: Vec<Open>,
    tally: Tally,
    /// How many attempts have ended and are to be made again.
    parked: u64,
    vitals: Vitals,
    stopped: bool,
    /// Something was given back when they were stopped, so they do not finish any more.
    cut_short: bool,
    /// How many deliveries went back to the broker since they were stopped: those that were not in a handler.
    given_back: usize,
    /// How many deliveries were lost as the source was let go of; none before.
    lost: Option<usize>,
    /// What was being handled was dropped: a worker that has only just begun ends as well.
    aborted: bool,
}

impl State {
    /// Whether there is nothing left, and nothing more to come.
    fn is_finished(&self) -> bool {
        self.source.is_ended() && self.table.held() == 0 && !self.cut_short
    }

    /// Notes how far it has got, now.
    fn look(&mut self, now: Instant) {
        let Tally { acked, given_up, unsettled, .. } = self.tally;
        self.vitals.look(now, acked + given_up + unsettled + self.parked, self.table.active());
    }

    /// Whether nothing is being handled, and nobody asks the broker.
    fn is_idle(&self) -> bool {
        self.table.handled() == 0 && !self.source.is_asked()
    }
}

/// What became of a delivery, for its lane.
pub(super) enum Settled {
    /// Acked: the next delivery of its lane may be handled, as after the two that follow.
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
        let state = State {
            table: LaneTable::new(),
            source: Source::new(source),
            crew: Crew::new(policy.concurrency),
            tasks: Vec::new(),
            gathered: Vec::new(),
            tally: Tally::default(),
            parked: 0,
            vitals: Vitals::default(),
            stopped: false,
            cut_short: false,
            given_back: 0,
            lost: None,
            aborted: false,
        };
        Arc::new_cyclic(|lanes: &Weak<Self>| Self {
            scope,
            policy,
            layered,
            threads: Threads::new(Handle::current(), Arc::clone(&watchdog)),
            watchdog,
            runtime: Handle::current(),
            state: Lock::new(Rank::LANES, state),
            bell: Waker::from(Arc::new(Bell(lanes.clone()))),
            idle: Waiters::new(),
            finished: Waiters::new(),
        })
    }

    /// The same subscription once more, on another source: beside these lanes, or in place of them.
    ///
    /// # Errors
    /// Layers around batches are made anew, and one of them has panicked.
    pub(crate) fn again(
        &self,
        scope: Arc<Scope>,
        concurrency: Option<usize>,
        source: Box<dyn Deliveries>,
    ) -> Result<Arc<Self>, StartupError> {
        let mut policy = self.policy;
        policy.concurrency = concurrency.unwrap_or(policy.concurrency);
        policy.in_flight = policy.in_flight.max(policy.concurrency);
        policy.held_back = policy.held_back.max(policy.in_flight);
        let layered = layered(&scope.subscription, || self.layered.clone())?;
        Ok(Self::new(scope, policy, layered, source, Arc::clone(&self.watchdog)))
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

    /// Begins to receive. Workers start when there is something to do. The broker is asked, so no lock may be held.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut turn = self.turn();
        turn.fill();
        if turn.has_work() {
            turn.call(Caller::Anybody);
        }
    }

    /// Takes nothing more; what is not being handled goes back to the broker.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.cut_short = !state.is_finished();
        state.stopped = true;
        let given_back = state.table.clear();
        state.given_back += given_back.len();
        let sleepers = state.crew.dismiss();
        drop(state);
        given_back.into_iter().for_each(give_back);
        sleepers.into_iter().for_each(Waker::wake);
        self.idle.tell();
        self.finished.tell();
    }

    /// Lets go of the source of lanes that were stopped, so that the broker knows that nobody reads here any more: now,
    /// or once whoever asks it has come back. [`lost`](Self::lost) tells how many deliveries are lost by that, and so
    /// does a line of the log.
    pub(crate) fn close(&self) {
        self.tell_lost(self.leave());
    }

    /// The same without the line, for who says by itself how many are lost; none that are found out later.
    pub(crate) fn leave(&self) -> usize {
        let reader = self.state.lock().source.close();
        reader.map_or(0, |reader| self.let_go(reader))
    }

    fn let_go(&self, reader: Reader) -> usize {
        let lost = let_go(reader);
        self.state.lock().lost = Some(lost);
        self.idle.tell();
        lost
    }

    fn tell_lost(&self, lost: usize) {
        if lost > 0 {
            log::warn!(
                target: "eventbus", group = %printable(&self.scope.subscription.group), deliveries = lost,
                "the subscription has ended with deliveries that are not handled, and they are lost"
            );
        }
    }

    /// Resolves once the source of lanes that were closed was let go of: how many deliveries are lost by that.
    pub(crate) async fn lost(&self) -> usize {
        self.idle.until(|| self.state.lock().lost).await
    }

    /// How many workers are inside of a handler, on a thread of the runtime.
    pub(crate) fn computing(&self) -> usize {
        self.state.lock().crew.computing()
    }

    /// Resolves once the source has ended and everything from it is settled; also when the lanes are stopped.
    /// `false`: they were stopped before.
    pub(crate) async fn finished(&self) -> bool {
        let over = || {
            let state = self.state.lock();
            (state.is_finished() || state.stopped).then(|| state.is_finished())
        };
        self.finished.until(over).await
    }

    /// What became of the deliveries so far.
    pub(crate) fn tally(&self) -> Tally {
        self.state.lock().tally
    }

    /// Why the broker's deliveries ended before their end, where they did.
    pub(crate) fn broke_off(&self) -> Option<String> {
        self.state.lock().source.broke_off().map(str::to_owned)
    }

    /// How they are.
    pub(crate) fn life(&self) -> Life {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.look(now);
        Life {
            at_hand: state.table.active(),
            held_back: state.table.held_back(),
            parked: state.table.parked(),
            last_ended: state.vitals.last_ended(now),
            stuck: state.vitals.stuck(now),
        }
    }

    /// Resolves once nothing is being handled, and the broker is not being asked.
    pub(crate) async fn idle(&self) {
        self.idle.until(|| self.state.lock().is_idle().then_some(())).await;
    }

    /// How many deliveries are being handled.
    pub(crate) fn handled(&self) -> usize {
        self.state.lock().table.handled()
    }

    /// How many deliveries went back to the broker since they were stopped.
    pub(crate) fn given_back(&self) -> usize {
        self.state.lock().given_back
    }

    /// Drops what is still being handled, unsettled.
    pub(crate) fn abort(self: &Arc<Self>) {
        let mut turn = self.turn();
        turn.aborted = true;
        let tasks = std::mem::take(&mut turn.tasks);
        for open in std::mem::take(&mut turn.gathered) {
            turn.note(Settled::Unsettled(open.key().cloned()));
            turn.chores.push(Chore::GiveBack(open));
        }
        drop(turn);
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// The pulse of the worker in `place`.
    pub(super) fn pulse(&self, place: Place) -> Arc<Pulse> {
        self.state.lock().crew.pulse(place)
    }

    /// Moves the next delivery for the worker in `place`, which says what became of its last one, into `held`. `false`:
    /// the worker ends, since these lanes were stopped, or it came late and another one has its place.
    pub(super) fn poll_next(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        place: Place,
        last: &mut Option<Settled>,
        held: &mut Option<Open>,
    ) -> Poll<bool> {
        let budget = std::task::ready!(tokio::task::coop::poll_proceed(context));
        loop {
            let mut turn = self.turn();
            if let Some(settled) = last.take() {
                turn.note(settled);
            }
            if !turn.crew.arrive(place) {
                return Poll::Ready(false);
            }
            *held = turn.take();
            let Some(open) = held else { return turn.rest(place, context).map(|()| false) };
            turn.leave();
            if open.acker.holds() {
                budget.made_progress();
                return Poll::Ready(true);
            }
            *last = held.take().map(lose);
        }
    }

    /// Gathers a batch with the worker in `place`, and moves it into `batch` once it is complete, or as old as `linger`
    /// allows; `clock` wakes the worker then. `false`: the worker ends, as with [`poll_next`](Self::poll_next).
    pub(super) fn poll_gather(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        place: Place,
        batch: &mut Vec<Open>,
        mut clock: Pin<&mut Option<Sleep>>,
    ) -> Poll<bool> {
        let budget = std::task::ready!(tokio::task::coop::poll_proceed(context));
        loop {
            let mut turn = self.turn();
            if !turn.crew.arrive(place) {
                return Poll::Ready(false);
            }
            if turn.gather() {
                std::mem::swap(&mut turn.gathered, batch);
                turn.table.close_batch();
                turn.leave();
                let lost: Vec<_> = batch.extract_if(.., |open| !open.acker.holds()).collect();
                lost.into_iter().for_each(|open| self.settled(lose(open)));
                if batch.is_empty() {
                    continue;
                }
                budget.made_progress();
                // What joined came after what was ready, whichever was published first.
                batch.sort_unstable_by_key(|open| open.order);
                return Poll::Ready(true);
            }
            let due = turn.due();
            if turn.rest(place, context).is_ready() {
                return Poll::Ready(false);
            }
            let Some(due) = due else { return Poll::Pending };
            if clock.as_ref().as_pin_ref().is_none_or(|clock| clock.deadline() != due) {
                clock.set(Some(sleep_until(due)));
            }
            if let Some(clock) = clock.as_mut().as_pin_mut() {
                std::task::ready!(clock.poll(context));
            }
        }
    }

    /// A handler is polled: the watchdog looks how long that takes. It may have stopped to look while all of them waited.
    #[inline]
    pub(super) fn mind(self: &Arc<Self>) {
        if !self.threads.minded.load(Ordering::Relaxed) {
            self.turn().mind();
        }
    }

    /// A handler waits for something, so that another worker can use the time.
    pub(super) fn handler_waits(self: &Arc<Self>, pulse: &Pulse) {
        pulse.pause();
        let mut turn = self.turn();
        if turn.crew.is_deferred() {
            turn.call(Caller::Anybody);
        }
    }

    /// Notes what became of a delivery, outside of `poll_next`. Other workers may sleep until its lane opens, or until
    /// there is room for more; of that the broker's bell does not tell.
    pub(super) fn settled(self: &Arc<Self>, settled: Settled) {
        let mut turn = self.turn();
        let was_full = turn.room() == 0;
        turn.note(settled);
        if turn.table.has_ready() || was_full {
            turn.call_or_defer();
        }
    }

    /// Parks a delivery until its next attempt is due; its lane stays closed, nothing else waits.
    pub(super) fn park(self: &Arc<Self>, open: Open, delay: Duration) {
        self.turn().park(open, delay);
    }

    fn unpark(self: &Arc<Self>, parked: u64) {
        let mut turn = self.turn();
        if turn.table.unpark(parked) {
            turn.call_or_defer();
        }
    }

    /// The bell of the broker rings.
    fn ring(self: &Arc<Self>) {
        let mut turn = self.turn();
        if turn.source.ring() {
            turn.call_or_defer();
        }
    }

    /// Parked deliveries come back by themselves.
    fn unpark_after(self: &Arc<Self>, parked: u64, delay: Duration) {
        let (lanes, due) = (Arc::downgrade(self), after(delay));
        self.runtime.spawn(async move {
            sleep_until(due).await;
            if let Some(lanes) = lanes.upgrade() {
                lanes.unpark(parked);
            }
        });
    }

    /// The broker failed, so it is asked again later.
    fn ask_later(&self, reason: &str) {
        log::warn!(
            target: "eventbus", group = %printable(&self.scope.subscription.group), error = %printable(reason),
            "the broker cannot deliver; asking again in {RECEIVE_AGAIN:?}"
        );
        let bell = self.bell.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(RECEIVE_AGAIN).await;
            bell.wake();
        });
    }

    fn make(self: &Arc<Self>, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Wake(waker) => waker.wake(),
            Call::Start(place) => {
                let task =
                    self.runtime.spawn(self.layered.worker.run(Arc::clone(self), place)).abort_handle();
                let mut state = self.state.lock();
                if state.aborted {
                    drop(state);
                    return task.abort();
                }
                state.tasks.retain(|task| !task.is_finished());
                state.tasks.push(task);
            }
        }
    }

    #[cold]
    fn do_chores(self: &Arc<Self>, chores: &mut Vec<Chore>) {
        for chore in chores.drain(..) {
            match chore {
                Chore::GiveBack(open) => give_back(open),
                Chore::LetGo(reader) => {
                    let lost = self.let_go(reader);
                    self.tell_lost(lost);
                }
                Chore::Unpark(parked, delay) => self.unpark_after(parked, delay),
                Chore::AskLater(reason) => self.ask_later(&reason),
            }
        }
    }

    #[inline]
    fn turn(self: &Arc<Self>) -> Turn<'_> {
        Turn {
            lanes: self,
            state: Some(self.state.lock()),
            call: Call::Nobody,
            ask_again: false,
            quiet: false,
            chores: Vec::new(),
        }
    }
}

impl Minded for Lanes {
    /// Puts another worker in the place of one that was called and is late, or calls one if those at work take long.
    fn look(self: Arc<Self>) -> Look {
        let mut turn = self.turn();
        turn.look(Instant::now());
        let seen = turn.crew.look_at_polls();
        self.threads.saw(seen.pace);
        // With one thread, whoever is late would be so in any place.
        if !turn.stopped && self.threads.several() {
            turn.call = turn.crew.replace_late();
        }
        if turn.crew.takes_long() {
            turn.call(Caller::Watchdog);
        }
        let again = turn.crew.mind_again();
        self.threads.minded.store(again, Ordering::Relaxed);
        Look { again, held_up: seen.held_up }
    }
}

impl Drop for Lanes {
    /// Each is given back by itself: one whose destructor panics takes no other along.
    fn drop(&mut self) {
        let mut state = self.state.lock();
        let (given_back, reader) = (state.table.clear(), state.source.close());
        let gathered = std::mem::take(&mut state.gathered);
        drop(state);
        gathered.into_iter().for_each(give_back);
        given_back.into_iter().for_each(give_back);
        if let Some(reader) = reader {
            let lost = let_go(reader);
            self.tell_lost(lost);
        }
    }
}

/// A time under the lock. What is to be done once it is released is collected meanwhile, and done at the end: code of
/// others (wakers, brokers, destructors, the log) may take locks of its own.
struct Turn<'a> {
    lanes: &'a Arc<Lanes>,
    /// None while the broker is asked, and at the end.
    state: Option<Locked<'a, State>>,
    call: Call,
    /// The bell rang while the broker was asked.
    ask_again: bool,
    /// Those are to be told who wait until nothing is handled, or nothing is left.
    quiet: bool,
    chores: Vec<Chore>,
}

/// What is done once the lock is released.
enum Chore {
    GiveBack(Open),
    LetGo(Reader),
    Unpark(u64, Duration),
    AskLater(String),
}

const LOCKED: &str = "the lock is held but while the broker is asked";

impl Deref for Turn<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_deref().expect(LOCKED)
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_deref_mut().expect(LOCKED)
    }
}

impl Turn<'_> {
    #[inline]
    fn note(&mut self, settled: Settled) {
        let (key, count) = match settled {
            Settled::Acked(key) => (key, &mut self.tally.acked),
            Settled::GivenUp(key) => (key, &mut self.tally.given_up),
            Settled::Unsettled(key) => (key, &mut self.tally.unsettled),
            Settled::Parked => return,
        };
        *count += 1;
        self.table.settled(key.as_ref());
        self.note_rest();
    }

    /// Tells those who wait for it that nothing is handled, or nothing is left.
    fn note_rest(&mut self) {
        self.quiet |= self.is_idle();
    }

    /// Takes what may be handled now, from the broker where nothing is at hand.
    fn take(&mut self) -> Option<Open> {
        loop {
            self.fill();
            let open = self.table.take()?;
            match open.waits() {
                Some(delay) => self.park(open, delay),
                None => return Some(open),
            }
        }
    }

    /// Takes a member for the batch that is being gathered: what may be handled now, or else what follows a member of
    /// its key, or else what the broker has.
    fn take_member(&mut self) -> Option<Open> {
        loop {
            if let Some(open) = self.table.take() {
                match open.waits() {
                    Some(delay) => self.park(open, delay),
                    None => {
                        let together = self.lanes.layered.together;
                        if let Some(key) = open.key().filter(|_| together && open.may_join()) {
                            self.table.let_join(key);
                        }
                        return Some(open);
                    }
                }
            } else if let Some(open) = self.table.take_joining(Open::may_join) {
                return Some(open);
            } else if !self.receive() && !self.table.has_ready() {
                // While the broker was asked, a retry may have come due, or a lane may have opened: whoever did that
                // leaves it to this worker.
                return None;
            }
        }
    }

    fn park(&mut self, mut open: Open, delay: Duration) {
        if self.stopped {
            self.table.settled(None);
            self.given_back += 1;
            self.chores.push(Chore::GiveBack(open));
        } else {
            open.due = Some(after(delay));
            self.parked += 1;
            let key = open.key().cloned();
            let parked = self.table.park(key.as_ref(), open.order, open);
            self.chores.extend(parked.map(|parked| Chore::Unpark(parked, delay)));
        }
        self.note_rest();
    }

    /// How many more may be taken in. What is held back does not count as in flight, or one key that is stuck would
    /// keep the others out; it has a limit of its own.
    fn room(&self) -> usize {
        let Policy { in_flight, held_back, .. } = self.lanes.policy;
        let active = in_flight.saturating_sub(self.table.active());
        active.min(held_back.saturating_sub(self.table.held_back()))
    }

    /// Takes in what the broker has until something may be handled: what comes may all be of lanes that are closed.
    fn fill(&mut self) {
        while !self.table.has_ready() && self.receive() {}
    }

    /// Takes in what the broker has, as far as there is room. `false`: nothing came, and the bell rings when there is
    /// more. The lock is released meanwhile.
    #[inline]
    fn receive(&mut self) -> bool {
        let room = self.room();
        if room == 0 || self.stopped {
            return false;
        }
        let Some(mut reader) = self.source.take() else { return false };
        let lanes = self.lanes;
        self.state = None;
        let answer = reader.ask(&lanes.bell, room);
        self.state = Some(lanes.state.lock());
        self.admit(&mut reader);
        let (next, unread) = self.source.put_back(reader, &answer);
        self.chores.extend(unread.map(Chore::LetGo));
        self.ask_again |= next == Next::AskAgain;
        self.note_rest();
        match answer {
            Answer::Some => return true,
            Answer::Failed(reason) => self.chores.push(Chore::AskLater(reason)),
            Answer::NotNow | Answer::Ended => {}
        }
        false
    }

    /// Takes what was received into its lanes.
    fn admit(&mut self, reader: &mut Reader) {
        let since = (self.lanes.policy.batch > 1).then(Instant::now);
        let first = self.tally.received;
        let received = reader.received.drain(..).zip(first..);
        let received = received.map(|(received, order)| Open::new(received, since, order));
        if self.stopped {
            let before = self.chores.len();
            self.chores.extend(received.map(Chore::GiveBack));
            self.given_back += self.chores.len() - before;
            return;
        }
        let state = &mut **self;
        for open in received {
            state.tally.received += 1;
            let key = open.key().cloned();
            state.table.admit(key, open);
        }
    }

    /// Whether something may be handled now, or the broker is likely to have something.
    fn has_work(&self) -> bool {
        self.table.has_ready() || self.ask_again
    }

    /// Nothing to do for the worker in `place`: it sleeps, or ends where this is ready.
    fn rest(mut self, place: Place, context: &Context<'_>) -> Poll<()> {
        if self.stopped {
            return Poll::Ready(());
        }
        self.look(Instant::now());
        if self.ask_again {
            // The budget of this poll may be what the broker lacks.
            drop(self);
            context.waker().wake_by_ref();
        } else {
            self.crew.rest(place, context.waker().clone());
        }
        Poll::Pending
    }

    /// Chooses a worker to come for work, unless one that computes comes back for it.
    fn call_or_defer(&mut self) {
        if self.crew.computes() { self.defer() } else { self.call(Caller::Anybody) }
    }

    /// Leaves what is at hand to the worker that computes, until its handler waits or the watchdog is out of patience.
    fn defer(&mut self) {
        if !self.stopped && self.crew.defer() {
            self.mind();
        }
    }

    /// Chooses a worker to come for work.
    fn call(&mut self, caller: Caller) {
        if self.stopped {
            return;
        }
        let lanes = self.lanes;
        let call = self.crew.call(caller, || lanes.watchdog.watch(&lanes.scope));
        if !matches!(call, Call::Nobody) {
            self.call = call;
            self.mind();
        }
    }

    /// Lets the watchdog look until there is nothing to see.
    fn mind(&mut self) {
        if self.crew.mind() {
            self.lanes.threads.minded.store(true, Ordering::Relaxed);
            let lanes: Arc<dyn Minded> = Arc::clone(self.lanes) as _;
            self.lanes.watchdog.mind(&lanes);
        }
    }

    /// Leaves with work: makes sure that somebody comes for what is left, and for what comes next.
    #[inline]
    fn leave(mut self) {
        if self.lanes.policy.concurrency > 1 {
            self.fill();
        }
        self.crew.took();
        if self.has_work() {
            self.defer();
        }
    }

    /// Adds what may be handled now to the batch that is being gathered. `true`: it is complete, as old as it may get,
    /// or the last one.
    fn gather(&mut self) -> bool {
        let size = self.lanes.policy.batch;
        while self.gathered.len() < size
            && let Some(open) = self.take_member()
        {
            self.gathered.push(open);
        }
        let over = || self.stopped || self.due().is_some_and(|due| due <= Instant::now());
        self.gathered.len() >= size || !self.gathered.is_empty() && over()
    }

    /// When the oldest member of the batch that is being gathered is as old as may be.
    fn due(&self) -> Option<Instant> {
        let oldest = self.gathered.iter().filter_map(|open| open.since).min();
        oldest.and_then(|oldest| oldest.checked_add(self.lanes.policy.linger))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let lanes = self.lanes;
        let finished = self.quiet && self.state.as_ref().is_some_and(|state| state.is_finished());
        self.state = None;
        match std::mem::replace(&mut self.call, Call::Nobody) {
            Call::Nobody => {}
            call => lanes.make(call),
        }
        if !self.chores.is_empty() {
            lanes.do_chores(&mut self.chores);
        }
        if self.quiet {
            lanes.idle.tell();
        }
        if finished {
            lanes.finished.tell();
        }
    }
}

/// A delivery that may still be handled here; otherwise what that is to its lane.
pub(super) fn held(open: Open) -> Result<Open, Settled> {
    if open.acker.holds() { Ok(open) } else { Err(lose(open)) }
}

/// Lets go of a delivery that is not held any more, and says what that is to its lane.
fn lose(open: Open) -> Settled {
    let settled = Settled::Unsettled(open.key().cloned());
    // Somebody else has it now.
    foreign::tell("an envelope", || drop(open.acker.forget()));
    settled
}

/// Gives a delivery back to its broker.
fn give_back(open: Open) {
    foreign::tell("a broker", || drop(open));
}

/// Lets go of a broker's deliveries. How many are lost by that.
fn let_go(reader: Reader) -> usize {
    foreign::call("a broker", || reader.close()).unwrap_or(0)
}

/// Wakes a worker when the broker has something, whichever worker is free then.
struct Bell(Weak<Lanes>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(lanes) = self.0.upgrade() {
            lanes.ring();
        }
    }
}
