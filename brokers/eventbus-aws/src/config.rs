//! Settings of the broker, typed or as part of an address.

use crate::AwsBroker;
use crate::names::Names;
use crate::wire::ContentMode;
use eventbus_core::BrokerError;
use eventbus_core::broker::Topology;
use eventbus_server::url::{Address, Secret, Setting};
use std::path::PathBuf;
use std::time::Duration;

/// The host of an address that leaves the region to the environment.
const DEFAULT: &str = "default";
/// How long SQS may hide a message at most.
pub(crate) const LONGEST_HIDDEN: Duration = Duration::from_secs(12 * 3_600);

/// What an address may set, in the order in which a mistake lists it.
const OPTIONS: &[Setting<Settings>] = &[
    ("account", |to, option| option.set(&mut to.account)),
    ("endpoint", |to, option| option.set(&mut to.endpoint)),
    ("ca", |to, option| option.set(&mut to.ca)),
    ("profile", |to, option| option.set(&mut to.profile)),
    ("fifo", |to, option| option.set(&mut to.names.fifo)),
    ("prefix", |to, option| option.set(&mut to.names.prefix)),
    ("topology", |to, option| option.set(&mut to.topology)),
    ("retention_age", |to, option| option.set(&mut to.retention_age)),
    ("visibility_timeout", |to, option| option.set(&mut to.visibility_timeout)),
    ("wait_time", |to, option| option.set(&mut to.wait_time)),
    ("connect_timeout", |to, option| option.set(&mut to.connect_timeout)),
    ("publish_timeout", |to, option| option.set(&mut to.publish_timeout)),
    ("content_mode", |to, option| {
        option.choose(
            &mut to.content_mode,
            &[("binary", ContentMode::Binary), ("structured", ContentMode::Structured)],
        )
    }),
];

/// What a connection, and the topics and queues behind it, are made of.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// None: that of the environment or the profile.
    pub(crate) region: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) endpoint: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) profile: Option<String>,
    /// None: the standard chain.
    pub(crate) credentials: Option<(Secret, Secret)>,
    pub(crate) names: Names,
    pub(crate) topology: Topology,
    pub(crate) retention_age: Option<Duration>,
    pub(crate) visibility_timeout: Duration,
    pub(crate) wait_time: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) content_mode: ContentMode,
}

/// The settings of an [`AwsBroker`].
///
/// ```no_run
/// use eventbus_aws::AwsBroker;
/// use std::time::Duration;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let broker = AwsBroker::builder("sns://eu-central-1")?
///     .fifo(true)
///     .prefix("shop")
///     .visibility_timeout(Duration::from_secs(60))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it connects"]
pub struct AwsBrokerBuilder(pub(crate) Settings);

impl AwsBrokerBuilder {
    /// Reads an address such as `sns://eu-central-1?fifo=true&prefix=shop`.
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        let address = Address::parse_as(url, &["sns"], "sns://eu-central-1")?;
        let [host] = address.hosts() else {
            return Err(address.mistake("it names one region, or `default`; write `sns://eu-central-1`"));
        };
        let is_region = host.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if host.port.is_some() || !is_region || host.name == "localhost" {
            return Err(address.mistake(&format!(
                "`{}` is no region; write `sns://eu-central-1`, or `sns://default` for that of the environment, and name \
                 another server by `?endpoint=http://…`",
                host.name
            )));
        }
        if !address.path().is_empty() {
            return Err(address.mistake("it has no path; say what names begin with by `?prefix=…`"));
        }
        let credentials = match (address.user(), address.password()) {
            (None, None) => None,
            (Some(id), Some(secret)) => Some((id.clone(), secret.clone())),
            _ => {
                return Err(
                    address.mistake("the id of a key and its secret belong together; write `id:secret@`")
                );
            }
        };
        let mut builder = Self(Settings {
            region: Some(host.name.clone()).filter(|region| region != DEFAULT),
            account: None,
            endpoint: None,
            ca: None,
            profile: None,
            credentials,
            names: Names { prefix: "eventbus".to_owned(), fifo: false },
            topology: Topology::default(),
            retention_age: None,
            visibility_timeout: Duration::from_secs(30),
            wait_time: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            content_mode: ContentMode::default(),
        });
        address.set_options(&mut builder.0, OPTIONS)?;
        builder.0.check().map_err(|problem| address.mistake(&problem))?;
        Ok(builder)
    }

    /// Topics and queues are FIFO: events of one key stay in order, over all processes of a group, and an event that is
    /// published twice within five minutes is stored once. Default: no.
    pub fn fifo(mut self, fifo: bool) -> Self {
        self.0.names.fifo = fifo;
        self
    }

    /// What the names of topics and queues begin with: the topic of `order.placed` is `<prefix>-order-placed`. Default:
    /// `eventbus`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.names.prefix = prefix.into();
        self
    }

    /// The account that the credentials have to be of; with those of another one it does not connect. Default: any.
    pub fn account(mut self, account: impl Into<String>) -> Self {
        self.0.account = Some(account.into());
        self
    }

    /// Another server than Amazon's, such as an emulator at `http://localhost:4566`. Default: what the environment says, or
    /// that of the region.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.0.endpoint = Some(endpoint.into());
        self
    }

    /// Trusts the authorities in this PEM file, and no others. Default: those of the system.
    pub fn ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.ca = Some(path.into());
        self
    }

    /// The profile of the files in `~/.aws` that region and credentials are taken from. Default: what the environment says.
    pub fn profile(mut self, profile: impl Into<String>) -> Self {
        self.0.profile = Some(profile.into());
        self
    }

    /// Signs with this key. Default: what the standard chain finds: environment, profile, web identity, container, instance.
    pub fn credentials(mut self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.0.credentials = Some((Secret::new(id), Secret::new(secret)));
        self
    }

    /// Whether topics, queues and subscriptions that are missing are made, or have to be there. Default:
    /// [`Topology::Create`].
    pub fn topology(mut self, topology: Topology) -> Self {
        self.0.topology = topology;
        self
    }

    /// How long an event waits for its group, before SQS drops it, in a queue that is made here. From a minute to 14 days.
    /// Default: 14 days.
    pub fn retention_age(mut self, age: Duration) -> Self {
        self.0.retention_age = Some(age);
        self
    }

    /// For how long a process that does not answer keeps its deliveries to itself. Default: 30 s; at least 2 s.
    pub fn visibility_timeout(mut self, timeout: Duration) -> Self {
        self.0.visibility_timeout = timeout;
        self
    }

    /// How long SQS waits for an event before it answers that there is none, in whole seconds from 1 to 20. A longer time is
    /// fewer calls to pay, and a longer end: a process waits for the answer to its last call before it ends. So the bus's
    /// [`drain`](eventbus_core::BusBuilder::drain) is to be longer than this. Default: 5 s.
    pub fn wait_time(mut self, time: Duration) -> Self {
        self.0.wait_time = time;
        self
    }

    /// How long to wait at the start for a server that does not answer. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.0.connect_timeout = timeout;
        self
    }

    /// For how long a publish is tried again that fails for a reason that passes, before it is
    /// [`Unconfirmed`](eventbus_core::PublishError::Unconfirmed). Default: 30 s; FIFO topics know an event again for five
    /// minutes, so at most four.
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
    /// Where there is no region or no credentials, where no server answers in time, and where it does not let this program
    /// in. The error says what to do.
    ///
    /// # Cancel safety
    /// Dropped, nothing was made.
    pub async fn connect(self) -> Result<AwsBroker, BrokerError> {
        self.0.check().map_err(BrokerError::new)?;
        AwsBroker::connect_with(self.0).await
    }
}

impl Settings {
    /// Whether the settings fit together.
    fn check(&self) -> Result<(), String> {
        let prefix = &self.names.prefix;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if prefix.is_empty() || prefix.len() > 30 || !prefix.bytes().all(is_plain) {
            return Err(format!(
                "names cannot begin with `{prefix}` (`prefix`); take 1 to 30 letters, digits, `_` and `-`"
            ));
        }
        if let Some(endpoint) = &self.endpoint
            && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
        {
            return Err(format!("`endpoint` begins with `http://` or `https://`, not `{endpoint}`"));
        }
        let within = |name: &str, time: Duration, least: u64, most: u64, said: &str| {
            if time < Duration::from_secs(least) || time > Duration::from_secs(most) {
                Err(format!("`{name}` ({time:?}) is not from {said}"))
            } else {
                Ok(())
            }
        };
        within("visibility_timeout", self.visibility_timeout, 2, 12 * 3_600, "2s to 12h")?;
        within(
            "publish_timeout",
            self.publish_timeout,
            1,
            240,
            "1s to 4m, while a FIFO topic knows an event again",
        )?;
        within("wait_time", self.wait_time, 1, 20, "1s to 20s")?;
        within("connect_timeout", self.connect_timeout, 0, 30 * 365 * 86_400, "0s to 30 years")?;
        if let Some(age) = self.retention_age {
            within("retention_age", age, 60, 14 * 86_400, "1m to 14 days")?;
        }
        for (name, time) in [
            ("wait_time", self.wait_time),
            ("visibility_timeout", self.visibility_timeout),
            ("retention_age", self.retention_age.unwrap_or_default()),
        ] {
            if time.subsec_nanos() != 0 {
                return Err(format!(
                    "`{name}` ({time:?}) is no whole number of seconds, which SQS counts in"
                ));
            }
        }
        Ok(())
    }

    /// The address, for a command that can be pasted. None, where it would need a secret.
    pub(crate) fn pasted(&self) -> Option<String> {
        if self.credentials.is_some() {
            return None;
        }
        let mut options = vec![format!("prefix={}", self.names.prefix)];
        options.extend(self.names.fifo.then(|| "fifo=true".to_owned()));
        options.extend(self.endpoint.as_ref().map(|endpoint| format!("endpoint={endpoint}")));
        options.extend(self.profile.as_ref().map(|profile| format!("profile={profile}")));
        options.extend(self.ca.as_ref().map(|ca| format!("ca={}", ca.display())));
        Some(format!("{}?{}", self.shown(), options.join("&")))
    }

    /// The region, as it is shown.
    pub(crate) fn shown(&self) -> String {
        format!("sns://{}", self.region.as_deref().unwrap_or(DEFAULT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_what_a_builder_says() {
        let read = AwsBrokerBuilder::parse(
            "sns://ID:se%2Fcret@eu-central-1?fifo=true&prefix=shop&topology=check&retention_age=24h\
             &visibility_timeout=5s&wait_time=1s&content_mode=structured&endpoint=http://127.0.0.1:4566&account=000000000000",
        )
        .unwrap()
        .0;
        assert_eq!(
            (read.region.as_deref(), read.account.as_deref()),
            (Some("eu-central-1"), Some("000000000000"))
        );
        assert_eq!(read.endpoint.as_deref(), Some("http://127.0.0.1:4566"));
        assert!(
            read.credentials
                .as_ref()
                .is_some_and(|(id, key)| (id.reveal(), key.reveal()) == ("ID", "se/cret"))
        );
        assert_eq!(read.names, Names { prefix: "shop".to_owned(), fifo: true });
        assert_eq!((read.topology, read.content_mode), (Topology::Check, ContentMode::Structured));
        assert_eq!((read.visibility_timeout.as_secs(), read.wait_time.as_secs()), (5, 1));
        assert_eq!(read.pasted(), None, "it would need a secret");
        let read = AwsBrokerBuilder::parse("sns://default?fifo").unwrap().0;
        assert_eq!((&read.region, read.names.fifo), (&None, true));
        assert_eq!(read.pasted().as_deref(), Some("sns://default?prefix=eventbus&fifo=true"));
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("sns://localhost:4566", "by `?endpoint=http://…`"),
            ("sns://localhost", "by `?endpoint=http://…`"),
            ("sns://eu-central-1,us-east-1", "one region"),
            ("sns://default/shop", "has no path"),
            ("sns://id@default", "write `id:secret@`"),
            ("sns://default?ffo", "did you mean `fifo`?"),
            ("sns://default?fifo=maybe", "true or false"),
            ("sns://default?prefix=a.b", "names cannot begin with"),
            ("sns://default?endpoint=localhost:4566", "begins with `http://`"),
            ("sns://default?visibility_timeout=1s", "2s to 12h"),
            ("sns://default?visibility_timeout=2500ms", "whole number of seconds"),
            ("sns://default?wait_time=30s", "1s to 20s"),
            ("sns://default?retention_age=480h", "14 days"),
            ("sns://default?topology=maybe", "is one of `create`, `check`"),
        ] {
            let error = AwsBrokerBuilder::parse(url).unwrap_err().to_string();
            assert!(error.contains(named), "{url}: {error}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let parsed = AwsBrokerBuilder::parse("sns://id:hunter2@default").unwrap();
        let typed = AwsBrokerBuilder::parse("sns://default").unwrap().credentials("id", "hunter2");
        let mistaken = AwsBrokerBuilder::parse("sns://id:hunter2@default?x").unwrap_err();
        assert!(!format!("{parsed:?} {typed:?} {mistaken:?}").contains("hunter2"));
    }
}
