//! Settings, typed or as part of an address.

use crate::RedisBroker;
use crate::wire::ContentMode;
use eventbus_core::BrokerError;
use eventbus_core::broker::Topology;
use eventbus_server::url::{Address, Secret, Setting};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// As long as a time may be, so that it can be added to an instant: 30 years.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

/// The schemes of addresses, each with where its servers are found.
pub(crate) const SCHEMES: &[&str] = &[
    "redis",
    "rediss",
    "valkey",
    "valkeys",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
];

/// What an address may set, in the order in which a mistake lists it.
const OPTIONS: &[Setting<RedisBrokerBuilder>] = &[
    ("prefix", |to, option| option.set(&mut to.prefix)),
    ("db", |to, option| option.set(&mut to.db)),
    ("duplicate_window", |to, option| option.set(&mut to.duplicate_window)),
    ("publish_timeout", |to, option| option.duration().map(|time| to.publish_timeout = time.min(FOREVER))),
    ("connect_timeout", |to, option| option.duration().map(|time| to.connect_timeout = time.min(FOREVER))),
    ("response_timeout", |to, option| option.duration().map(|time| *to = to.clone().response_timeout(time))),
    ("replicas", |to, option| option.set(&mut to.replicas)),
    ("lease", |to, option| option.duration().map(|time| *to = to.clone().lease(time))),
    ("max_payload", |to, option| option.set(&mut to.max_payload)),
    ("content_mode", |to, option| {
        option.choose(
            &mut to.content_mode,
            &[("binary", ContentMode::Binary), ("structured", ContentMode::Structured)],
        )
    }),
    ("topology", |to, option| option.set(&mut to.topology)),
    ("ca", |to, option| option.set(&mut to.ca)),
    ("certificate", |to, option| option.set(&mut to.certificate)),
    ("key", |to, option| option.set(&mut to.key)),
    ("sentinel_user", |to, option| option.set(&mut to.sentinel_user)),
    ("sentinel_password", |to, option| option.set(&mut to.sentinel_password)),
    ("retention_age", |to, option| option.set(&mut to.retention.age)),
    ("retention_count", |to, option| option.set(&mut to.retention.count)),
    ("retention_unhandled", |to, option| option.set(&mut to.retention.unhandled)),
    ("retention_interval", |to, option| {
        option.duration().map(|time| *to = to.clone().retention_interval(time))
    }),
];

/// How long events are kept. By default: for ever, as far as the server's memory goes.
///
/// Events are removed only once every group that listens on their topic has settled them. Dead letters are copies, and
/// stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Events that were published longer ago than this are removed.
    pub age: Option<Duration>,
    /// The oldest events of a topic are removed while it has more than so many.
    pub count: Option<u64>,
    /// Removes events even if a group has not settled them yet; that group loses them.
    pub unhandled: bool,
}

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deployment {
    /// At the address.
    Single,
    /// Where the nodes at the addresses say that the slot of the bus is.
    Cluster,
    /// Where the sentinels at the addresses say that the primary is.
    Sentinel,
}

/// The settings of a [`RedisBroker`].
///
/// ```no_run
/// use eventbus_redis::{RedisBroker, Retention};
/// use std::time::Duration;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let mut day = Retention::default();
/// day.age = Some(Duration::from_secs(24 * 3600));
/// let broker = RedisBroker::builder("rediss://redis.internal:6380")?
///     .user("shop", "…")
///     .ca("/etc/ssl/internal-ca.pem")
///     .prefix("shop")
///     .retention(day)
///     .open()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until it is opened"]
pub struct RedisBrokerBuilder {
    pub(crate) address: Address,
    pub(crate) deployment: Deployment,
    pub(crate) tls: bool,
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    pub(crate) sentinel_user: Option<Secret>,
    pub(crate) sentinel_password: Option<Secret>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) db: i64,
    pub(crate) prefix: String,
    pub(crate) duplicate_window: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) replicas: u32,
    pub(crate) lease: Duration,
    pub(crate) max_payload: usize,
    pub(crate) content_mode: ContentMode,
    pub(crate) topology: Topology,
    pub(crate) retention: Retention,
    pub(crate) retention_interval: Duration,
}

impl RedisBrokerBuilder {
    /// Reads an address such as `rediss://app:secret@redis.internal/0?prefix=shop&retention_age=24h`.
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        let address = Address::parse(url, SCHEMES)?;
        let (base, deployment) = match address.scheme().split_once('+') {
            Some((base, "cluster")) => (base, Deployment::Cluster),
            Some((base, _)) => (base, Deployment::Sentinel),
            None => (address.scheme(), Deployment::Single),
        };
        let mut builder = Self {
            deployment,
            tls: matches!(base, "rediss" | "valkeys"),
            user: address.user().cloned(),
            password: address.password().cloned(),
            sentinel_user: None,
            sentinel_password: None,
            ca: None,
            certificate: None,
            key: None,
            db: 0,
            prefix: "eventbus".to_owned(),
            duplicate_window: Duration::from_secs(120),
            publish_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(5),
            replicas: 0,
            lease: Duration::from_secs(10),
            max_payload: 8 << 20,
            content_mode: ContentMode::default(),
            topology: Topology::default(),
            retention: Retention::default(),
            retention_interval: Duration::from_secs(60),
            address,
        };
        builder.read_path()?;
        builder.address.clone().set_options(&mut builder, OPTIONS)?;
        builder.check()?;
        Ok(builder)
    }

    /// What follows the servers: the number of the database, or the name that sentinels have for the primary.
    fn read_path(&mut self) -> Result<(), BrokerError> {
        let path = self.address.path();
        match self.deployment {
            Deployment::Sentinel if path.is_empty() => Err(self.address.mistake(
                "the name that the sentinels have for the primary is missing; write it behind the servers, as in \
                 `redis+sentinel://host:26379/mymaster`",
            )),
            Deployment::Sentinel => Ok(()),
            Deployment::Cluster if !path.is_empty() && path != "0" => {
                Err(self.address.mistake("a cluster has no databases; leave out what follows the servers"))
            }
            Deployment::Single if self.address.hosts().len() > 1 => Err(self.address.mistake(
                "it names several servers; write `redis+cluster://…` or `redis+sentinel://…`, whichever they are",
            )),
            _ if path.is_empty() => Ok(()),
            _ => {
                self.db = path.parse().map_err(|_| {
                    self.address.mistake("what follows the server is the number of a database, such as `/0`")
                })?;
                Ok(())
            }
        }
    }

    /// What does not fit together.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err(self.address.mistake("`certificate` and `key` belong together; give both"));
        }
        if self.prefix.is_empty() || self.prefix.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(self.address.mistake("a `prefix` has characters, and no spaces among them"));
        }
        let tag = self.prefix.split_once('{').map(|(_, tag)| tag.split_once('}'));
        let is_tag =
            |tag: Option<(&str, &str)>| tag.is_some_and(|(tag, _)| !tag.is_empty() && !tag.contains('{'));
        if tag.map_or(self.prefix.contains('}'), |tag| !is_tag(tag)) {
            return Err(self
                .address
                .mistake("the braces in `prefix` are no hash tag; write `{name}`, or leave them out"));
        }
        if !self.duplicate_window.is_zero() && self.duplicate_window < self.publish_timeout {
            return Err(self.address.mistake(
                "`duplicate_window` is shorter than `publish_timeout`, so that an event which is sent again could be stored twice; \
                 make it longer, or switch it off with `duplicate_window=0s`",
            ));
        }
        // Without a password nothing is sent, and whoever wrote one in the place of the user would not be told.
        if self.user.is_some() && self.password.is_none() {
            return Err(self.address.mistake(
                "it has a user and no password; write `redis://:password@host` for a password without a user \
                 (`requirepass`), or `redis://user:password@host`",
            ));
        }
        if self.sentinel_user.is_some() && self.sentinel_password.is_none() {
            return Err(self.address.mistake(
                "it has a `sentinel_user` and no `sentinel_password`; give both, or the password only",
            ));
        }
        if !self.tls && (self.ca.is_some() || self.certificate.is_some()) {
            return Err(self.address.mistake(
                "`ca`, `certificate` and `key` are for TLS, and this scheme has none; write `rediss://…`",
            ));
        }
        Ok(())
    }

    /// What all keys begin with; buses with different ones know nothing of each other. Default: `eventbus`. In a cluster
    /// it is a hash tag, `{eventbus}`, so that all keys are on one node.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The number of the database. Default: 0.
    pub fn db(mut self, db: i64) -> Self {
        self.db = db;
        self
    }

    /// User and password, where they do not stand in the address. An empty user is the server's default user.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some(Secret::new(user)).filter(|user| !user.reveal().is_empty());
        self.password = Some(Secret::new(password));
        self
    }

    /// The user and password of the sentinels. Default: none, as sentinels have by default.
    pub fn sentinel_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.sentinel_user = Some(Secret::new(user)).filter(|user| !user.reveal().is_empty());
        self.sentinel_password = Some(Secret::new(password));
        self
    }

    /// A file with the certificates (PEM) that the server's has to be signed by. Default: those of the system.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(path.into());
        self
    }

    /// Files with a certificate of this client and its key (PEM), for a server that asks for one.
    pub fn certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.certificate, self.key) = (Some(certificate.into()), Some(key.into()));
        self
    }

    /// How long ids of events are remembered, so that an event which is published again with the same source and id is
    /// stored once. Default: 2 minutes. Each id takes some 150 bytes of the server's memory meanwhile. Zero switches that
    /// off: then an event whose confirmation was lost is not sent again, and its publish is
    /// [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed).
    pub fn duplicate_window(mut self, time: Duration) -> Self {
        self.duplicate_window = time.min(FOREVER);
        self
    }

    /// How long a publish waits for its confirmation, through outages too. Default: 30 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout.min(FOREVER);
        self
    }

    /// How long to wait for a server that does not answer when the broker is opened. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(FOREVER);
        self
    }

    /// How long a server may take for an answer before its connection counts as lost. Default: 5 s; at least 100 ms.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout.clamp(Duration::from_millis(100), FOREVER);
        self
    }

    /// How many replicas have to have an event, so that its publish is `Ok`: it asks the server to `WAIT` for them, on a
    /// connection of its own. Default: 0, the primary alone. As long as fewer have it, the publish waits, up to
    /// [`publish_timeout`](Self::publish_timeout), and is [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed) then:
    /// the primary has it. Dead letters, acks and retries do not wait.
    ///
    /// A server that has fewer replicas when the broker is opened is refused.
    pub fn replicas(mut self, count: u32) -> Self {
        self.replicas = count;
        self
    }

    /// How long a process that does not answer keeps its groups to itself, before another process takes over. A process
    /// that ends in order leaves them at once. Default: 10 s; at least 200 ms.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_millis(200), FOREVER);
        self
    }

    /// The largest payload that is taken, in bytes. Default: 8 MiB, or the server's `proto-max-bulk-len` where that is
    /// less. Everything else of an event counts as well, up to as many bytes, and 64 KiB in any case.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// How events are written. Default: [`ContentMode::Binary`]. Both are read.
    pub fn content_mode(mut self, mode: ContentMode) -> Self {
        self.content_mode = mode;
        self
    }

    /// Whether groups and topics are made where they are missing. Default: [`Topology::Create`]. Otherwise a subscription of
    /// a group that the server does not know, and a publish on such a topic, are errors.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// How long events are kept. Default: for ever.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How often the retention is applied, in the background. Default: every minute.
    pub fn retention_interval(mut self, interval: Duration) -> Self {
        self.retention_interval = interval.clamp(Duration::from_millis(10), FOREVER);
        self
    }

    /// Connects to the server, and waits for it as long as [`connect_timeout`](Self::connect_timeout) says.
    ///
    /// # Errors
    /// Where there is none, where it refuses the user or its certificate is not trusted, where it is older than 7.0, or a
    /// replica that cannot be written to.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed.
    pub async fn open(self) -> Result<RedisBroker, BrokerError> {
        RedisBroker::open_with(self).await
    }
}

/// Without user, password, or what may hold one.
impl fmt::Debug for RedisBrokerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBrokerBuilder")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .field("db", &self.db)
            .field("lease", &self.lease)
            .field("duplicate_window", &self.duplicate_window)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> RedisBrokerBuilder {
        RedisBrokerBuilder::parse(url).unwrap()
    }

    #[test]
    fn an_address_says_what_a_builder_says() {
        let one = read(
            "rediss://app:p%40ss@redis.internal:6380/3?prefix=shop&duplicate_window=5m&lease=2s&max_payload=10&content_mode=structured\
             &topology=check&ca=%2Fca.pem&certificate=c.pem&key=k.pem&retention_age=24h&retention_count=7&retention_unhandled",
        );
        assert_eq!((one.tls, one.db, one.deployment), (true, 3, Deployment::Single));
        assert_eq!(one.password.unwrap().reveal(), "p@ss");
        assert_eq!(
            (one.prefix.as_str(), one.max_payload, one.content_mode),
            ("shop", 10, ContentMode::Structured)
        );
        assert_eq!((one.lease, one.duplicate_window), (Duration::from_secs(2), Duration::from_secs(300)));
        assert_eq!(one.retention.age, Some(Duration::from_secs(24 * 3600)));
        assert!(one.retention.unhandled && one.topology == Topology::Check && one.certificate.is_some());
        let several = read("redis+sentinel://a:26379,b/mymaster?db=2");
        assert_eq!((several.deployment, several.db, several.tls), (Deployment::Sentinel, 2, false));
        assert_eq!(read("rediss+cluster://a,b:7001").deployment, Deployment::Cluster);
        assert!(read("valkeys://a").tls && !read("valkey://a").tls && !read("redis://a").tls);
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("redis://a?prefx=x", "no option `prefx`; did you mean `prefix`?"),
            ("redis://a/x", "the number of a database"),
            ("redis://a,b", "write `redis+cluster://…` or `redis+sentinel://…`"),
            ("redis+sentinel://a", "`redis+sentinel://host:26379/mymaster`"),
            ("redis+cluster://a/1", "a cluster has no databases"),
            ("redis://a?duplicate_window=1s", "make it longer, or switch it off with `duplicate_window=0s`"),
            ("redis://a?ca=x", "write `rediss://…`"),
            ("redis://secret@a", "write `redis://:password@host` for a password without a user"),
            ("redis://secret@a", "or `redis://user:password@host`"),
            ("rediss+cluster://secret@a", "it has a user and no password"),
            ("redis+sentinel://a/m?sentinel_user=u", "a `sentinel_user` and no `sentinel_password`"),
            ("rediss://a?certificate=x", "`certificate` and `key` belong together"),
            ("redis://a?lease=10", "\"10\" is not a duration"),
            ("redis://a?content_mode=both", "`binary`, `structured`"),
            ("redis://a?prefix=a%20b", "no spaces"),
            ("redis://a?prefix=a%7B%7Db", "no hash tag"),
            ("redis://a?prefix=%7D", "no hash tag"),
            ("redis:a", "write `redis://localhost`"),
        ] {
            let error = RedisBrokerBuilder::parse(url).unwrap_err().to_string();
            assert!(error.contains(named), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_stands_behind_a_colon_with_a_user_or_without() {
        let of = |url| {
            let RedisBrokerBuilder { user, password, .. } = read(url);
            (user.map(|user| user.reveal().to_owned()), password.unwrap().reveal().to_owned())
        };
        assert_eq!(of("redis://:secret@a"), (None, "secret".to_owned()));
        assert_eq!(of("redis://app:secret@a"), (Some("app".to_owned()), "secret".to_owned()));
        // A user who needs none, as the server sees it (`nopass`).
        assert_eq!(of("redis://app:@a"), (Some("app".to_owned()), String::new()));
        let error = RedisBrokerBuilder::parse("redis://hunter2@a").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        assert!(read("redis+sentinel://a/m?sentinel_password=x").sentinel_user.is_none());
    }

    #[test]
    fn what_is_secret_is_shown_nowhere() {
        let builder =
            read("redis+sentinel://hunter2:hunter2@a/m?sentinel_password=hunter2").user("hunter2", "hunter2");
        assert!(!format!("{builder:?} {:?}", builder.check()).contains("hunter2"), "{builder:?}");
    }

    #[test]
    fn times_without_end_can_be_waited_for() {
        let builder = read("redis://a")
            .lease(Duration::MAX)
            .publish_timeout(Duration::MAX)
            .duplicate_window(Duration::MAX);
        for time in [builder.lease, builder.publish_timeout, builder.duplicate_window] {
            assert!(std::time::Instant::now().checked_add(time).is_some(), "{time:?}");
        }
    }
}
