//! A subscription of this process: what its reader, its settler and its task share.

use crate::connection::Link;
use crate::held::{Held, Lease, Token, Waiting};
use crate::publish::Outlet;
use eventbus_core::broker::SubscribeRequest;
use eventbus_core::foreign;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Waker;
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
    pub(crate) state: Lock<State>,
    /// Wakes the task: something is settled, or the end.
    pub(crate) bell: Notify,
    /// Somebody wants to know how much there is.
    pub(crate) asked: AtomicBool,
    /// Somebody waits for the end.
    pub(crate) changed: Waiters,
}

pub(crate) struct State {
    pub(crate) held: Held,
    pub(crate) waker: Option<Waker>,
    /// What the reader is to be told.
    pub(crate) failed: Option<String>,
    /// How many messages the queue had when it was looked at last.
    pub(crate) backlog: Option<u64>,
    /// The server sends what there is to this process.
    pub(crate) active: bool,
    /// Nobody reads any more.
    pub(crate) closed: bool,
    /// The task has ended.
    pub(crate) ended: bool,
}

impl Subscription {
    pub(crate) fn new(
        link: Arc<Link>,
        outlet: Arc<Outlet>,
        request: SubscribeRequest,
        [queue, dead]: [String; 2],
    ) -> Self {
        let state = State {
            held: Held::new(lease(&request, link.settings.consumer_timeout)),
            waker: None,
            failed: None,
            backlog: None,
            active: false,
            closed: false,
            ended: false,
        };
        Self {
            link,
            outlet,
            request,
            queue,
            dead,
            state: Lock::new(Rank::BROKER_INNER, state),
            bell: Notify::new(),
            asked: AtomicBool::new(false),
            changed: Waiters::new(),
        }
    }

    /// Wakes the reader where there is something for it.
    pub(crate) fn wake(&self) {
        let waker = {
            let mut state = self.state.lock();
            let has_some = state.held.at_hand() > 0 || state.failed.is_some() || state.closed;
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
        let dropped = self.state.lock().held.put_back(token, waiting);
        drop(dropped);
        self.wake();
        // After the end of its reader it goes back to the queue.
        self.bell.notify_one();
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake();
        self.bell.notify_one();
    }

    /// Resolves once the task has ended.
    pub(crate) async fn ended(&self) {
        self.changed.until(|| self.state.lock().ended.then_some(())).await;
    }
}

/// How long something is held before it is renewed: well within what the server allows, and early enough for a handler to
/// begin with it then.
fn lease(request: &SubscribeRequest, allowed: Duration) -> Lease {
    let shared = request.competing;
    let time = if shared { allowed.saturating_sub(request.timeout) } else { allowed };
    Lease { time: time / 2, shared }
}
