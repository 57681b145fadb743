//! A subscription of this process: what its reader, its settler and its task share.

use crate::connection::Link;
use crate::held::{Held, Token, Waiting};
use crate::topology::Queue;
use eventbus_core::Pattern;
use eventbus_core::broker::SubscribeRequest;
use eventbus_core::lock::Rank;
use eventbus_server::handover::{AtHand, Handover, Shared};
use eventbus_server::subscriptions::Subscribed;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::Notify;

/// How many messages are asked for ahead of the reader, at most.
const AHEAD: usize = 64;

/// A subscription, as long as its task runs.
pub(crate) struct Subscription {
    pub(crate) link: Arc<Link>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    pub(crate) queue: Queue,
    /// Where its dead letters go.
    pub(crate) dead: String,
    /// How many messages it may hold.
    pub(crate) hold: usize,
    /// How many of these may wait for the reader.
    pub(crate) ahead: usize,
    /// How often SQS may deliver an event.
    pub(crate) deliveries: u32,
    pub(crate) state: Handover<State>,
    /// Wakes the task: there is room, something is settled, or the end.
    pub(crate) bell: Notify,
    /// Somebody wants to know how much there is.
    pub(crate) asked: AtomicBool,
}

pub(crate) struct State {
    pub(crate) held: Held,
    /// How many messages the queue had when it was looked at last.
    pub(crate) backlog: Option<u64>,
}

impl AtHand for State {
    fn has_some(&self) -> bool {
        self.held.at_hand() > 0
    }
}

impl Subscription {
    pub(crate) fn new(link: Arc<Link>, request: SubscribeRequest, queue: Queue, dead: String) -> Self {
        let SubscribeRequest { group, pattern, hold, .. } = request;
        // A redrive policy takes what was delivered more often than it says. Without one the count says nothing: what is
        // given back as a process ends in order is counted too.
        let deliveries = queue.redrive.unwrap_or(u32::MAX);
        let state = State { held: Held::new(link.settings.visibility_timeout), backlog: None };
        Self {
            link,
            group,
            pattern,
            queue,
            dead,
            hold: hold.max(1),
            ahead: hold.clamp(1, AHEAD),
            deliveries,
            state: Handover::new(Rank::BROKER_INNER, state),
            bell: Notify::new(),
            asked: AtomicBool::new(false),
        }
    }

    /// Gives a delivery back that was dropped unsettled.
    pub(crate) fn give_back(&self, token: Token, waiting: Waiting) {
        let put = |state: &mut Shared<State>| (state.held.put_back(token, waiting), state.is_closed());
        let (dropped, closed) = self.state.change(put);
        drop(dropped);
        if closed {
            self.bell.notify_one();
        }
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.close();
        self.bell.notify_one();
    }

    /// The broker is closed.
    pub(crate) fn end(&self) {
        self.state.end();
        self.bell.notify_one();
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
