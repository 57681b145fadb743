//! The broker: what its publishers and subscriptions share, and the contract that it keeps.

use crate::audit::RabbitMqAuditLog;
use crate::config::{QueueType, RabbitMqBrokerBuilder, Settings};
use crate::connection::Link;
use crate::dead_letters::RabbitMqDeadLetters;
use crate::directory::Directory;
use crate::groups::{Known, RabbitMqGroups};
use crate::publish::Outlet;
use crate::replay::RabbitMqHistory;
use crate::stream::Events;
use crate::subscribe;
use crate::subscription::Subscription;
use eventbus_core::broker::{
    Attempts, AuditLog, Backlog, Broker, BrokerFuture, Connection, DeadLetters, Deliveries, Features, Groups,
    OpenedBroker, Replayable, Standing, SubscribeRequest,
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

/// How long nothing may have changed, so that everything counts as settled.
const SETTLED: Duration = Duration::from_millis(300);

/// A broker on RabbitMQ.
///
/// ```no_run
/// use eventbus_rabbitmq::RabbitMqBroker;
///
/// # async fn connect() -> eventbus::Result<()> {
/// let broker = RabbitMqBroker::builder("amqp://localhost")?.exchange("shop").connect().await?;
/// let bus = eventbus::Bus::builder().broker(broker).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RabbitMqBroker(Arc<Handle>);

/// The last handle ends the tasks.
struct Handle(Arc<Shared>);

struct Shared {
    consuming: Arc<Link>,
    publishing: Arc<Link>,
    outlet: Arc<Outlet>,
    directory: Arc<Directory>,
    dead_letters: RabbitMqDeadLetters,
    subscriptions: Arc<Subscriptions<Subscription>>,
    tasks: Arc<Tasks>,
}

impl RabbitMqBroker {
    /// Settings for an address: `amqp://user:password@host:port/vhost`, `amqps://…` with TLS, several hosts parted by commas,
    /// with options as in `amqp://localhost?exchange=shop&mandatory=true`.
    ///
    /// # Errors
    /// Where it is no such address.
    pub fn builder(url: &str) -> Result<RabbitMqBrokerBuilder, BrokerError> {
        RabbitMqBrokerBuilder::parse(url)
    }

    /// Another channel of the connection that consumes, for whatever else the program does with the server.
    ///
    /// # Errors
    /// Where there is no connection now.
    pub async fn channel(&self) -> Result<lapin::Channel, BrokerError> {
        let opened = self.shared().consuming.channel().await;
        opened.map_err(|trouble| trouble.explain("open a channel"))
    }

    /// The stream of all events, where it is kept.
    fn events(&self) -> Option<Arc<Events>> {
        let shared = self.shared();
        let events = Events::new(Arc::clone(&shared.consuming), Arc::clone(&shared.outlet));
        shared.consuming.settings.streams.then(|| Arc::new(events))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    pub(crate) async fn connect_with(settings: Settings) -> Result<Self, BrokerError> {
        let settings = Arc::new(settings);
        let (consuming, keeps_consuming) = Link::open(&settings, "consuming").await?;
        let (publishing, keeps_publishing) = Link::open(&settings, "publishing").await?;
        consuming.exchange().await?;
        let outlet = Arc::new(Outlet::new(Arc::clone(&publishing)));
        let directory = Arc::new(Directory::new(Arc::clone(&consuming), Arc::clone(&outlet)));
        let dead_letters =
            RabbitMqDeadLetters::new(Arc::clone(&consuming), Arc::clone(&outlet), Arc::clone(&directory));
        let shared = Arc::new(Shared {
            consuming,
            publishing,
            outlet,
            directory,
            dead_letters,
            subscriptions: Arc::new(Subscriptions::new()),
            tasks: Arc::new(Tasks::new()),
        });
        shared.tasks.spawn(keeps_consuming);
        shared.tasks.spawn(keeps_publishing);
        shared.tasks.spawn(Arc::clone(&shared.outlet).run());
        Ok(Self(Arc::new(Handle(shared))))
    }
}

impl Shared {
    /// Resolves once the queues of this process are empty, and have been so for a moment.
    async fn settled(&self) {
        let mut before = false;
        loop {
            let mut settled = self.outlet.open() == 0;
            for one in self.subscriptions.all() {
                let is_done = || {
                    let state = one.state.lock();
                    state.held.open() == 0 && state.held.is_acked()
                };
                settled = settled
                    && is_done()
                    && self.consuming.count(&one.queue).await.is_ok_and(|count| count.ready == 0)
                    && is_done();
            }
            if settled && before {
                return;
            }
            before = settled;
            tokio::time::sleep(if settled { SETTLED } else { SETTLED / 6 }).await;
        }
    }

    /// The loss of a connection, of those that are needed: to consume, to publish, and of a group that reads by its own.
    fn lost(&self) -> Option<Lost> {
        let apart = || self.subscriptions.all().iter().find_map(|one| one.lost_apart());
        self.consuming.state.lost().or_else(|| self.publishing.state.lost()).or_else(apart)
    }

    async fn close(&self) -> Result<(), BrokerError> {
        let subscriptions = self.subscriptions.all();
        for one in &subscriptions {
            one.close();
        }
        self.outlet.close();
        let (consuming, publishing) = (self.consuming.state.lost(), self.publishing.state.lost());
        let out_of_reach = publishing.is_some() || self.publishing.blocked().is_some();
        let acked = async {
            for one in &subscriptions {
                one.state.finished().await;
            }
        };
        let _ = tokio::join!(
            tokio::time::timeout(Lost::flush_time(out_of_reach), self.outlet.emptied()),
            tokio::time::timeout(Lost::flush_time(consuming.is_some()), acked),
        );
        let lost = consuming.or(publishing).or_else(|| self.publishing.blocked());
        let unsettled: usize = subscriptions.iter().map(|one| one.state.lock().held.unconfirmed()).sum();
        let unsent = self.outlet.open();
        tokio::join!(self.consuming.close(), self.publishing.close());
        self.tasks.abort();
        if unsettled == 0 && unsent == 0 {
            return Ok(());
        }
        let error = format!(
            "the broker was closed while RabbitMQ was silent: of {} that were handled it is not known whether they are acked, \
             so they may be delivered again, and of {} not whether they are stored",
            counted(unsettled, "delivery"),
            counted(unsent, "publish")
        );
        Err(Lost::explain(lost, BrokerError::new(error)))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.consuming.abandon();
        self.0.publishing.abandon();
        self.0.tasks.abort();
    }
}

/// Opens the broker at an address.
pub(crate) fn open_address(url: &str) -> OpenedBroker {
    let builder = RabbitMqBrokerBuilder::parse(url);
    BrokerFuture::new(async move { Ok(Arc::new(builder?.connect().await?) as Arc<dyn Broker>) })
}

impl Broker for RabbitMqBroker {
    fn name(&self) -> &str {
        "RabbitMQ"
    }

    fn address(&self) -> Option<String> {
        self.shared().consuming.settings.pasted()
    }

    fn features(&self) -> Features {
        let shared = self.shared();
        let mut features = Features::none();
        features.durable = true;
        features.key_order = true;
        features.patterns = true;
        features.multi_process = true;
        features.competing = true;
        features.attempts = match shared.consuming.settings.queue_type {
            QueueType::Quorum => Attempts::Counted,
            QueueType::Classic => Attempts::Lost,
        };
        features.backlog = Backlog::Nearly;
        features.max_payload = Some(shared.outlet.max_payload());
        features
    }

    fn connection(&self) -> Connection {
        let shared = self.shared();
        if let Some(Lost { since, error, .. }) = shared.lost() {
            return Connection::Lost { since, error };
        }
        match shared.publishing.blocked().or_else(|| shared.consuming.blocked()) {
            Some(Lost { since, error, .. }) => Connection::Slowed { since, error },
            None => Connection::Up,
        }
    }

    fn standing(&self, request: &SubscribeRequest) -> Standing {
        let active = |one: Arc<Subscription>| one.state.lock().active;
        match self.shared().subscriptions.find(request).is_none_or(active) {
            true => Standing::Active,
            false => Standing::StandingBy,
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
                subscribe::open(&shared.consuming, &shared.outlet, &shared.directory, request).await?;
            shared.subscriptions.add(subscription);
            shared.tasks.spawn(task);
            Ok(Box::new(deliveries) as Box<dyn Deliveries>)
        })
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.consuming.check(&request).await })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(self.shared().dead_letters.clone()))
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        let (events, tasks) = (self.events()?, Arc::clone(&self.shared().tasks));
        Some(Arc::new(RabbitMqHistory { events, tasks }))
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        Some(Arc::new(RabbitMqAuditLog(self.events()?)))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        let shared = self.shared();
        let known = Known {
            link: Arc::clone(&shared.consuming),
            directory: Arc::clone(&shared.directory),
            dead_letters: shared.dead_letters.clone(),
            subscriptions: Arc::clone(&shared.subscriptions),
        };
        Some(Arc::new(RabbitMqGroups(Arc::new(known))))
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let shared = Arc::clone(self.shared());
        Some(BrokerFuture::new(async move { shared.settled().await }))
    }

    fn backlog(&self, request: &SubscribeRequest) -> Option<u64> {
        let one = self.shared().subscriptions.find(request)?;
        one.asked.store(true, Ordering::Release);
        one.bell.notify_one();
        let state = one.state.lock();
        Some(state.backlog? + state.held.open() as u64)
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.close().await })
    }
}

impl fmt::Debug for RabbitMqBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.shared().consuming.settings;
        f.debug_struct("RabbitMqBroker")
            .field("server", &settings.shown())
            .field("exchange", &settings.exchange)
            .field("queue_type", &settings.queue_type)
            .finish_non_exhaustive()
    }
}
