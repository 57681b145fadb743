//! Subscribing: the consumer of a group, and the task that asks it for messages, keeps the group, and tells the server
//! what is worked on.

mod acks;
mod arrivals;
mod asks;
mod fetches;
mod identity;
mod leaving;
mod lookups;
mod takeover;

use crate::birth::Birth;
use crate::connection::{Inbox, Link, Refusal};
use crate::delivery::NatsDeliveries;
use crate::intake::Which;
use crate::publish::Outlet;
use crate::pulls::{Ahead, Pulls};
use crate::subscription::{AHEAD, Stale, Subscription};
use crate::tenure::Tenure;
use crate::topology::{Wanted, consumer_name, first};
use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::Info;
use async_nats::{Message, Subscriber};
use eventbus_core::broker::{BrokerFuture, Start, SubscribeRequest, skipped};
use eventbus_core::{BrokerError, Envelope};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use identity::pinned;
use jiff::Timestamp;
use lookups::Lookups;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::MissedTickBehavior;

/// How long the server may keep an ask for messages.
pub(crate) const EXPIRES: Duration = Duration::from_secs(30);
/// So long it may say nothing.
const SILENCE: Duration = Duration::from_secs(6);
/// How many messages are taken in before others have a turn.
const AT_ONCE: usize = 256;
/// So long after the state of a consumer could not be had it is asked for again.
const UNANSWERED: Duration = Duration::from_millis(250);

/// Opens a subscription. The second of the answer is the task that serves it.
pub(crate) async fn open(
    link: &Arc<Link>,
    outlet: &Arc<Outlet>,
    request: SubscribeRequest,
) -> Result<(Arc<Subscription>, NatsDeliveries, impl Future<Output = ()> + use<>), BrokerError> {
    let SubscribeRequest { group, pattern, start, competing, .. } = request;
    if !competing && !link.client().client.is_server_compatible(2, 11, 0) {
        return Err(BrokerError::new(format!(
            "the group `{group}` keeps the order by key across processes, and for that NATS {} cannot let one process at a \
             time handle it; use a server of version 2.11 or newer, or let its processes compete (`competing`)",
            link.client().client.server_info().version
        )));
    }
    // What is asked from here on is asked on this connection, or on a later one.
    let connection = link.state.times();
    let wanted = Wanted { group: &group, pattern: &pattern, from: first(start), again: false, competing };
    let (is_new, info) = link.ensure_consumer(&wanted).await?;
    let birth = link.birth_for(&info, is_new).await;
    let birth =
        birth.map_err(|refusal| link.explain(format_args!("subscribe the group `{group}`"), refusal))?;
    let noted = if is_new { HashSet::new() } else { link.noted_sequences(&info.name).await? };
    let mut warnings = Vec::new();
    if is_new && start == Start::Latest {
        let counts = link.counts(&link.settings.stream, &link.settings.subject(pattern.as_str())).await;
        let earlier = counts.unwrap_or_default().iter().map(|(_, count)| *count as usize).sum();
        warnings.extend(skipped(&group, &pattern, earlier, link.settings.pasted().as_deref()));
    }
    let owner = pinned(&info).map(|_| "another process".to_owned());
    let Inbox { client, subject: inbox, messages } = link.inbox().await?;
    let (settled_notes, notes) = mpsc::unbounded_channel();
    let consumer = consumer_name(&group, pattern.as_str());
    let subscription = Subscription::new(
        Arc::clone(link),
        Arc::clone(outlet),
        (group, pattern),
        consumer,
        connection,
        competing,
        settled_notes,
    );
    let subscription = Arc::new(subscription);
    subscription.stance.begin(owner.is_some());
    if competing {
        // What comes before the first look at the clock is not late.
        subscription.is_sure_from(Instant::now());
    }
    let deliveries = NatsDeliveries::new(Arc::clone(&subscription), warnings, owner);
    let task = Task {
        connection,
        client,
        server: link.client().client.server_info().server_id,
        inbox,
        pulls: Pulls::default(),
        ahead: Ahead::default(),
        tenure: Tenure::default(),
        unproved: None,
        keeps: VecDeque::new(),
        takeover: None,
        lookups: Lookups::default(),
        looks: FuturesUnordered::new(),
        mends: FuturesUnordered::new(),
        fetches: FuturesUnordered::new(),
        barrier: None,
        last_tick: Instant::now(),
        ticks: 0,
        some_reply: None,
        latest: 0,
        delivered: 0,
        next_look: None,
        noted,
        // A new group begins behind what there is.
        floor: if is_new { info.delivered.stream_sequence } else { info.ack_floor.stream_sequence },
        birth,
        made: info.created,
        broken: false,
        rests: None,
        subscription: Arc::clone(&subscription),
    };
    Ok((subscription, deliveries, task.run(messages, notes)))
}

/// What the server is asked that is not a message.
enum Looked {
    /// The state of the consumer.
    State(Look, Result<Box<Info>, Refusal>),
    /// A consumer that was gone was made again.
    Made(Result<Found, BrokerError>),
}

/// What was so when the state of the consumer was asked for.
struct Look {
    epoch: u64,
    pin: Option<String>,
    /// When something was asked for whose answer is worth something if the server has this pin.
    unproved: Option<Instant>,
}

/// What a consumer is, and of which stream.
struct Found {
    birth: Birth,
    made: DateTime,
    noted: HashSet<u64>,
}

/// What was left to the server, as it stored it then. None: it is not there any more.
struct Fetched {
    epoch: u64,
    which: Which,
    event: Option<(Timestamp, Arc<Envelope>)>,
}

/// The task of a subscription.
struct Task {
    subscription: Arc<Subscription>,
    connection: u64,
    /// The client that is subscribed to the inbox.
    client: u64,
    /// By this the server tells itself from the one before it was begun again.
    server: String,
    inbox: String,
    pulls: Pulls,
    ahead: Ahead,
    tenure: Tenure,
    /// When the server was asked for something that it has answered after the lease was over. It answers so also where it
    /// has ended the pin and given it to nobody yet.
    unproved: Option<Instant>,
    /// When the server was asked to keep the group for this process, by number; the latest few.
    keeps: VecDeque<(u64, Instant)>,
    /// It is waited for what another process had open, or what was lost on its way.
    takeover: Option<Takeover>,
    lookups: Lookups,
    looks: FuturesUnordered<BrokerFuture<Looked>>,
    /// It is looked for what the client cannot read; nothing is asked for meanwhile.
    mends: FuturesUnordered<BrokerFuture<Result<(), BrokerError>>>,
    /// What was left to the server is asked for.
    fetches: FuturesUnordered<BrokerFuture<Fetched>>,
    /// The ack that the server is to confirm, and since when.
    barrier: Option<(u64, Instant)>,
    last_tick: Instant,
    ticks: u64,
    /// The reply subject of some message.
    some_reply: Option<String>,
    /// The place of the latest message that came.
    latest: u64,
    /// The number of the latest delivery.
    delivered: u64,
    /// When to look next at the consumer.
    next_look: Option<tokio::time::Instant>,
    /// Of what something is noted that was so before the consumer was made.
    noted: HashSet<u64>,
    /// Everything up to there is settled, by whichever process.
    floor: u64,
    /// The stream of the events: another one has the same numbers for other events.
    birth: Birth,
    /// When the consumer was made.
    made: DateTime,
    /// The consumer is gone.
    broken: bool,
    /// Nothing is asked for until then.
    rests: Option<Instant>,
}

struct Takeover {
    /// How often the server was asked what is open.
    asked: u32,
    /// How many the server counts as open.
    open: usize,
}

impl Takeover {
    fn new() -> Self {
        Self { asked: 0, open: 0 }
    }
}

impl Task {
    async fn run(mut self, messages: Subscriber, mut notes: UnboundedReceiver<Stale>) {
        let period = self.lease() / 5;
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let subscription = Arc::clone(&self.subscription);
        let mut messages = Some(messages);
        while !subscription.state.lock().is_closed() {
            self.keep_within();
            self.ask().await;
            let next_look = self.next_look;
            tokio::select! {
                biased;
                _ = subscription.bell.notified() => self.send_acks().await,
                another = subscription.link.state.another(self.connection) => {
                    self.reconnected(another, &mut messages).await;
                }
                Some(looked_up) = self.lookups.next(), if !self.lookups.is_empty() => self.looked_up(looked_up),
                Some(looked) = self.looks.next(), if !self.looks.is_empty() => self.looked(looked).await,
                Some(mended) = self.mends.next(), if !self.mends.is_empty() => self.mended(mended),
                Some(fetched) = self.fetches.next(), if !self.fetches.is_empty() => self.fetched(fetched).await,
                _ = sleep_until(next_look), if next_look.is_some() => self.look(),
                _ = tick.tick() => self.tick().await,
                Some(stale) = notes.recv() => self.forget(stale),
                message = next(&mut messages) => {
                    let Some(message) = message else {
                        // The client has ended, and there will be another one.
                        messages = None;
                        continue;
                    };
                    self.take(message).await;
                    for _ in 0..AT_ONCE {
                        let Some(Some(message)) = next(&mut messages).now_or_never() else { break };
                        self.take(message).await;
                    }
                    self.look_up();
                    subscription.state.wake();
                }
            }
        }
        self.leave(messages, &mut notes, tick).await;
        subscription.state.finish();
    }

    fn lease(&self) -> Duration {
        self.subscription.link.settings.ack_wait
    }

    fn is_up(&self) -> bool {
        self.subscription.link.state.lost().is_none()
    }

    /// Another connection: what was asked for on the former one does not come, and acks may be lost. The server may have
    /// come back without its data, or with another stream of that name: until it is known that it has the same one,
    /// nothing is said of what is here, nor asked for.
    async fn reconnected(&mut self, connection: u64, messages: &mut Option<Subscriber>) {
        self.connection = connection;
        let current = self.subscription.link.client();
        if current.number != self.client {
            *messages = None;
            // Under another subject, so that nothing comes that the former one has asked for.
            if let Some(inbox) = current.inbox().await {
                (self.client, self.inbox, *messages) = (inbox.client, inbox.subject, Some(inbox.messages));
            }
        }
        self.pulls.forget();
        let server = current.client.server_info().server_id;
        // One that was begun again may count deliveries from an earlier one on.
        if std::mem::replace(&mut self.server, server.clone()) != server && self.tenure.interrupt() {
            self.lost_the_group();
        }
        self.barrier = None;
        if self.subscription.competing {
            // What comes from here on is not lost with what was here.
            self.lose_what_is_late(Duration::ZERO);
            self.subscription.is_sure_from(Instant::now());
        }
        // Their answers may be lost as well.
        self.looks.clear();
        self.fetches.clear();
        if self.broken { self.make_again() } else { self.look() }
    }

    /// Where processes compete: after a lease without a sign others may have what was here, and what was not begun is
    /// dropped.
    fn lose_what_is_late(&mut self, slept: Duration) {
        if slept > self.lease() || self.subscription.lease_left().is_zero() {
            self.lookups.clear();
            self.subscription.lose(false);
        }
    }

    async fn tick(&mut self) {
        let (now, lease) = (Instant::now(), self.lease());
        self.ticks += 1;
        let slept = now.saturating_duration_since(std::mem::replace(&mut self.last_tick, now));
        let is_up = self.is_up();
        if self.subscription.competing {
            self.lose_what_is_late(slept);
            if is_up {
                self.subscription.is_sure_from(now);
            }
        } else if !is_up && self.subscription.lease_left().is_zero() && self.tenure.lose() {
            // The server has waited for this process in vain, but for one that was paused as well.
            self.lost_the_group();
        }
        if !is_up {
            return;
        }
        if self.subscription.competing || self.subscription.lease_left() > lease.mul_f64(0.7) {
            self.ahead.was_in_time(AHEAD);
        } else if self.tenure.is_ours() && !self.subscription.may_begin() {
            // The answers of the server are late, behind what it delivers.
            self.ahead.was_late();
        }
        self.keep().await;
        self.beat(lease / 3).await;
        self.send_acks().await;
        self.confirm_acks(now).await;
        if self.tenure.is_in_doubt() {
            self.settle_doubts().await;
        } else if self.pulls.is_silent(SILENCE, now) {
            self.pulls.forget();
            self.look();
        } else if !self.tenure.is_ours() && self.ticks.is_multiple_of(5) {
            self.look();
        }
        self.raise_floor();
        if self.broken {
            self.make_again();
        } else if !self.subscription.is_known() {
            self.look();
        }
    }

    /// What was noted and does not hold any more.
    fn forget(&self, stale: Stale) {
        let subscription = Arc::clone(&self.subscription);
        tokio::spawn(async move { subscription.forget(stale).await });
    }
}

/// The next message; it never comes where nobody is subscribed.
async fn next(messages: &mut Option<Subscriber>) -> Option<Message> {
    match messages {
        Some(messages) => messages.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
