//! The broker: what its subscriptions, publishers and readers share, and the contract that it keeps.

use crate::claim::{self, Begun, Claim, SqliteDeliveries, Suspected};
use crate::config::SqliteBrokerBuilder;
use crate::file::{LogFile, resolve};
use crate::lease::{self, Lease, Process, Sign, Watched};
use crate::reader::{Reader, Readers};
use crate::schema::{explain, open_writer};
use crate::tail::Tail;
use crate::wire::Record;
use crate::writer::Writer;
use crate::writes::{Waiting, Writes, closed};
use eventbus_core::broker::suspects::Turn;
use eventbus_core::broker::{
    Attempts, AuditLog, Backlog, Broker, BrokerFuture, DeadLetters, Deliveries, Features, Groups,
    OpenedBroker, Replayable, SKIPPED, Standing, Start, SubscribeRequest, skipped,
};
use eventbus_core::lock::{Lock, Locked, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, DecodeError, Envelope, PublishError};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::oneshot;

/// The embedded durable log, in one SQLite file.
///
/// It is cheap to clone; all clones are one log. When the last one is dropped, or when the bus shuts down, the file is
/// left in order.
///
/// ```no_run
/// use eventbus::Bus;
/// use eventbus_sqlite::SqliteBroker;
///
/// # async fn connect() -> eventbus::Result<()> {
/// let bus = Bus::builder().broker(SqliteBroker::open("shop.db").await?).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteBroker(Arc<Handle>);

/// Ends the writer with the last broker.
struct Handle(Arc<Store>);

/// What everything that belongs to one open log shares.
pub(crate) struct Store {
    this: Weak<Self>,
    pub(crate) settings: SqliteBrokerBuilder,
    pub(crate) file: Arc<LogFile>,
    pub(crate) process: Process,
    pub(crate) readers: Arc<Readers>,
    pub(crate) writes: Writes,
    tail: Lock<Tail>,
    claims: Lock<Arc<Vec<Arc<Claim>>>>,
    /// Counts the changes of `claims`.
    generation: AtomicU64,
    last_number: AtomicU64,
    /// The leases of others, as they were seen from here.
    watched: Lock<Watched>,
    /// The place of the latest event.
    head: AtomicI64,
    /// Events were stored, and not every subscription was told yet.
    calling: AtomicBool,
    /// Rings when there are new events.
    stored: Waiters,
    /// Rings when deliveries were settled and saved.
    pub(crate) saved: Waiters,
    /// How many wait for new events without a subscription.
    followers: AtomicUsize,
    opened: Instant,
    /// Whose turn it is among events that may have ended an earlier process.
    turn: Lock<Turn<Suspected>>,
}

impl SqliteBroker {
    /// Opens the log at `path` with the default settings, and creates it where there is none.
    ///
    /// # Errors
    /// As [`SqliteBrokerBuilder::open`].
    ///
    /// # Cancel safety
    /// As [`SqliteBrokerBuilder::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, BrokerError> {
        Self::builder(path).open().await
    }

    /// A log with settings of its own.
    pub fn builder(path: impl AsRef<Path>) -> SqliteBrokerBuilder {
        SqliteBrokerBuilder::new(path.as_ref())
    }

    pub(crate) async fn open_with(mut settings: SqliteBrokerBuilder) -> Result<Self, BrokerError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BrokerError::new(
                "a log was opened outside of a tokio runtime; open it inside of `#[eventbus::main]`, `#[tokio::main]` or \
                 `Runtime::block_on`",
            ));
        }
        let opening = tokio::task::spawn_blocking(move || {
            settings.path = resolve(&settings.path)?;
            let connection = open_writer(&settings.path, settings.create, settings.durability)?;
            let file = Arc::new(LogFile::watch(&settings.path)?);
            lease::sweep(&settings.path, &connection).map_err(|error| explain(&settings.path, error))?;
            let process = Process::enter(&settings.path)?;
            let store = Arc::new_cyclic(|this| Store {
                this: Weak::clone(this),
                process,
                readers: Readers::new(&settings.path, &file),
                file,
                settings,
                writes: Writes::default(),
                tail: Lock::new(Rank::BROKER_INNER, Tail::default()),
                claims: Lock::new(Rank::LEAF, Arc::default()),
                generation: AtomicU64::new(0),
                last_number: AtomicU64::new(0),
                watched: Lock::new(Rank::LEAF, Watched::default()),
                head: AtomicI64::new(0),
                calling: AtomicBool::new(false),
                stored: Waiters::new(),
                saved: Waiters::new(),
                followers: AtomicUsize::new(0),
                opened: Instant::now(),
                turn: Lock::new(Rank::BROKER_INNER, Turn::default()),
            });
            Writer::start(Arc::clone(&store), connection).inspect_err(|_| store.process.leave())?;
            Ok(Self(Arc::new(Handle(store))))
        });
        opening.await.map_err(|error| BrokerError::new("the log was not opened").with_cause(error))?
    }

    pub(crate) fn readers(&self) -> &Arc<Readers> {
        &self.store().readers
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.0
    }
}

/// Opens the broker of an address such as `sqlite:shop.db`.
pub(crate) fn open_address(url: &str) -> OpenedBroker {
    let settings = SqliteBrokerBuilder::parse(url);
    BrokerFuture::new(async move { Ok(Arc::new(settings?.open().await?) as Arc<dyn Broker>) })
}

impl Broker for SqliteBroker {
    fn name(&self) -> &str {
        "SQLite"
    }

    fn features(&self) -> Features {
        let mut features = Features::none();
        features.durable = true;
        features.key_order = true;
        features.patterns = true;
        features.start_earliest = true;
        features.multi_process = true;
        features.deduplicates = true;
        features.seek = true;
        features.rename = true;
        features.attempts = Attempts::Noted;
        features.counts_crashes = true;
        features.backlog = Backlog::Exactly;
        features.max_payload = Some(self.store().settings.max_payload);
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        let record = match self.store().record(envelope) {
            Ok(record) => record,
            Err(error) => return BrokerFuture::ready(Err(error)),
        };
        let (waiting, stored) = oneshot::channel();
        let topic = record.envelope.topic().clone();
        if let Err(Waiting::One(record, _)) = self.store().writes.publish(Waiting::One(record, waiting)) {
            return BrokerFuture::ready(Err(unwritten(&record.envelope)));
        }
        BrokerFuture::new(async move {
            // The writer has ended without an answer.
            let unknown =
                |_| Err(PublishError::Unconfirmed { topic: topic.to_string(), cause: closed().into() });
            stored.await.unwrap_or_else(unknown)
        })
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        let topics: Vec<_> = envelopes.iter().map(Arc::clone).collect();
        let mut results = Vec::with_capacity(envelopes.len());
        let mut records = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            results.push(self.store().record(envelope).map(|record| records.push(record)));
        }
        let (waiting, stored) = oneshot::channel();
        // What is refused is dropped, and with it `waiting`.
        drop(self.store().writes.publish(Waiting::Many(records, waiting)));
        BrokerFuture::new(async move {
            let mut stored = stored.await.unwrap_or_default().into_iter();
            for (result, envelope) in results.iter_mut().zip(&topics) {
                if result.is_ok() {
                    *result = stored.next().unwrap_or_else(|| Err(unwritten(envelope)));
                }
            }
            results
        })
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let store = Arc::clone(self.store());
        BrokerFuture::new(async move {
            let claim = Claim::new(Arc::clone(&store), request.clone());
            let begun = claim.begin();
            // From here on the group is left when the deliveries are dropped.
            let mut deliveries = Box::new(SqliteDeliveries::new(claim));
            let begun = begun.await?;
            let describe = |owner: &String| lease::describe(&store.settings.path, owner);
            deliveries.owner = begun.owner.as_ref().map(describe);
            deliveries.warnings = store.warnings_of(request, begun).await;
            Ok(deliveries as Box<dyn Deliveries>)
        })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::clone(self.store()) as Arc<dyn DeadLetters>)
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        Some(Arc::clone(self.store()) as Arc<dyn Replayable>)
    }

    fn address(&self) -> Option<String> {
        self.store().address()
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        Some(Arc::clone(self.store()) as Arc<dyn AuditLog>)
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        Some(Arc::clone(self.store()) as Arc<dyn Groups>)
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let store = Arc::clone(self.store());
        Some(BrokerFuture::new(async move { store.settled().await }))
    }

    fn standing(&self, request: &SubscribeRequest) -> Standing {
        let claims = self.store().claims();
        let mut here = claims
            .iter()
            .filter(|one| one.group == request.group && one.pattern == request.pattern)
            .peekable();
        if here.peek().is_none() || here.any(|one| one.is_active()) {
            Standing::Active
        } else {
            Standing::StandingBy
        }
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        let ended: HashSet<_> =
            subscriptions.iter().map(|one| (one.group.as_str(), one.pattern.as_str())).collect();
        let here = self.store().claims();
        let ended = here.iter().filter(|one| ended.contains(&(one.group.as_str(), one.pattern.as_str())));
        let owners: Vec<_> = ended.map(|one| one.owner()).collect();
        // Nothing waits for that: who ends the process before it is written counts it as a crash.
        drop(self.store().writes.run(move |work| claim::shut_down(work.connection, &owners)));
        BrokerFuture::ready(())
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        let store = Arc::clone(self.store());
        store.writes.close();
        BrokerFuture::new(async move {
            store.writes.ended().await?;
            // What was settled last is not saved there.
            store.file.check()
        })
    }
}

impl Store {
    fn address(&self) -> Option<String> {
        let path = self.settings.path.to_str()?;
        // What follows would be read as options.
        (!path.contains('?')).then(|| format!("sqlite:{path}"))
    }

    pub(crate) fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// An envelope as it is written; refused where it is too large.
    fn record(&self, envelope: Arc<Envelope>) -> Result<Record, PublishError> {
        let topic = || envelope.topic().to_string();
        match Record::new(Arc::clone(&envelope)) {
            Ok(record) => {
                record.envelope.check_size(record.payload.len(), self.settings.max_payload)?;
                Ok(record)
            }
            Err(DecodeError::Encode { cause, .. }) => Err(PublishError::Encode { topic: topic(), cause }),
            Err(error) => Err(PublishError::Encode { topic: topic(), cause: error.into() }),
        }
    }

    /// What is to be told of how a group has begun.
    async fn warnings_of(self: &Arc<Self>, request: SubscribeRequest, begun: Begun) -> Vec<String> {
        let SubscribeRequest { group, pattern, start, .. } = request;
        let mut warnings = Vec::new();
        if let Some(behind) = begun.behind.filter(|behind| start == Start::Latest && *behind > 0) {
            let matching = pattern.clone();
            let count = move |reader: &mut Reader| reader.count(&matching, behind, SKIPPED + 1);
            // Whoever reads next meets the error.
            let skips = self.readers.read(count).await.unwrap_or(0);
            warnings.extend(skipped(&group, &pattern, skips, self.address().as_deref()));
        }
        warnings
    }

    pub(crate) fn tail(&self) -> Locked<'_, Tail> {
        self.tail.lock()
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn claims(&self) -> Arc<Vec<Arc<Claim>>> {
        Arc::clone(&self.claims.lock())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn add(&self, claim: &Arc<Claim>) {
        Arc::make_mut(&mut self.claims.lock()).push(Arc::clone(claim));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn remove(&self, number: u64) {
        let mut claims = self.claims.lock();
        let others = claims.iter().filter(|claim| claim.number != number);
        let others = Arc::new(others.cloned().collect());
        let earlier = std::mem::replace(&mut *claims, others);
        drop(claims);
        self.generation.fetch_add(1, Ordering::AcqRel);
        // What the one that was removed still holds is dropped without the lock.
        drop(earlier);
    }

    /// Whether a group with this owner may be taken over.
    pub(crate) fn is_free(&self, owner: &str, lease: Lease) -> bool {
        match self.process.number(owner) {
            Some(number) => {
                let claims = self.claims();
                !claims.iter().any(|one| one.number == number && one.is_active())
            }
            None => match lease::sign(&self.settings.path, owner) {
                Sign::Ended => true,
                Sign::There => self.watched.lock().is_over(owner, lease, Instant::now()),
                Sign::None => lease.is_over(),
            },
        }
    }

    pub(crate) fn turn(&self) -> Locked<'_, Turn<Suspected>> {
        self.turn.lock()
    }

    /// Milliseconds since the log was opened, whatever the clock on the wall does.
    pub(crate) fn clock(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether somebody here wants to know what other processes store.
    pub(crate) fn is_watched(&self) -> bool {
        self.followers.load(Ordering::Acquire) > 0 || !self.claims.lock().is_empty()
    }

    pub(crate) fn set_calling(&self, calling: bool) {
        self.calling.store(calling, Ordering::Release);
    }

    fn is_calling(&self) -> bool {
        self.calling.load(Ordering::Acquire)
    }

    pub(crate) fn set_head(&self, head: i64) {
        if self.head.swap(head, Ordering::AcqRel) != head {
            self.stored.tell();
        }
    }

    pub(crate) fn head(&self) -> i64 {
        self.head.load(Ordering::Acquire)
    }

    /// Resolves once everything is settled that subscriptions of this process listen on, or can be no more.
    async fn settled(&self) {
        loop {
            let look = || match self.settled_here() {
                Some(elsewhere) => Some(Ok(elsewhere)),
                None => self.writes.over().map(Err),
            };
            let found = match self.saved.until(look).await {
                Ok(elsewhere) if !self.is_backlogged(&elsewhere).await => return,
                // Nobody takes over any more what other processes leave.
                Ok(_) => self.writes.over().map_or(Ok(()), Err),
                Err(over) => Err(over),
            };
            if let Err(over) = found {
                log::error!(
                    target: "eventbus", error = %printable(&over),
                    "nobody waits any longer until everything is settled: what is left is handled by the next process"
                );
                return;
            }
            let pause = {
                let _entered = self.readers.runtime().enter();
                tokio::time::sleep(self.settings.poll_interval)
            };
            pause.await;
        }
    }

    /// The subscriptions whose groups other processes have, once those of this one have settled everything.
    fn settled_here(&self) -> Option<Vec<Arc<Claim>>> {
        let claims = self.claims();
        let (here, elsewhere): (Vec<_>, Vec<_>) = claims.iter().partition(|one| one.is_active());
        let settled = !self.is_calling() && here.iter().all(|claim| claim.is_settled());
        settled.then(|| elsewhere.into_iter().cloned().collect())
    }

    /// Whether another process has yet to handle events of these subscriptions.
    async fn is_backlogged(&self, claims: &[Arc<Claim>]) -> bool {
        if claims.is_empty() {
            return false;
        }
        let groups = Groups::list(self).await.unwrap_or_default();
        claims.iter().any(|one| {
            groups.iter().any(|state| {
                (state.group == one.group && state.pattern == one.pattern.as_str()) && state.backlog > 0
            })
        })
    }

    /// Lets whoever waits for the writer see that it has ended.
    pub(crate) fn tell_end(&self) {
        self.saved.tell();
        self.stored.tell();
    }

    /// Resolves once there is an event behind `position`.
    ///
    /// # Errors
    /// Where nobody looks for one any more.
    pub(crate) async fn stored_after(&self, position: i64) -> Result<(), BrokerError> {
        struct Follower<'a>(&'a Store);
        impl Drop for Follower<'_> {
            fn drop(&mut self) {
                self.0.followers.fetch_sub(1, Ordering::AcqRel);
            }
        }

        self.followers.fetch_add(1, Ordering::AcqRel);
        let _follower = Follower(self);
        self.writes.wake();
        let look = || match self.head() > position {
            true => Some(Ok(())),
            false => self.writes.over().map(Err),
        };
        self.stored.until(look).await
    }
}

fn unwritten(envelope: &Envelope) -> PublishError {
    PublishError::Broker { topic: envelope.topic().to_string(), cause: closed().into() }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The writer leaves the file in order; nobody is left to wait for it.
        self.0.writes.close();
    }
}

impl fmt::Debug for SqliteBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBroker").field("path", &self.store().settings.path).finish_non_exhaustive()
    }
}
