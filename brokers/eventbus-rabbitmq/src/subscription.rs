//! A subscription of this process: what its reader, its settler and its task share.

use crate::connection::Link;
use crate::held::{Held, Lease, Token, Waiting};
use crate::publish::Outlet;
use eventbus_core::Pattern;
use eventbus_core::broker::SubscribeRequest;
use eventbus_core::lock::Rank;
use eventbus_server::connection::Lost;
use eventbus_server::handover::{AtHand, Handover};
use eventbus_server::subscriptions::Subscribed;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::Notify;

/// A subscription, as long as its task runs.
pub(crate) struct Subscription {
    pub(crate) link: Arc<Link>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) request: SubscribeRequest,
    pub(crate) queue: String,
    /// Where its dead letters go.
    pub(crate) dead: String,
    pub(crate) state: Handover<State>,
    /// Wakes the task: something is settled, or the end.
    pub(crate) bell: Notify,
    /// Somebody wants to know how much there is.
    pub(crate) asked: AtomicBool,
}

pub(crate) struct State {
    pub(crate) held: Held,
    /// How many messages the queue had when it was looked at last.
    pub(crate) backlog: Option<u64>,
    /// The server sends what there is to this process.
    pub(crate) active: bool,
    /// The connection of its own, where it reads by one.
    pub(crate) apart: Option<Arc<Link>>,
}

impl AtHand for State {
    fn has_some(&self) -> bool {
        self.held.at_hand() > 0
    }
}

impl Subscription {
    pub(crate) fn new(
        link: Arc<Link>,
        outlet: Arc<Outlet>,
        request: SubscribeRequest,
        [queue, dead]: [String; 2],
    ) -> Self {
        let held = Held::new(lease(&request, link.settings.consumer_timeout));
        let state = State { held, backlog: None, active: false, apart: None };
        Self {
            link,
            outlet,
            request,
            queue,
            dead,
            state: Handover::new(Rank::BROKER_INNER, state),
            bell: Notify::new(),
            asked: AtomicBool::new(false),
        }
    }

    /// The loss of a connection of its own, where it reads by one.
    pub(crate) fn lost_apart(&self) -> Option<Lost> {
        let link = self.state.lock().apart.clone()?;
        let lost = link.state.lost()?;
        let group = &self.request.group;
        let error =
            format!("the group `{group}` reads by a connection of its own, which is lost: {}", lost.error);
        Some(Lost { error, ..lost })
    }

    /// The channel is gone, and with it everything that came by it.
    pub(crate) fn lose(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.active = false;
            state.held.lose()
        };
        drop(dropped);
    }

    /// Gives a delivery back that was dropped unsettled.
    pub(crate) fn give_back(&self, token: Token, waiting: Waiting) {
        drop(self.state.change(|state| state.held.put_back(token, waiting)));
        // After the end of its reader it goes back to the queue.
        self.bell.notify_one();
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.close();
        self.bell.notify_one();
    }
}

impl Subscribed for Subscription {
    fn group_on(&self) -> (&str, &Pattern) {
        (&self.request.group, &self.request.pattern)
    }

    fn is_finished(&self) -> bool {
        self.state.lock().is_finished()
    }
}

/// How long something is held before it is renewed: well within what the server allows, and early enough for a handler to
/// begin with it then.
fn lease(request: &SubscribeRequest, allowed: Duration) -> Lease {
    let shared = request.competing;
    let time = if shared { allowed.saturating_sub(request.timeout) } else { allowed };
    Lease { time: time / 2, shared }
}
