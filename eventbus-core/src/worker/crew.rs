//! The crew: the workers of one subscription, and which of them comes for work.
//!
//! While a worker computes, it most likely comes back sooner than another one could come, and two would only stand
//! in each other's way. So another one is called, up to the subscription's concurrency, when a handler waits for
//! something, or when the watchdog sees that deliveries wait for handlers that compute for long.

use super::watchdog::{PATIENCE, Pulse};
use std::mem::replace;
use std::sync::Arc;
use std::task::Waker;

/// Where fewer deliveries than this are handled within the watchdog's patience, another worker is worth its call:
/// handlers that compute for less than ten microseconds are faster alone.
const WORTH_A_CALL: u32 = PATIENCE.as_micros() as u32 / 10;

/// The workers of one subscription.
pub(super) struct Crew {
    /// How many there may be.
    size: usize,
    workers: Vec<Slot>,
    /// Workers that were woken and have not come yet.
    called: usize,
    /// Something is at hand, and nobody was called for it because a worker computes.
    deferred: bool,
    /// The watchdog looks at what is deferred.
    minded: bool,
    /// How often workers came for more since the watchdog looked.
    came: u32,
}

/// The place of one worker.
struct Slot {
    doing: Doing,
    /// By which the watchdog notices that it hangs.
    pulse: Arc<Pulse>,
}

/// What a worker does.
enum Doing {
    Called,
    Busy,
    Idle(Waker),
}

/// A worker to be woken once the lock is released.
pub(super) enum Call {
    Nobody,
    Wake(Waker),
    Start(usize),
}

impl Crew {
    pub(super) fn new(size: usize) -> Self {
        Self { size, workers: Vec::new(), called: 0, deferred: false, minded: false, came: 0 }
    }

    /// The pulse of the worker in `slot`.
    pub(super) fn pulse(&self, slot: usize) -> Arc<Pulse> {
        Arc::clone(&self.workers[slot].pulse)
    }

    /// The worker in `slot` has come.
    pub(super) fn arrive(&mut self, slot: usize) {
        self.came += 1;
        if matches!(replace(&mut self.workers[slot].doing, Doing::Busy), Doing::Called) {
            self.called -= 1;
        }
    }

    /// The worker in `slot` found nothing to do, and sleeps.
    pub(super) fn rest(&mut self, slot: usize, waker: Waker) {
        self.deferred = false;
        self.workers[slot].doing = Doing::Idle(waker);
    }

    /// Chooses a worker to come for work: one that sleeps, or a new one while there may be more.
    pub(super) fn call(&mut self, new_pulse: impl FnOnce() -> Arc<Pulse>) -> Call {
        if self.called > 0 {
            return Call::Nobody;
        }
        self.deferred = false;
        if let Some(waker) = self.workers.iter_mut().find_map(|slot| slot.rouse(Doing::Called)) {
            self.called += 1;
            return Call::Wake(waker);
        }
        if self.workers.len() == self.size {
            return Call::Nobody;
        }
        self.workers.push(Slot { doing: Doing::Called, pulse: new_pulse() });
        self.called += 1;
        Call::Start(self.workers.len() - 1)
    }

    /// Whether some worker computes, and so comes back for what is at hand.
    pub(super) fn computes(&self) -> bool {
        self.workers.iter().any(Slot::computes)
    }

    /// Whether something was left to a worker that computes.
    pub(super) fn is_deferred(&self) -> bool {
        self.deferred
    }

    /// Leaves what is at hand to the worker that computes. `true`: the watchdog is to look at it from now on.
    pub(super) fn defer(&mut self) -> bool {
        let all_busy = || self.workers.iter().all(|slot| matches!(slot.doing, Doing::Busy));
        if !self.minded && self.workers.len() == self.size && all_busy() {
            return false;
        }
        self.deferred = true;
        !replace(&mut self.minded, true)
    }

    /// A worker has taken what was left to it.
    pub(super) fn took(&mut self) {
        self.deferred = false;
    }

    /// The watchdog looks. `true`: those at work take so long that another worker is worth its call.
    pub(super) fn takes_long(&mut self) -> bool {
        replace(&mut self.came, 0) < WORTH_A_CALL && self.deferred
    }

    /// Whether the watchdog is to look again.
    pub(super) fn mind_again(&mut self) -> bool {
        self.minded = self.deferred;
        self.minded
    }

    /// What wakes the workers that sleep, for the last time.
    pub(super) fn dismiss(&mut self) -> Vec<Waker> {
        self.workers.iter_mut().filter_map(|slot| slot.rouse(Doing::Busy)).collect()
    }
}

impl Slot {
    fn computes(&self) -> bool {
        matches!(self.doing, Doing::Busy) && !self.pulse.is_paused()
    }

    /// What wakes the worker, if it sleeps; from then on it does something else.
    fn rouse(&mut self, to: Doing) -> Option<Waker> {
        match replace(&mut self.doing, to) {
            Doing::Idle(waker) => Some(waker),
            other => {
                self.doing = other;
                None
            }
        }
    }
}
