//! A subscription of this process: what its reader, its settler and its thread share.

use crate::connection::Link;
use crate::doubt::Doubt;
use crate::held::{Held, Noted, Token, Waiting};
use crate::topology::{Listener, Topics};
use crate::transaction::Answering;
use eventbus_core::Pattern;
use eventbus_core::lock::{Lock, Rank};
use eventbus_server::handover::{AtHand, Handover, Shared};
use eventbus_server::subscriptions::Subscribed;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar};
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
    /// Told of when it has joined, when notes are committed, and when it has ended.
    pub(crate) state: Handover<State>,
    pub(crate) bell: Bell,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) held: Held,
    /// It has been given partitions, be it none.
    pub(crate) joined: bool,
    /// Whether another process may have its partitions.
    pub(crate) doubt: Doubt,
    /// Deliveries whose handlers have returned events, which wait for a transaction.
    pub(crate) answers: VecDeque<Answering>,
}

impl AtHand for State {
    fn has_some(&self) -> bool {
        self.held.at_hand().0 > 0
    }
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
            state: Handover::new(Rank::BROKER_INNER, State::default()),
            bell: Bell::new(),
        }
    }

    /// Gives a delivery back that was dropped unsettled.
    pub(crate) fn give_back(&self, token: Token, waiting: Waiting) {
        let dropped = self.state.change(|state| {
            let mut dropped: Vec<_> = state.held.put_back(token, waiting).into_iter().collect();
            if state.is_closed() {
                dropped.extend(state.held.give_back());
            }
            dropped
        });
        drop(dropped);
        self.bell.ring();
    }

    /// Whatever it has may be another process's by now: nothing of it settles any more.
    pub(crate) fn lose_all(&self) {
        drop(self.state.change(|state| (state.held.remove_all(), std::mem::take(&mut state.answers))));
        self.state.tell();
    }

    /// Resolves once a note of a retry is committed, or cannot be.
    pub(crate) async fn noted(&self, token: Token, note: u64) -> Noted {
        let look = |state: &mut Shared<State>| {
            if state.is_finished() { Some(Noted::Gone) } else { state.held.is_noted(token, note) }
        };
        self.state.until(look).await
    }

    /// So long its thread may not run: after that the server may give what this process has to another one.
    pub(crate) fn silence(&self) -> Duration {
        self.link.settings.session_timeout / 2
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.close();
        self.bell.ring();
    }

    /// The broker is closed.
    pub(crate) fn end(&self) {
        self.state.end();
        self.bell.ring();
    }
}

impl Subscribed for Subscription {
    fn group_on(&self) -> (&str, &Pattern) {
        (&self.group, &self.pattern)
    }

    fn is_finished(&self) -> bool {
        self.state.lock().is_finished()
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
