//! Settings of the broker, typed or as part of an address.

use crate::NatsBroker;
use crate::wire::ContentMode;
use eventbus_core::BrokerError;
use eventbus_core::broker::Topology;
use eventbus_server::url::{Address, Secret, Setting};
use std::path::PathBuf;
use std::time::Duration;

/// The port where an address names none.
const PORT: u16 = 4222;

/// As long as a time may be, so that it can be added to an instant: 30 years.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

/// Where the server keeps a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// In files.
    #[default]
    File,
    /// In memory: what was published does not survive the end of the server.
    Memory,
}

/// Who connects.
#[derive(Clone, Debug, Default)]
pub(crate) enum Login {
    #[default]
    Nobody,
    User(String, Secret),
    Token(Secret),
    NKey(Secret),
    Credentials(PathBuf),
}

/// What an address may set, in the order in which a mistake lists it.
const OPTIONS: &[Setting<Settings>] = &[
    ("stream", |to, option| option.set(&mut to.stream)),
    ("prefix", |to, option| option.set(&mut to.prefix)),
    ("topology", |to, option| option.set(&mut to.topology)),
    ("storage", |to, option| {
        option
            .one_of(&[("file", Storage::File), ("memory", Storage::Memory)])
            .map(|kind| to.storage = Some(kind))
    }),
    ("replicas", |to, option| option.set(&mut to.replicas)),
    ("retention_age", |to, option| option.set(&mut to.retention_age)),
    ("retention_size", |to, option| option.set(&mut to.retention_size)),
    ("duplicate_window", |to, option| option.set(&mut to.duplicate_window)),
    ("connect_timeout", |to, option| option.set(&mut to.connect_timeout)),
    ("publish_timeout", |to, option| option.set(&mut to.publish_timeout)),
    ("ack_wait", |to, option| option.set(&mut to.ack_wait)),
    ("content_mode", |to, option| {
        option.choose(
            &mut to.content_mode,
            &[("binary", ContentMode::Binary), ("structured", ContentMode::Structured)],
        )
    }),
    ("ca", |to, option| option.set(&mut to.ca)),
    ("certificate", |to, option| option.set(&mut to.certificate)),
    ("key", |to, option| option.set(&mut to.key)),
    ("tls_first", |to, option| option.set(&mut to.tls_first)),
    ("token", |to, option| to.log_in(Login::Token(option.secret()?))),
    ("nkey", |to, option| to.log_in(Login::NKey(option.secret()?))),
    ("credentials", |to, option| to.log_in(Login::Credentials(option.text()?.into()))),
    ("domain", |to, option| option.set(&mut to.domain)),
];

/// What a connection and the streams behind it are made of.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Hosts with their ports.
    pub(crate) servers: Vec<String>,
    pub(crate) login: Login,
    pub(crate) tls: bool,
    pub(crate) tls_first: bool,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) domain: Option<String>,
    pub(crate) stream: String,
    pub(crate) prefix: String,
    pub(crate) topology: Topology,
    pub(crate) storage: Option<Storage>,
    pub(crate) replicas: Option<usize>,
    pub(crate) retention_age: Option<Duration>,
    pub(crate) retention_size: Option<u64>,
    pub(crate) duplicate_window: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) ack_wait: Duration,
    pub(crate) content_mode: ContentMode,
}

/// The settings of a [`NatsBroker`].
///
/// ```no_run
/// use eventbus_nats::NatsBroker;
/// use std::time::Duration;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let broker = NatsBroker::builder("nats://localhost:4222")?
///     .stream("SHOP")
///     .prefix("shop")
///     .replicas(3)
///     .retention_age(Duration::from_secs(30 * 24 * 3600))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct NatsBrokerBuilder(pub(crate) Settings);

impl NatsBrokerBuilder {
    /// Reads an address such as `nats://ada:secret@localhost:4222?stream=SHOP&prefix=shop`.
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        let address = Address::parse(url, &["nats", "tls"])?;
        if !address.path().is_empty() {
            return Err(address.mistake("an address of NATS has no path; name the stream by `?stream=…`"));
        }
        let login = match (address.user(), address.password()) {
            (Some(user), Some(password)) => Login::User(user.reveal().to_owned(), password.clone()),
            // By this NATS means a token.
            (Some(token), None) => Login::Token(token.clone()),
            (None, Some(_)) => {
                return Err(address.mistake("there is a password without a user; write `user:password@`"));
            }
            (None, None) => Login::Nobody,
        };
        let mut builder = Self(Settings {
            servers: address.hosts().iter().map(|host| host.with_port(PORT)).collect(),
            login,
            tls: address.scheme() == "tls",
            tls_first: false,
            ca: None,
            certificate: None,
            key: None,
            domain: None,
            stream: "EVENTBUS".to_owned(),
            prefix: "eventbus".to_owned(),
            topology: Topology::default(),
            storage: None,
            replicas: None,
            retention_age: None,
            retention_size: None,
            duplicate_window: None,
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            ack_wait: Duration::from_secs(5),
            content_mode: ContentMode::default(),
        });
        address.set_options(&mut builder.0, OPTIONS)?;
        builder.0.check().map_err(|problem| address.mistake(&problem))?;
        Ok(builder)
    }

    /// The stream that keeps the events. Default: `EVENTBUS`. Dead letters are in `<stream>-DEAD`, and what is known of
    /// retries that wait in the key-value bucket `<stream>-PARKED`.
    pub fn stream(mut self, name: impl Into<String>) -> Self {
        self.0.stream = name.into();
        self
    }

    /// What stands before each topic: the subject of `order.placed` is `<prefix>.order.placed`. Default: `eventbus`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// Whether streams and consumers that are missing are made, or have to be there. Default: [`Topology::Create`].
    pub fn topology(mut self, topology: Topology) -> Self {
        self.0.topology = topology;
        self
    }

    /// Where a stream is kept that is made here. Default: [`Storage::File`].
    pub fn storage(mut self, storage: Storage) -> Self {
        self.0.storage = Some(storage);
        self
    }

    /// On how many servers of a cluster a stream is kept that is made here. Default: 1.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.0.replicas = Some(replicas);
        self
    }

    /// How long events are kept, whether they were handled or not, in a stream that is made here. Default: forever.
    pub fn retention_age(mut self, age: Duration) -> Self {
        self.0.retention_age = Some(age);
        self
    }

    /// How many bytes of events are kept, whether they were handled or not, in a stream that is made here; beyond that
    /// the oldest are removed. Default: no limit.
    pub fn retention_size(mut self, bytes: u64) -> Self {
        self.0.retention_size = Some(bytes);
        self
    }

    /// For how long the server knows an event again that is published twice, in a stream that is made here. Default:
    /// 2 minutes. It must not be shorter than [`publish_timeout`](Self::publish_timeout).
    pub fn duplicate_window(mut self, window: Duration) -> Self {
        self.0.duplicate_window = Some(window);
        self
    }

    /// How long to wait at the start for a server that does not answer. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.0.connect_timeout = timeout;
        self
    }

    /// For how long a publish is sent again that is not confirmed, before it is
    /// [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed). Default: 30 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.0.publish_timeout = timeout;
        self
    }

    /// For how long a process that does not answer keeps its deliveries and its groups to itself. Default: 5 s; at least
    /// 1 s.
    pub fn ack_wait(mut self, wait: Duration) -> Self {
        self.0.ack_wait = wait;
        self
    }

    /// How events are written; both kinds are read. Default: [`ContentMode::Binary`].
    pub fn content_mode(mut self, mode: ContentMode) -> Self {
        self.0.content_mode = mode;
        self
    }

    /// Connects as this user.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.login = Login::User(user.into(), Secret::new(password));
        self
    }

    /// Connects with a token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.0.login = Login::Token(Secret::new(token));
        self
    }

    /// Connects with the seed of an NKey.
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.0.login = Login::NKey(Secret::new(seed));
        self
    }

    /// Connects with a credentials file (`.creds`), as `nsc` makes them.
    pub fn credentials(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.login = Login::Credentials(path.into());
        self
    }

    /// Trusts the authorities in this PEM file, and no others. Default: those of the system.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// Shows the server this certificate and proves it with this key, both PEM files.
    pub fn certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.0.certificate, self.0.key) = (Some(certificate.into()), Some(key.into()));
        self
    }

    /// Speaks TLS from the first byte, as a server with `handshake_first` asks for.
    pub fn tls_first(mut self) -> Self {
        (self.0.tls, self.0.tls_first) = (true, true);
        self
    }

    /// The JetStream domain, where the stream is behind a leaf node.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.0.domain = Some(domain.into());
        self
    }

    /// Connects, and makes or checks the streams.
    ///
    /// # Errors
    /// Where no server answers in time, where it does not let this program in or has no JetStream, and where a stream
    /// is there with other settings. The error says what to do.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed again. Streams may have been made.
    pub async fn connect(self) -> Result<NatsBroker, BrokerError> {
        self.0.check().map_err(BrokerError::new)?;
        NatsBroker::connect_with(self.0).await
    }
}

impl Settings {
    /// An address says who connects.
    fn log_in(&mut self, login: Login) -> Result<(), String> {
        if !matches!(self.login, Login::Nobody) {
            return Err("it says in more than one way who connects; give one of user and password, `token`, `nkey` and \
                        `credentials`"
                .to_owned());
        }
        self.login = login;
        Ok(())
    }

    /// Whether the settings fit together.
    fn check(&self) -> Result<(), String> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err("`certificate` and `key` belong together; give both, or neither".to_owned());
        }
        let is_name = |name: &str| {
            !name.is_empty()
                && name.len() <= 200
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        if !is_name(&self.stream) {
            return Err(format!(
                "`{}` cannot be the name of a stream; take letters, digits, `_` and `-`",
                self.stream
            ));
        }
        if !self.prefix.split('.').all(is_name) || self.prefix.len() > 100 {
            return Err(format!(
                "`{}` cannot be a prefix of subjects; take segments of letters, digits, `_` and `-`, joined by dots",
                self.prefix
            ));
        }
        let window = self.duplicate_window();
        if window < self.publish_timeout {
            return Err(format!(
                "`duplicate_window` ({:?}) is shorter than `publish_timeout` ({:?}): an event that is sent again could be \
                 stored twice; lengthen the one or shorten the other",
                window, self.publish_timeout
            ));
        }
        if self.ack_wait < Duration::from_secs(1) {
            return Err(format!("`ack_wait` ({:?}) is too short; take at least 1s", self.ack_wait));
        }
        for (name, time) in [
            ("connect_timeout", self.connect_timeout),
            ("duplicate_window", window),
            ("ack_wait", self.ack_wait),
        ] {
            if time > FOREVER {
                return Err(format!("`{name}` is too long; take at most 30 years"));
            }
        }
        if let Some(replicas) = self.replicas.filter(|replicas| !(1..=5).contains(replicas)) {
            return Err(format!("`replicas` is a number from 1 to 5, not {replicas}"));
        }
        Ok(())
    }

    /// For how long a stream that is made here knows an event again.
    pub(crate) fn duplicate_window(&self) -> Duration {
        self.duplicate_window.unwrap_or(Duration::from_secs(120))
    }

    /// The address, for a command that can be pasted. None, where it would need a secret.
    pub(crate) fn pasted(&self) -> Option<String> {
        let plain = matches!(self.login, Login::Nobody) && self.ca.is_none() && self.certificate.is_none();
        plain.then(|| format!("{}?stream={}&prefix={}", self.shown(), self.stream, self.prefix))
    }

    /// The servers, as they are shown.
    pub(crate) fn shown(&self) -> String {
        format!("{}://{}", if self.tls { "tls" } else { "nats" }, self.servers.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_what_a_builder_says() {
        let read = NatsBrokerBuilder::parse(
            "tls://ada:p%40ss@one:1,two?stream=SHOP&prefix=shop.v1&topology=check&storage=memory&replicas=3\
             &retention_age=720h&retention_size=9&ack_wait=2s&content_mode=structured&ca=%2Fca.pem&certificate=c&key=k",
        )
        .unwrap()
        .0;
        assert_eq!(read.servers, ["one:1", "two:4222"]);
        assert!(
            matches!(&read.login, Login::User(user, password) if user == "ada" && password.reveal() == "p@ss")
        );
        assert_eq!((read.stream.as_str(), read.prefix.as_str(), read.tls), ("SHOP", "shop.v1", true));
        assert_eq!(
            (read.topology, read.storage, read.replicas),
            (Topology::Check, Some(Storage::Memory), Some(3))
        );
        assert_eq!((read.retention_size, read.ack_wait), (Some(9), Duration::from_secs(2)));
        assert_eq!((read.content_mode, read.ca), (ContentMode::Structured, Some("/ca.pem".into())));
        assert_eq!((read.certificate, read.key), (Some("c".into()), Some("k".into())));
        assert!(matches!(NatsBrokerBuilder::parse("nats://t0ken@a").unwrap().0.login, Login::Token(_)));
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("nats://a/shop", "has no path; name the stream by `?stream=…`"),
            ("nats://:x@a", "write `user:password@`"),
            ("nats://a?steam=X", "did you mean `stream`?"),
            ("nats://a?stream=a.b", "cannot be the name of a stream"),
            ("nats://a?prefix=a..b", "cannot be a prefix"),
            ("nats://a?prefix=a.>", "cannot be a prefix"),
            ("nats://a?topology=maybe", "is one of `create`, `check`"),
            ("nats://a?publish_timeout=3m", "is shorter than `publish_timeout`"),
            ("nats://a?ack_wait=10ms", "take at least 1s"),
            ("nats://a?replicas=0", "from 1 to 5"),
            ("nats://a?key=k", "belong together"),
            ("nats://u:p@a?token=x", "in more than one way"),
            ("nats://a?token=x&nkey=y", "in more than one way"),
        ] {
            let error = NatsBrokerBuilder::parse(url).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        for url in
            ["nats://ada:hunter2@a", "nats://hunter2@a", "nats://a?token=hunter2", "nats://a?nkey=hunter2"]
        {
            let shown = format!("{:?}", NatsBrokerBuilder::parse(url).unwrap());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let typed = NatsBrokerBuilder::parse("nats://a").unwrap().user("ada", "hunter2");
        assert!(!format!("{typed:?} {:?}", typed.clone().nkey("hunter2")).contains("hunter2"));
    }
}
