//! The builder: everything that is settled before a bus opens its broker.

use super::home::{Home, needs_timers};
use super::sharing::Sharing;
use super::shutdown::{CLOSE, after, close_broker};
use super::{Bus, Shared, Stage, address};
use crate::broker::Broker;
use crate::census::{self, Findings};
use crate::counted::counted;
use crate::envelope::Envelope;
use crate::error::{Result, StartupError};
use crate::foreign::{self, Kept};
use crate::lock::{Lock, Rank};
use crate::log;
use crate::middleware::HandlerLayer;
use crate::observe::Observer;
use crate::printable::printable;
use crate::publisher::{Outlet, PublishHook, Publisher};
use crate::registry::{self, Subscriber};
use crate::state::States;
use crate::subscription::{Policy, Subscription, with_options};
use crate::waiters::Waiters;
use smol_str::SmolStr;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// The settings of a [`Bus`]. Options that `#[subscribe]` also has carry the same name, and are the default for
/// subscriptions that leave them out.
///
/// ```
/// use eventbus::{Backoff, Bus};
/// use std::time::Duration;
///
/// # async fn connect() -> eventbus::Result<Bus> {
/// struct Mailer;
///
/// let bus = Bus::builder()
///     .state(Mailer)
///     .retries(8)
///     .backoff(Backoff::parse("200ms..1m"))
///     .timeout(Duration::from_secs(10))
///     .source("/shop")
///     .connect("memory:")
///     .await?;
/// # Ok(bus)
/// # }
/// ```
#[must_use = "a builder does nothing until it is connected"]
pub struct BusBuilder {
    states: States,
    policy: Policy,
    layers: Vec<(Option<String>, Arc<dyn HandlerLayer>)>,
    only: Option<Vec<String>>,
    expected: Vec<String>,
    strict: bool,
    drain: Duration,
    source: Option<SmolStr>,
    causation_limit: u32,
    on_publish: Vec<PublishHook>,
    observers: Vec<Kept<Box<dyn Observer>>>,
}

impl Default for BusBuilder {
    fn default() -> Self {
        Self {
            states: States::default(),
            policy: Policy::default(),
            layers: Vec::new(),
            only: None,
            expected: Vec::new(),
            strict: false,
            drain: Duration::from_secs(30),
            source: None,
            causation_limit: 64,
            on_publish: Vec::new(),
            observers: Vec::new(),
        }
    }
}

impl BusBuilder {
    /// Gives handlers a value that they take as `State<S>`; each type once, a second value replaces the first.
    pub fn state<S: Send + Sync + 'static>(self, state: S) -> Self {
        self.shared_state(Arc::new(state))
    }

    /// Gives handlers a value that the program keeps sharing.
    pub fn shared_state<S: Send + Sync + 'static>(mut self, state: Arc<S>) -> Self {
        self.states.insert(state);
        self
    }

    /// Puts a layer around every handler. The first layer is the outermost.
    pub fn layer(mut self, layer: impl HandlerLayer) -> Self {
        self.layers.push((None, Arc::new(Kept::new(layer))));
        self
    }

    /// Puts a layer around the handlers of one group: `layer_for(send_confirmation::SUBSCRIBER, …)`, or by name.
    pub fn layer_for(mut self, group: impl AsRef<str>, layer: impl HandlerLayer) -> Self {
        self.layers.push((Some(group.as_ref().to_owned()), Arc::new(Kept::new(layer))));
        self
    }

    /// Runs only the subscriptions of these groups, so that one program can be deployed in several roles: group
    /// names, or constants such as `send_confirmation::SUBSCRIBER`. Default: all.
    ///
    /// ```
    /// # use eventbus::Bus;
    /// let mailers = Bus::builder().only(["shop.send_confirmation", "shop.send_invoice"]);
    /// ```
    pub fn only<G: AsRef<str>>(mut self, groups: impl IntoIterator<Item = G>) -> Self {
        self.only.get_or_insert_default().extend(groups.into_iter().map(|group| group.as_ref().to_owned()));
        self
    }

    /// Runs no subscription of the registry, whatever [`only`](Self::only) chose: for a program, or a verb of it, that
    /// publishes, or looks at what a broker holds.
    pub fn without_subscriptions(mut self) -> Self {
        self.only = Some(Vec::new());
        self
    }

    /// Fails at start-up where one of these packages has registered no subscriber.
    pub fn expect<P: AsRef<str>>(mut self, packages: impl IntoIterator<Item = P>) -> Self {
        self.expected.extend(packages.into_iter().map(|package| package.as_ref().to_owned()));
        self
    }

    /// Makes warnings of the start-up checks errors. Default: off.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// How many deliveries one subscription handles, or has at hand to be handled, at once. Default: 1,024; never fewer
    /// than its `concurrency` or `batch`. See also [`held_back`](Self::held_back).
    pub fn in_flight(mut self, deliveries: usize) -> Self {
        self.policy.in_flight = deliveries.max(1);
        self
    }

    /// How many deliveries one subscription holds back beside those in flight: behind an unfinished one of their key,
    /// or for a retry. Default: 16,384; never fewer than `in_flight`.
    ///
    /// So a key that is slow or poisoned keeps the others waiting only where more than so many of its events come in a
    /// row. What is held back is in memory: an envelope with its payload for each.
    pub fn held_back(mut self, deliveries: usize) -> Self {
        self.policy.held_back = deliveries;
        self
    }

    /// How long a shutdown may take: for handlers that run, for what waits for a retry, and, on a broker that is not
    /// durable, for the backlog. `Duration::MAX` waits for as long as it takes. Default: 30 s.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// The CloudEvents `source` of what this bus publishes, a URI reference. Default: `/` and the name of the program's
    /// file, without its ending.
    ///
    /// Source and id together tell an event apart, for a broker that stores none twice and for handlers that are to have
    /// no effect twice. Ids that the bus makes differ everywhere. Where a program gives ids of its own, say the source as
    /// well: else the same id is another event once the file has another name, as another binary of the package has, or
    /// a test.
    ///
    /// ```
    /// # use eventbus::Bus;
    /// let builder = Bus::builder().source("/shop");
    /// ```
    pub fn source(mut self, source: impl AsRef<str>) -> Self {
        self.source = Some(SmolStr::new(source));
        self
    }

    /// How many events in a row may cause each other, before publishing fails. Default: 64.
    pub fn causation_limit(mut self, events: u32) -> Self {
        self.causation_limit = events;
        self
    }

    /// Calls `hook` on every envelope before it is published, to set headers such as a tenant or a trace. A hook that
    /// panics is named in an error line, and the event is published as the hook left it.
    ///
    /// ```
    /// # use eventbus::Bus;
    /// let builder = Bus::builder().on_publish(|envelope| envelope.headers_mut().insert("tenant", "acme"));
    /// ```
    pub fn on_publish(mut self, hook: impl Fn(&mut Envelope) + Send + Sync + 'static) -> Self {
        self.on_publish.push(Kept::new(Box::new(hook)));
        self
    }

    /// Tells `observer` what happens on the bus.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observers.push(Kept::new(Box::new(observer)));
        self
    }

    /// Connects to the broker at `url`, after the start-up checks.
    ///
    /// | address | broker | Cargo feature |
    /// |---|---|---|
    /// | `memory:` | in the process | |
    /// | `sqlite:shop.db` | the embedded log | `sqlite` |
    /// | `nats://localhost`, `tls://…` | NATS JetStream | `nats` |
    /// | `redis://localhost`, `rediss://…`, `valkey://…`, and those of sentinels and clusters | Redis Streams, Valkey | `redis` |
    /// | `sns://eu-central-1` | Amazon SNS and SQS | `aws` |
    /// | `kafka://localhost`, `kafkas://…` | Apache Kafka | `kafka` |
    /// | `amqp://localhost`, `amqps://…` | RabbitMQ | `rabbitmq` |
    ///
    /// The page of each broker has the options of its address. A server that does not answer is waited for, for the time
    /// of its option `connect_timeout`.
    ///
    /// # Errors
    /// Where no broker of this build has the address's scheme, outside of a tokio runtime, what the broker reports, and
    /// as [`broker`](Self::broker).
    ///
    /// # Cancel safety
    /// As [`broker`](Self::broker).
    pub async fn connect(self, url: &str) -> Result<Bus> {
        self.open(address::open(url).await?).await
    }

    /// Connects to the broker at the address in the environment variable `EVENTBUS_URL`; where it is not set, to
    /// the embedded log `sqlite:eventbus.db` in the current folder.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Cancel safety
    /// As [`broker`](Self::broker).
    pub async fn connect_from_env(self) -> Result<Bus> {
        self.open(address::open(&address::from_env()?).await?).await
    }

    /// Connects to a broker that was made from its own settings, after the start-up checks.
    ///
    /// # Errors
    /// [`Error::Startup`](crate::Error::Startup) with everything that the checks found,
    /// [`Error::NoTimers`](crate::Error::NoTimers) on a tokio runtime without timers, and what the broker reports.
    ///
    /// # Cancel safety
    /// Dropped, there is no bus, and what was opened is let go of. The broker may know new groups from then on.
    pub async fn broker(self, broker: impl Broker) -> Result<Bus> {
        self.open(Arc::new(broker)).await
    }

    /// What the start-up checks find against the broker at `url`, whose features count; no subscription is opened. With
    /// `topology=check` in the address also what is missing at its server, or is otherwise.
    ///
    /// ```
    /// # use eventbus::Bus;
    /// # async fn check() -> eventbus::Result<()> {
    /// let findings = Bus::builder().check("memory:").await?;
    /// assert!(findings.mistakes.is_empty(), "{:#?}", findings.mistakes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where the broker cannot be opened, or does not close within the [drain time](Self::drain). What the checks find is
    /// no error.
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed.
    pub async fn check(&self, url: &str) -> Result<Findings> {
        self.check_at(url, true).await
    }

    /// The same; what is missing at the server only where that is asked for. The command line sets `topology=check` by
    /// itself, so that a look makes nothing, and a start of the program may make it.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    #[doc(hidden)]
    pub async fn check_at(&self, url: &str, topology: bool) -> Result<Findings> {
        let broker = address::open(url).await?;
        let subscribers = self.chosen();
        let subscriptions: Vec<_> = subscribers.iter().map(|subscriber| &subscriber.subscription).collect();
        let mut findings = self.findings(&subscriptions, &*broker).await;
        if let Ok(findings) = &mut findings
            && topology
        {
            findings.mistakes.extend(self.missing(&subscriptions, &*broker).await);
        }
        let now = Instant::now();
        close_broker(&*broker, after(now, self.drain).max(now + CLOSE), "within the drain time").await?;
        findings
    }

    /// What the server of a broker lacks of what these need. What several need is said once.
    async fn missing(&self, subscriptions: &[&Subscription], broker: &dyn Broker) -> Vec<String> {
        let mut missing = Vec::new();
        for subscription in subscriptions {
            // A pattern that is none is a mistake by itself.
            let Ok(request) = subscription.request(&subscription.policy(self.policy)) else { continue };
            let said = match foreign::run("a broker", || broker.check(request)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(panicked) => panicked.to_string(),
            };
            if !missing.contains(&said) {
                missing.push(said);
            }
        }
        missing
    }

    async fn open(self, broker: Arc<dyn Broker>) -> Result<Bus> {
        needs_timers("connect")?;
        let subscribers = self.chosen();
        let subscriptions: Vec<_> = subscribers.iter().map(|subscriber| &subscriber.subscription).collect();
        let Findings { mistakes, warnings } = self.findings(&subscriptions, &*broker).await?;
        if !mistakes.is_empty() {
            warnings.iter().for_each(|warning| log::warn!(target: "eventbus", "{}", printable(warning)));
            return Err(StartupError::new(mistakes).into());
        }
        announce(&subscriptions);
        let source = self.source.unwrap_or_else(program);
        let outlet = Arc::new(Outlet::new(
            Arc::clone(&broker),
            source,
            self.causation_limit,
            self.on_publish,
            self.observers,
            census::read,
        ));
        let home = Home::here(&outlet);
        let bus = Bus {
            publisher: Publisher::new(Arc::clone(&outlet), None),
            shared: Arc::new(Shared {
                broker,
                outlet,
                states: Arc::new(self.states),
                policy: self.policy,
                layers: self.layers,
                drain: self.drain,
                home,
                watchdog: OnceLock::new(),
                stage: Lock::new(Rank::BUS, Stage::default()),
                ended: Waiters::new(),
            }),
        };
        bus.shared.warn(warnings);
        let mut sharing = Sharing::default();
        for subscriber in subscribers {
            let lanes = bus.open(subscriber, &mut sharing).await?;
            bus.shared.stage.lock().lanes.push(lanes);
        }
        bus.shared.tell(&sharing);
        Ok(bus)
    }

    fn chosen(&self) -> Vec<&'static Subscriber> {
        let chosen = |subscriber: &&&Subscriber| {
            let group = &subscriber.subscription.group;
            self.only.as_ref().is_none_or(|only| only.iter().any(|chosen| chosen == group))
        };
        registry::subscribers().iter().filter(chosen).copied().collect()
    }

    async fn findings(&self, subscriptions: &[&Subscription], broker: &dyn Broker) -> Result<Findings> {
        let mut findings = census::check(subscriptions);
        // A subscription that is made at run time may still take such a group.
        let layered: Vec<_> = self.layers.iter().filter_map(|(group, _)| group.clone()).collect();
        findings.warnings.extend(census::check_groups("layer_for", &layered));
        let mistakes = &mut findings.mistakes;
        mistakes.extend(census::check_packages(&self.expected));
        mistakes.extend(census::check_groups("only", self.only.as_deref().unwrap_or_default()));
        mistakes.extend(census::check_fit(subscriptions, self.policy, &self.states, broker));
        // A bus without subscriptions says nothing about those of its program.
        if !subscriptions.is_empty()
            && let Some(groups) = broker.groups()
        {
            // Also what this bus does not run: another process may.
            let all: Vec<_> =
                registry::subscribers().iter().map(|subscriber| &subscriber.subscription).collect();
            let (address, renames) = (broker.address(), broker.features().rename);
            match groups.list().await {
                Ok(kept) => {
                    findings.warnings.extend(census::orphans(&kept, &all, renames, address.as_deref()));
                    findings.warnings.extend(census::left_over(&kept, &all, false, address.as_deref()));
                }
                // Who may not list groups may be allowed to have one.
                Err(error) => findings.warnings.push(format!(
                    "which groups the broker keeps that nobody has any more is not known: {error}"
                )),
            }
        }
        if self.strict {
            mistakes.append(&mut findings.warnings);
        }
        Ok(findings)
    }
}

macro_rules! setters {
    (every { $($(#[$doc:meta])* $option:ident: $type:ty,)* } batch { $($batch:tt)* }) => {
        /// The options of subscriptions, for those that leave them out.
        impl BusBuilder {
            $($(#[$doc])* pub fn $option(mut self, $option: $type) -> Self {
                self.policy.$option = $option;
                self
            })*
        }
    };
}
with_options!(setters);

impl fmt::Debug for BusBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusBuilder")
            .field("policy", &self.policy)
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}

/// Logs the census.
fn announce(subscriptions: &[&Subscription]) {
    let packages: BTreeSet<_> = subscriptions.iter().map(|subscription| subscription.package).collect();
    log::info!(
        target: "eventbus", "{} from {}",
        counted(subscriptions.len(), "subscription"), counted(packages.len(), "package")
    );
    for subscription in subscriptions {
        log::debug!(
            target: "eventbus", pattern = %printable(&subscription.pattern),
            group = %printable(&subscription.group), location = %printable(subscription.location()), "subscription"
        );
    }
}

/// The source of events where nothing else is said: the program's name.
fn program() -> SmolStr {
    let program = std::env::current_exe().ok();
    let name = program.as_ref().and_then(|path| path.file_stem()).map(|name| name.to_string_lossy());
    format!("/{}", name.as_deref().unwrap_or("eventbus")).into()
}
