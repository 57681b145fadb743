//! The watchdog: calls workers to the side of handlers that compute for long, and names those that block their
//! thread.
//!
//! A future that computes or sleeps without awaiting holds up everything else on its thread, tasks that it has just
//! woken among them, and no timer of the runtime can tell, since the runtime itself may be held up. So a thread of
//! its own looks at every worker once a second, and each millisecond at those of subscriptions that have work.

use super::pulse::Pulse;
use crate::delivery::Scope;
use crate::foreign;
use crate::lock::{Lock, Rank};
use crate::log;
use crate::printable::printable;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How often workers are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long deliveries wait for a worker that computes, before another one is called.
pub(super) const PATIENCE: Duration = Duration::from_millis(1);
/// A handler that is inside one poll at so many looks in a row blocks its thread: for two to three seconds.
const LOOKS: u32 = 3;

/// Looks at the workers of one bus.
pub(crate) struct Watchdog {
    pulses: Lock<Vec<Weak<Pulse>>>,
    minded: Lock<Vec<Weak<dyn Minded>>>,
    thread: OnceLock<Thread>,
    /// How many threads of the runtime were held up at the last look.
    held_up: AtomicUsize,
}

/// What the watchdog looks at once per [`PATIENCE`], while something waits in it for a worker that computes.
pub(super) trait Minded: Send + Sync {
    /// Does what time has made necessary.
    fn look(self: Arc<Self>) -> Look;
}

/// What a look has found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// There is a need to look again.
    pub(super) again: bool,
    /// How many threads of the runtime are held up.
    pub(super) held_up: usize,
}

impl Watchdog {
    /// A watchdog whose thread runs until it is dropped.
    pub(crate) fn start() -> Arc<Self> {
        let watchdog = Arc::new(Self {
            pulses: Lock::new(Rank::LEAF, Vec::new()),
            minded: Lock::new(Rank::LEAF, Vec::new()),
            thread: OnceLock::new(),
            held_up: AtomicUsize::new(0),
        });
        let watched = Arc::downgrade(&watchdog);
        let thread =
            thread::Builder::new().name("eventbus-watchdog".to_owned()).spawn(move || watch(&watched));
        match thread {
            Ok(thread) => drop(watchdog.thread.set(thread.thread().clone())),
            Err(error) => log::warn!(
                target: "eventbus", error = %printable(error),
                "no watchdog: handlers that block their thread are not named, and hold up their subscription"
            ),
        }
        watchdog
    }

    /// How many threads of the runtime are held up by polls that take long, as far as the watchdog has seen.
    pub(super) fn held_up(&self) -> usize {
        self.held_up.load(Ordering::Relaxed)
    }

    /// The pulse of a new worker.
    pub(super) fn watch(&self, scope: &Arc<Scope>) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse::new(Arc::clone(scope)));
        self.pulses.lock().push(Arc::downgrade(&pulse));
        pulse
    }

    /// Looks at `minded` until it says that there is no need.
    pub(super) fn mind(&self, minded: &Arc<dyn Minded>) {
        self.minded.lock().push(Arc::downgrade(minded));
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

fn watch(watchdog: &Weak<Watchdog>) {
    let mut minded: Vec<Weak<dyn Minded>> = Vec::new();
    let mut seen: Vec<(Weak<Pulse>, u32, u32)> = Vec::new();
    let mut next_look = Instant::now() + INTERVAL;
    let mut held_up = 0;
    loop {
        if minded.is_empty() {
            thread::park_timeout(next_look.saturating_duration_since(Instant::now()));
        } else {
            thread::sleep(PATIENCE);
            held_up = 0;
            minded.retain(|minded| {
                let look = minded.upgrade().map(look).unwrap_or_default();
                held_up += look.held_up;
                look.again
            });
        }
        let Some(watchdog) = watchdog.upgrade() else { return };
        watchdog.held_up.store(held_up, Ordering::Relaxed);
        minded.append(&mut watchdog.minded.lock());
        if Instant::now() >= next_look {
            next_look += INTERVAL;
            seen.extend(watchdog.pulses.lock().drain(..).map(|pulse| (pulse, 0, 0)));
            drop(watchdog);
            look_at_pulses(&mut seen);
        }
    }
}

/// Whoever looks last also drops: destructors of others run then, and their panic is not to end this thread.
fn look(minded: Arc<dyn Minded>) -> Look {
    foreign::call("what the watchdog looks at", || minded.look()).unwrap_or_default()
}

fn look_at_pulses(seen: &mut Vec<(Weak<Pulse>, u32, u32)>) {
    seen.retain_mut(|(pulse, last, looks)| {
        let Some(pulse) = pulse.upgrade() else { return false };
        let polls = pulse.polls();
        *looks = if polls % 2 == 1 && polls == *last { *looks + 1 } else { 1 };
        *last = polls;
        if *looks == LOOKS {
            warn(pulse.scope());
        }
        true
    });
}

fn warn(scope: &Scope) {
    let subscription = &scope.subscription;
    log::warn!(
        target: "eventbus", handler = %printable(&subscription.name),
        location = %printable(subscription.location()), group = %printable(&subscription.group),
        "the handler has blocked its thread for more than {} s; other handlers may be held up; \
         `.await` instead, or make it a plain `fn` with the option `blocking`",
        (LOOKS - 1)
    );
}
