//! The broker: what its publishers and subscriptions share, and the contract that it keeps.

use crate::audit::NatsAuditLog;
use crate::config::{NatsBrokerBuilder, Settings};
use crate::connection::Link;
use crate::dead_letters::NatsDeadLetters;
use crate::groups::NatsGroups;
use crate::publish::Outlet;
use crate::replay::NatsHistory;
use crate::subscribe;
use crate::subscription::Subscription;
use async_nats::Client;
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
use std::time::Duration;

/// A broker on NATS JetStream.
///
/// ```no_run
/// use eventbus_nats::NatsBroker;
///
/// # async fn connect() -> eventbus::Result<()> {
/// let broker = NatsBroker::builder("nats://localhost")?.stream("SHOP").prefix("shop").connect().await?;
/// let bus = eventbus::Bus::builder().broker(broker).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NatsBroker(Arc<Handle>);

/// The last handle ends the tasks.
struct Handle(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) subscriptions: Subscriptions<Subscription>,
    pub(crate) tasks: Tasks,
}

impl NatsBroker {
    /// Settings for the servers of an address: `nats://host:port` or `tls://host:port`, several hosts separated by
    /// commas, with options as in `nats://localhost?stream=SHOP`.
    ///
    /// # Errors
    /// Where it is no such address.
    pub fn builder(url: &str) -> Result<NatsBrokerBuilder, BrokerError> {
        NatsBrokerBuilder::parse(url)
    }

    /// The client, for whatever else the program does with NATS. It is the connection of the broker.
    ///
    /// Ask for it whenever it is needed: over a message that it cannot read, such as one with a bare carriage return in a
    /// header, it ends for good, and then the broker has another one.
    #[must_use]
    pub fn client(&self) -> Client {
        self.shared().link.client().client.clone()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    pub(crate) async fn connect_with(settings: Settings) -> Result<Self, BrokerError> {
        let (link, ended) = Link::open(settings).await?;
        let link = Arc::new(link);
        link.ensure_streams().await?;
        let (outlet, confirmations) = Outlet::open(Arc::clone(&link)).await?;
        let shared = Shared { link, outlet, subscriptions: Subscriptions::new(), tasks: Tasks::new() };
        let broker = Self(Arc::new(Handle(Arc::new(shared))));
        broker.shared().tasks.spawn(Arc::clone(&broker.shared().link).keep(ended));
        broker.shared().tasks.spawn(confirmations);
        Ok(broker)
    }
}

impl Shared {
    /// Resolves once the server has nothing for the subscriptions of this process, and they have nothing of it.
    pub(crate) async fn settled(&self) {
        let mut before = None;
        loop {
            let mut delivered = Vec::new();
            for one in self.subscriptions.all() {
                let info = self.link.consumer_info(&one.consumer).await.ok();
                let info =
                    info.filter(|info| info.num_pending == 0 && info.num_ack_pending == 0 && one.is_idle());
                delivered.push(info.map(|info| info.delivered.consumer_sequence));
            }
            // What one has handled may be there for another one that was looked at before.
            let settled = delivered.iter().all(Option::is_some);
            if settled && before.as_ref() == Some(&delivered) {
                return;
            }
            before = Some(delivered);
            if !settled {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn close(&self) -> Result<(), BrokerError> {
        let subscriptions = self.subscriptions.all();
        for one in &subscriptions {
            one.end();
        }
        let flush = async {
            for one in &subscriptions {
                one.state.finished().await;
            }
            self.outlet.emptied().await;
        };
        let lost = self.link.state.lost();
        let _ = tokio::time::timeout(Lost::flush_time(lost.is_some()), flush).await;
        let unsettled: usize = subscriptions.iter().map(|one| one.state.lock().intake.unconfirmed()).sum();
        let unsent = self.outlet.open_publishes();
        self.link.state.close();
        let _ = self.link.client().client.drain().await;
        self.tasks.abort();
        if unsettled == 0 && unsent == 0 {
            return Ok(());
        }
        let error = format!(
            "the broker was closed while the server was silent: of {} that were handled it is not known whether they are \
             settled there, so they may be delivered again, and of {} not whether they are stored",
            counted(unsettled, "delivery"),
            counted(unsent, "publish")
        );
        Err(Lost::explain(lost, BrokerError::new(error)))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.link.state.close();
        self.0.tasks.abort();
    }
}

/// Opens the broker at an address.
pub(crate) fn open_address(url: &str) -> OpenedBroker {
    let builder = NatsBrokerBuilder::parse(url);
    BrokerFuture::new(async move { Ok(Arc::new(builder?.connect().await?) as Arc<dyn Broker>) })
}

impl Broker for NatsBroker {
    fn name(&self) -> &str {
        "NATS JetStream"
    }

    fn features(&self) -> Features {
        let mut features = Features::none();
        features.durable = true;
        features.key_order = true;
        features.patterns = true;
        features.start_earliest = true;
        features.multi_process = true;
        features.competing = true;
        features.deduplicates = true;
        features.seek = true;
        features.rename = true;
        features.attempts = Attempts::Noted;
        features.counts_crashes = true;
        features.backlog = Backlog::Exactly;
        features.max_payload = Some(self.shared().link.max_payload());
        features
    }

    fn connection(&self) -> Connection {
        self.shared().link.state.connection()
    }

    fn standing(&self, request: &SubscribeRequest) -> Standing {
        let same = self.shared().subscriptions.of(&request.group, &request.pattern);
        if same.iter().any(|one| one.stance.standing() == Standing::StandingBy) {
            Standing::StandingBy
        } else {
            Standing::Active
        }
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        BrokerFuture::new(Arc::clone(&self.shared().outlet).publish(envelope))
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        BrokerFuture::new(Arc::clone(&self.shared().outlet).publish_all(envelopes))
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let broker = self.clone();
        BrokerFuture::new(async move {
            let shared = broker.shared();
            let (subscription, deliveries, task) =
                subscribe::open(&shared.link, &shared.outlet, request).await?;
            shared.subscriptions.add(subscription);
            shared.tasks.spawn(task);
            Ok(Box::new(deliveries) as Box<dyn Deliveries>)
        })
    }

    fn check(&self, request: SubscribeRequest) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.link.check(&request).await })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        Some(Arc::new(NatsDeadLetters(Arc::clone(self.shared()))))
    }

    fn replayable(&self) -> Option<Arc<dyn Replayable>> {
        Some(Arc::new(NatsHistory(Arc::clone(self.shared()))))
    }

    fn audit_log(&self) -> Option<Arc<dyn AuditLog>> {
        Some(Arc::new(NatsAuditLog(Arc::clone(self.shared()))))
    }

    fn groups(&self) -> Option<Arc<dyn Groups>> {
        Some(Arc::new(NatsGroups(Arc::clone(self.shared()))))
    }

    fn settled(&self) -> Option<BrokerFuture<()>> {
        let shared = Arc::clone(self.shared());
        Some(BrokerFuture::new(async move { shared.settled().await }))
    }

    fn drain(&self, subscriptions: &[SubscribeRequest]) -> BrokerFuture<()> {
        let open = subscriptions.iter().map(|one| self.shared().subscriptions.of(&one.group, &one.pattern));
        let open: Vec<_> = open.flatten().collect();
        BrokerFuture::new(async move {
            for one in open {
                one.drain().await;
            }
        })
    }

    fn close(&self) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(self.shared());
        BrokerFuture::new(async move { shared.close().await })
    }
}

impl fmt::Debug for NatsBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.shared().link.settings;
        f.debug_struct("NatsBroker")
            .field("server", &settings.shown())
            .field("stream", &settings.stream)
            .finish_non_exhaustive()
    }
}
