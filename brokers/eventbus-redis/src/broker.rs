//! The broker: what a bus asks, and what is shared by everything that answers.

use crate::audit::RedisAudit;
use crate::claim::{Claim, RedisDeliveries};
use crate::config::{RedisBrokerBuilder, Retention};
use crate::dead_letters::RedisDeadLetters;
use crate::delivery::ClaimSettler;
use crate::entry;
use crate::groups::RedisGroups;
use crate::keeper;
use crate::keys::Keys;
use crate::link::Link;
use crate::locate::Locator;
use crate::publish::{Outgoing, Publishes, Sender, WINDOW};
use crate::reader;
use crate::register::{Acquired, Registered, register};
use crate::replay::RedisReplays;
use crate::retention;
use crate::suspects::Suspected;
use crate::trouble::Trouble;
use crate::wire::{self, MAX_FIELDS};
use eventbus_core::broker::suspects::Turn;
use eventbus_core::broker::{
    Attempts, AuditLog, Backlog, Broker, BrokerFuture, Connection, DeadLetters, Deliveries, Features, Groups,
    OpenedBroker, Replayable, Standing, SubscribeRequest, Topology, skipped,
};
use eventbus_core::counted::count;
use eventbus_core::lock::{Lock, Locked, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, DecodeError, Envelope, Pattern, PublishError, Topic};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether everything is settled, at first and at most.
const SETTLED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// Redis Streams, or Valkey, as a broker.
///
/// It is opened by an address, `Bus::connect("redis://localhost")`, or from its own settings:
///
/// ```no_run
/// use eventbus_redis::RedisBroker;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let broker = RedisBroker::builder("redis://localhost")?.prefix("shop").open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBroker(Arc<Handle>);

/// What is dropped when nobody uses the broker any more; the tasks hold the store.
struct Handle(Arc<Store>);

/// What everything of a broker shares.
pub(crate) struct Store {
    pub(crate) settings: RedisBrokerBuilder,
    pub(crate) keys: Keys,
    pub(crate) link: Arc<Link>,
    publishes: Arc<Publishes>,
    pub(crate) max_payload: usize,
    /// What tells this process from others, and from itself at other times.
    process: String,
    numbers: AtomicU64,
    opened: Instant,
    claims: Lock<Vec<Arc<Claim>>>,
    /// Whose turn it is among what may have ended an earlier process.
    turn: Lock<Turn<Suspected>>,
}

impl RedisBroker {
    /// Connects to the server at `url` with the settings that stand there.
    ///
    /// # Errors
    /// Where the address is none, and as [`RedisBrokerBuilder::open`].
    ///
    /// # Cancel safety
    /// As [`RedisBrokerBuilder::open`].
    pub async fn open(url: &str) -> Result<Self, BrokerError> {
        Self::builder(url)?.open().await
    }

    /// A broker at `url` with settings of its own, over those that stand there.
    ///
    /// # Errors
    /// Where the address is none, or has an option that does not exist.
    pub fn builder(url: &str) -> Result<RedisBrokerBuilder, BrokerError> {
        RedisBrokerBuilder::parse(url)
    }

    /// The client library's own client, for what a bus has no words for: `client.get_multiplexed_async_connection()`
    /// connects to the same server as the same user. None, while there is no connection.
    ///
    /// The client knows the password, and shows it nowhere.
    #[must_use]
    pub fn client(&self) -> Option<redis::Client> {
        self.store().link.live().map(|live| live.client)
    }

    pub(crate) async fn open_with(settings: RedisBrokerBuilder) -> Result<Self, BrokerError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BrokerError::new(
                "a connection to Redis was opened outside of a tokio runtime; open it inside of `#[eventbus::main]`, \
                 `#[tokio::main]` or `Runtime::block_on`",
            ));
        }
        settings.check()?;
        let cluster = settings.deployment == crate::config::Deployment::Cluster;
        let keys = Keys::new(&settings.prefix, cluster);
        let locator = Locator::new(&settings, &keys.clock())?;
        let address = settings.address.to_string();
        let (link, server) =
            Link::open(locator, &address, settings.connect_timeout, settings.response_timeout).await?;
        log::info!(target: "eventbus", address = %printable(&settings.address), "{}", printable(server.describe()));
        server.check_replicas(settings.replicas, &address)?;
        for warning in server.warnings(settings.replicas) {
            log::warn!(target: "eventbus", address = %printable(&settings.address), "{}", printable(warning));
        }
        let publishes = Arc::new(Publishes::new(settings.publish_timeout));
        let sender = Sender {
            publishes: Arc::clone(&publishes),
            link: Arc::clone(&link),
            keys: keys.clone(),
            duplicate_window: settings.duplicate_window,
            replicas: settings.replicas,
            wait: settings.response_timeout / (2 * WINDOW as u32),
            check: settings.topology == Topology::Check,
        };
        tokio::spawn(sender.run());
        let store = Arc::new(Store {
            max_payload: settings.max_payload.min(server.max_bulk.unwrap_or(usize::MAX)),
            settings,
            keys,
            link,
            publishes,
            process: format!("{}-{:08x}", std::process::id(), fastrand::u32(..)),
            numbers: AtomicU64::new(0),
            opened: Instant::now(),
            claims: Lock::new(Rank::LEAF, Vec::new()),
            turn: Lock::new(Rank::BROKER_INNER, Turn::default()),
        });
        if store.settings.retention != Retention::default() {
            tokio::spawn(retention::keep(Arc::downgrade(&store)));
        }
        Ok(Self(Arc::new(Handle(store))))
    }

    fn store(&self) -> &Arc<Store> {
        &self.0.0
    }
}

/// Opens the broker of an address such as `redis://localhost`.
pub(crate) fn open_address(url: &str) -> OpenedBroker {
    let settings = RedisBrokerBuilder::parse(url);
    BrokerFuture::new(async move { Ok(Arc::new(settings?.open().await?) as Arc<dyn Broker>) })
}

impl Broker for RedisBroker {
    fn name(&self) -> &str {
        "Redis"
    }

    fn features(&self) -> Features {
        let mut features = Features::none();
        features.durable = true;
        features.key_order = true;
        features.patterns = true;
        features.start_earliest = true;
        features.multi_process = true;
        features.competing = true;
        features.deduplicates = !self.store().settings.duplicate_window.is_zero();
        features.seek = true;
        features.rename = true;
        features.attempts = Attempts::Noted;
        features.counts_crashes = true;
        features.backlog = Backlog::Exactly;
        features.max_payload = Some(self.store().max_payload);
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        let event = match self.store().outgoing(&envelope) {
            Ok(event) => event,
            Err(error) => return BrokerFuture::ready(Err(error)),
        };
        let topic = event.topic.clone();
        let stored = self.store().publishes.push([event]).pop();
        BrokerFuture::new(async move {
            match stored {
                Some(stored) => stored.await.unwrap_or_else(|_| Err(unanswered(&topic))),
                None => Err(unanswered(&topic)),
            }
        })
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        let (mut answers, mut events) = (Vec::with_capacity(envelopes.len()), Vec::new());
        for envelope in &envelopes {
            answers.push(self.store().outgoing(envelope).map(|event| events.push(event)));
        }
        let mut stored = self.store().publishes.push(events).into_iter();
        BrokerFuture::new(async move {
            for (answer, envelope) in answers.iter_mut().zip(&envelopes) {
                if answer.is_ok()
                    && let Some(stored) = stored.next()
                {
                    *answer = stored.await.unwrap_or_else(|_| Err(unanswered(envelope.topic())));
                }
            }
            answers
        })
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let store = Arc::clone(self.store());
        BrokerFuture::new(async move { store.subscribe(request).await })
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let store = Arc::clone(self.store());
        BrokerFuture::new(async move { store.check(&request).await })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(RedisDeadLetters(Arc::clone(self.store()))))
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        Some(Arc::new(RedisReplays(Arc::clone(self.store()))))
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        Some(Arc::new(RedisAudit(Arc::clone(self.store()))))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        Some(Arc::new(RedisGroups(Arc::clone(self.store()))))
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let store = Arc::clone(self.store());
        Some(BrokerFuture::new(async move { store.settled().await }))
    }

    fn connection(&self) -> Connection {
        match self.store().link.lost() {
            Some(lost) => Connection::Lost { since: lost.since, error: lost.error },
            None => Connection::Up,
        }
    }

    fn standing(&self, request: &SubscribeRequest) -> Standing {
        let claims = self.store().claims.lock().clone();
        let mut claims =
            claims.iter().filter(|one| one.group == request.group && one.pattern == request.pattern);
        if claims.any(|claim| claim.is_ours()) { Standing::Active } else { Standing::StandingBy }
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        let ended: HashSet<_> =
            subscriptions.iter().map(|one| (one.group.as_str(), one.pattern.as_str())).collect();
        let claims = self.store().claims.lock().clone();
        let ended = claims.iter().filter(|one| ended.contains(&(one.group.as_str(), one.pattern.as_str())));
        ended.for_each(Claim::drain);
        BrokerFuture::ready(())
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        /// Whatever becomes of the rest, nothing waits for the server any more in the end.
        struct Closing(Arc<Store>);
        impl Drop for Closing {
            fn drop(&mut self) {
                self.0.link.close();
            }
        }

        let store = Arc::clone(self.store());
        let claims = store.claims.lock().clone();
        claims.iter().for_each(|claim| claim.end(true));
        store.publishes.close();
        BrokerFuture::new(async move {
            let closing = Closing(store);
            closing.0.publishes.ended().await;
            for claim in claims {
                claim.left().await;
            }
            Ok(())
        })
    }
}

/// The task that sends has ended without an answer, as with its runtime.
fn unanswered(topic: &Topic) -> PublishError {
    let cause = BrokerError::new("the runtime of the broker has ended").into();
    PublishError::Unconfirmed { topic: topic.to_string(), cause }
}

impl Store {
    /// An event as it is sent; refused where it is too large.
    fn outgoing(&self, envelope: &Envelope) -> Result<Outgoing, PublishError> {
        let topic = || envelope.topic().to_string();
        let unwritten = |error| match error {
            DecodeError::Encode { cause, .. } => PublishError::Encode { topic: topic(), cause },
            error => PublishError::Encode { topic: topic(), cause: error.into() },
        };
        let payload = envelope.payload().map_err(unwritten)?;
        envelope.check_size(payload.len(), self.max_payload)?;
        let fields = wire::write(envelope, self.settings.content_mode).map_err(unwritten)?;
        if fields.len() / 2 > MAX_FIELDS {
            let text = format!("it has more than {} headers and attributes", count(MAX_FIELDS));
            return Err(PublishError::Broker { topic: topic(), cause: BrokerError::new(text).into() });
        }
        let id = format!("{} {}", envelope.id(), envelope.source());
        Ok(Outgoing { topic: envelope.topic().clone(), id, fields })
    }

    async fn subscribe(
        self: Arc<Self>,
        request: SubscribeRequest,
    ) -> Result<Box<dyn Deliveries>, BrokerError> {
        let claim = Claim::new(Arc::clone(&self), &request);
        let topics = self.topics(&request.pattern).await?;
        let patterns = self.patterns(&request.group).await?.into_iter().map(|(pattern, _)| pattern);
        let overlaps = |other: &String| {
            *other != request.pattern.as_str()
                && Pattern::new(other).is_ok_and(|other| other.overlaps(&request.pattern))
        };
        let overlapping: Vec<_> = patterns.filter(overlaps).collect();
        let resume = BTreeMap::new();
        let call = register(&claim, request.start, false, &topics, &overlapping, &resume);
        let registered = Registered::read(self.link.value("cannot subscribe", &call).await?);
        let (group, pattern) = (&request.group, &request.pattern);
        if !registered.known {
            return Err(unknown(group, pattern));
        }
        if let Some((topic, _, problem)) =
            registered.streams.iter().find(|(.., problem)| pattern.is_exact() && !problem.is_empty())
        {
            return Err(Trouble::said(format!("cannot subscribe to \"{topic}\""), problem).into());
        }
        let settler = Arc::new(ClaimSettler(Arc::clone(&claim)));
        // From here on the group is left when this is dropped.
        let mut deliveries = Box::new(RedisDeliveries {
            claim: Arc::clone(&claim),
            settler,
            warnings: Vec::new(),
            owner: None,
        });
        self.claims.lock().push(Arc::clone(&claim));
        tokio::spawn(keeper::keep(Arc::clone(&claim)));
        if let Acquired::Others(token) = claim.acquire().await? {
            claim.stance.begin(true);
            deliveries.owner = Some(format!("the process {}", token.split('-').next().unwrap_or_default()));
        }
        deliveries.warnings.extend(skipped(group, pattern, registered.skips, None));
        tokio::spawn(reader::read(claim));
        Ok(deliveries)
    }

    /// Looks whether the server knows the group of a subscription, where none is made.
    async fn check(&self, request: &SubscribeRequest) -> Result<(), BrokerError> {
        let (group, pattern) = (&request.group, &request.pattern);
        if self.settings.topology == Topology::Create
            || self.patterns(group).await?.iter().any(|(known, _)| known == pattern.as_str())
        {
            return Ok(());
        }
        Err(unknown(group, pattern))
    }

    /// Resolves once everything is settled that subscriptions of this process listen on, whoever handles it.
    async fn settled(&self) {
        let mut pause = SETTLED.0;
        loop {
            let claims = self.claims.lock().clone();
            if claims.iter().all(|claim| claim.is_idle()) {
                if !self.is_backlogged(&claims).await {
                    return;
                }
                // The server is asked less and less often.
                pause = (pause * 2).min(SETTLED.1);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether the server has something for these subscriptions, as far as it can be asked.
    async fn is_backlogged(&self, claims: &[Arc<Claim>]) -> bool {
        if claims.is_empty() {
            return false;
        }
        let names: BTreeSet<_> = claims.iter().map(|claim| claim.group.clone()).collect();
        let Ok(groups) = self.states(&Vec::from_iter(names)).await else { return true };
        let ours = |group: &str, pattern: &str| {
            claims.iter().any(|claim| claim.group == group && claim.pattern.as_str() == pattern)
        };
        groups.iter().any(|state| state.backlog > 0 && ours(&state.group, &state.pattern))
    }

    /// The topics there are that a pattern covers.
    pub(crate) async fn topics(&self, pattern: &Pattern) -> Result<Vec<Topic>, BrokerError> {
        if pattern.is_exact() {
            return Ok(Topic::new(pattern.as_str()).into_iter().collect());
        }
        let command = redis::cmd("SMEMBERS").arg(self.keys.topics()).clone();
        let topics = entry::list(self.link.value("cannot list the topics", &command).await?);
        let topics = topics.into_iter().filter_map(entry::text).filter_map(|topic| Topic::new(topic).ok());
        Ok(topics.filter(|topic| pattern.matches(topic.as_str())).collect())
    }

    /// Milliseconds since the broker was opened, whatever the clock on the wall does; never zero.
    pub(crate) fn clock(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    pub(crate) fn clock_after(&self, time: Duration) -> u64 {
        self.clock().saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    /// A name that no consumer had before.
    pub(crate) fn consumer(&self) -> String {
        self.token()
    }

    /// A token that nobody had before: no number, since a server that has lost its latest writes would give it again.
    pub(crate) fn token(&self) -> String {
        format!("{}-{}", self.process, self.number())
    }

    /// A number that nothing in this process had before.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The claim of this number, while it is open.
    pub(crate) fn claim(&self, number: u64) -> Option<Arc<Claim>> {
        self.claims.lock().iter().find(|claim| claim.number == number).cloned()
    }

    pub(crate) fn turn(&self) -> Locked<'_, Turn<Suspected>> {
        self.turn.lock()
    }

    pub(crate) fn remove(&self, claim: &Arc<Claim>) {
        self.claims.lock().retain(|other| !Arc::ptr_eq(other, claim));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // What was taken is sent; nobody is left to wait for it.
        self.0.publishes.close();
    }
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker")
            .field("address", &self.store().settings.address)
            .field("keys", &self.store().keys)
            .finish_non_exhaustive()
    }
}

fn unknown(group: &str, pattern: &Pattern) -> BrokerError {
    BrokerError::new(format!(
        "the server does not know the group `{group}` on \"{pattern}\", and this program makes none (`topology=check`); \
         start a program that may make it first"
    ))
}
