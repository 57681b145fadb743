//! The crew: the workers of one subscription, and which of them comes for work.
//!
//! While a worker computes, it most likely comes back sooner than another one could come, and two would only stand
//! in each other's way. So another one is called, up to the subscription's concurrency, when a handler waits for
//! something, or when the watchdog sees that deliveries wait for handlers that compute for long.
//!
//! A worker that was called may be late: a task that is woken on a thread of the runtime waits for that thread, where
//! no other takes it, and whoever woke it may go on to compute there. So the watchdog puts another worker in the place
//! of one that is late; when the late one comes at last, it finds its place taken, and ends.

use super::pulse::Pulse;
use super::threads::Pace;
use super::watchdog::PATIENCE;
use std::mem::replace;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

/// Where fewer deliveries than this are handled within the watchdog's patience, another worker is worth its call:
/// handlers that compute for less than ten microseconds are faster alone.
const WORTH_A_CALL: u32 = PATIENCE.as_micros() as u32 / 10;
/// The watchdog goes on looking for so long after there was something to look at: events seldom come alone, and to
/// wake its thread costs more than a look.
const LOOKS_AFTER: u32 = 16;

/// The workers of one subscription.
pub(super) struct Crew {
    /// How many there may be.
    size: usize,
    workers: Vec<Slot>,
    /// Workers that were woken and have not come yet.
    called: usize,
    /// Something is at hand, and nobody was called for it because a worker computes.
    deferred: bool,
    /// It was so at the watchdog's last look.
    was_deferred: bool,
    /// The watchdog looks.
    minded: bool,
    /// How often it has found nothing to look at since there was something.
    looks_after: u32,
    /// How often workers came for more since the watchdog looked.
    came: u32,
}

/// A worker's place in its crew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    slot: usize,
    /// How many had this slot before.
    successor: u32,
}

struct Slot {
    doing: Doing,
    /// Whose it is: the one with as many before it.
    successor: u32,
    /// By which the watchdog notices that it hangs.
    pulse: Arc<Pulse>,
    /// What the watchdog saw of it at its last look, and since when.
    seen: u32,
    since: Instant,
}

/// What the watchdog sees of the polls of a crew.
pub(super) struct Seen {
    pub(super) pace: Pace,
    /// How many threads are held up by polls that take long.
    pub(super) held_up: usize,
}

/// What a worker does.
enum Doing {
    Called(Since),
    Busy,
    Idle(Waker),
}

/// When a worker was called.
#[derive(Clone, Copy)]
enum Since {
    /// After the watchdog's last look.
    Now,
    /// Before it.
    LastLook,
    /// It was started by the watchdog, from a thread outside of the runtime: whichever thread of it is free takes it.
    FromOutside,
}

/// A worker to be woken once the lock is released.
pub(super) enum Call {
    Nobody,
    Wake(Waker),
    Start(Place),
}

/// Who calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Perhaps a thread of the runtime, where the worker that is called waits for it.
    Anybody,
    Watchdog,
}

impl Crew {
    pub(super) fn new(size: usize) -> Self {
        Self {
            size,
            workers: Vec::new(),
            called: 0,
            deferred: false,
            was_deferred: false,
            minded: false,
            looks_after: 0,
            came: 0,
        }
    }

    /// The pulse of the worker in `place`.
    pub(super) fn pulse(&self, place: Place) -> Arc<Pulse> {
        Arc::clone(&self.workers[place.slot].pulse)
    }

    /// The pulses of all workers.
    pub(super) fn pulses(&self) -> impl Iterator<Item = &Pulse> {
        self.workers.iter().map(|slot| &*slot.pulse)
    }

    /// The worker in `place` has come. `false`: it came late, and another one has its place.
    pub(super) fn arrive(&mut self, place: Place) -> bool {
        let slot = &mut self.workers[place.slot];
        if slot.successor != place.successor {
            return false;
        }
        self.came += 1;
        if matches!(replace(&mut slot.doing, Doing::Busy), Doing::Called(_)) {
            self.called -= 1;
        }
        true
    }

    /// The worker in `place` found nothing to do, and sleeps.
    pub(super) fn rest(&mut self, place: Place, waker: Waker) {
        self.deferred = false;
        self.workers[place.slot].doing = Doing::Idle(waker);
    }

    /// Chooses a worker to come for work: one that sleeps, or a new one while there may be more.
    pub(super) fn call(&mut self, caller: Caller, new_pulse: impl FnOnce() -> Arc<Pulse>) -> Call {
        if self.called > 0 {
            return Call::Nobody;
        }
        self.deferred = false;
        // One that sleeps may have been woken by its clock already, and wait on a thread where somebody computes.
        let roused = self.workers.iter_mut().find_map(|slot| slot.rouse(Doing::Called(Since::Now)));
        if let Some(waker) = roused {
            self.called += 1;
            return Call::Wake(waker);
        }
        if self.workers.len() == self.size {
            return Call::Nobody;
        }
        let since = if caller == Caller::Watchdog { Since::FromOutside } else { Since::Now };
        let (pulse, since_now) = (new_pulse(), Instant::now());
        let slot = Slot { doing: Doing::Called(since), successor: 0, pulse, seen: 0, since: since_now };
        self.workers.push(slot);
        self.called += 1;
        Call::Start(Place { slot: self.workers.len() - 1, successor: 0 })
    }

    /// The watchdog looks: another worker in the place of one that was called before its last look and has not come.
    pub(super) fn replace_late(&mut self) -> Call {
        for (slot, worker) in self.workers.iter_mut().enumerate() {
            match worker.doing {
                Doing::Called(Since::Now) => worker.doing = Doing::Called(Since::LastLook),
                Doing::Called(Since::LastLook) => {
                    worker.doing = Doing::Called(Since::FromOutside);
                    worker.successor = worker.successor.wrapping_add(1);
                    return Call::Start(Place { slot, successor: worker.successor });
                }
                _ => {}
            }
        }
        Call::Nobody
    }

    /// Whether some worker computes, and so comes back for what is at hand.
    pub(super) fn computes(&self) -> bool {
        self.workers.iter().any(Slot::computes)
    }

    /// How many workers are inside of a handler.
    pub(super) fn computing(&self) -> usize {
        self.workers.iter().filter(|slot| slot.pulse.is_inside()).count()
    }

    /// Whether something was left to a worker that computes.
    pub(super) fn is_deferred(&self) -> bool {
        self.deferred
    }

    /// Leaves what is at hand to the worker that computes. `true`: there is another one that the watchdog could call.
    pub(super) fn defer(&mut self) -> bool {
        let all_busy = || self.workers.iter().all(|slot| matches!(slot.doing, Doing::Busy));
        self.deferred = self.workers.len() < self.size || !all_busy();
        self.deferred
    }

    /// A worker has taken what was left to it.
    pub(super) fn took(&mut self) {
        self.deferred = false;
    }

    /// There is something for the watchdog to look at. `true`: it is to begin.
    pub(super) fn mind(&mut self) -> bool {
        self.looks_after = 0;
        !replace(&mut self.minded, true)
    }

    /// The watchdog looks. `true`: those at work take so long that another worker is worth its call. One look may have
    /// come just as something was deferred, so two in a row have to find it so.
    pub(super) fn takes_long(&mut self) -> bool {
        let long = replace(&mut self.was_deferred, self.deferred) && self.deferred;
        replace(&mut self.came, 0) < WORTH_A_CALL && long
    }

    /// The watchdog looks: how long polls take.
    pub(super) fn look_at_polls(&mut self) -> Seen {
        let (now, mut polls, mut inside, mut long, mut held_up) = (Instant::now(), 0_u32, false, false, 0);
        for slot in &mut self.workers {
            let seen = replace(&mut slot.seen, slot.pulse.polls());
            polls = polls.saturating_add(slot.seen.wrapping_sub(seen));
            if slot.seen != seen {
                slot.since = now;
            }
            if !slot.pulse.is_inside() {
                continue;
            }
            inside = true;
            if slot.seen == seen {
                long = true;
                slot.pulse.note_spent(seen, now - slot.since);
                held_up += usize::from(!slot.pulse.is_elsewhere());
            }
        }
        let pace = match (long, inside) {
            (true, _) => Pace::Blocks,
            // Each poll is counted twice.
            (_, true) if polls < 2 * WORTH_A_CALL => Pace::Computes,
            _ => Pace::Quick,
        };
        Seen { pace, held_up }
    }

    /// Whether the watchdog is to look again.
    pub(super) fn mind_again(&mut self) -> bool {
        let busy = self.deferred || self.called > 0 || self.pulses().any(Pulse::is_inside);
        self.looks_after = if busy { 0 } else { self.looks_after + 1 };
        self.minded = self.looks_after < LOOKS_AFTER;
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
