//! Settings of the broker, typed or as part of an address.

use crate::RabbitMqBroker;
use crate::wire::ContentMode;
use eventbus_core::BrokerError;
use eventbus_core::broker::Topology;
use eventbus_server::url::{Address, Host, Secret, Setting};
use std::path::PathBuf;
use std::time::Duration;

/// What a queue is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueType {
    /// Kept by a majority of the nodes of a cluster. Deliveries are counted.
    #[default]
    Quorum,
    /// Kept by one node.
    Classic,
}

/// What an address may set, in the order in which a mistake lists it.
const OPTIONS: &[Setting<Settings>] = &[
    ("ca", |to, option| option.set(&mut to.ca)),
    ("cert", |to, option| option.set(&mut to.cert)),
    ("key", |to, option| option.set(&mut to.key)),
    ("exchange", |to, option| option.set(&mut to.exchange)),
    ("topology", |to, option| option.set(&mut to.topology)),
    ("queue_type", |to, option| {
        option.choose(&mut to.queue_type, &[("quorum", QueueType::Quorum), ("classic", QueueType::Classic)])
    }),
    ("mandatory", |to, option| option.set(&mut to.mandatory)),
    ("streams", |to, option| option.set(&mut to.streams)),
    ("retention_age", |to, option| option.set(&mut to.retention_age)),
    ("prefetch", |to, option| option.set(&mut to.prefetch)),
    ("consumer_timeout", |to, option| option.set(&mut to.consumer_timeout)),
    ("delivery_limit", |to, option| option.set(&mut to.delivery_limit)),
    ("max_payload", |to, option| option.set(&mut to.max_payload)),
    ("heartbeat", |to, option| option.set(&mut to.heartbeat)),
    ("connect_timeout", |to, option| option.set(&mut to.connect_timeout)),
    ("publish_timeout", |to, option| option.set(&mut to.publish_timeout)),
    ("content_mode", |to, option| {
        option.choose(
            &mut to.content_mode,
            &[("binary", ContentMode::Binary), ("structured", ContentMode::Structured)],
        )
    }),
];

/// What a connection, and the exchange and queues behind it, are made of.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) tls: bool,
    pub(crate) hosts: Vec<Host>,
    pub(crate) vhost: String,
    pub(crate) user: Secret,
    pub(crate) password: Secret,
    /// They were given, and are not those of a server that was just installed.
    pub(crate) secret: bool,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) exchange: String,
    pub(crate) topology: Topology,
    pub(crate) queue_type: QueueType,
    pub(crate) mandatory: bool,
    /// Every event is kept in a stream as well.
    pub(crate) streams: bool,
    /// None: for ever.
    pub(crate) retention_age: Option<Duration>,
    /// None: as much as the subscription may hold.
    pub(crate) prefetch: Option<u16>,
    pub(crate) consumer_timeout: Duration,
    /// None: no limit.
    pub(crate) delivery_limit: Option<u32>,
    pub(crate) max_payload: usize,
    pub(crate) heartbeat: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) content_mode: ContentMode,
}

/// The settings of a [`RabbitMqBroker`].
///
/// ```no_run
/// use eventbus_rabbitmq::RabbitMqBroker;
/// use std::time::Duration;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let broker = RabbitMqBroker::builder("amqp://localhost")?
///     .exchange("shop")
///     .mandatory(true)
///     .publish_timeout(Duration::from_secs(10))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct RabbitMqBrokerBuilder(pub(crate) Settings);

const PLAIN: u16 = 5_672;
const TLS: u16 = 5_671;
/// The name and password of a server that was just installed.
const GUEST: &str = "guest";

impl RabbitMqBrokerBuilder {
    /// Reads an address such as `amqp://user:password@localhost:5672/shop?mandatory=true`.
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        let address = Address::parse(url, &["amqp", "amqps"])?;
        let guest = || Secret::new(GUEST);
        let mut builder = Self(Settings {
            tls: address.scheme() == "amqps",
            hosts: address.hosts().to_vec(),
            vhost: Some(address.path()).filter(|path| !path.is_empty()).unwrap_or("/").to_owned(),
            user: address.user().cloned().unwrap_or_else(guest),
            password: address.password().cloned().unwrap_or_else(guest),
            secret: address.password().is_some_and(|password| password.reveal() != GUEST),
            ca: None,
            cert: None,
            key: None,
            exchange: "eventbus".to_owned(),
            topology: Topology::default(),
            queue_type: QueueType::default(),
            mandatory: false,
            streams: false,
            retention_age: None,
            prefetch: None,
            consumer_timeout: Duration::from_secs(30 * 60),
            delivery_limit: None,
            max_payload: 16 << 20,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            content_mode: ContentMode::default(),
        });
        address.set_options(&mut builder.0, OPTIONS)?;
        builder.0.check().map_err(|problem| address.mistake(&problem))?;
        Ok(builder)
    }

    /// Trusts the authorities in this PEM file as well as those of the system; with `amqps:`. Default: those of the system.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// Shows the server this certificate, whose key is in another file; both are PEM. Default: none.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.0.cert, self.0.key) = (Some(cert.into()), Some(key.into()));
        self
    }

    /// The name of the topic exchange, with which the names of all queues begin as well. Default: `eventbus`.
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.0.exchange = name.into();
        self
    }

    /// Whether an exchange and queues that are missing are made, or have to be there. Default: [`Topology::Create`].
    pub fn topology(mut self, topology: Topology) -> Self {
        self.0.topology = topology;
        self
    }

    /// What the queues of groups are. Default: [`QueueType::Quorum`].
    pub fn queue_type(mut self, queue_type: QueueType) -> Self {
        self.0.queue_type = queue_type;
        self
    }

    /// Whether the publish of an event that no queue gets is an error. Default: no, since a topic that nobody listens on is
    /// none.
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.0.mandatory = mandatory;
        self
    }

    /// Whether every event is kept in a stream as well, also once it is handled: then it can be replayed, and the audit log
    /// asked. Groups stay queues. One process of a bus that says so is enough, and every publish is confirmed by the stream
    /// too from then on. It does not go together with `mandatory`. Default: no.
    pub fn streams(mut self, streams: bool) -> Self {
        self.0.streams = streams;
        self
    }

    /// How long the stream of all events keeps one, in whole seconds; RabbitMQ removes whole segments of it, of 500 MB by
    /// default, so an event stays for longer. Default: for ever.
    pub fn retention_age(mut self, age: Duration) -> Self {
        self.0.retention_age = Some(age);
        self
    }

    /// How many deliveries the server sends ahead of acks. Fewer than a subscription may hold make it wait, where many events
    /// stand behind an unfinished one of their key. Default: as many as the subscription may hold, and at most 65,535.
    pub fn prefetch(mut self, prefetch: u16) -> Self {
        self.0.prefetch = Some(prefetch);
        self
    }

    /// How long the server waits for an ack, before it ends the channel and delivers again. It is an argument of the queues
    /// that are made here. A subscription whose `timeout` is not two seconds shorter is refused. Default: 30 minutes, as the
    /// server's.
    pub fn consumer_timeout(mut self, timeout: Duration) -> Self {
        self.0.consumer_timeout = timeout;
        self
    }

    /// How often a quorum queue delivers an event before it gives it up by itself, which makes it a dead letter. It counts
    /// what no handler has seen too, so it is a last resort: a subscription that makes as many attempts is refused. Default:
    /// no limit.
    pub fn delivery_limit(mut self, limit: u32) -> Self {
        self.0.delivery_limit = Some(limit);
        self
    }

    /// The largest payload in bytes; `max_message_size` of the server has to allow it. Default: 16 MiB, as the server's.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.0.max_payload = bytes;
        self
    }

    /// How often both ends say that they are there, in whole seconds. Who is silent for twice as long is gone. Default: 10 s.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.0.heartbeat = interval;
        self
    }

    /// How long to wait at the start for a server that does not answer. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.0.connect_timeout = timeout;
        self
    }

    /// How long a publish waits for a connection and its confirmation. Without one it is
    /// [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed) then, or refused where it was never sent. Default: 30 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.0.publish_timeout = timeout;
        self
    }

    /// How events are written; both kinds are read. Default: [`ContentMode::Binary`].
    pub fn content_mode(mut self, mode: ContentMode) -> Self {
        self.0.content_mode = mode;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// Where no server answers in time, where it does not let this program in, and where the exchange cannot be made or is
    /// another one. The error says what to do.
    ///
    /// # Cancel safety
    /// Dropped, the exchange may have been made.
    pub async fn connect(self) -> Result<RabbitMqBroker, BrokerError> {
        self.0.check().map_err(BrokerError::new)?;
        RabbitMqBroker::connect_with(self.0).await
    }
}

impl Settings {
    /// Whether the settings fit together.
    fn check(&self) -> Result<(), String> {
        let exchange = &self.exchange;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        if exchange.is_empty() || exchange.len() > 60 || !exchange.bytes().all(is_plain) {
            return Err(format!(
                "an exchange cannot be called `{exchange}` (`exchange`) here; take 1 to 60 letters, digits, `_`, `-` and `.`"
            ));
        }
        if exchange.starts_with("amq.") {
            return Err(format!("`{exchange}` (`exchange`): names that begin with `amq.` are the server's"));
        }
        let within = |name: &str, time: Duration, least: u64, most: u64, said: &str| {
            if time < Duration::from_secs(least) || time > Duration::from_secs(most) {
                Err(format!("`{name}` ({time:?}) is not from {said}"))
            } else {
                Ok(())
            }
        };
        within("consumer_timeout", self.consumer_timeout, 60, 30 * 86_400, "1m to 30 days")?;
        within("heartbeat", self.heartbeat, 1, 600, "1s to 10m")?;
        within("connect_timeout", self.connect_timeout, 0, 30 * 365 * 86_400, "0s to 30 years")?;
        within("publish_timeout", self.publish_timeout, 1, 86_400, "1s to a day")?;
        if self.heartbeat.subsec_nanos() != 0 {
            return Err(format!(
                "`heartbeat` ({:?}) is no whole number of seconds, which AMQP counts in",
                self.heartbeat
            ));
        }
        if self.mandatory && self.streams {
            return Err("`mandatory` refuses nothing with `streams`, since the stream takes every event; leave one of them \
                        out"
                .to_owned());
        }
        if let Some(age) = self.retention_age {
            if !self.streams {
                return Err(
                    "`retention_age` is about the stream of all events, which `streams=true` makes; without it RabbitMQ \
                     keeps what is not handled yet"
                        .to_owned(),
                );
            }
            within("retention_age", age, 1, 100 * 365 * 86_400, "1s to 100 years")?;
            if age.subsec_nanos() != 0 {
                return Err(format!(
                    "`retention_age` ({age:?}) is no whole number of seconds, which RabbitMQ counts in"
                ));
            }
        }
        for (name, number) in [
            ("prefetch", usize::from(self.prefetch.unwrap_or(1))),
            ("delivery_limit", self.delivery_limit.unwrap_or(1) as usize),
            ("max_payload", self.max_payload),
        ] {
            if number == 0 {
                return Err(format!("`{name}` is 0, with which nothing is delivered"));
            }
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err(
                "`cert` and `key` belong together: a certificate of this program and its key".to_owned()
            );
        }
        if !self.tls && (self.ca.is_some() || self.cert.is_some()) {
            return Err("certificates (`ca`, `cert`) are of no use without TLS; write `amqps://`".to_owned());
        }
        Ok(())
    }

    /// A server of the address, in turn.
    pub(crate) fn host(&self, attempt: usize) -> (&str, u16) {
        let host = &self.hosts[attempt % self.hosts.len()];
        (&host.name, host.port.unwrap_or(if self.tls { TLS } else { PLAIN }))
    }

    /// The address, for a command that can be pasted. None, where it would need a secret.
    pub(crate) fn pasted(&self) -> Option<String> {
        if self.secret {
            return None;
        }
        let mut options = vec![format!("exchange={}", self.exchange)];
        options.extend((self.queue_type == QueueType::Classic).then(|| "queue_type=classic".to_owned()));
        options.extend(self.streams.then(|| "streams=true".to_owned()));
        options.extend(self.retention_age.map(|age| format!("retention_age={}s", age.as_secs())));
        options.extend(self.ca.as_ref().map(|ca| format!("ca={}", ca.display())));
        Some(format!("{}?{}", self.shown(), options.join("&")))
    }

    /// The servers and the virtual host, as they are shown.
    pub(crate) fn shown(&self) -> String {
        let default = if self.tls { TLS } else { PLAIN };
        let hosts: Vec<_> = self.hosts.iter().map(|host| host.with_port(default)).collect();
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let vhost =
            if self.vhost == "/" { String::new() } else { format!("/{}", self.vhost.replace('/', "%2F")) };
        format!("{scheme}://{}{vhost}", hosts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_what_a_builder_says() {
        let read = RabbitMqBrokerBuilder::parse(
            "amqp://app:se%2Fcret@one,two:5673/shop?exchange=shop&topology=check&queue_type=classic&mandatory\
             &prefetch=100&consumer_timeout=1h&delivery_limit=50&max_payload=1000&heartbeat=5s&publish_timeout=3s\
             &connect_timeout=2s&content_mode=structured",
        )
        .unwrap()
        .0;
        assert_eq!((read.user.reveal(), read.password.reveal()), ("app", "se/cret"));
        assert_eq!(
            (read.host(0), read.host(1), read.host(2)),
            (("one", 5_672), ("two", 5_673), ("one", 5_672))
        );
        assert_eq!((read.vhost.as_str(), read.exchange.as_str()), ("shop", "shop"));
        assert_eq!((read.topology, read.queue_type), (Topology::Check, QueueType::Classic));
        assert_eq!((read.mandatory, read.prefetch, read.delivery_limit), (true, Some(100), Some(50)));
        assert_eq!((read.consumer_timeout.as_secs(), read.heartbeat.as_secs()), (3_600, 5));
        assert_eq!((read.max_payload, read.content_mode), (1_000, ContentMode::Structured));
        assert_eq!(read.shown(), "amqp://one:5672,two:5673/shop");
        assert_eq!(read.pasted(), None, "it would need a secret");
        let read = RabbitMqBrokerBuilder::parse("amqps://localhost/%2f").unwrap().0;
        assert_eq!((read.vhost.as_str(), read.host(0)), ("/", ("localhost", 5_671)));
        assert_eq!(read.pasted().as_deref(), Some("amqps://localhost:5671?exchange=eventbus"));
        let read = RabbitMqBrokerBuilder::parse("amqp://localhost?streams&retention_age=2h").unwrap().0;
        assert_eq!((read.streams, read.retention_age), (true, Some(Duration::from_secs(7_200))));
        let pasted = "amqp://localhost:5672?exchange=eventbus&streams=true&retention_age=7200s";
        assert_eq!(read.pasted().as_deref(), Some(pasted));
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("amqp:localhost", "write `amqp://localhost`"),
            ("amqp://localhost?mandatry", "did you mean `mandatory`?"),
            ("amqp://localhost?mandatory=maybe", "true or false"),
            ("amqp://localhost?exchange=a:b", "letters, digits"),
            ("amqp://localhost?exchange=amq.topic", "the server's"),
            ("amqp://localhost?queue_type=stream", "is one of `quorum`, `classic`"),
            ("amqp://localhost?streams=perhaps", "true or false"),
            ("amqp://localhost?stream=true", "did you mean `streams`?"),
            ("amqp://localhost?streams=true&mandatory=true", "leave one of them out"),
            ("amqp://localhost?retention_age=1h", "`streams=true`"),
            ("amqp://localhost?streams&retention_age=0s", "1s to 100 years"),
            ("amqp://localhost?streams&retention_age=1500ms", "whole number of seconds"),
            ("amqp://localhost?streams&retention_age=7D", "retention_age"),
            ("amqp://localhost?prefetch=0", "nothing is delivered"),
            ("amqp://localhost?prefetch=70000", "is a whole number"),
            ("amqp://localhost?consumer_timeout=1s", "1m to 30 days"),
            ("amqp://localhost?heartbeat=1500ms", "whole number of seconds"),
            ("amqp://localhost?publish_timeout=0s", "1s to a day"),
            ("amqp://localhost?ca=/ca.pem", "write `amqps://`"),
            ("amqps://localhost?cert=/cert.pem", "belong together"),
        ] {
            let error = RabbitMqBrokerBuilder::parse(url).unwrap_err().to_string();
            assert!(error.contains(named), "{url}: {error}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let parsed = RabbitMqBrokerBuilder::parse("amqp://app:hunter2@localhost/hunter").unwrap();
        let mistaken = RabbitMqBrokerBuilder::parse("amqp://app:hunter2@localhost?x").unwrap_err();
        assert!(!format!("{parsed:?} {mistaken:?}").contains("hunter2"));
    }
}
