//! A subscription: a group on a pattern, as this process sees it.

use crate::broker::Store;
use crate::delivery::Opened;
use crate::inherit::Parts;
use crate::saving::Saved;
use crate::subscribe::Waiting;
use eventbus_core::broker::{Start, SubscribeRequest};
use eventbus_core::{BrokerError, Pattern, Topic};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A group on a pattern, as this process sees it.
pub(crate) struct Subscription {
    this: Weak<Self>,
    pub(crate) store: Arc<Store>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    pub(crate) start: Start,
    /// Its place among the subscriptions of this process.
    pub(crate) number: u64,
    pub(crate) runtime: Handle,
    state: Mutex<State>,
    /// Counts how often the group was taken over; deliveries of an earlier time are no longer ours.
    pub(crate) epoch: AtomicU64,
    /// Until when the lease holds, in milliseconds since the store was opened.
    held_until: AtomicU64,
    /// Some delivery was not handled because the lease was over.
    pub(crate) refused: AtomicBool,
}

/// What changes while a subscription is open.
pub(crate) struct State {
    /// Its row, once it has one.
    pub(crate) row: Option<i64>,
    /// Whether the lease is ours.
    pub(crate) active: bool,
    /// Whether nobody reads any more.
    pub(crate) ended: bool,
    pub(crate) waker: Option<Waker>,
    /// The reader is to be woken once the lock is released.
    pub(crate) ring: bool,
    pub(crate) error: Option<BrokerError>,

    /// Everything up to here was read: it is at hand, open, or not ours.
    pub(crate) position: i64,
    /// There may be events behind `position`.
    pub(crate) behind: bool,
    /// How often somebody said so.
    pub(crate) called: u64,
    pub(crate) fetching: bool,
    pub(crate) at_hand: VecDeque<Waiting>,
    pub(crate) at_hand_bytes: usize,

    /// Everything up to here was handed out, or is not ours.
    pub(crate) handed: i64,
    /// What was handed out and is not settled, and what was unfinished when the group was taken over.
    pub(crate) open: BTreeMap<i64, Opened>,
    /// The payloads of what was handed out.
    pub(crate) open_bytes: usize,
    /// The reader waits until some of it is settled.
    pub(crate) stalled: bool,
    /// The highest place that was settled.
    pub(crate) settled: i64,
    /// How many deliveries were settled since the last save.
    pub(crate) unsaved: usize,
    /// Something is to be saved.
    pub(crate) dirty: bool,
    pub(crate) saved: Saved,
    /// How far earlier rows had come on parts of the pattern: events that they settled are not ours.
    pub(crate) parts: Parts,
    /// More was published again than is taken at once.
    pub(crate) more_republished: bool,
    /// Who waits until what was noted is saved.
    pub(crate) waiting: Vec<oneshot::Sender<Result<(), BrokerError>>>,
}

impl Subscription {
    pub(crate) fn new(store: Arc<Store>, request: SubscribeRequest) -> Arc<Self> {
        let SubscribeRequest { group, pattern, start } = request;
        let number = store.next_number();
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            store,
            group,
            pattern,
            start,
            number,
            runtime: Handle::current(),
            state: Mutex::new(State::new()),
            epoch: AtomicU64::new(0),
            held_until: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the reader if that is called for: outside of the lock, since the reader holds
    /// a lock of its own while it asks.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let waker = if std::mem::take(&mut state.ring) { state.waker.take() } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        result
    }

    pub(crate) fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether deliveries of `epoch` are ours to handle.
    pub(crate) fn is_held(&self, epoch: u64) -> bool {
        let held = self.store.clock() < self.held_until.load(Ordering::Acquire);
        // What a handler did could not be saved.
        epoch == self.epoch() && held && !self.store.file.is_gone()
    }

    /// The lease was extended until `until`, in milliseconds since the store was opened.
    pub(crate) fn hold_until(&self, until: u64) {
        self.held_until.store(until, Ordering::Release);
    }

    pub(crate) fn owner(&self) -> String {
        self.store.process.owner(self.number)
    }

    /// There may be events behind what was read.
    pub(crate) fn call(&self) {
        self.change(State::call);
    }

    /// Moves a subscription that has read everything on behind events of others, up to `head`. `true`: that is to be
    /// saved.
    pub(crate) fn skip_to(&self, head: i64) -> bool {
        let mut state = self.lock();
        if !state.active || state.behind || state.fetching || !state.at_hand.is_empty() {
            return false;
        }
        let end = state.position.max(head);
        (state.position, state.handed) = (end, end);
        let unsaved = state.open.is_empty() && state.saved.cursor < end;
        state.dirty |= unsaved;
        unsaved
    }

    /// Whether nothing is left to do, as far as this process knows.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.lock();
        let reading = state.behind || state.fetching || !state.at_hand.is_empty() || state.more_republished;
        let saving = state.dirty || state.unsaved > 0;
        state.active && !reading && !saving && state.open.is_empty()
    }

    pub(crate) fn is_active(&self) -> bool {
        self.lock().active
    }
}

impl State {
    fn new() -> Self {
        Self {
            row: None,
            active: false,
            ended: false,
            waker: None,
            ring: false,
            error: None,
            position: 0,
            behind: true,
            called: 0,
            fetching: false,
            at_hand: VecDeque::new(),
            at_hand_bytes: 0,
            handed: 0,
            open: BTreeMap::new(),
            open_bytes: 0,
            stalled: false,
            settled: 0,
            unsaved: 0,
            dirty: false,
            saved: Saved::default(),
            parts: Parts::default(),
            more_republished: false,
            waiting: Vec::new(),
        }
    }

    /// Whether the event at `offset` is ours to handle, as far as earlier rows of the group tell.
    pub(crate) fn is_ours(&self, offset: i64, topic: &Topic) -> bool {
        self.parts.reached(topic.as_str(), 0).is_none_or(|reached| offset > reached)
    }

    pub(crate) fn call(&mut self) {
        self.behind = true;
        self.called += 1;
        self.ring = true;
    }

    /// Nothing that was read or handed out is ours.
    pub(crate) fn forget(&mut self) {
        self.active = false;
        self.fetching = false;
        self.at_hand.clear();
        self.open.clear();
        self.waiting.clear();
        (self.at_hand_bytes, self.open_bytes) = (0, 0);
        (self.unsaved, self.dirty) = (0, false);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("group", &self.group)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}
