//! A subscription of this process: what its reader, its settler and its thread share.

use crate::connection::Link;
use crate::doubt::Doubt;
use crate::held::{Held, Noted, Token, Waiting};
use crate::topology::{Listener, Topics};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_core::{Pattern, foreign};
use std::sync::{Arc, Condvar};
use std::task::Waker;
use std::time::{Duration, Instant};

/// A subscription, as long as its thread runs.
pub(crate) struct Subscription {
    pub(crate) link: Arc<Link>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    /// The group as Kafka knows it.
    pub(crate) id: String,
    /// How long one attempt may take.
    pub(crate) timeout: Duration,
    pub(crate) state: Lock<State>,
    pub(crate) bell: Bell,
    /// Somebody waits until it has joined, a note is committed, or it has ended.
    pub(crate) changed: Waiters,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) held: Held,
    pub(crate) waker: Option<Waker>,
    /// What the reader is to be told.
    pub(crate) failed: Option<String>,
    /// It has been given partitions, be it none.
    pub(crate) joined: bool,
    /// Whether another process may have its partitions.
    pub(crate) doubt: Doubt,
    /// Nobody reads any more.
    pub(crate) closed: bool,
    /// The broker is closed: nothing is waited for.
    pub(crate) ends: bool,
    /// The thread has ended.
    pub(crate) ended: bool,
}

impl Subscription {
    pub(crate) fn new(
        link: Arc<Link>,
        topics: Arc<Topics>,
        (group, pattern, id): (String, Pattern, String),
        timeout: Duration,
    ) -> Self {
        Self {
            link,
            topics,
            group,
            pattern,
            id,
            timeout,
            state: Lock::new(Rank::BROKER_INNER, State::default()),
            bell: Bell::new(),
            changed: Waiters::new(),
        }
    }

    /// Wakes the reader where there is something for it.
    pub(crate) fn wake(&self) {
        let waker = {
            let mut state = self.state.lock();
            let has_some = state.held.at_hand().0 > 0 || state.failed.is_some() || state.closed;
            if has_some { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            foreign::tell("a waker", || waker.wake());
        }
    }

    /// The reader is to know that something is wrong.
    pub(crate) fn fail(&self, said: String) {
        self.state.lock().failed = Some(said);
        self.wake();
        self.changed.tell();
    }

    /// Gives a delivery back that was dropped unsettled.
    pub(crate) fn give_back(&self, token: Token, waiting: Waiting) {
        let dropped = {
            let mut state = self.state.lock();
            let mut dropped: Vec<_> = state.held.put_back(token, waiting).into_iter().collect();
            if state.closed {
                dropped.extend(state.held.give_back());
            }
            dropped
        };
        drop(dropped);
        self.wake();
        self.bell.ring();
    }

    /// Whatever it has may be another process's by now: nothing of it settles any more.
    pub(crate) fn lose_all(&self) {
        let dropped = self.state.lock().held.remove_all();
        drop(dropped);
        self.changed.tell();
        self.wake();
    }

    /// Resolves once a note of a retry is committed, or cannot be.
    pub(crate) async fn noted(&self, token: Token, note: u64) -> Noted {
        let look = || {
            let state = self.state.lock();
            if state.ended { Some(Noted::Gone) } else { state.held.is_noted(token, note) }
        };
        self.changed.until(look).await
    }

    /// So long its thread may not run: after that the server may give what this process has to another one.
    pub(crate) fn silence(&self) -> Duration {
        self.link.settings.session_timeout / 2
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake();
        self.bell.ring();
    }

    /// The broker is closed.
    pub(crate) fn end(&self) {
        {
            let mut state = self.state.lock();
            (state.closed, state.ends) = (true, true);
        }
        self.wake();
        self.bell.ring();
    }

    /// Resolves once the thread has ended.
    pub(crate) async fn ended(&self) {
        self.changed.until(|| self.state.lock().ended.then_some(())).await;
    }
}

impl Listener for Subscription {
    fn topics_changed(&self) {
        self.bell.ring();
    }
}

/// What a thread sleeps by.
pub(crate) struct Bell {
    rung: Lock<bool>,
    waiting: Condvar,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Self { rung: Lock::new(Rank::LEAF, false), waiting: Condvar::new() }
    }

    /// Wakes the thread, now or as soon as it sleeps.
    pub(crate) fn ring(&self) {
        *self.rung.lock() = true;
        self.waiting.notify_all();
    }

    /// Sleeps until the bell rings, or the time is over.
    pub(crate) fn wait(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut rung = self.rung.lock();
        while !*rung {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            rung = rung.wait(&self.waiting, Some(left));
        }
        *rung = false;
    }
}
