//! The broker: what its publishers and subscriptions share, and the contract that it keeps.

use crate::config::{AwsBrokerBuilder, Settings};
use crate::connection::Link;
use crate::dead_letters::AwsDeadLetters;
use crate::groups::AwsGroups;
use crate::publish::Outlet;
use crate::subscribe;
use crate::subscription::Subscription;
use crate::topics::Topics;
use crate::wire::MAX_PAYLOAD;
use eventbus_core::broker::{
    Attempts, Backlog, Broker, BrokerFuture, Connection, DeadLetters, Deliveries, Features, Groups,
    OpenedBroker, SubscribeRequest,
};
use eventbus_core::counted::counted;
use eventbus_core::{BrokerError, Envelope, PublishError};
use eventbus_server::connection::Lost;
use eventbus_server::subscriptions::Subscriptions;
use eventbus_server::tasks::Tasks;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long nothing may have changed, so that everything counts as settled.
const SETTLED: Duration = Duration::from_millis(300);

/// A broker on Amazon SNS and SQS.
///
/// ```no_run
/// use eventbus_aws::AwsBroker;
///
/// # async fn connect() -> eventbus::Result<()> {
/// let broker = AwsBroker::builder("sns://eu-central-1")?.fifo(true).prefix("shop").connect().await?;
/// let bus = eventbus::Bus::builder().broker(broker).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AwsBroker(Arc<Handle>);

/// The last handle ends the tasks.
struct Handle(Arc<Shared>);

struct Shared {
    link: Arc<Link>,
    topics: Arc<Topics>,
    outlet: Arc<Outlet>,
    dead_letters: Arc<AwsDeadLetters>,
    subscriptions: Arc<Subscriptions<Subscription>>,
    tasks: Tasks,
}

impl AwsBroker {
    /// Settings for an address: `sns://<region>`, or `sns://default` for the region of the environment or the profile, with
    /// options as in `sns://eu-central-1?fifo=true&prefix=shop`.
    ///
    /// # Errors
    /// Where it is no such address.
    pub fn builder(url: &str) -> Result<AwsBrokerBuilder, BrokerError> {
        AwsBrokerBuilder::parse(url)
    }

    /// The client of SNS, for whatever else the program does with it.
    #[must_use]
    pub fn sns(&self) -> aws_sdk_sns::Client {
        self.shared().link.sns.clone()
    }

    /// The client of SQS, for whatever else the program does with it.
    #[must_use]
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        self.shared().link.sqs.clone()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    pub(crate) async fn connect_with(settings: Settings) -> Result<Self, BrokerError> {
        let link = Arc::new(Link::open(settings).await?);
        let topics = Arc::<Topics>::default();
        let shared = Shared {
            outlet: Arc::new(Outlet::new(Arc::clone(&link), Arc::clone(&topics))),
            dead_letters: Arc::new(AwsDeadLetters {
                link: Arc::clone(&link),
                looks: Arc::new(Mutex::new(())),
            }),
            link,
            topics,
            subscriptions: Arc::new(Subscriptions::new()),
            tasks: Tasks::new(),
        };
        Ok(Self(Arc::new(Handle(Arc::new(shared)))))
    }
}

impl Shared {
    /// Resolves once the queues of this process are empty, and have been so for a moment.
    async fn settled(&self) {
        let mut before = false;
        loop {
            let mut settled = self.outlet.open() == 0;
            for one in self.subscriptions.all() {
                settled = settled
                    && one.state.lock().held.is_empty()
                    && self.link.waiting(&one.queue.url).await.is_ok_and(|waiting| waiting == 0);
            }
            if settled && before {
                return;
            }
            before = settled;
            tokio::time::sleep(if settled { SETTLED } else { SETTLED / 6 }).await;
        }
    }

    async fn close(&self) -> Result<(), BrokerError> {
        let subscriptions = self.subscriptions.all();
        for one in &subscriptions {
            one.end();
        }
        let flush = async {
            self.outlet.emptied().await;
            for one in &subscriptions {
                one.state.finished().await;
            }
        };
        let lost = self.link.state.lost();
        let flush_time = Lost::flush_time(lost.is_some());
        // What the last call for messages brings is given back.
        let last_call = if lost.is_some() { Duration::ZERO } else { self.link.settings.wait_time };
        let _ = tokio::time::timeout(flush_time + last_call, flush).await;
        let unsettled: usize = subscriptions.iter().map(|one| one.state.lock().held.unconfirmed()).sum();
        let unsent = self.outlet.open();
        self.link.state.close();
        self.abort();
        if unsettled == 0 && unsent == 0 {
            return Ok(());
        }
        let error = format!(
            "the broker was closed while Amazon was silent: of {} that were handled it is not known whether they are deleted \
             from their queues, so they may be delivered again, and of {} not whether they are stored",
            counted(unsettled, "delivery"),
            counted(unsent, "publish")
        );
        Err(Lost::explain(lost, BrokerError::new(error)))
    }

    fn abort(&self) {
        self.tasks.abort();
        self.subscriptions.all().iter().for_each(|one| one.state.finish());
        self.outlet.abort();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.link.state.close();
        self.0.abort();
    }
}

/// Opens the broker at an address.
pub(crate) fn open_address(url: &str) -> OpenedBroker {
    let builder = AwsBrokerBuilder::parse(url);
    BrokerFuture::new(async move { Ok(Arc::new(builder?.connect().await?) as Arc<dyn Broker>) })
}

impl Broker for AwsBroker {
    fn name(&self) -> &str {
        if self.shared().link.settings.names.fifo { "SNS/SQS FIFO" } else { "SNS/SQS" }
    }

    fn address(&self) -> Option<String> {
        self.shared().link.settings.pasted()
    }

    fn features(&self) -> Features {
        let fifo = self.shared().link.settings.names.fifo;
        let mut features = Features::none();
        features.durable = true;
        features.key_order = fifo;
        features.patterns = true;
        features.multi_process = true;
        features.competing = true;
        features.shared_by_key = fifo;
        features.deduplicates = fifo;
        features.attempts = Attempts::Counted;
        features.backlog = Backlog::Nearly;
        features.max_payload = Some(MAX_PAYLOAD);
        features
    }

    fn connection(&self) -> Connection {
        let link = &self.shared().link;
        match (link.state.connection(), link.slowed.now()) {
            (Connection::Up, Some((since, error))) => Connection::Slowed { since, error },
            (connection, _) => connection,
        }
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
            let (subscription, deliveries, task) =
                subscribe::open(&shared.link, &shared.topics, request).await?;
            shared.subscriptions.add(Arc::clone(&subscription));
            shared.tasks.spawn(task);
            if shared.link.state.is_closed() {
                // It was opened while the broker ended.
                subscription.state.finish();
            }
            Ok(Box::new(deliveries) as Box<dyn Deliveries>)
        })
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.link.check(&shared.topics, &request).await })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::clone(&self.shared().dead_letters) as Arc<dyn DeadLetters>)
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        let shared = self.shared();
        let (link, subscriptions) = (Arc::clone(&shared.link), Arc::clone(&shared.subscriptions));
        Some(Arc::new(AwsGroups { link, subscriptions }))
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let shared = Arc::clone(self.shared());
        Some(BrokerFuture::new(async move { shared.settled().await }))
    }

    fn backlog(&self, request: &SubscribeRequest) -> Option<u64> {
        let one = self.shared().subscriptions.find(request)?;
        one.asked.store(true, Ordering::Release);
        one.state.lock().backlog
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.close().await })
    }
}

impl fmt::Debug for AwsBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.shared().link.settings;
        f.debug_struct("AwsBroker")
            .field("server", &settings.shown())
            .field("prefix", &settings.names.prefix)
            .field("fifo", &settings.names.fifo)
            .finish_non_exhaustive()
    }
}
