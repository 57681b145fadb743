//! The broker: what its publishers and subscriptions share, and the contract that it keeps.

use crate::audit::KafkaAuditLog;
use crate::commit::all_known;
use crate::config::{KafkaBrokerBuilder, Settings};
use crate::connection::{CALL, Context, Link, blocking, tell};
use crate::dead_letters::KafkaDeadLetters;
use crate::groups::KafkaGroups;
use crate::publish::Outlet;
use crate::replay::KafkaReplays;
use crate::scan::{Range, Tails};
use crate::subscribe;
use crate::subscription::Subscription;
use crate::topology::Topics;
use eventbus_core::broker::{
    Attempts, AuditLog, Backlog, Broker, BrokerFuture, Connection, DeadLetters, Deliveries, Features, Groups,
    OpenedBroker, Replayable, SubscribeRequest,
};
use eventbus_core::counted::counted;
use eventbus_core::{BrokerError, Envelope, PublishError, foreign};
use eventbus_server::connection::{Lost, pause_before};
use eventbus_server::subscriptions::Subscriptions;
use eventbus_server::tasks::Tasks;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked for new topics, and whether somebody answers.
const LOOK: Duration = Duration::from_secs(2);

/// A broker on Apache Kafka.
///
/// ```no_run
/// use eventbus_kafka::KafkaBroker;
///
/// # async fn connect() -> eventbus::Result<()> {
/// let broker = KafkaBroker::builder("kafka://kafka-1.internal,kafka-2.internal")?.partitions(12).connect().await?;
/// let bus = eventbus::Bus::builder().broker(broker).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct KafkaBroker(Arc<Handle>);

/// The last handle ends the tasks.
struct Handle(Arc<Shared>);

struct Shared {
    link: Arc<Link>,
    topics: Arc<Topics>,
    outlet: Arc<Outlet>,
    dead_letters: KafkaDeadLetters,
    tails: Arc<Tails>,
    subscriptions: Subscriptions<Subscription>,
    tasks: Tasks,
}

impl KafkaBroker {
    /// Settings for an address: `kafka://<host>[:<port>][,<host>…]`, or `kafkas://…` with TLS, with options as in
    /// `kafka://kafka-1.internal?partitions=12&replication=3`.
    ///
    /// # Errors
    /// Where it is no such address.
    pub fn builder(url: &str) -> Result<KafkaBrokerBuilder, BrokerError> {
        KafkaBrokerBuilder::parse(url)
    }

    /// What the clients of this broker begin with: servers, TLS and credentials, for whatever else the program does with
    /// Kafka.
    #[must_use]
    pub fn client_config(&self) -> rdkafka::ClientConfig {
        self.shared().link.settings.client()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    pub(crate) async fn connect_with(settings: Settings) -> Result<Self, BrokerError> {
        let link = Arc::new(Link::open(settings).await?);
        let topics = Arc::new(Topics::new());
        let outlet = Arc::new(Outlet::new(Arc::clone(&link), Arc::clone(&topics))?);
        let dead_letters = KafkaDeadLetters::new(Arc::clone(&link), Arc::clone(&topics));
        let shared = Arc::new(Shared {
            link,
            topics,
            outlet,
            dead_letters,
            tails: Arc::default(),
            subscriptions: Subscriptions::new(),
            tasks: Tasks::new(),
        });
        shared.tasks.spawn(watch(Arc::clone(&shared.link), Arc::clone(&shared.topics)));
        Ok(Self(Arc::new(Handle(shared))))
    }
}

/// Looks for new topics, and whether somebody answers.
async fn watch(link: Arc<Link>, topics: Arc<Topics>) {
    let mut failures = 0;
    loop {
        let looking = async {
            let serving = Arc::clone(&link);
            blocking(move || serving.serve_members()).await;
            link.look_for_topics(&topics).await?;
            if let Err(error) = link.keeps_groups(&topics).await {
                tell("GROUPS", &error.to_string());
            }
            Ok::<_, KafkaError>(())
        };
        match foreign::run("the Kafka client", || looking).await {
            Ok(Ok(())) => failures = 0,
            Ok(Err(_)) | Err(_) => failures += 1,
        }
        tokio::time::sleep(if failures == 0 { LOOK } else { pause_before(failures + 1) }).await;
    }
}

impl Shared {
    /// Resolves once everything that was stored is settled by the groups of this process.
    async fn settled(self: &Arc<Self>) {
        loop {
            let mut settled = self.outlet.open() == 0;
            let subscriptions = self.subscriptions.all();
            settled = settled && subscriptions.iter().all(|one| one.state.lock().held.is_empty());
            if settled {
                let this = Arc::clone(self);
                let nothing_left =
                    blocking(move || subscriptions.iter().all(|one| this.nothing_left(one).unwrap_or(false)));
                // What was handled meanwhile may have caused more.
                if nothing_left.await && self.outlet.open() == 0 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether everything that a group has is committed as settled.
    fn nothing_left(&self, subscription: &Subscription) -> Result<bool, BrokerError> {
        let state = subscription.state.lock();
        if !state.held.is_empty() || state.held.uncommitted() > 0 {
            return Ok(false);
        }
        drop(state);
        let Subscription { link, topics, group, pattern, id, .. } = subscription;
        let mut partitions = subscribe::partitions_of(&link.covered(topics, pattern));
        let again = link.again_topic(group);
        if let Some(count) = topics.partitions(&again) {
            partitions.extend(subscribe::partitions_of(&[(again.into(), count)]));
        }
        if partitions.is_empty() {
            return Ok(true);
        }
        let ranges = link.everything(&partitions)?;
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in &partitions {
            asked.add_partition(topic, *partition);
        }
        let member: Arc<BaseConsumer<Context>> = link.member(id)?;
        let committed = member.committed_offsets(asked, CALL).and_then(all_known);
        let Ok(committed) = committed else { return Ok(false) };
        let mut left = Vec::new();
        for mut range in ranges {
            let (topic, partition) = &range.partition;
            if let Some(element) = committed.find_partition(topic, *partition)
                && let Offset::Offset(offset) = element.offset()
            {
                range.from = range.from.max(offset);
            }
            left.push(range);
        }
        let left: Vec<Range> = link.without_empty(&self.tails, left)?;
        Ok(left.is_empty())
    }

    async fn close(&self) -> Result<(), BrokerError> {
        let subscriptions = self.subscriptions.all();
        for one in &subscriptions {
            one.end();
        }
        let lost = self.link.state.lost();
        let flush = async {
            self.outlet.emptied().await;
            for one in &subscriptions {
                one.state.finished().await;
            }
        };
        let flushed = tokio::time::timeout(Lost::flush_time(lost.is_some()), flush).await.is_ok();
        let unsaved: usize = subscriptions.iter().map(|one| one.state.lock().held.uncommitted()).sum();
        let unsent = self.outlet.open();
        self.end();
        let link = Arc::clone(&self.link);
        blocking(move || link.forget_members()).await;
        if flushed {
            self.dead_letters.close().await;
        }
        if unsaved == 0 && unsent == 0 {
            return Ok(());
        }
        let error = format!(
            "the broker was closed while Kafka was silent: {} that were handled are not committed, so they may be delivered \
             again, and of {} it is not known whether they are stored",
            counted(unsaved, "delivery"),
            counted(unsent, "publish")
        );
        Err(Lost::explain(lost, BrokerError::new(error)))
    }

    fn end(&self) {
        self.link.state.close();
        self.tasks.abort();
        self.outlet.close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for one in self.0.subscriptions.all() {
            one.end();
        }
        self.0.end();
        let shared = Arc::clone(&self.0);
        // Clients say good-bye to servers, and whoever drops a broker does not wait for that. Without a thread it does.
        drop(std::thread::Builder::new().name("eventbus-kafka-end".to_owned()).spawn(move || drop(shared)));
    }
}

/// Opens the broker at an address.
pub(crate) fn open_address(url: &str) -> OpenedBroker {
    let builder = KafkaBrokerBuilder::parse(url);
    BrokerFuture::new(async move { Ok(Arc::new(builder?.connect().await?) as Arc<dyn Broker>) })
}

impl Broker for KafkaBroker {
    fn name(&self) -> &str {
        "Kafka"
    }

    fn address(&self) -> Option<String> {
        self.shared().link.settings.pasted()
    }

    fn features(&self) -> Features {
        let mut features = Features::none();
        features.durable = true;
        features.key_order = true;
        features.patterns = true;
        features.start_earliest = true;
        features.multi_process = true;
        features.competing = true;
        features.shared_by_key = true;
        features.seek = true;
        features.rename = true;
        features.transactions = self.shared().link.settings.transactions;
        features.attempts = Attempts::Noted;
        features.backlog = Backlog::Nearly;
        features.max_payload = Some(self.shared().link.settings.max_payload);
        features
    }

    fn connection(&self) -> Connection {
        self.shared().link.state.connection()
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        BrokerFuture::new(Arc::clone(&self.shared().outlet).publish(envelope))
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        BrokerFuture::new(Arc::clone(&self.shared().outlet).publish_all(envelopes))
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move {
            let (subscription, deliveries) =
                subscribe::open(&shared.link, &shared.topics, &shared.outlet, request).await?;
            shared.subscriptions.add(subscription);
            Ok(Box::new(deliveries) as Box<dyn Deliveries>)
        })
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.link.check(&shared.topics, &request).await })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(self.shared().dead_letters.clone()))
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        let Shared { link, topics, tails, .. } = &**self.shared();
        let (link, topics, tails) = (Arc::clone(link), Arc::clone(topics), Arc::clone(tails));
        Some(Arc::new(KafkaReplays { link, topics, tails }))
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        let Shared { link, topics, .. } = &**self.shared();
        Some(Arc::new(KafkaAuditLog { link: Arc::clone(link), topics: Arc::clone(topics) }))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        let Shared { link, topics, outlet, dead_letters, tails, .. } = &**self.shared();
        Some(Arc::new(KafkaGroups {
            link: Arc::clone(link),
            topics: Arc::clone(topics),
            outlet: Arc::clone(outlet),
            dead_letters: dead_letters.clone(),
            tails: Arc::clone(tails),
        }))
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let shared = Arc::clone(self.shared());
        Some(BrokerFuture::new(async move { shared.settled().await }))
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.close().await })
    }
}

impl fmt::Debug for KafkaBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.shared().link.settings;
        f.debug_struct("KafkaBroker")
            .field("server", &settings.shown())
            .field("prefix", &settings.prefix)
            .finish_non_exhaustive()
    }
}
