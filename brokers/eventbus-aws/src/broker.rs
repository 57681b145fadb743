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
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, PublishError};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

/// How long the end of a broker waits for what is on its way.
const FLUSH: Duration = Duration::from_secs(4);
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
    subscriptions: Arc<Lock<Vec<Arc<Subscription>>>>,
    tasks: Lock<Vec<AbortHandle>>,
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
            subscriptions: Arc::new(Lock::new(Rank::BROKER, Vec::new())),
            tasks: Lock::new(Rank::BROKER, Vec::new()),
        };
        Ok(Self(Arc::new(Handle(Arc::new(shared)))))
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task).abort_handle();
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        let mut subscriptions = self.subscriptions.lock();
        subscriptions.retain(|one| !one.state.lock().is_finished());
        subscriptions.clone()
    }

    /// Resolves once the queues of this process are empty, and have been so for a moment.
    async fn settled(&self) {
        let mut before = false;
        loop {
            let mut settled = self.outlet.open() == 0;
            for one in self.subscriptions() {
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
        let subscriptions = self.subscriptions();
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
        // Without a connection, what is not confirmed by now will not be.
        let patience = if lost.is_some() { Duration::from_millis(100) } else { FLUSH };
        let _ = tokio::time::timeout(patience, flush).await;
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
        Err(match lost {
            Some(lost) => BrokerError::new(error).with_cause(lost.error),
            None => BrokerError::new(error),
        })
    }

    fn abort(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.iter().for_each(AbortHandle::abort);
        let subscriptions = std::mem::take(&mut *self.subscriptions.lock());
        subscriptions.iter().for_each(|one| one.state.finish());
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
        match (link.state.lost(), link.slowed.now()) {
            (Some(lost), _) => Connection::Lost { since: lost.since, error: lost.error },
            (None, Some((since, error))) => Connection::Slowed { since, error },
            (None, None) => Connection::Up,
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
            shared.subscriptions.lock().push(Arc::clone(&subscription));
            shared.spawn(task);
            if shared.link.state.is_closed() {
                // It was opened while the broker ended.
                subscription.state.finish();
            }
            Ok(Box::new(deliveries) as Box<dyn Deliveries>)
        })
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
        let subscriptions = self.shared().subscriptions();
        let mut same = subscriptions.iter().filter(|one| one.group == request.group);
        let one = same.find(|one| one.pattern == request.pattern)?;
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
