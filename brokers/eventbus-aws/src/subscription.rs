//! A subscription of this process: what its reader, its settler and its task share.

use crate::connection::Link;
use crate::held::{Held, Token, Waiting};
use crate::topology::Queue;
use eventbus_core::Pattern;
use eventbus_core::broker::SubscribeRequest;
use eventbus_core::foreign;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Waker;
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
    pub(crate) state: Lock<State>,
    /// Wakes the task: there is room, something is settled, or the end.
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
    /// Nobody reads any more.
    pub(crate) closed: bool,
    /// The broker is closed: nothing is waited for.
    pub(crate) ends: bool,
    /// The task has ended.
    pub(crate) ended: bool,
}

impl Subscription {
    pub(crate) fn new(link: Arc<Link>, request: SubscribeRequest, queue: Queue, dead: String) -> Self {
        let SubscribeRequest { group, pattern, hold, .. } = request;
        // A redrive policy takes what was delivered more often than it says. Without one the count says nothing: what is
        // given back as a process ends in order is counted too.
        let deliveries = queue.redrive.unwrap_or(u32::MAX);
        let state = State {
            held: Held::new(link.settings.visibility_timeout),
            waker: None,
            failed: None,
            backlog: None,
            closed: false,
            ends: false,
            ended: false,
        };
        Self {
            link,
            group,
            pattern,
            queue,
            dead,
            hold: hold.max(1),
            ahead: hold.clamp(1, AHEAD),
            deliveries,
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

    /// Gives a delivery back that was dropped unsettled.
    pub(crate) fn give_back(&self, token: Token, waiting: Waiting) {
        let (dropped, closed) = {
            let mut state = self.state.lock();
            (state.held.put_back(token, waiting), state.closed)
        };
        drop(dropped);
        if closed {
            self.bell.notify_one();
        } else {
            self.wake();
        }
    }

    /// Nobody reads any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake();
        self.bell.notify_one();
    }

    /// The broker is closed.
    pub(crate) fn end(&self) {
        {
            let mut state = self.state.lock();
            (state.closed, state.ends) = (true, true);
        }
        self.wake();
        self.bell.notify_one();
    }

    /// The task is ended from outside: whoever reads, or waits for it, is not to wait any more.
    pub(crate) fn abandon(&self) {
        {
            let mut state = self.state.lock();
            (state.closed, state.ends, state.ended) = (true, true, true);
        }
        self.wake();
        self.changed.tell();
    }

    /// Resolves once the task has ended.
    pub(crate) async fn ended(&self) {
        self.changed.until(|| self.state.lock().ended.then_some(())).await;
    }
}
