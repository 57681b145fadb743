//! The bus: publish, run, shut down.

mod address;
mod builder;
mod causes;
mod dropped;
mod health;
mod home;
mod on;
mod pace;
mod pass;
mod rebuild;
mod replay;
mod sharing;
mod shutdown;
mod signal;
mod stage;
mod unstarted;

pub use builder::BusBuilder;
pub use health::{Health, SubscriptionHealth, SubscriptionState};
pub use on::{On, SubscriptionHandle};
pub use rebuild::Rebuilding;
pub use replay::{ReplayProgress, ReplayReport, Replaying};
pub use signal::shutdown_signal;

use crate::broker::{AuditLog, Broker, DeadLetters, Features, Groups};
use crate::census;
use crate::delivery::Scope;
use crate::error::{BrokerError, Error, Result, StartupError};
use crate::foreign;
use crate::lock::Lock;
use crate::log;
use crate::middleware::HandlerLayer;
use crate::printable::printable;
use crate::publisher::{Outlet, Publisher};
use crate::registry::Subscriber;
use crate::state::States;
use crate::stderr;
use crate::subscription::{Policy, Subscription};
use crate::waiters::Waiters;
use crate::worker::{self, Lanes, Watchdog};
use dropped::Dropped;
use home::Home;
use sharing::Sharing;
use stage::Stage;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;

/// A bus: publishes events, and runs the subscriptions of the program.
///
/// It is cheap to clone; all clones are one bus. It publishes through its [`Publisher`], whose methods it has.
/// From the moment it is connected its subscriptions miss nothing; they are handled once it runs.
///
/// A bus that is started is ended with [`shutdown`](Self::shutdown), as [`run`](Self::run) does by itself. Where the last
/// clone is dropped before, handlers that run finish, as long as their runtime lasts, and one warning says how many
/// deliveries were not handled.
///
/// ```
/// # use eventbus::{Bus, Event, subscribe};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
/// # #[event(topic = "order.placed")]
/// # struct OrderPlaced { id: u64 }
/// #[subscribe]
/// async fn confirm(order: OrderPlaced) {
///     println!("order {} confirmed", order.id);
/// }
///
/// # #[tokio::main]
/// # async fn main() -> eventbus::Result<()> {
/// let bus = Bus::builder().only([confirm::SUBSCRIBER]).connect("memory:").await?;
/// bus.start()?;
/// bus.publish(&OrderPlaced { id: 1 }).await?;
/// bus.shutdown().await
/// # }
/// ```
#[derive(Clone)]
pub struct Bus {
    publisher: Publisher,
    shared: Arc<Shared>,
}

struct Shared {
    broker: Arc<dyn Broker>,
    outlet: Arc<Outlet>,
    states: Arc<States>,
    policy: Policy,
    layers: Vec<(Option<String>, Arc<dyn HandlerLayer>)>,
    drain: Duration,
    home: Home,
    watchdog: OnceLock<Arc<Watchdog>>,
    stage: Lock<Stage>,
    ended: Waiters,
}

impl Bus {
    /// A bus with settings of its own.
    pub fn builder() -> BusBuilder {
        BusBuilder::default()
    }

    /// A bus with the default settings, on the broker at `url`; see [`BusBuilder::connect`].
    ///
    /// # Errors
    /// Where the address cannot be used, or the start-up checks find mistakes.
    ///
    /// # Cancel safety
    /// As [`BusBuilder::broker`].
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder().connect(url).await
    }

    /// A bus with the default settings, on the broker that the environment names; see
    /// [`BusBuilder::connect_from_env`].
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// As [`BusBuilder::broker`].
    pub async fn from_env() -> Result<Self> {
        Self::builder().connect_from_env().await
    }

    /// Begins to handle deliveries, and returns at once. To start twice is to start once.
    ///
    /// The handlers run on the tokio runtime on which the bus was connected, wherever this is called.
    ///
    /// From now on, and as long as the program has set up no `tracing` subscriber, the warnings and errors of the bus go
    /// to standard error: failed attempts, dead letters, and what start-up has found. A program may still set up its
    /// log after this; one that wants silence sets up `tracing::subscriber::NoSubscriber` before.
    ///
    /// # Errors
    /// Where there is no subscription, where the bus was shut down before, and where that runtime has ended.
    pub fn start(&self) -> Result<()> {
        stderr::speak_up();
        self.start_quietly()
    }

    /// As [`start`](Self::start), without a word on standard error: for tests, which look at what failed.
    ///
    /// # Errors
    /// As `start`.
    #[doc(hidden)]
    pub fn start_quietly(&self) -> Result<()> {
        let mut stage = self.shared.stage.lock();
        if stage.closed {
            return Err(Error::Closed);
        }
        if stage.lanes.is_empty() {
            return Err(StartupError::new(vec![census::NO_SUBSCRIPTIONS.to_owned()]).into());
        }
        let _entered = self.shared.home.enter()?;
        // Whatever is subscribed from now on begins by itself.
        let first = !std::mem::replace(&mut stage.running, true);
        let lanes = if first { stage.lanes.clone() } else { Vec::new() };
        drop(stage);
        self.shared.warn(Vec::new());
        lanes.iter().for_each(|lanes| lanes.start());
        if first {
            self.tell_left_over(&lanes);
        }
        Ok(())
    }

    /// Warns of what is left over of earlier patterns, now that each group has taken over what it can.
    fn tell_left_over(&self, lanes: &[Arc<Lanes>]) {
        let (Some(groups), Ok(runtime)) = (self.shared.broker.groups(), Handle::try_current()) else {
            return;
        };
        let subscriptions: Vec<_> = lanes.iter().map(|lanes| lanes.subscription().clone()).collect();
        let address = foreign::call("a broker", || self.shared.broker.address()).unwrap_or_default();
        runtime.spawn(async move {
            // Whoever looks again meets the error.
            let Ok(kept) = groups.list().await else { return };
            let subscriptions: Vec<_> = subscriptions.iter().collect();
            for warning in census::left_over(&kept, &subscriptions, true, address.as_deref()) {
                log::warn!(target: "eventbus", "{}", printable(warning));
            }
        });
    }

    /// Resolves once every event that was published is settled by every subscription of this bus, retries included:
    /// for programs that end when their work is done, such as an import.
    ///
    /// ```
    /// # async fn import(bus: eventbus::Bus) -> eventbus::Result<()> {
    /// bus.start()?;
    /// bus.publish_to("user.created", "Ada").await?;
    /// bus.settled().await?;
    /// bus.shutdown().await
    /// # }
    /// ```
    ///
    /// A handler that awaits this waits for itself, since its own event is not settled. Where the bus was not started, so
    /// that nothing is handled, a warning says so after a second, on standard error where nobody listens to the log. Where a log has ended meanwhile, so that nothing more can
    /// be settled, it resolves with an error line.
    ///
    /// # Errors
    /// Where the broker cannot tell.
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed.
    pub async fn settled(&self) -> Result<()> {
        let settled = self.shared.broker.settled();
        let settled = settled.ok_or_else(|| self.lacks("cannot tell whether everything is settled"))?;
        let warn = async {
            self.warn_unstarted().await;
            std::future::pending().await
        };
        race(settled, warn).await;
        Ok(())
    }

    /// The subscriptions of this bus: those of the registry by their places in the source, then those that were
    /// made at run time.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<Subscription> {
        self.shared.stage.lock().lanes.iter().map(|lanes| lanes.subscription().clone()).collect()
    }

    /// The events that subscriptions gave up on: to list them, to deliver them again to the group that failed,
    /// and to purge them.
    ///
    /// ```
    /// # async fn mend(bus: eventbus::Bus) -> eventbus::Result<()> {
    /// let dead_letters = bus.dead_letters()?;
    /// for (id, letter) in dead_letters.list().await? {
    ///     if letter.group == "billing.charge" {
    ///         dead_letters.republish(&id, None).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where the broker keeps no dead letters.
    pub fn dead_letters(&self) -> Result<Arc<dyn DeadLetters>> {
        self.shared.broker.dead_letters().ok_or_else(|| self.lacks("keeps no dead letters"))
    }

    /// The audit log: what was published on this bus, whoever published it.
    ///
    /// ```
    /// # use eventbus::broker::AuditQuery;
    /// # async fn audit(bus: eventbus::Bus) -> eventbus::Result<()> {
    /// let mut query = AuditQuery::default();
    /// query.key = Some("1042".into());
    /// for event in bus.audit_log()?.query(query).await? {
    ///     println!("{} {} {}", event.offset, event.envelope.time(), event.envelope.topic());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where the broker keeps no log that can be asked.
    pub fn audit_log(&self) -> Result<Arc<dyn AuditLog>> {
        self.shared.broker.audit_log().ok_or_else(|| self.lacks_history("keeps no log that can be asked"))
    }

    /// The groups that the broker knows: to see how far each has come, and to move or drop one whose subscription is gone.
    /// Whether groups can be moved and renamed is said by the [features](Self::features).
    ///
    /// # Errors
    /// Where the broker knows no groups.
    pub fn groups(&self) -> Result<Arc<dyn Groups>> {
        self.shared.broker.groups().ok_or_else(|| self.lacks("keeps no cursors of groups"))
    }

    /// What the broker of this bus can do.
    #[must_use]
    pub fn features(&self) -> Features {
        self.shared.broker.features()
    }

    fn lacks(&self, what: &str) -> Error {
        BrokerError::new(format!("the {} broker {what}", self.shared.broker.name())).into()
    }

    /// What the broker would do with another setting, most likely.
    fn lacks_history(&self, what: &str) -> Error {
        self.lacks(&format!(
            "{what} (RabbitMQ does with `?streams=true` in its address, the in-process broker with \
             `MemoryBroker::builder().history(events)`)"
        ))
    }

    /// A publisher of this bus, to be kept where the bus itself is not wanted.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Opens a subscription at the broker, and notes how its group is shared.
    async fn open(&self, subscriber: &Subscriber, sharing: &mut Sharing) -> Result<Arc<Lanes>> {
        let shared = &self.shared;
        let Subscriber { subscription, worker } = subscriber;
        // Before the broker knows of a subscription that nobody could handle.
        drop(shared.home.enter()?);
        let policy = subscription.policy(shared.policy);
        let source = shared.broker.subscribe(subscription.request(&policy)?);
        let layers: Vec<_> = shared
            .layers
            .iter()
            .filter(|(group, _)| group.as_ref().is_none_or(|group| *group == subscription.group))
            .map(|(_, layer)| Arc::clone(layer))
            .collect();
        let scope = Arc::new(Scope {
            subscription: subscription.clone(),
            states: Arc::clone(&shared.states),
            outlet: Arc::clone(&shared.outlet),
            failures: None,
        });
        // Before there is a source that nobody reads.
        let layered = worker::layered(subscription, || worker.layered(&layers))?;
        let mut source = shared.home.inside(source).await??;
        shared.warn(foreign::call("a broker", || source.warnings()).unwrap_or_default());
        let owner = foreign::call("a broker", || source.stands_by_for()).unwrap_or_default();
        sharing.note(subscription, owner, shared.broker.features().sharing(policy.competing));
        let watchdog = shared.watchdog.get_or_init(Watchdog::start);
        // Its tasks live where the bus lives, wherever this is called.
        let _entered = shared.home.enter()?;
        Ok(Lanes::new(scope, policy, layered, source, Arc::clone(watchdog)))
    }
}

impl Deref for Bus {
    type Target = Publisher;

    fn deref(&self) -> &Publisher {
        &self.publisher
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.shared.stage.lock();
        f.debug_struct("Bus")
            .field("broker", &self.shared.broker.name())
            .field("subscriptions", &stage.lanes.len())
            .field("running", &(stage.running && !stage.closed))
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    /// A bus that nobody holds any more takes nothing more; handlers that run finish. After a shutdown there is nothing
    /// left to stop.
    fn drop(&mut self) {
        let (lanes, started) = {
            let mut stage = self.stage.lock();
            (std::mem::take(&mut stage.lanes), stage.running)
        };
        if !lanes.is_empty() {
            self.home.spawn(Dropped::stop(lanes, started, self.outlet.durable).finish());
        }
    }
}

/// The answer of whichever future is done first; the other is dropped.
async fn race<T>(first: impl Future<Output = T>, second: impl Future<Output = T>) -> T {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Pending => second.as_mut().poll(context),
        done => done,
    })
    .await
}
