//! The watchdog: names handlers that block their thread.
//!
//! A future that computes or sleeps without awaiting holds up everything else on its thread, and no timer of the
//! runtime can tell, since the runtime itself may be held up. So a thread of its own looks at every worker once a
//! second.

use crate::delivery::Scope;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// How often workers are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// A handler that is inside one poll at so many looks in a row blocks its thread: for two to three seconds.
const LOOKS: u32 = 3;

/// Looks at the workers of one bus.
pub(crate) struct Watchdog {
    pulses: Mutex<Vec<Weak<Pulse>>>,
}

/// Counts the polls of one worker: odd inside one, even between two.
pub(crate) struct Pulse {
    polls: AtomicU32,
    scope: Arc<Scope>,
}

impl Watchdog {
    /// A watchdog whose thread runs until it is dropped.
    pub(crate) fn start() -> Arc<Self> {
        let watchdog = Arc::new(Self { pulses: Mutex::default() });
        let watched = Arc::downgrade(&watchdog);
        let thread =
            thread::Builder::new().name("eventbus-watchdog".to_owned()).spawn(move || watch(&watched));
        if let Err(error) = thread {
            tracing::warn!(target: "eventbus", %error, "no watchdog: handlers that block their thread are not named");
        }
        watchdog
    }

    /// The pulse of a new worker.
    pub(super) fn watch(&self, scope: &Arc<Scope>) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse { polls: AtomicU32::new(0), scope: Arc::clone(scope) });
        self.lock().push(Arc::downgrade(&pulse));
        pulse
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Pulse>>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulse {
    /// Marks one poll, until the answer is dropped.
    pub(super) fn beat(&self) -> impl Drop {
        struct Beat<'a>(&'a AtomicU32);
        impl Drop for Beat<'_> {
            fn drop(&mut self) {
                self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            }
        }

        // Only the worker writes, so no atomic addition is needed.
        self.polls.store(self.polls.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        Beat(&self.polls)
    }
}

fn watch(watchdog: &Weak<Watchdog>) {
    let mut seen: Vec<(Weak<Pulse>, u32, u32)> = Vec::new();
    loop {
        thread::sleep(INTERVAL);
        let Some(watchdog) = watchdog.upgrade() else { return };
        seen.extend(watchdog.lock().drain(..).map(|pulse| (pulse, 0, 0)));
        drop(watchdog);
        seen.retain_mut(|(pulse, last, looks)| {
            let Some(pulse) = pulse.upgrade() else { return false };
            let polls = pulse.polls.load(Ordering::Relaxed);
            *looks = if polls % 2 == 1 && polls == *last { *looks + 1 } else { 1 };
            *last = polls;
            if *looks == LOOKS {
                warn(&pulse.scope);
            }
            true
        });
    }
}

fn warn(scope: &Scope) {
    let subscription = &scope.subscription;
    tracing::warn!(
        target: "eventbus", handler = %subscription.name, location = subscription.location(), group = %subscription.group,
        "the handler has blocked its thread for more than {} s; other handlers may be held up; \
         `.await` instead, or make it a plain `fn` with the option `blocking`",
        (LOOKS - 1)
    );
}
