//! Settings, typed or as part of an address, and what they are to the client.

use crate::broker::KafkaBroker;
use crate::connection::CALL;
use crate::wire::ContentMode;
use eventbus_core::BrokerError;
use eventbus_core::broker::Topology;
use eventbus_server::url::{Address, OptionValue, Secret, Setting};
use rdkafka::ClientConfig;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// As long as a time may be that the client takes in milliseconds of 31 bits: 24 days.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 24);

/// The schemes of addresses, without TLS and with it.
pub(crate) const SCHEMES: &[&str] = &["kafka", "kafkas"];
const PORT: u16 = 9092;
/// What Kafka takes a name of a topic to consist of.
const MAX_TOPIC: usize = 249;

/// What the names of topics begin with that no subscription listens on: Kafka's own, and ours.
pub(crate) const OWN: &str = "__";
/// How much larger than an event the record may be that has its dead letter.
const BESIDE: usize = 1 << 20;

/// What an address may set, in the order in which a mistake lists it.
const OPTIONS: &[Setting<Settings>] = &[
    ("prefix", |to, option| option.set(&mut to.prefix)),
    ("partitions", |to, option| above_zero(option).map(|count| to.partitions = Some(count))),
    ("replication", |to, option| above_zero(option).map(|count| to.replication = Some(count))),
    ("retention_age", |to, option| option.set(&mut to.retention_age)),
    ("sasl", |to, option| {
        option.choose(
            &mut to.sasl,
            &[
                ("plain", Some(Sasl::Plain)),
                ("scram-sha-256", Some(Sasl::ScramSha256)),
                ("scram-sha-512", Some(Sasl::ScramSha512)),
            ],
        )
    }),
    ("ca", |to, option| option.set(&mut to.ca)),
    ("certificate", |to, option| option.set(&mut to.certificate)),
    ("key", |to, option| option.set(&mut to.key)),
    ("group_protocol", |to, option| {
        option.choose(
            &mut to.group_protocol,
            &[("classic", GroupProtocol::Classic), ("consumer", GroupProtocol::Consumer)],
        )
    }),
    ("isolation", |to, option| {
        option.choose(
            &mut to.isolation,
            &[("read_committed", Isolation::ReadCommitted), ("read_uncommitted", Isolation::ReadUncommitted)],
        )
    }),
    ("transactions", |to, option| option.set(&mut to.transactions)),
    ("linger", |to, option| option.duration().map(|time| to.linger = time.min(FOREVER))),
    ("publish_timeout", |to, option| option.duration().map(|time| to.publish_timeout = time.min(FOREVER))),
    ("connect_timeout", |to, option| option.duration().map(|time| to.connect_timeout = time.min(FOREVER))),
    ("session_timeout", |to, option| option.duration().map(|time| to.session_timeout = time.min(FOREVER))),
    ("max_payload", |to, option| option.set(&mut to.max_payload)),
    ("content_mode", |to, option| {
        option.choose(
            &mut to.content_mode,
            &[("binary", ContentMode::Binary), ("structured", ContentMode::Structured)],
        )
    }),
    ("topology", |to, option| option.set(&mut to.topology)),
];

/// How a user and password are proven to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sasl {
    /// The password itself is sent; use it with TLS.
    Plain,
    /// By a challenge with SHA-256.
    ScramSha256,
    /// By a challenge with SHA-512.
    #[default]
    ScramSha512,
}

/// Who decides which process gets which partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// The processes among themselves, cooperatively: what stays where it is goes on meanwhile.
    #[default]
    Classic,
    /// The server (KIP-848, Kafka 4.0 or newer).
    Consumer,
}

/// Which events of transactions are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Those of transactions that were committed.
    #[default]
    ReadCommitted,
    /// All, those of transactions that were aborted as well.
    ReadUncommitted,
}

/// Settings of a broker on Kafka, begun with an address.
///
/// ```no_run
/// use eventbus_kafka::KafkaBroker;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let broker = KafkaBroker::builder("kafka://kafka-1.internal,kafka-2.internal")?
///     .partitions(12)
///     .replication(3)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct KafkaBrokerBuilder(Settings);

impl KafkaBrokerBuilder {
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        Settings::parse(url).map(Self)
    }

    /// What the names of Kafka topics and groups begin with, so that several buses share one server. Default: nothing, so
    /// that the topic `order.placed` is `order.placed` in Kafka.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// How many partitions a topic has: one that is made gets so many, and one that is there has to have them. More
    /// partitions let more processes share a group. Default: as many as the server gives (`num.partitions`), and any.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.0.partitions = Some(partitions);
        self
    }

    /// How many servers have a copy of each topic, as [`partitions`](Self::partitions). Default: as the server says
    /// (`default.replication.factor`), and any.
    pub fn replication(mut self, copies: u16) -> Self {
        self.0.replication = Some(copies);
        self
    }

    /// How long Kafka keeps events, handled or not, in topics that are made; one that is there stays as it is. What a group
    /// has not handled by then is lost to it. Default: for ever (`retention.ms=-1`), whatever the server does by default.
    pub fn retention_age(mut self, age: Duration) -> Self {
        self.0.retention_age = Some(age);
        self
    }

    /// The user and password, and how they are proven. Default: those of the address, by [`Sasl::ScramSha512`].
    pub fn sasl(mut self, sasl: Sasl, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.sasl = Some(sasl);
        (self.0.user, self.0.password) = (Some(Secret::new(user)), Some(Secret::new(password)));
        self
    }

    /// Trusts the authorities in this PEM file, and no others. Default: those of the system.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// Shows the server this certificate, whose private key is in the second file, both PEM. Default: none.
    pub fn certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.0.certificate, self.0.key) = (Some(certificate.into()), Some(key.into()));
        self
    }

    /// Who decides which process gets which partitions. Default: [`GroupProtocol::Classic`].
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Self {
        self.0.group_protocol = protocol;
        self
    }

    /// Which events of transactions are delivered. Default: [`Isolation::ReadCommitted`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.0.isolation = isolation;
        self
    }

    /// Whether what a handler returns is stored in one transaction with the settlement of its event, so that who reads
    /// with [`Isolation::ReadCommitted`] has it exactly once, however often a process ends in between. It costs a few round
    /// trips to the servers for each such event, which those that are handled at once share. [What is inside, and what is
    /// not](crate#what-is-in-a-transaction). Default: no, it is stored before its event is settled.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), eventbus_core::BrokerError> {
    /// let broker = eventbus_kafka::KafkaBroker::builder("kafka://kafka-1.internal")?.transactions(true).connect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn transactions(mut self, transactions: bool) -> Self {
        self.0.transactions = transactions;
        self
    }

    /// How long an event waits for others that are sent with it. Default: 0; what is published while a request is on its
    /// way goes together with the next one anyway.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.0.linger = linger.min(FOREVER);
        self
    }

    /// For how long a publish is tried, before it is [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed), or refused
    /// where it could not even be sent. Default: 30 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.0.publish_timeout = timeout.min(FOREVER);
        self
    }

    /// How long to wait at the start for a server that does not answer. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.0.connect_timeout = timeout.min(FOREVER);
        self
    }

    /// How long a process that does not answer keeps its partitions. With [`GroupProtocol::Consumer`] the server says so
    /// (`group.consumer.session.timeout.ms`). Default: 10 s; servers take from 6 s on (`group.min.session.timeout.ms`).
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.0.session_timeout = timeout.min(FOREVER);
        self
    }

    /// The largest payload, in bytes. A topic takes 1 MiB with everything else in it, unless its `max.message.bytes` says
    /// more. Default: 1,000,000.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.0.max_payload = bytes;
        self
    }

    /// How events are written; both kinds are read. Default: [`ContentMode::Binary`].
    pub fn content_mode(mut self, mode: ContentMode) -> Self {
        self.0.content_mode = mode;
        self
    }

    /// Whether topics that are missing are made, or have to be there. Default: [`Topology::Create`].
    pub fn topology(mut self, topology: Topology) -> Self {
        self.0.topology = topology;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// Where settings do not fit together, where no server answers in time, and where it does not let this program in. The
    /// error says what to do.
    ///
    /// # Cancel safety
    /// Dropped, nothing was made.
    pub async fn connect(self) -> Result<KafkaBroker, BrokerError> {
        self.0.check()?;
        KafkaBroker::connect_with(self.0).await
    }
}

/// The settings of a broker.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) tls: bool,
    pub(crate) user: Option<Secret>,
    pub(crate) password: Option<Secret>,
    /// By [`Sasl::default`], where it is none.
    pub(crate) sasl: Option<Sasl>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// What the names of all Kafka topics begin with.
    pub(crate) prefix: String,
    /// How many partitions a topic has that is made; as many as the server makes by default, where it is none.
    pub(crate) partitions: Option<u16>,
    pub(crate) replication: Option<u16>,
    /// How long a topic that is made keeps its events; for ever, where it is none.
    pub(crate) retention_age: Option<Duration>,
    pub(crate) group_protocol: GroupProtocol,
    pub(crate) isolation: Isolation,
    /// What handlers return goes in one transaction with the settlement of their events.
    pub(crate) transactions: bool,
    /// How long an event may wait for others that are sent with it.
    pub(crate) linger: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    /// How long a process that does not answer keeps its partitions; with the new protocol the server says so.
    pub(crate) session_timeout: Duration,
    pub(crate) max_payload: usize,
    pub(crate) content_mode: ContentMode,
    pub(crate) topology: Topology,
}

impl Settings {
    /// Reads an address such as `kafkas://app:secret@kafka-1.internal,kafka-2.internal?partitions=12&replication=3`.
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        let address = Address::parse(url, SCHEMES)?;
        let mut settings = Self {
            tls: address.scheme() == "kafkas",
            user: address.user().cloned(),
            password: address.password().cloned(),
            sasl: None,
            ca: None,
            certificate: None,
            key: None,
            prefix: String::new(),
            partitions: None,
            replication: None,
            retention_age: None,
            group_protocol: GroupProtocol::default(),
            isolation: Isolation::default(),
            transactions: false,
            linger: Duration::ZERO,
            publish_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(10),
            max_payload: 1_000_000,
            content_mode: ContentMode::default(),
            topology: Topology::default(),
            address,
        };
        settings.address.clone().set_options(&mut settings, OPTIONS)?;
        settings.check()?;
        Ok(settings)
    }

    /// What does not fit together.
    fn check(&self) -> Result<(), BrokerError> {
        let mistake = |problem: &str| Err(self.address.mistake(problem));
        if !self.address.path().is_empty() {
            return mistake("nothing follows the servers; topics that belong together have a `prefix`");
        }
        if self.certificate.is_some() != self.key.is_some() {
            return mistake("`certificate` and `key` belong together; give both");
        }
        let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.prefix.len() >= MAX_TOPIC || !self.prefix.chars().all(is_legal) {
            return mistake(
                "a `prefix` has letters, digits, `.`, `_` and `-`, and fewer than 249 of them, as names of topics in \
                 Kafka have",
            );
        }
        if self.user.is_some() != self.password.is_some() {
            return mistake("a user and a password belong together; write `kafkas://user:password@host`");
        }
        if self.sasl.is_some() && self.user.is_none() {
            return mistake("`sasl` says how a user is proven, and there is none; write `user:password@`");
        }
        if self.retention_age.is_some_and(|age| age.as_millis() == 0) {
            return mistake(
                "`retention_age` is 0, so that nothing would be kept; leave it out to keep everything",
            );
        }
        if !self.tls && (self.ca.is_some() || self.certificate.is_some()) {
            return mistake(
                "`ca`, `certificate` and `key` are for TLS, and this scheme has none; write `kafkas://…`",
            );
        }
        if self.transactions && self.isolation == Isolation::ReadUncommitted {
            return mistake(
                "`transactions` are of no use to who reads what is not committed; leave out `isolation=read_uncommitted`",
            );
        }
        if self.linger >= self.publish_timeout {
            return mistake(
                "`linger` is as long as `publish_timeout`, so that no publish would be confirmed in time",
            );
        }
        if self.session_timeout < Duration::from_secs(1) {
            return mistake("`session_timeout` is shorter than a second, and servers refuse that");
        }
        Ok(())
    }

    /// The servers, as lines name them.
    pub(crate) fn shown(&self) -> String {
        let scheme = if self.tls { "kafkas" } else { "kafka" };
        let hosts: Vec<_> = self.address.hosts().iter().map(|host| host.with_port(PORT)).collect();
        format!("{scheme}://{}", hosts.join(","))
    }

    /// The address, for a command that can be pasted. None, where it would need a secret.
    pub(crate) fn pasted(&self) -> Option<String> {
        if self.user.is_some() {
            return None;
        }
        let mut options = Vec::new();
        options.extend(Some(&self.prefix).filter(|prefix| !prefix.is_empty()).map(|p| format!("prefix={p}")));
        options.extend(self.ca.as_ref().map(|ca| format!("ca={}", ca.display())));
        options.extend(self.certificate.as_ref().map(|path| format!("certificate={}", path.display())));
        options.extend(self.key.as_ref().map(|path| format!("key={}", path.display())));
        let question = if options.is_empty() { "" } else { "?" };
        Some(format!("{}{question}{}", self.shown(), options.join("&")))
    }

    /// The Kafka topic of a topic.
    pub(crate) fn kafka_topic(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// The topic that a Kafka topic stands for; none, where it is no bus's, or only known to us.
    pub(crate) fn topic_of<'a>(&self, kafka: &'a str) -> Option<&'a str> {
        kafka.strip_prefix(&self.prefix).filter(|topic| !topic.is_empty() && !topic.starts_with(OWN))
    }

    /// What every client of this broker begins with.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let servers: Vec<_> = self.address.hosts().iter().map(|host| host.with_port(PORT)).collect();
        config.set("bootstrap.servers", servers.join(","));
        config.set("client.id", "eventbus");
        // By default the client waits up to 10 s, so that a server could be back that long without being noticed.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        // A topic is made with the partitions that were asked for, never by asking for it.
        config.set("allow.auto.create.topics", "false");
        // Partitions that a topic gets later are found as soon as new topics are, about; by default in five minutes.
        config.set("topic.metadata.refresh.interval.ms", "5000");
        let protocol = match (self.tls, self.user.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            config.set(
                "sasl.mechanism",
                match self.sasl.unwrap_or_default() {
                    Sasl::Plain => "PLAIN",
                    Sasl::ScramSha256 => "SCRAM-SHA-256",
                    Sasl::ScramSha512 => "SCRAM-SHA-512",
                },
            );
            config.set("sasl.username", user.reveal()).set("sasl.password", password.reveal());
        }
        if let Some(ca) = &self.ca {
            config.set("ssl.ca.location", ca.to_string_lossy());
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            config.set("ssl.certificate.location", certificate.to_string_lossy());
            config.set("ssl.key.location", key.to_string_lossy());
        }
        config
    }

    /// A producer whose confirmations mean that all replicas in sync have the event, once and in order.
    pub(crate) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config.set("enable.idempotence", "true").set("acks", "all");
        // Of two on their way, a partition that has just been made, or has forgotten the producer, may refuse the first and
        // take the second. The client counts the first as stored then, and it is lost.
        config.set("max.in.flight.requests.per.connection", "1");
        // As Java's, for whoever shares topics with us; without a key any partition will do.
        config.set("partitioner", "murmur2_random");
        config.set("linger.ms", self.linger.as_millis().to_string());
        config.set("message.timeout.ms", self.publish_timeout.as_millis().max(1).to_string());
        config.set("message.max.bytes", self.max_message().to_string());
        // Of several servers, one whose leader moves is asked for again at once.
        config.set("retry.backoff.ms", "50").set("retry.backoff.max.ms", "500");
        config
    }

    /// The same for what is published. One with transactions takes no longer limit than these have.
    pub(crate) fn publisher(&self) -> ClientConfig {
        let mut config = self.producer();
        limit_silence(&mut config);
        config
    }

    /// The largest record that is sent: attributes, headers and what a dead letter says count as well. An event that is too
    /// large for its topic is refused by the server.
    pub(crate) fn max_message(&self) -> usize {
        self.max_payload.saturating_add(BESIDE).clamp(1_000, 1_000_000_000)
    }

    /// A consumer of a group, which commits and stores no offset by itself.
    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config.set("group.id", group);
        self.reads(&mut config);
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        // A group that skips what there is has that committed when it is made; so what has no offset is new to it.
        config.set("auto.offset.reset", "earliest");
        match self.group_protocol {
            // Only here it is the client that says so.
            GroupProtocol::Classic => {
                let timeout = self.session_timeout.as_millis();
                config.set("session.timeout.ms", timeout.to_string());
                config.set("heartbeat.interval.ms", (timeout / 4).to_string());
                config.set("partition.assignment.strategy", "cooperative-sticky");
            }
            GroupProtocol::Consumer => _ = config.set("group.protocol", "consumer"),
        }
        config
    }
}

impl Settings {
    /// A consumer that reads what it is told to, for nobody, and is told where a partition ends.
    pub(crate) fn reader(&self) -> ClientConfig {
        let mut config = self.client();
        // It joins no group and commits nothing; the client wants a name.
        config.set("group.id", format!("{}eventbus-reader", self.prefix));
        self.reads(&mut config);
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "earliest").set("enable.partition.eof", "true");
        config
    }

    /// How records are fetched: few ahead, so that what waits stays with the server, and as soon as they are there.
    fn reads(&self, config: &mut ClientConfig) {
        config.set(
            "isolation.level",
            match self.isolation {
                Isolation::ReadCommitted => "read_committed",
                Isolation::ReadUncommitted => "read_uncommitted",
            },
        );
        limit_silence(config);
        config.set("queued.min.messages", "1000").set("queued.max.messages.kbytes", "2048");
        config.set("fetch.max.bytes", (2 << 20).max(self.max_message()).to_string());
        config.set("receive.message.max.bytes", (100_000_000).max(self.max_message() * 2).to_string());
        config.set("fetch.wait.max.ms", "500").set("fetch.error.backoff.ms", "100");
        // A full queue is looked at again so much later: by default a second.
        config.set("fetch.queue.backoff.ms", "10");
        config.set("fetch.message.max.bytes", (512 << 10).to_string());
    }
}

/// So long nothing is answered on a connection before it is made anew; by default a minute, in which nothing is delivered, and
/// nothing that is published is sent on another one.
fn limit_silence(config: &mut ClientConfig) {
    config.set("socket.timeout.ms", CALL.as_millis().to_string());
}

/// A number of which there is at least one.
fn above_zero(option: OptionValue<'_>) -> Result<u16, String> {
    match option.number()? {
        // The server has 16 bits with a sign for copies.
        number @ 1..=0x7fff => Ok(number),
        number => Err(format!("`{}` is from 1 to 32767, not {number}", option.name())),
    }
}

/// Without user, password, and what else may be secret.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("address", &self.address)
            .field("prefix", &self.prefix)
            .field("partitions", &self.partitions)
            .field("replication", &self.replication)
            .field("group_protocol", &self.group_protocol)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Settings {
        Settings::parse(url).unwrap()
    }

    #[test]
    fn every_option_of_an_address_is_read() {
        let one = read(
            "kafkas://app:p%40ss@a,b:9093?prefix=shop.&partitions=12&replication=3&sasl=plain&ca=%2Fca.pem&certificate=c.pem\
             &key=k.pem&group_protocol=consumer&isolation=read_uncommitted&linger=5ms&publish_timeout=20s&connect_timeout=3s\
             &session_timeout=45s&max_payload=10&content_mode=structured&topology=check&transactions=false",
        );
        assert!(!one.transactions && read("kafka://a?transactions").transactions);
        assert_eq!((one.prefix.as_str(), one.partitions, one.replication), ("shop.", Some(12), Some(3)));
        assert_eq!((one.tls, one.sasl, one.password.unwrap().reveal()), (true, Some(Sasl::Plain), "p@ss"));
        assert_eq!(
            (one.group_protocol, one.isolation),
            (GroupProtocol::Consumer, Isolation::ReadUncommitted)
        );
        let seconds = |time: Duration| time.as_secs_f32();
        assert_eq!(
            [one.linger, one.publish_timeout, one.connect_timeout, one.session_timeout].map(seconds),
            [0.005, 20.0, 3.0, 45.0]
        );
        assert_eq!(
            (one.max_payload, one.content_mode, one.topology),
            (10, ContentMode::Structured, Topology::Check)
        );
        assert_eq!((one.ca.unwrap(), one.key.unwrap()), ("/ca.pem".into(), "k.pem".into()));
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("kafka://a?partition=3", "no option `partition`; did you mean `partitions`?"),
            ("kafka://a?partitions=0", "`partitions` is from 1 to 32767, not 0"),
            ("kafka://a?replication=40000", "`replication` is from 1 to 32767, not 40000"),
            ("kafka://a?partitions=x", "a whole number"),
            ("kafka://a/shop", "have a `prefix`"),
            ("kafka://a?prefix=a%2Fb", "letters, digits"),
            ("kafka://ada@a", "a user and a password belong together"),
            ("kafka://a?ca=x", "write `kafkas://…`"),
            ("kafkas://a?key=x", "`certificate` and `key` belong together"),
            ("kafka://a?sasl=scram", "`scram-sha-512`"),
            ("kafka://a?sasl=plain", "write `user:password@`"),
            ("kafka://a?retention_age=0s", "nothing would be kept"),
            ("kafka://a?transactions=on", "`transactions` is true or false, not `on`"),
            ("kafka://a?transactions&isolation=read_uncommitted", "leave out `isolation=read_uncommitted`"),
            ("kafka://a?linger=30s", "no publish would be confirmed"),
            ("kafka://a?session_timeout=1ms", "shorter than a second"),
            ("kafka:a", "write `kafka://localhost`"),
        ] {
            let error = Settings::parse(url).unwrap_err().to_string();
            assert!(error.contains(named), "{url}: {error}");
        }
    }

    #[test]
    fn no_time_of_a_builder_is_too_long_for_a_clock() {
        let long = Duration::MAX;
        let builder = KafkaBrokerBuilder::parse("kafka://a").unwrap();
        let builder = builder.linger(long).publish_timeout(long).connect_timeout(long).session_timeout(long);
        let Settings { linger, publish_timeout, connect_timeout, session_timeout, .. } = builder.0;
        for time in [linger, publish_timeout, connect_timeout, session_timeout] {
            assert!(std::time::Instant::now().checked_add(time).is_some(), "{time:?}");
        }
    }

    #[test]
    fn the_client_takes_all_that_is_set() {
        for url in [
            "kafka://a",
            "kafka://a,[::1]:9093?group_protocol=consumer&linger=5ms",
            "kafkas://ada:secret@a?sasl=plain&isolation=read_uncommitted&max_payload=0",
            "kafka://ada:secret@a?publish_timeout=1000h&session_timeout=45s&max_payload=99999999999",
        ] {
            let settings = read(url);
            for config in [settings.client(), settings.publisher(), settings.consumer("billing.charge")] {
                config.create_native_config().unwrap_or_else(|error| panic!("{url}: {error}"));
            }
        }
    }

    #[test]
    fn what_is_secret_travels_as_the_address_says_and_is_shown_nowhere() {
        let protocol = |url: &str| read(url).client().get("security.protocol").unwrap().to_owned();
        assert_eq!(protocol("kafka://a"), "plaintext");
        assert_eq!(protocol("kafkas://a"), "ssl");
        assert_eq!(protocol("kafka://ada:hunter2@a"), "sasl_plaintext");
        assert_eq!(protocol("kafkas://ada:hunter2@a"), "sasl_ssl");
        let settings = read("kafkas://ada:hunter2@a,b:9093");
        assert_eq!(settings.client().get("bootstrap.servers"), Some("a:9092,b:9093"));
        assert!(!format!("{settings:?} {:?}", settings.client()).contains("hunter2"), "{settings:?}");
    }

    #[test]
    fn a_confirmation_means_all_replicas_and_nothing_is_committed_by_itself() {
        let settings = read("kafka://a");
        let producer = settings.producer();
        assert_eq!((producer.get("acks"), producer.get("enable.idempotence")), (Some("all"), Some("true")));
        assert_eq!(
            (producer.get("partitioner"), producer.get("linger.ms")),
            (Some("murmur2_random"), Some("0"))
        );
        assert_eq!(producer.get("max.in.flight.requests.per.connection"), Some("1"));
        let consumer = settings.consumer("billing");
        assert_eq!(consumer.get("enable.auto.commit"), Some("false"));
        assert_eq!(consumer.get("isolation.level"), Some("read_committed"));
        assert_eq!(consumer.get("partition.assignment.strategy"), Some("cooperative-sticky"));
        let consumer = read("kafka://a?group_protocol=consumer").consumer("billing");
        assert_eq!(consumer.get("partition.assignment.strategy"), None, "the server decides");
    }
}
