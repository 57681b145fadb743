//! Threads: no group takes all the threads of its runtime.
//!
//! A handler that computes or blocks inside one poll holds up its thread, and every task that waits there. By default
//! a group has as many workers as there are threads, so it could hold up all of them, and then not even timers go on.
//! So the polls of one group leave a thread to the others. What exceeds that waits while polls are short. Where the
//! watchdog sees long ones, it is done in place of a thread that the runtime gets anew: so handlers that compute have
//! as many threads as they have workers, and those that block hold up nobody.

use super::pulse::Pulse;
use super::watchdog::Watchdog;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::task::Context;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};

/// A poll that takes less is as short as it should be.
const SHORT: Duration = Duration::from_micros(20);
/// After so many short polls in a row those of a group are taken for short again.
const CALM: u32 = 8;

/// How long the polls of a group take, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Pace {
    Quick,
    /// Long enough for a thread of their own to be worth what it costs.
    Computes,
    /// So long that other tasks of the thread feel it.
    Blocks,
}

/// What the polls of one group do to the threads of the runtime.
pub(super) struct Threads {
    runtime: Handle,
    watchdog: Arc<Watchdog>,
    /// How many polls may hold up a thread at once; none, where there is one thread for everything.
    limit: Option<usize>,
    inside: AtomicUsize,
    pace: AtomicU8,
    /// How many polls in a row were short.
    calm: AtomicU32,
    /// The watchdog looks at the group.
    pub(super) minded: AtomicBool,
}

/// A poll that may hold up its thread.
struct Inside<'a>(&'a AtomicUsize);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Threads {
    pub(super) fn new(runtime: Handle, watchdog: Arc<Watchdog>) -> Self {
        let several = runtime.runtime_flavor() == RuntimeFlavor::MultiThread;
        let limit = several.then(|| runtime.metrics().num_workers().saturating_sub(1).max(1));
        Self {
            runtime,
            watchdog,
            limit,
            inside: AtomicUsize::new(0),
            pace: AtomicU8::new(Pace::Quick as u8),
            calm: AtomicU32::new(0),
            minded: AtomicBool::new(false),
        }
    }

    /// Whether tasks may run beside each other.
    pub(super) fn several(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether the last poll may have held up other tasks, which are to run before the next one.
    #[inline]
    pub(super) fn blocks(&self) -> bool {
        self.pace.load(Relaxed) == Pace::Blocks as u8
    }

    /// The watchdog saw how long polls take.
    pub(super) fn saw(&self, pace: Pace) {
        if pace != Pace::Quick {
            self.calm.store(0, Relaxed);
            self.pace.fetch_max(pace as u8, Relaxed);
        }
    }

    /// Does one poll. None: other polls of the group take as many threads as they may; try again in a moment.
    #[inline]
    pub(super) fn poll<T>(
        &self,
        pulse: &Pulse,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> Option<T> {
        let quick = self.pace.load(Relaxed) == Pace::Quick as u8;
        let Some(limit) = self.limit else {
            return Some(if quick { poll(context) } else { self.timed(|| poll(context)) });
        };
        if quick && self.watchdog.held_up() < limit {
            let inside = self.enter(limit)?;
            let polled = poll(context);
            drop(inside);
            return Some(polled);
        }
        let inside = if self.blocks() || quick { None } else { self.enter(limit) };
        Some(match inside {
            Some(_inside) => self.timed(|| poll(context)),
            // How long it takes until another thread has taken over says nothing of the poll.
            None => self.elsewhere(pulse, context, |context| self.timed(|| poll(context))),
        })
    }

    /// A thread of those that the group may hold up.
    #[inline]
    fn enter(&self, limit: usize) -> Option<Inside<'_>> {
        let before = self.inside.fetch_add(1, Relaxed);
        let inside = Inside(&self.inside);
        (before < limit).then_some(inside)
    }

    /// Polls while another thread takes over what this one has to do, tasks that it has just woken included.
    #[cold]
    fn elsewhere<T>(
        &self,
        pulse: &Pulse,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        let _elsewhere = pulse.elsewhere();
        // Inside of `block_in_place` alone a task has a budget without end, and would not return from a busy channel.
        tokio::task::block_in_place(|| self.runtime.block_on(async { poll(context) }))
    }

    #[cold]
    fn timed<T>(&self, poll: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let polled = poll();
        if began.elapsed() >= SHORT {
            self.calm.store(0, Relaxed);
        } else if self.calm.fetch_add(1, Relaxed) + 1 >= CALM {
            self.calm.store(0, Relaxed);
            self.pace.store(Pace::Quick as u8, Relaxed);
        }
        polled
    }
}
