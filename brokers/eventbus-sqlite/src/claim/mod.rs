//! A claim: what this process has of a group on a pattern, or waits for. Each subscription opens one.
//!
//! What changes while it is open stands behind one lock, and each part of it keeps its own rules: what was read
//! ([`reading`]), what is at hand ([`at_hand`]), how far the group has come ([`Progress`]), what was published again
//! ([`letters`]), and what is given up. It changes with what handlers do, and with what is committed: a job of the
//! writer returns what it changed, and that is applied here after the commit, or dropped.

mod at_hand;
mod held;
mod letters;
mod reading;
mod receive;
mod rows;
mod saving;
mod settle;
mod suspects;
mod takeover;

pub(crate) use receive::{READ_AHEAD_BYTES, SqliteDeliveries};
pub(crate) use rows::{republished, shut_down};
pub(crate) use saving::Saving;
pub(crate) use settle::DAMAGED;
pub(crate) use suspects::Suspected;
pub(crate) use takeover::Begun;

use crate::broker::Store;
use crate::calls::Listener;
use crate::inherit::Parts;
use crate::let_go::let_go;
use crate::offsets::{behind, place, size};
use crate::writes::{WAKER, When, tell};
use at_hand::{AtHand, Waiting};
use eventbus_core::broker::suspects::Suspects;
use eventbus_core::broker::{Offset, Progress, Saved, Start, SubscribeRequest};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, Pattern, Topic, foreign};
use held::Held;
use letters::Letters;
use reading::Reading;
use rows::Noted;
use saving::{Leaving, NotSaved};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::task::Waker;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// With so many settled deliveries unsaved, saving does not wait any longer.
const SAVE_NOW: usize = 512;

/// What this process has of a group on a pattern, or waits for.
pub(crate) struct Claim {
    this: Weak<Self>,
    pub(crate) store: Arc<Store>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    start: Start,
    /// Its place among the claims of this process.
    pub(crate) number: u64,
    runtime: Handle,
    held: Held,
    /// Attempts may have to be noted.
    careful: AtomicBool,
    state: Lock<ClaimState>,
}

/// What changes while a claim is open.
struct ClaimState {
    /// Its row, once it has one.
    row: Option<i64>,
    /// Whether the lease is ours.
    active: bool,
    /// Whether it has waited for whoever has the group.
    stands_by: bool,
    /// Whether nobody reads any more.
    ended: bool,
    waker: Option<Waker>,
    error: Option<BrokerError>,
    reading: Reading,
    /// Up to here events of the group may have payloads that were mended before it was taken over.
    mended: i64,
    /// How far earlier rows had come on parts of the pattern: events that they settled are not ours.
    parts: Parts,
    at_hand: AtHand,
    progress: Progress<Noted>,
    letters: Letters,
    /// What may have ended an earlier process.
    suspects: Suspects<i64>,
    /// What is given up with the next save.
    leaving: Vec<Leaving>,
    /// Who waits until what was noted is saved.
    waiting: Vec<Waits>,
    /// A save is under way.
    saving: bool,
    /// A search for what was published again is under way.
    searching: bool,
    /// The writer knows that there is something to save.
    listed: bool,
    after: After,
}

/// Somebody who waits until something is saved.
type Waits = oneshot::Sender<Result<(), NotSaved>>;

/// What is left to do once the lock is released: all of it calls code of others.
#[derive(Default)]
struct After {
    /// The reader is to be woken.
    ring: bool,
    waker: Option<Waker>,
    answers: Vec<(Waits, Result<(), NotSaved>)>,
    /// They are dropped unanswered: what they wait for is no longer ours.
    refused: Vec<Waits>,
    dropped: Vec<Arc<Envelope>>,
}

impl Claim {
    pub(crate) fn new(store: Arc<Store>, request: SubscribeRequest) -> Arc<Self> {
        let SubscribeRequest { group, pattern, start, .. } = request;
        let number = store.next_number();
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            store,
            group,
            pattern,
            start,
            number,
            runtime: Handle::current(),
            held: Held::default(),
            careful: AtomicBool::new(false),
            state: Lock::new(Rank::BROKER, ClaimState::new()),
        })
    }

    /// Changes the state; then, without its lock, does what the change calls for.
    fn change<T>(&self, change: impl FnOnce(&mut ClaimState) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let mut after = std::mem::take(&mut state.after);
        if after.ring {
            after.waker = state.waker.take();
        }
        drop(state);
        after.happen();
        result
    }

    fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// Its name as the owner of a row.
    pub(crate) fn owner(&self) -> String {
        self.store.process.owner(self.number)
    }

    /// Moves a claim that has read everything on behind events of others, up to `head`, and saves that.
    pub(crate) fn skip_to(&self, head: i64) {
        let moved = self.change(|state| {
            let idle = state.active && state.reading.is_complete() && state.at_hand.is_empty();
            if !idle {
                return None;
            }
            state.progress.skip_to(behind(state.reading.skip_to(head)));
            if state.progress.has_moved() { state.list(When::Soon) } else { None }
        });
        self.save(moved);
    }

    /// Whether nothing is left to do, as far as this process knows.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        let reading = !state.reading.is_complete() || !state.at_hand.is_empty() || state.letters.has_more();
        let open = state.progress.unfinished() > 0 || state.letters.unfinished() > 0;
        state.active && !reading && !open && !state.has_unsaved() && !state.listed
    }

    pub(crate) fn is_active(&self) -> bool {
        self.state.lock().active
    }

    /// Whether nobody reads any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Nothing comes any more: its reader is told.
    pub(crate) fn fail(&self, error: BrokerError) {
        let earlier = self.change(|state| {
            state.after.ring = true;
            state.error.replace(error)
        });
        drop(earlier);
    }

    fn row(&self) -> Option<i64> {
        self.state.lock().row
    }

    /// Asks the writer for a save.
    fn save(&self, save: Option<When>) {
        if let (Some(save), Some(this)) = (save, self.this()) {
            self.store.writes.save(this, save);
        }
    }

    fn lost(&self) -> BrokerError {
        BrokerError::new(format!(
            "the lease of the group `{}` was over; another process may have it",
            self.group
        ))
    }
}

impl Listener for Claim {
    fn number(&self) -> u64 {
        self.number
    }

    fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    fn call(&self) -> Option<Waker> {
        let mut state = self.state.lock();
        state.reading.call();
        state.waker.take()
    }
}

impl ClaimState {
    fn new() -> Self {
        Self {
            row: None,
            active: false,
            stands_by: false,
            ended: false,
            waker: None,
            error: None,
            reading: Reading::new(0),
            mended: 0,
            parts: Parts::default(),
            at_hand: AtHand::default(),
            progress: Progress::resume(beginning()),
            letters: Letters::default(),
            suspects: Suspects::default(),
            leaving: Vec::new(),
            waiting: Vec::new(),
            saving: false,
            searching: false,
            listed: false,
            after: After::default(),
        }
    }

    fn call(&mut self) {
        self.reading.call();
        self.after.ring = true;
    }

    /// Whether the event at `offset` is ours to handle, as far as earlier rows of the group tell.
    fn is_ours(&self, offset: i64, topic: &Topic) -> bool {
        self.parts.reached(topic.as_str(), 0).is_none_or(|reached| offset > reached)
    }

    /// What is remembered of an open delivery.
    fn noted(&self, offset: Offset, republished: bool) -> Option<Noted> {
        match republished {
            true => self.letters.get(place(offset)),
            false => self.progress.get(offset).copied(),
        }
    }

    /// A delivery that was handed out comes back, settled or not.
    fn give_back(&mut self, envelope: &Envelope) {
        self.after.ring |= self.at_hand.give_back(size(envelope));
    }

    /// Puts a delivery at hand again that was handed out before.
    fn put_back(&mut self, waiting: Waiting) {
        self.give_back(&waiting.envelope);
        if self.ended {
            return self.after.dropped.push(waiting.envelope);
        }
        self.put_at_hand(waiting);
        self.after.ring = true;
    }

    fn put_at_hand(&mut self, waiting: Waiting) {
        self.after.dropped.extend(self.at_hand.push(waiting).map(|twice| twice.envelope));
    }

    /// There is something to save; tells whether the writer is to hear of it.
    fn list(&mut self, save: When) -> Option<When> {
        let first = !std::mem::replace(&mut self.listed, true);
        (first || save == When::Now).then_some(save)
    }

    fn has_unsaved(&self) -> bool {
        self.unsaved() > 0 || !self.leaving.is_empty() || !self.waiting.is_empty()
    }

    /// How many deliveries were settled or noted that are not saved: a crash repeats them.
    fn unsaved(&self) -> usize {
        self.progress.unsaved() + self.letters.unsaved()
    }

    /// Nothing that was read, handed out or given up is ours.
    fn forget(&mut self) {
        self.active = false;
        self.saving = false;
        self.reading.forget();
        let at_hand = std::mem::take(&mut self.at_hand).into_envelopes();
        self.after.dropped.extend(at_hand);
        self.progress = Progress::resume(beginning());
        self.letters = Letters::default();
        self.suspects = Suspects::default();
        self.after.refused.append(&mut self.waiting);
        for Leaving { letter, receipt, answer, .. } in std::mem::take(&mut self.leaving) {
            self.after.refused.extend(answer);
            self.after.dropped.push(letter.envelope);
            self.after.dropped.extend(receipt.map(|receipt| receipt.envelope));
        }
    }
}

impl Drop for ClaimState {
    /// Whoever has the last of a claim may be the thread that writes.
    fn drop(&mut self) {
        self.forget();
        std::mem::take(&mut self.after).happen();
    }
}

/// How far a group has come that has not begun.
fn beginning() -> Saved<Noted> {
    Saved { cursor: behind(0), reached: behind(0), notes: [].into() }
}

impl After {
    /// Does it; whatever panics, the rest is done as well.
    fn happen(self) {
        let Self { ring: _, waker, answers, refused, dropped } = self;
        if let Some(waker) = waker {
            foreign::tell(WAKER, || waker.wake());
        }
        for (waits, answer) in answers {
            tell(waits, answer);
        }
        for waits in refused {
            foreign::tell(WAKER, || drop(waits));
        }
        for envelope in dropped {
            let_go(envelope);
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("group", &self.group)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}
