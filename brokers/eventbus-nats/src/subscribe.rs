//! Subscribing: the consumer of a group, and the task that asks it for messages, keeps the group, and tells the server
//! what is worked on.

use crate::birth::Birth;
use crate::connection::{Inbox, Link, Refusal};
use crate::delivery::NatsDeliveries;
use crate::intake::{Arrival, Waiting, Which};
use crate::notes;
use crate::publish::Outlet;
use crate::pulls::{Ahead, Pulls};
use crate::subscription::{ACK, AHEAD, NAK, Stale, Subscription, WORKING};
use crate::suspects::Begun;
use crate::tenure::{Asked, Came, Refused, Tenure};
use crate::topology::{PRIORITY_GROUP, Wanted, consumer_name, first};
use crate::unreadable;
use crate::wire::{self, Place};
use async_nats::datetime::DateTime;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, Info};
use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use eventbus_core::broker::{BrokerFuture, Start, SubscribeRequest, skipped};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Envelope};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::MissedTickBehavior;

/// How long the server may keep an ask for messages.
pub(crate) const EXPIRES: Duration = Duration::from_secs(30);
/// How often it says meanwhile that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// So long it may say nothing.
const SILENCE: Duration = Duration::from_secs(6);
/// Of so many bytes a payload is kept by itself.
const LARGE: usize = 64 << 10;
/// How many messages are taken in before others have a turn.
const AT_ONCE: usize = 256;
/// So long after the state of a consumer could not be had it is asked for again.
const UNANSWERED: Duration = Duration::from_millis(250);
/// How long nothing is asked for once the server has refused to be asked.
const REST: Duration = Duration::from_secs(1);
/// How many notes are looked for at once.
const LOOKUPS: usize = 64;
/// Of how many deliveries another process may have had open, so that they are asked for one by one. Others come when
/// the server has waited for that process.
const RECALL: u64 = 20_000;
/// How long what is settled last is waited for at the end.
const LAST_ACKS: Duration = Duration::from_secs(2);

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
        lookups: FuturesUnordered::new(),
        queued: Vec::new(),
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

/// The process that has the group, by the name that the server has given it.
fn pinned(info: &Info) -> Option<&str> {
    let group = info.priority_groups.iter().find(|group| group.group == PRIORITY_GROUP)?;
    group.pinned_client_id.as_deref().filter(|id| !id.is_empty())
}

/// How an ask for messages may end in good order.
const ENDED: [&str; 3] = ["MaxBytes", "Batch Completed", "Interest Expired"];

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

/// A note that was looked for.
struct Note {
    epoch: u64,
    waiting: Waiting,
    noted: bool,
    /// That a handler was called with it.
    begun: Option<Begun>,
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
    lookups: FuturesUnordered<BrokerFuture<Note>>,
    /// Redelivered messages whose notes are looked for later.
    queued: Vec<(u64, Waiting, u64)>,
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
        while !subscription.state.lock().closed {
            self.keep_within();
            self.ask().await;
            let next_look = self.next_look;
            tokio::select! {
                biased;
                _ = subscription.bell.notified() => self.send_acks().await,
                another = subscription.link.state.another(self.connection) => {
                    self.reconnected(another, &mut messages).await;
                }
                Some(found) = self.lookups.next(), if !self.lookups.is_empty() => self.found(found),
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
                    subscription.wake();
                }
            }
        }
        self.leave(messages, &mut notes, tick).await;
        subscription.state.lock().ended = true;
        subscription.changed.tell();
    }

    fn lease(&self) -> Duration {
        self.subscription.link.settings.ack_wait
    }

    fn is_up(&self) -> bool {
        self.subscription.link.state.lost().is_none()
    }

    /// Asks for messages where there is room for them.
    async fn ask(&mut self) {
        if !self.subscription.is_known() || self.broken || !self.mends.is_empty() {
            return;
        }
        if self.rests.is_some_and(|until| Instant::now() < until) {
            return;
        }
        // Whose the group is shows only by a delivery.
        let needs_one = self.tenure.is_in_doubt() && self.pulls.coming() == 0;
        let (at_hand, held, bytes) = {
            let mut state = self.subscription.state.lock();
            (state.intake.at_hand() + self.queued.len(), state.intake.held(), state.intake.bytes())
        };
        let most = self.subscription.most_bytes();
        if bytes >= most && held > 0 && self.takeover.is_none() && !needs_one {
            return;
        }
        // Each ask may be answered with all that it lets come, and the next one is for what there is room for besides.
        let room_for = most.saturating_sub(bytes + self.pulls.bytes()) / 2;
        let least = self.largest();
        if room_for < least && self.pulls.coming() > 0 {
            return;
        }
        let (ahead, coming) = (self.ahead.get(), self.pulls.coming());
        // What another process had open is needed as a whole.
        let room = match &self.takeover {
            Some(takeover) => ahead.max(takeover.open.saturating_sub(held) + 1),
            None => ahead.saturating_sub(at_hand),
        };
        // Without a pin one ask has to do: others would wait while the first is served.
        let is_due = if self.subscription.competing || self.tenure.is_ours() {
            coming <= ahead / 2
        } else {
            coming == 0
        };
        let has_room = room > coming && is_due && room - coming >= ahead / 4;
        if !has_room && !needs_one {
            return;
        }
        let count = if has_room { room - coming } else { 1 };
        let room_for = room_for.max(least);
        let number = self.pulls.ask(count, room_for, Instant::now());
        let pin = match (self.tenure.pin(), self.subscription.competing) {
            (_, true) => String::new(),
            (None, false) => format!(",\"group\":\"{PRIORITY_GROUP}\""),
            (Some(pin), false) => format!(",\"group\":\"{PRIORITY_GROUP}\",\"id\":\"{pin}\""),
        };
        let request = format!(
            "{{\"batch\":{count},\"max_bytes\":{room_for},\"expires\":{},\"idle_heartbeat\":{}{pin}}}",
            EXPIRES.as_nanos(),
            HEARTBEAT.as_nanos()
        );
        self.request(format!("p{number}"), request).await;
    }

    /// As much as any message has, so that there is room for it.
    fn largest(&self) -> usize {
        2 * self.subscription.link.client().client.max_payload()
    }

    /// Leaves to the server what there is no room for, and asks for it once there is.
    fn keep_within(&mut self) {
        let room = self.subscription.most_bytes();
        let most = room + self.largest();
        let (left, missing, epoch) = {
            let mut state = self.subscription.state.lock();
            let left = state.intake.leave(most);
            let missing = if self.fetches.is_empty() { state.intake.missing(room) } else { None };
            (left, missing, state.intake.epoch())
        };
        // Events are dropped without the lock.
        drop(left);
        let Some(which) = missing.filter(|_| self.subscription.is_known()) else { return };
        let subscription = Arc::clone(&self.subscription);
        self.fetches.push(BrokerFuture::new(async move {
            let Subscription { link, .. } = &*subscription;
            let stream = &link.settings.stream;
            let stored = loop {
                if let Some(stored) = link.stored_as_it_is(stream, which.sequence).await {
                    break Some(stored);
                }
                let asked = unreadable::Which { seq: which.sequence, next_by_subj: None };
                match link.stored(stream, asked).await {
                    Ok(stored) => break stored,
                    Err(_) if !subscription.is_of(epoch) => break None,
                    Err(_) => tokio::time::sleep(UNANSWERED).await,
                }
            };
            let event = stored.map(|stored| {
                let topic = link.settings.topic_of(&stored.subject);
                let (place, headers) = ((which.sequence, stored.time), Some(&stored.headers));
                let event = wire::read(stream, topic, place.0, place.1, headers, stored.payload);
                (stored.time, Arc::new(event))
            });
            Fetched { epoch, which, event }
        }));
    }

    /// What was left to the server came, or is gone there.
    async fn fetched(&mut self, Fetched { epoch, which, event }: Fetched) {
        if !self.subscription.is_of(epoch) {
            return;
        }
        match event {
            Some((stored, _)) if stored != which.stored => {
                self.begin_anew();
                self.look_whether_known();
            }
            Some((_, event)) => {
                let restored = self.subscription.state.lock().intake.restore(epoch, which.sequence, event);
                drop(restored);
                self.subscription.wake();
            }
            None => {
                // Somebody has removed it, or it was too old: there is nothing to handle.
                let gone = self.subscription.state.lock().intake.settle(epoch, which.sequence);
                drop(gone);
                self.send_acks().await;
                self.subscription.wake();
            }
        }
    }

    /// Asks the server to keep the group for this process: it answers at once, and gives no message, since none is as
    /// small as is asked for.
    async fn keep(&mut self) {
        // The answer of another consumer says nothing.
        let Some(request) = self.keeping().filter(|_| self.subscription.is_known()) else { return };
        let number = self.last_keep() + 1;
        self.keeps.push_back((number, Instant::now()));
        if self.keeps.len() > 8 {
            self.keeps.pop_front();
        }
        self.request(format!("k{number}"), request).await;
    }

    fn last_keep(&self) -> u64 {
        self.keeps.back().map_or(0, |(number, _)| *number)
    }

    fn keeping(&self) -> Option<String> {
        let pin = self.tenure.pin()?;
        Some(format!(
            "{{\"batch\":1,\"max_bytes\":1,\"no_wait\":true,\"group\":\"{PRIORITY_GROUP}\",\"id\":\"{pin}\"}}"
        ))
    }

    /// The same once no messages are taken any more.
    async fn keep_meanwhile(&mut self) {
        let (link, now) = (&self.subscription.link, Instant::now());
        if self.subscription.competing {
            return self.subscription.is_sure_from(now);
        }
        let Some(request) = self.keeping() else { return };
        let name = format!("CONSUMER.MSG.NEXT.{}.{}", link.settings.stream, self.subscription.consumer);
        let request = async_nats::client::Request::new().payload(request.into());
        match link.client().client.send_request(link.api_subject(&name), request).await {
            // What a handler has may be settled by it still.
            Ok(answer) if answer.status == Some(StatusCode::PIN_ID_MISMATCH) => {
                self.tenure.lose();
                self.subscription.is_unsure();
            }
            Ok(_) if !self.subscription.lease_left().is_zero() => self.subscription.is_sure_from(now),
            _ => {}
        }
    }

    async fn request(&mut self, reply: String, request: String) {
        let link = &self.subscription.link;
        let name = format!("CONSUMER.MSG.NEXT.{}.{}", link.settings.stream, self.subscription.consumer);
        let reply = format!("{}.{reply}", self.inbox);
        let client = link.client();
        let asking = client.client.publish_with_reply(link.api_subject(&name), reply, request.into());
        // Where it cannot be sent there is another connection, or will be, and everything is asked for anew there.
        self.subscription.where_known(asking).await;
    }

    /// A message, or what the server says in place of one.
    async fn take(&mut self, message: Message) {
        match message.status {
            None | Some(StatusCode::OK) => self.arrive(message).await,
            // Another program has published it with a status.
            Some(_) if wire::is_stored(&message) => self.arrive(message).await,
            Some(status) => self.hear(status, &message).await,
        }
    }

    async fn arrive(&mut self, message: Message) {
        let now = Instant::now();
        let Some(reply) = message.reply else {
            // The answer to the ack that was to be confirmed.
            let number = message.subject.rsplit(".a").next().and_then(|number| number.parse().ok());
            if let Some(number) = number {
                self.barrier = None;
                self.subscription.state.lock().intake.confirm_acks(number);
            }
            return;
        };
        let Some(place) = Place::read(&reply) else { return };
        let asked = self.pulls.came(message.length, now);
        let before = std::mem::replace(&mut self.delivered, place.delivery);
        if !self.subscription.competing {
            let pin = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Pin-Id"));
            let pin = pin.map(|pin| pin.as_str());
            let so_far = Asked { messages: self.pulls.last(), keeps: self.last_keep() };
            match self.tenure.delivered(pin, place.delivery, so_far) {
                Came::InOrder => {}
                Came::WithGap => self.wait_for_all(),
                Came::Again => self.go_on_with_group().await,
                Came::Anew => self.take_over().await,
            }
            if let Some(asked) = asked {
                self.subscription.is_sure_from(asked);
            }
        } else if place.delivery <= before {
            // The pin tells that of a group that one process has.
            self.look_whether_known();
        }
        self.latest = self.latest.max(place.sequence);
        if self.some_reply.is_none() {
            self.some_reply = Some(reply.to_string());
        }
        // A consumer that was made anew counts deliveries from the first.
        let again = place.deliveries > 1 || self.noted.remove(&place.sequence);
        let (arrival, epoch) = {
            let mut state = self.subscription.state.lock();
            let which = Which { sequence: place.sequence, stored: place.time };
            (state.intake.arrive(which, message.length, &reply, again, now), state.intake.epoch())
        };
        match arrival {
            Arrival::Known => return,
            Arrival::Settled => return self.send_acks().await,
            // It comes once more.
            Arrival::OfAnotherStream => {
                self.begin_anew();
                return self.look_whether_known();
            }
            Arrival::New | Arrival::Again => {}
        }
        let settings = &self.subscription.link.settings;
        let topic = settings.topic_of(&message.subject);
        let envelope = wire::read(
            &settings.stream,
            topic,
            place.sequence,
            place.time,
            message.headers.as_ref(),
            by_itself(message.payload),
        );
        let waiting = Waiting {
            envelope: Some(Arc::new(envelope)),
            sequence: place.sequence,
            attempt: 1,
            parked: None,
        };
        if arrival == Arrival::New {
            self.subscription.state.lock().intake.put(waiting);
        } else if self.lookups.len() < LOOKUPS {
            self.look_up(epoch, waiting, place.deliveries);
        } else {
            self.queued.push((epoch, waiting, place.deliveries));
        }
    }

    /// Looks whether something was noted of a message that was delivered before.
    fn look_up(&mut self, epoch: u64, mut waiting: Waiting, deliveries: u64) {
        let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        let subscription = Arc::clone(&self.subscription);
        self.lookups.push(BrokerFuture::new(async move {
            let (note, begun) = subscription.note(epoch, waiting.sequence).await;
            let noted = note.is_some();
            if let Some(note) = note {
                (waiting.attempt, waiting.parked) = notes::read(&note).unwrap_or_else(|attempt| {
                    log::warn!(
                        target: "eventbus", group = %printable(&subscription.group), sequence = waiting.sequence,
                        "what was noted of the attempts at an event cannot be read; they count as often as it was delivered"
                    );
                    (attempt.unwrap_or(deliveries), None)
                });
            }
            Note { epoch, waiting, noted, begun }
        }));
    }

    fn found(&mut self, Note { epoch, waiting, noted, begun }: Note) {
        let process = self.subscription.link.turns.lock().process.clone();
        let sequence = waiting.sequence;
        {
            let mut state = self.subscription.state.lock();
            if state.intake.found(epoch, waiting, noted) {
                state.suspects.find(sequence, begun.as_ref(), &process);
                self.subscription.careful.store(true, Ordering::Release);
            }
        }
        if let Some((epoch, waiting, deliveries)) = self.queued.pop() {
            self.look_up(epoch, waiting, deliveries);
        }
        if self.lookups.is_empty() {
            self.look_if_waiting();
        }
        self.subscription.wake();
    }

    /// The server says something about what it was asked for.
    async fn hear(&mut self, status: StatusCode, message: &Message) {
        let now = Instant::now();
        let number = message.subject.rsplit('.').next().unwrap_or_default();
        let is_keep = number.starts_with('k');
        let number: u64 = number.get(1..).and_then(|number| number.parse().ok()).unwrap_or_default();
        let sent = if is_keep {
            self.keeps.iter().find(|(other, _)| *other == number).map(|(_, sent)| *sent)
        } else if status == StatusCode::IDLE_HEARTBEAT {
            self.pulls.beat(number, now)
        } else {
            self.pulls.ended(number, now)
        };
        let description = message.description.as_deref().unwrap_or_default();
        match status {
            StatusCode::PIN_ID_MISMATCH => {
                let refused = self.tenure.refused(is_keep, number);
                self.group_was_taken(refused).await;
            }
            StatusCode::IDLE_HEARTBEAT | StatusCode::TIMEOUT => self.is_still_ours(sent),
            StatusCode::NOT_FOUND if is_keep => self.is_still_ours(sent),
            StatusCode::REQUEST_TERMINATED if ENDED.iter().any(|ended| description.contains(ended)) => {
                self.is_still_ours(sent);
            }
            StatusCode::REQUEST_TERMINATED if description.starts_with("Exceeded Max") => {
                self.refused(description)
            }
            // The server is shut down, or another one leads.
            StatusCode::REQUEST_TERMINATED if !description.contains("Deleted") => self.pulls.forget(),
            _ => self.look_for_consumer(),
        }
    }

    /// Somebody has given the consumer limits, so that the server does not let it be asked like this. To ask again at once
    /// would be refused as fast as that.
    fn refused(&mut self, description: &str) {
        self.pulls.forget();
        self.rests = Some(Instant::now() + REST);
        let Subscription { group, consumer, .. } = &*self.subscription;
        self.subscription.fail(format!(
            "the server lets nothing be asked for the group `{group}`: {description}; change the limits of the consumer \
             `{consumer}`"
        ));
    }

    /// The server has answered what it was asked then. As long as it has not waited for this process in vain, it has kept
    /// the group for it since.
    fn is_still_ours(&mut self, asked: Option<Instant>) {
        let Some(asked) = asked.filter(|_| self.tenure.is_ours()) else { return };
        if self.subscription.lease_left().is_zero() {
            self.unproved = self.unproved.max(Some(asked));
            self.look();
        } else {
            self.subscription.is_sure_from(asked);
        }
    }

    /// The server has given the group to this process, and what is open of it may have been another one's.
    async fn take_over(&mut self) {
        self.queued.clear();
        self.subscription.lose(true);
        self.takeover = Some(Takeover::new());
        self.go_on_with_group().await;
    }

    /// The server has given the group to this process.
    async fn go_on_with_group(&mut self) {
        // How long ago that was is not known.
        self.unproved = None;
        self.keep().await;
        let Subscription { stance, group, pattern, .. } = &*self.subscription;
        stance.is_ours(group, pattern.as_str());
        self.look_if_waiting();
    }

    /// Looks for what the client cannot read: it comes no other way, and ends the connection each time.
    fn mend(&mut self, info: Box<Info>) {
        if !self.mends.is_empty() {
            return;
        }
        let subscription = Arc::clone(&self.subscription);
        self.mends.push(BrokerFuture::new(async move {
            let is_here = |sequence| subscription.state.lock().intake.holds(sequence);
            subscription.link.mend_unreadable(&subscription.outlet, &info, is_here).await
        }));
    }

    fn mended(&mut self, mended: Result<(), BrokerError>) {
        if let Err(error) = mended {
            log::warn!(
                target: "eventbus", group = %printable(&self.subscription.group), error = %printable(&error.to_string()),
                "it is not known whether there is something that the client cannot read"
            );
        }
        self.look_if_waiting();
    }

    /// Something was lost on its way, as when a connection is cut. It comes again, and what is newer waits for it.
    fn wait_for_all(&mut self) {
        self.subscription.state.lock().intake.wait_for_all();
        self.takeover = Some(Takeover::new());
        self.look();
    }

    /// The server has taken the group away. Until it is known whether another process has had anything since, no handler
    /// is begun, and nothing is given up: a process that is short of time would do everything again and again, and be the
    /// shorter of it.
    async fn group_was_taken(&mut self, refused: Refused) {
        match refused {
            Refused::Known => {}
            Refused::Doubted => {
                self.ahead.was_late();
                self.pulls.forget();
                self.subscription.is_unsure();
                self.settle_doubts().await;
            }
            Refused::Lost => self.lost_the_group(),
        }
    }

    /// Finds out who has the group that was this process's a moment ago.
    async fn settle_doubts(&mut self) {
        self.look();
        // The server gives a group to somebody only with a delivery, and perhaps everything that is open is here. Behind the
        // ask it reaches this process, if nobody else waits for it.
        self.ask().await;
        let one = self.subscription.state.lock().intake.some_reply();
        if let Some(reply) = one {
            self.subscription.tell(reply, NAK).await;
        }
    }

    /// Another process may have what is here.
    fn lost_the_group(&mut self) {
        log::info!(
            target: "eventbus", group = %printable(&self.subscription.group),
            pattern = %printable(&self.subscription.pattern),
            "the server did not keep the group for this process; what was not settled is delivered again"
        );
        self.queued.clear();
        self.takeover = None;
        self.unproved = None;
        self.pulls.forget();
        self.subscription.is_unsure();
        self.subscription.lose(false);
    }

    /// Asks what the server counts as open.
    fn look(&mut self) {
        self.next_look = None;
        if !self.looks.is_empty() {
            return;
        }
        let subscription = Arc::clone(&self.subscription);
        let look = Look {
            epoch: subscription.epoch.load(Ordering::Acquire),
            pin: self.tenure.pin().map(str::to_owned),
            unproved: self.unproved,
        };
        self.looks.push(BrokerFuture::new(async move {
            Looked::State(look, subscription.link.consumer_info(&subscription.consumer).await.map(Box::new))
        }));
    }

    fn look_if_waiting(&mut self) {
        if self.takeover.is_some() {
            self.look();
        }
    }

    /// Finds out whether the server has the stream and the consumer that it had; nothing is said of them until then.
    fn look_whether_known(&mut self) {
        self.subscription.doubts();
        self.look();
    }

    async fn looked(&mut self, looked: Looked) {
        let (look, info) = match looked {
            Looked::State(look, Ok(info)) => (look, info),
            Looked::State(_, Err(refusal))
                if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) || refusal.is(ErrorCode::STREAM_NOT_FOUND) =>
            {
                return self.make_again();
            }
            Looked::State(_, Err(_)) => {
                if self.takeover.is_some() || !self.subscription.is_known() {
                    self.next_look = Some(tokio::time::Instant::now() + UNANSWERED);
                }
                return;
            }
            Looked::Made(Ok(found)) => return self.go_on(found),
            Looked::Made(Err(error)) => return self.subscription.fail(error.to_string()),
        };
        if info.created != self.made {
            // Somebody has made it again, and the stream perhaps as well.
            return self.make_again();
        }
        if !self.subscription.is_known() {
            self.subscription.knows(self.connection);
            self.go_on_telling(&info).await;
        }
        self.floor = self.floor.max(info.ack_floor.stream_sequence);
        let owner = pinned(&info);
        if !self.tenure.is_ours() {
            let Subscription { stance, group, pattern, .. } = &*self.subscription;
            match owner {
                Some(_) => stance.stands_by(group, pattern.as_str()),
                None => stance.is_free(),
            }
            // Where it was asked for before that was in doubt, it is asked for again.
            if look.pin.is_none() && self.tenure.looked(owner.is_some(), info.delivered.consumer_sequence) {
                self.lost_the_group();
            }
        } else if look.pin.as_deref() == self.tenure.pin() && owner != self.tenure.pin() {
            let refused = self.tenure.taken();
            self.group_was_taken(refused).await;
        } else if let Some(unproved) = look.unproved.filter(|_| owner == self.tenure.pin()) {
            self.subscription.is_sure_from(unproved);
        }
        if self.unproved == look.unproved || !self.subscription.lease_left().is_zero() {
            self.unproved = None;
        } else {
            self.look();
        }
        if look.epoch != self.subscription.epoch.load(Ordering::Acquire) {
            // That was before the takeover.
            return self.look_if_waiting();
        }
        let Some(takeover) = &mut self.takeover else { return };
        takeover.open = info.num_ack_pending;
        takeover.asked += 1;
        let all = {
            let mut state = self.subscription.state.lock();
            let all = state.intake.has_all(info.num_ack_pending);
            if all {
                state.intake.go_on();
            }
            all
        };
        if all {
            self.takeover = None;
            return self.subscription.wake();
        }
        let pause = Duration::from_millis(10 << takeover.asked.min(5));
        self.next_look = Some(tokio::time::Instant::now() + pause);
        if takeover.asked == 2 && !self.mends.is_empty() {
            takeover.asked -= 1;
        } else if takeover.asked == 2 {
            self.recall(&info).await;
        }
    }

    /// Asks for what another process had open, instead of waiting until the server has waited for that process.
    async fn recall(&mut self, info: &Info) {
        let (from, to) = (info.ack_floor.stream_sequence + 1, info.delivered.stream_sequence);
        let Some(some) = self.some_reply.clone().filter(|_| to.saturating_sub(from) < RECALL) else { return };
        for sequence in from..=to {
            let is_here = self.subscription.state.lock().intake.holds(sequence);
            let reply = Place::reply_of(&some, sequence, info.delivered.consumer_sequence);
            if let Some(reply) = reply.filter(|_| !is_here) {
                self.subscription.tell(reply, NAK).await;
            }
        }
    }

    /// The consumer may be gone: somebody has removed it, or the server has lost it.
    fn look_for_consumer(&mut self) {
        self.pulls.forget();
        self.broken = true;
        self.make_again();
    }

    fn make_again(&mut self) {
        self.broken = true;
        self.subscription.doubts();
        if !self.looks.is_empty() {
            return;
        }
        self.raise_floor();
        let (subscription, birth, floor) = (Arc::clone(&self.subscription), self.birth.clone(), self.floor);
        self.looks.push(BrokerFuture::new(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Looked::Made(subscription.make_again(&birth, floor).await)
        }));
    }

    /// What is settled, as far as this process knows it by itself: it has everything that is open.
    fn raise_floor(&mut self) {
        if self.tenure.is_ours() && self.takeover.is_none() {
            let lowest = self.subscription.state.lock().intake.lowest();
            self.floor = self.floor.max(lowest.map_or(self.latest, |lowest| lowest.saturating_sub(1)));
        }
    }

    /// The consumer is there again, made here or by another process.
    fn go_on(&mut self, found: Found) {
        self.broken = false;
        self.pulls.forget();
        let is_another = std::mem::replace(&mut self.made, found.made) != found.made;
        self.noted = found.noted;
        if found.birth != self.birth {
            self.birth = found.birth;
            self.begin_anew();
            (self.latest, self.floor) = (0, 0);
        } else if is_another && self.tenure.interrupt() {
            self.lost_the_group();
        }
        self.look_whether_known();
    }

    /// The stream is another one: nothing of what is here is of it.
    fn begin_anew(&mut self) {
        self.queued.clear();
        self.tenure = Tenure::default();
        (self.takeover, self.barrier, self.some_reply, self.unproved) = (None, None, None, None);
        if !self.subscription.competing {
            self.subscription.is_unsure();
        }
        self.subscription.begin_anew();
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

    /// The server has the same stream and the same consumer: what was not said of them is said now.
    async fn go_on_telling(&mut self, info: &Info) {
        self.subscription.state.lock().intake.doubt_acks();
        // Whether the group is still ours is asked first.
        self.keep().await;
        self.send_acks().await;
        self.beat(Duration::ZERO).await;
        self.mend(Box::new(info.clone()));
        if self.tenure.is_ours() {
            // What was on its way is not waited for until the server has waited for an ack of it.
            self.subscription.state.lock().intake.wait_for_all();
            self.takeover = Some(Takeover::new());
        }
    }

    /// Sends acks for which there was no room, or which may be lost.
    async fn send_acks(&mut self) {
        if !self.subscription.is_known() {
            return;
        }
        let unsent = self.subscription.state.lock().intake.unsent_acks();
        for reply in unsent {
            if !self.subscription.tell(reply, ACK).await {
                return self.subscription.state.lock().intake.doubt_acks();
            }
        }
    }

    /// Tells the server what is worked on.
    async fn beat(&mut self, age: Duration) {
        if !self.subscription.is_known() {
            return;
        }
        let due = self.subscription.state.lock().intake.beats(age, Instant::now());
        for reply in due {
            self.subscription.tell(reply, WORKING).await;
        }
    }

    /// Where processes compete: after a lease without a sign others may have what was here, and what was not begun is
    /// dropped.
    fn lose_what_is_late(&mut self, slept: Duration) {
        if slept > self.lease() || self.subscription.lease_left().is_zero() {
            self.queued.clear();
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

    /// Asks the server to confirm the latest ack: then it has all before it.
    async fn confirm_acks(&mut self, now: Instant) {
        let waits = self
            .barrier
            .is_some_and(|(_, since)| now.saturating_duration_since(since) < Duration::from_secs(2));
        if waits || !self.subscription.is_known() {
            return;
        }
        let last = self.subscription.state.lock().intake.last_ack();
        if let Some((number, reply)) = last {
            self.barrier = Some((number, now));
            let answer = format!("{}.a{number}", self.inbox);
            let client = self.subscription.link.client();
            self.subscription.where_known(client.client.publish_with_reply(reply, answer, ACK)).await;
        }
    }

    /// What was noted and does not hold any more.
    fn forget(&self, stale: Stale) {
        let subscription = Arc::clone(&self.subscription);
        tokio::spawn(async move { subscription.forget(stale).await });
    }

    /// Nobody reads any more: what is not with a handler goes back to the server, and what is, is waited for.
    async fn leave(
        &mut self,
        messages: Option<Subscriber>,
        notes: &mut UnboundedReceiver<Stale>,
        mut tick: tokio::time::Interval,
    ) {
        let subscription = Arc::clone(&self.subscription);
        // What the server has sent before it knows that nobody asks any more.
        let rest = async {
            let Some(mut messages) = messages else { return };
            let _ = messages.drain().await;
            while let Some(message) = messages.next().await {
                let Some(reply) = &message.reply else { continue };
                let Some(place) = Place::read(reply) else { continue };
                if !subscription.state.lock().intake.holds(place.sequence) {
                    subscription.tell(reply.clone(), NAK).await;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
        self.queued.clear();
        let gone = subscription.state.lock().intake.let_go();
        for (reply, waiting) in gone {
            subscription.tell(reply, NAK).await;
            drop(waiting);
        }
        let mut forgotten = FuturesUnordered::new();
        loop {
            let (handed_out, ends) = {
                let state = subscription.state.lock();
                (state.intake.handed_out(), state.ends)
            };
            if handed_out == 0 || ends {
                break;
            }
            tokio::select! {
                _ = subscription.bell.notified() => self.send_acks().await,
                Some(stale) = notes.recv() => forgotten.push(subscription.forget(stale)),
                Some(()) = forgotten.next(), if !forgotten.is_empty() => {}
                another = subscription.link.state.another(self.connection) => {
                    self.connection = another;
                    self.looks.clear();
                    self.look();
                }
                Some(looked) = self.looks.next(), if !self.looks.is_empty() => self.looked_at_the_end(looked).await,
                _ = tick.tick() => {
                    if !subscription.is_known() {
                        self.look();
                    } else {
                        self.keep_meanwhile().await;
                        self.beat(self.lease() / 3).await;
                    }
                }
            }
        }
        while let Ok(stale) = notes.try_recv() {
            forgotten.push(subscription.forget(stale));
        }
        let forgotten = async { while forgotten.next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ACKS, async { tokio::join!(self.last_acks(), forgotten) }).await;
        if self.tenure.is_ours() && subscription.is_known() {
            let stream = &subscription.link.settings.stream;
            let subject = format!("CONSUMER.UNPIN.{stream}.{}", subscription.consumer);
            let group = serde_json::json!({ "group": PRIORITY_GROUP });
            let unpin = subscription.link.api::<IgnoredAny>(subject, &group);
            let _ = tokio::time::timeout(Duration::from_secs(1), unpin).await;
        }
    }

    /// Nobody reads any more. Where the server has another stream or consumer by now, what handlers have cannot be settled
    /// there.
    async fn looked_at_the_end(&mut self, looked: Looked) {
        match looked {
            Looked::State(_, Ok(info)) if info.created == self.made => {
                if !self.subscription.is_known() {
                    self.subscription.knows(self.connection);
                    self.subscription.state.lock().intake.doubt_acks();
                    self.send_acks().await;
                    self.beat(Duration::ZERO).await;
                }
            }
            Looked::Made(Ok(found)) => self.go_on(found),
            Looked::State(_, Ok(_)) => self.begin_anew(),
            Looked::State(_, Err(refusal))
                if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) || refusal.is(ErrorCode::STREAM_NOT_FOUND) =>
            {
                self.begin_anew();
            }
            // It is asked again a little later.
            Looked::State(_, Err(_)) | Looked::Made(Err(_)) => {}
        }
    }

    /// Waits until the server has every ack.
    async fn last_acks(&mut self) {
        while !self.subscription.is_known() {
            if self.subscription.state.lock().intake.unconfirmed() == 0 {
                return;
            }
            self.connection = self.subscription.link.state.another(0).await;
            self.look();
            if let Some(looked) = self.looks.next().await {
                self.looked_at_the_end(looked).await;
            }
            if !self.subscription.is_known() {
                tokio::time::sleep(UNANSWERED / 2).await;
            }
        }
        self.send_acks().await;
        let last = self.subscription.state.lock().intake.last_ack();
        let Some((number, reply)) = last else { return };
        let request = async_nats::client::Request::new().payload(ACK);
        let client = self.subscription.link.client();
        let mut confirmed = false;
        let asking = async {
            let answer = client.client.send_request(reply, request).await;
            confirmed = answer.is_ok();
            answer.map(drop)
        };
        self.subscription.where_known(asking).await;
        if confirmed {
            self.subscription.state.lock().intake.confirm_acks(number);
        }
    }
}

impl Subscription {
    /// Makes the consumer again that is gone: behind the event up to which all are settled, or from the first one on, where
    /// the stream is another one by now.
    async fn make_again(&self, birth: &Birth, settled: u64) -> Result<Found, BrokerError> {
        let Self { link, group, pattern, consumer, competing, .. } = self;
        link.make_streams_again().await?;
        let found = link.birth().await;
        let found =
            found.map_err(|refusal| link.explain(format_args!("go on with the group `{group}`"), refusal))?;
        let from = match found == *birth {
            true => DeliverPolicy::ByStartSequence { start_sequence: settled + 1 },
            false => DeliverPolicy::All,
        };
        if found != *birth {
            // They are of events that had the same numbers.
            link.remove_notes_of_former(consumer).await?;
        }
        let wanted = Wanted { group, pattern, from, again: true, competing: *competing };
        let (is_new, info) = link.ensure_consumer(&wanted).await?;
        if is_new && found == *birth {
            log::warn!(
                target: "eventbus", group = %printable(group), pattern = %printable(pattern),
                "the consumer of the group was gone; it was made again, and goes on with the first event that is not settled"
            );
        } else if is_new {
            log::warn!(
                target: "eventbus", group = %printable(group), pattern = %printable(pattern),
                "the stream of the events is another one by now; the group begins with its first event"
            );
        }
        let noted = if found == *birth { link.noted_sequences(consumer).await? } else { HashSet::new() };
        Ok(Found { birth: found, made: info.created, noted })
    }
}

/// The next message; it never comes where nobody is subscribed.
async fn next(messages: &mut Option<Subscriber>) -> Option<Message> {
    match messages {
        Some(messages) => messages.next().await,
        None => std::future::pending().await,
    }
}

/// A large payload by itself: what the client reads into is up to twice as large, and stays as long as any part of it.
fn by_itself(payload: Bytes) -> Bytes {
    if payload.len() < LARGE { payload } else { Bytes::copy_from_slice(&payload) }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
