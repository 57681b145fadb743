//! The pulse of a worker: by which the watchdog and the crew see from outside what it does.
//!
//! `models/` runs this file under every order of its steps that shuttle finds.

use crate::delivery::Scope;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Counts the polls of one worker: odd inside one, even between two.
pub(crate) struct Pulse {
    polls: AtomicU32,
    /// How many milliseconds the watchdog has seen one poll last, below the count of polls at which that was.
    spent: AtomicU64,
    /// Another thread has taken over what this worker's had to do.
    elsewhere: AtomicBool,
    paused: AtomicBool,
    scope: Arc<Scope>,
}

impl Pulse {
    /// The pulse of a worker that has not begun.
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        Self {
            polls: AtomicU32::new(0),
            spent: AtomicU64::new(0),
            elsewhere: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            scope,
        }
    }

    /// Whose worker it is.
    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Marks that the handler waits for something, until it is polled again.
    pub(super) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// The count of polls.
    pub(super) fn polls(&self) -> u32 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Whether the worker is inside of a poll.
    pub(super) fn is_inside(&self) -> bool {
        self.polls() % 2 == 1
    }

    /// The poll at which the count was `polls` has taken so long by now.
    pub(super) fn note_spent(&self, polls: u32, spent: Duration) {
        let spent = u32::try_from(spent.as_millis()).unwrap_or(u32::MAX);
        self.spent.store(u64::from(polls) << 32 | u64::from(spent), Ordering::Relaxed);
    }

    /// How long the last poll has taken, as far as the watchdog has seen: nothing, where that was a few milliseconds.
    pub(super) fn spent(&self) -> Duration {
        let spent = self.spent.load(Ordering::Relaxed);
        let last = u64::from(self.polls().wrapping_sub(1)) == spent >> 32;
        Duration::from_millis(if last { spent & u64::from(u32::MAX) } else { 0 })
    }

    /// Whether the worker holds up no thread of the runtime.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed)
    }

    /// Marks that the worker holds up no thread of the runtime, until the answer is dropped.
    pub(super) fn elsewhere(&self) -> impl Drop {
        struct Elsewhere<'a>(&'a AtomicBool);
        impl Drop for Elsewhere<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }

        self.elsewhere.store(true, Ordering::Relaxed);
        Elsewhere(&self.elsewhere)
    }

    /// Whether the handler waits for something.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Marks one poll, until the answer is dropped.
    pub(super) fn beat(&self) -> impl Drop {
        struct Beat<'a>(&'a AtomicU32);
        impl Drop for Beat<'_> {
            fn drop(&mut self) {
                self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            }
        }

        self.paused.store(false, Ordering::Relaxed);
        // Only the worker writes, so no atomic addition is needed.
        self.polls.store(self.polls.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        Beat(&self.polls)
    }
}
