//! Settings of the log, typed or as part of an address.

use crate::SqliteBroker;
use eventbus_core::BrokerError;
use eventbus_core::choice::choice;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As long as a time may be, so that it can be added to an instant: 30 years.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

/// The options of an address.
const OPTIONS: [&str; 10] = [
    "create",
    "durability",
    "max_payload",
    "lease",
    "poll_interval",
    "retention_age",
    "retention_size",
    "retention_count",
    "retention_unhandled",
    "retention_interval",
];

/// What an acknowledged publish survives. A crash of the program is survived in every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A power cut: the file is synced before a publish is acknowledged, once for all that wait.
    #[default]
    Full,
    /// A power cut may take the last moments before it, and leaves the file intact
    /// ([`synchronous=NORMAL`](https://www.sqlite.org/pragma.html#pragma_synchronous)).
    Normal,
    /// A power cut may take the last moments before it, or damage the file.
    Off,
}

/// How long events are kept after every group has handled them. By default: forever.
///
/// Events that some dead letter or unfinished delivery refers to are kept in any case, and so is the latest event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Events that were stored longer ago than this are removed.
    pub age: Option<Duration>,
    /// The oldest events are removed while the file is larger than so many bytes.
    pub size: Option<u64>,
    /// The oldest events are removed while there are more than so many.
    pub count: Option<u64>,
    /// Removes events even if a group has not handled them yet; that group never sees them.
    pub unhandled: bool,
}

/// The settings of a [`SqliteBroker`].
///
/// ```no_run
/// use eventbus_sqlite::{Durability, Retention, SqliteBroker};
/// use std::time::Duration;
///
/// # async fn open() -> Result<(), eventbus_core::BrokerError> {
/// let mut month = Retention::default();
/// month.age = Some(Duration::from_secs(30 * 24 * 3600));
/// let broker = SqliteBroker::builder("shop.db").durability(Durability::Normal).retention(month).open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is opened"]
pub struct SqliteBrokerBuilder {
    pub(crate) path: PathBuf,
    pub(crate) create: bool,
    pub(crate) durability: Durability,
    pub(crate) retention: Retention,
    pub(crate) retention_interval: Duration,
    pub(crate) max_payload: usize,
    pub(crate) lease: Duration,
    pub(crate) poll_interval: Duration,
    #[cfg(test)]
    pub(crate) faults: Option<crate::faults::Faults>,
}

impl SqliteBrokerBuilder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            create: true,
            durability: Durability::default(),
            retention: Retention::default(),
            retention_interval: Duration::from_secs(60),
            max_payload: 8 << 20,
            lease: Duration::from_secs(10),
            poll_interval: Duration::from_millis(20),
            #[cfg(test)]
            faults: None,
        }
    }

    /// Whether to create the log where there is none. Default: true. Whoever only looks at a log sets it to false, so
    /// that a mistyped path is an error.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// What an acknowledged publish survives. Default: [`Durability::Full`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long events are kept. Default: forever.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How often the retention is applied, in the background. Default: every minute.
    pub fn retention_interval(mut self, interval: Duration) -> Self {
        self.retention_interval = interval.min(FOREVER);
        self
    }

    /// The largest payload that is taken, in bytes. Default: 8 MiB.
    ///
    /// Everything else of an event counts as well: its topic, key, subject, id, source, type, content type, the ids of
    /// its causes, and the headers with their names may together have as many bytes, and 64 KiB in any case.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// How long a process that does not answer keeps its groups to itself, before another process takes over. A
    /// process that has ended is noticed at once. Default: 10 s; at least 100 ms.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_millis(100), FOREVER);
        self
    }

    /// What fails on purpose.
    #[cfg(test)]
    pub(crate) fn faults(mut self, faults: crate::faults::Faults) -> Self {
        self.faults = Some(faults);
        self
    }

    /// How often to look whether another process has written to the file. Default: every 20 ms; at least 1 ms.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.clamp(Duration::from_millis(1), FOREVER);
        self
    }

    /// Opens the log, and creates it where there is no such file.
    ///
    /// The path is resolved now: links, `..` and the working directory count when the log is opened, and not later.
    /// Every character stands for itself; SQLite's URIs (`file:…`) and `:memory:` are refused.
    ///
    /// # Errors
    /// Where the file cannot be opened, is damaged, belongs to another program, has several names (hard links) that
    /// are not all in its folder, or was written by a newer version of this crate.
    ///
    /// # Cancel safety
    /// Dropped, the log is closed again. It may have been created.
    pub async fn open(self) -> Result<SqliteBroker, BrokerError> {
        SqliteBroker::open_with(self).await
    }

    /// Reads an address such as `sqlite:shop.db?durability=normal&retention_age=720h`. The path goes to the first `?`
    /// and stands as it is written, without percent-encoding.
    pub(crate) fn parse(url: &str) -> Result<Self, BrokerError> {
        let rest = url.strip_prefix("sqlite:").unwrap_or(url);
        let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
        let path = match path.strip_prefix("//") {
            // In an address it would be a host, and the log is a file.
            Some(host) if !host.is_empty() && !host.starts_with('/') => {
                return Err(BrokerError::new(format!(
                    "`{url}` names a host; write `sqlite:{host}` for a path from here, or `sqlite:///{host}` for one \
                     from the root"
                )));
            }
            Some(path) => path,
            None => path,
        };
        if path.is_empty() || path == ":memory:" {
            return Err(BrokerError::new(format!(
                "`{url}` names no file; write `sqlite:shop.db`, or use `memory:` for a bus that keeps nothing"
            )));
        }
        let mut builder = Self::new(Path::new(path));
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            builder.set(name, value).map_err(|problem| BrokerError::new(format!("`{url}`: {problem}")))?;
        }
        Ok(builder)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "durability" => {
                self.durability = match value {
                    "full" => Durability::Full,
                    "normal" => Durability::Normal,
                    "off" => Durability::Off,
                    _ => return Err(format!("the durability `{value}` is none of full, normal and off")),
                }
            }
            "create" => self.create = flag(name, value)?,
            "max_payload" => self.max_payload = number(name, value)?,
            "lease" => *self = self.clone().lease(duration(name, value)?),
            "poll_interval" => *self = self.clone().poll_interval(duration(name, value)?),
            "retention_age" => self.retention.age = Some(duration(name, value)?),
            "retention_size" => self.retention.size = Some(number(name, value)?),
            "retention_count" => self.retention.count = Some(number(name, value)?),
            "retention_unhandled" => self.retention.unhandled = flag(name, value)?,
            "retention_interval" => *self = self.clone().retention_interval(duration(name, value)?),
            _ => {
                return Err(format!("a log has no option `{name}`; {}", choice(name, OPTIONS)));
            }
        }
        Ok(())
    }
}

fn flag(name: &str, value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("`{name}` is true or false, not `{value}`"))
}

fn number<N: std::str::FromStr>(name: &str, value: &str) -> Result<N, String> {
    value.parse().map_err(|_| format!("`{name}` is a whole number, not `{value}`"))
}

fn duration(name: &str, value: &str) -> Result<Duration, String> {
    eventbus_grammar::duration(value).map_err(|fault| format!("`{name}`: {}", fault.explain(value).as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_without_end_can_be_waited_for() {
        let settings = SqliteBroker::builder("a.db")
            .lease(Duration::MAX)
            .poll_interval(Duration::MAX)
            .retention_interval(Duration::MAX);
        for time in [settings.lease, settings.poll_interval, settings.retention_interval] {
            assert!(std::time::Instant::now().checked_add(time).is_some(), "{time:?}");
        }
    }

    #[test]
    fn an_option_that_there_is_not_is_told_which_was_meant() {
        let refused =
            |option: &str| SqliteBrokerBuilder::parse(&format!("sqlite:a.db?{option}=1s")).unwrap_err();
        assert!(refused("laese").to_string().contains("`laese`; there are: "), "{}", refused("laese"));
        assert!(refused("laese").to_string().ends_with("did you mean \"lease\"?"), "{}", refused("laese"));
        for option in OPTIONS {
            let Err(error) = SqliteBrokerBuilder::parse(&format!("sqlite:a.db?{option}=no-such-value"))
            else {
                panic!("{option} takes anything")
            };
            assert!(!error.to_string().contains("no option"), "{error}");
        }
    }

    #[test]
    fn an_address_says_what_a_builder_says() {
        let read = SqliteBrokerBuilder::parse(
            "sqlite:data/shop.db?create=false&durability=off&max_payload=10&lease=2s&retention_age=720h&retention_unhandled=true",
        )
        .unwrap();
        assert_eq!(read.path, Path::new("data/shop.db"));
        assert_eq!(
            (read.durability, read.max_payload, read.lease),
            (Durability::Off, 10, Duration::from_secs(2))
        );
        assert_eq!(read.retention.age, Some(Duration::from_secs(720 * 3600)));
        assert!(read.retention.unhandled && !read.create);
        assert_eq!(
            SqliteBrokerBuilder::parse("sqlite:///var/shop.db").unwrap().path,
            Path::new("/var/shop.db")
        );
        assert_eq!(
            SqliteBrokerBuilder::parse("sqlite:/var/shop.db").unwrap().path,
            Path::new("/var/shop.db")
        );
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("sqlite:", "names no file"),
            ("sqlite::memory:", "memory:"),
            ("sqlite://a.db", "names a host; write `sqlite:a.db` for a path from here, or `sqlite:///a.db`"),
            ("sqlite://data/a.db?create=false", "`sqlite:data/a.db`"),
            ("sqlite:a.db?durability=total", "full, normal and off"),
            ("sqlite:a.db?lease=10", "\"10\" is not a duration"),
            ("sqlite:a.db?retention_count=many", "whole number"),
            ("sqlite:a.db?durabilty=full", "durability"),
            ("sqlite:a.db?create=no", "true or false"),
        ] {
            let error = SqliteBrokerBuilder::parse(url).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(url), "{error}");
        }
    }
}
