//! Addresses of servers: `scheme://user:password@host:port,host:port/path?option=value`.
//!
//! What is secret in one is shown nowhere: an address is shown by its scheme, its hosts and its path.

use crate::cloudevents::percent_bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::Topology;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// An address that was read. It is shown without user, password and options, since any of them may be secret, or be
/// a secret in the wrong place.
#[derive(Clone)]
pub struct Address {
    scheme: String,
    user: Option<Secret>,
    password: Option<Secret>,
    hosts: Vec<Host>,
    path: String,
    options: Vec<(String, String)>,
}

/// One server of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name or IP address; one of version 6 without its brackets.
    pub name: String,
    /// Its port, where the address has one.
    pub port: Option<u16>,
}

impl Host {
    /// The host as it stands in an address, with `port` where it has none.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        let port = self.port.unwrap_or(port);
        if self.name.contains(':') {
            format!("[{}]:{port}", self.name)
        } else {
            format!("{}:{port}", self.name)
        }
    }
}

/// A text that is shown nowhere.
///
/// ```
/// use eventbus_server::url::Secret;
/// assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever sends it to a server.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Address {
    /// Reads an address with one of these schemes. User and password, path, and the values of options may be
    /// percent-encoded.
    ///
    /// # Errors
    /// Where something is missing or is not what its place is for; the error says what would be right.
    pub fn parse(url: &str, schemes: &[&str]) -> Result<Self, BrokerError> {
        Self::parse_as(url, schemes, &format!("{}://localhost", schemes[0]))
    }

    /// As [`parse`](Self::parse), with an address that an error gives as an example: for what is no server by its name.
    ///
    /// ```
    /// use eventbus_server::url::Address;
    /// let error = Address::parse_as("sns://", &["sns"], "sns://eu-central-1").unwrap_err().to_string();
    /// assert!(error.ends_with("write `sns://eu-central-1`"));
    /// ```
    ///
    /// # Errors
    /// As those of `parse`.
    pub fn parse_as(url: &str, schemes: &[&str], expected: &str) -> Result<Self, BrokerError> {
        let Some((scheme, rest)) = url.split_once(':').filter(|(scheme, _)| schemes.contains(scheme)) else {
            return Err(BrokerError::new(format!(
                "the address has none of the schemes {}; write `{expected}`",
                list(schemes)
            )));
        };
        let Some(rest) = rest.strip_prefix("//") else {
            return Err(BrokerError::new(format!("an address of `{scheme}:` has `//`; write `{expected}`")));
        };
        let (before, options) = rest.split_once('?').unwrap_or((rest, ""));
        // What stands around a `?` of a password looks like a host and an option, and would be shown as such.
        if options.contains('@') {
            return Err(BrokerError::new(format!(
                "the address of `{scheme}:` has an `@` behind its `?`; in a user or password, write `%3F` for `?`, and in \
                 the value of an option `%40` for `@`"
            )));
        }
        // A password may hold what else ends the part that it stands in, so the last `@` before the options counts.
        let (credentials, place) =
            before.rsplit_once('@').map_or((None, before), |(left, right)| (Some(left), right));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let mut address = Self {
            scheme: scheme.to_owned(),
            user: None,
            password: None,
            hosts: Vec::new(),
            path: decoded(path)
                .ok_or_else(|| BrokerError::new("the path of the address is no UTF-8 text"))?,
            options: Vec::new(),
        };
        for host in hosts.split(',') {
            address.hosts.push(read_host(host).map_err(|problem| {
                BrokerError::new(format!(
                    "the address of `{scheme}:` names no server: {problem}; write `{expected}`"
                ))
            })?);
        }
        if let Some(credentials) = credentials {
            let secret = |text| {
                decoded(text)
                    .map(Secret::new)
                    .ok_or_else(|| address.mistake("its user or password is no UTF-8 text"))
            };
            let (user, password) = credentials
                .split_once(':')
                .map_or((credentials, None), |(user, password)| (user, Some(password)));
            let user = Some(user).filter(|user| !user.is_empty()).map(secret).transpose()?;
            let password = password.map(secret).transpose()?;
            (address.user, address.password) = (user, password);
        }
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match decoded(value) {
                Some(value) => address.options.push((name.to_owned(), value)),
                None => return Err(address.mistake("the value of an option is no UTF-8 text")),
            }
        }
        Ok(address)
    }

    /// What stands before the colon.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user, or what some servers take in its place, such as a token.
    #[must_use]
    pub fn user(&self) -> Option<&Secret> {
        self.user.as_ref()
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The servers; at least one.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What follows the servers, without the slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Sets what the options say, in their order; `known` are all options there are.
    ///
    /// ```
    /// use eventbus_server::url::{Address, Setting};
    /// use std::time::Duration;
    ///
    /// struct Settings {
    ///     stream: String,
    ///     ack_wait: Duration,
    /// }
    ///
    /// const OPTIONS: &[Setting<Settings>] = &[
    ///     ("stream", |settings, option| option.set(&mut settings.stream)),
    ///     ("ack_wait", |settings, option| option.set(&mut settings.ack_wait)),
    /// ];
    ///
    /// let mut settings = Settings { stream: "EVENTBUS".to_owned(), ack_wait: Duration::from_secs(5) };
    /// let address = Address::parse("nats://localhost?ack_wait=2s", &["nats"])?;
    /// address.set_options(&mut settings, OPTIONS)?;
    /// assert_eq!((settings.stream.as_str(), settings.ack_wait.as_secs()), ("EVENTBUS", 2));
    ///
    /// let mistaken = Address::parse("nats://localhost?steam=SHOP", &["nats"])?;
    /// let error = mistaken.set_options(&mut settings, OPTIONS).unwrap_err().to_string();
    /// assert!(error.contains("did you mean `stream`?"));
    /// # Ok::<(), eventbus_core::BrokerError>(())
    /// ```
    ///
    /// # Errors
    /// Where there is no such option, where one is given twice, and what is wrong with a value.
    pub fn set_options<T>(&self, settings: &mut T, known: &[Setting<T>]) -> Result<(), BrokerError> {
        for (at, (name, value)) in self.options.iter().enumerate() {
            let Some((_, set)) = known.iter().find(|(known, _)| known == name) else {
                let known: Vec<_> = known.iter().map(|(known, _)| *known).collect();
                let near = known.iter().filter(|known| eventbus_grammar::is_near(name, known));
                let near = near.min_by_key(|known| eventbus_grammar::distance(name, known));
                let near = near.map_or_else(|| ".".to_owned(), |near| format!("; did you mean `{near}`?"));
                return Err(
                    self.mistake(&format!("there is no option `{name}`{near} There are {}", list(&known)))
                );
            };
            if self.options[..at].iter().any(|(other, _)| other == name) {
                return Err(self.mistake(&format!("the option `{name}` is given twice")));
            }
            set(settings, OptionValue { name, value }).map_err(|problem| self.mistake(&problem))?;
        }
        Ok(())
    }

    /// An error about this address.
    #[must_use]
    pub fn mistake(&self, problem: &str) -> BrokerError {
        BrokerError::new(format!("`{self}`: {problem}"))
    }
}

/// Without user, password and options.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        for (at, Host { name, port }) in self.hosts.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let (open, close) = if name.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{name}{close}")?;
            if let Some(port) = port {
                write!(f, ":{port}")?;
            }
        }
        // A slash in it was encoded, and begins no further part.
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path.replace('/', "%2F")) }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An option that addresses may have: its name, and what it sets of the settings `T`.
pub type Setting<T> = (&'static str, fn(&mut T, OptionValue<'_>) -> Result<(), String>);

/// What the value of an option may be.
pub trait Value: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// Where it is none; the error names the option.
    fn read(option: OptionValue<'_>) -> Result<Self, String>;
}

/// An option of an address: its name, and its value to be read as what it is.
#[derive(Clone, Copy)]
pub struct OptionValue<'a> {
    name: &'a str,
    value: &'a str,
}

impl<'a> OptionValue<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Sets `place` to its value.
    ///
    /// # Errors
    /// Where it is no such value.
    pub fn set<V: Value>(self, place: &mut V) -> Result<(), String> {
        *place = V::read(self)?;
        Ok(())
    }

    /// Sets `place` to one of several words.
    ///
    /// # Errors
    /// Where it is none of them.
    pub fn choose<V: Copy>(self, place: &mut V, words: &[(&str, V)]) -> Result<(), String> {
        *place = self.one_of(words)?;
        Ok(())
    }

    /// Any text but none.
    ///
    /// # Errors
    /// Where there is none.
    pub fn text(&self) -> Result<String, String> {
        match self.value {
            "" => Err(format!("`{}` has no value", self.name)),
            text => Ok(text.to_owned()),
        }
    }

    /// Text that is shown nowhere.
    ///
    /// # Errors
    /// Where there is none.
    pub fn secret(&self) -> Result<Secret, String> {
        self.text().map(Secret::new)
    }

    /// True or false; true, where there is no value.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn flag(&self) -> Result<bool, String> {
        match self.value {
            "" | "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("`{}` is true or false, not `{other}`", self.name)),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// Where it is none.
    pub fn number<N: std::str::FromStr>(&self) -> Result<N, String> {
        self.value.parse().map_err(|_| format!("`{}` is a whole number, not `{}`", self.name, self.value))
    }

    /// A duration, such as `500ms`.
    ///
    /// # Errors
    /// Where it is none.
    pub fn duration(&self) -> Result<Duration, String> {
        eventbus_grammar::duration(self.value)
            .map_err(|fault| format!("`{}`: {}", self.name, fault.explain(self.value).as_str()))
    }

    /// One of several words; which one by its index.
    ///
    /// # Errors
    /// Where it is none of them.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, String> {
        let found = words.iter().find(|(word, _)| *word == self.value).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("`{}` is one of {}, not `{}`", self.name, list(&words), self.value)
        })
    }
}

impl Value for String {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        option.text()
    }
}

impl Value for PathBuf {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        option.text().map(Self::from)
    }
}

impl Value for Secret {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        option.secret()
    }
}

impl Value for bool {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        option.flag()
    }
}

impl Value for Duration {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        option.duration()
    }
}

/// Whether what is missing on the server is made: `create` or `check`.
impl Value for Topology {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        option.one_of(&[("create", Self::Create), ("check", Self::Check)])
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn read(option: OptionValue<'_>) -> Result<Self, String> {
                option.number()
            }
        }
    )*};
}

numbers!(u16, u32, u64, usize, i64);

impl<V: Value> Value for Option<V> {
    fn read(option: OptionValue<'_>) -> Result<Self, String> {
        V::read(option).map(Some)
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

fn read_host(text: &str) -> Result<Host, String> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
            match rest.strip_prefix(':') {
                Some(port) => (name, Some(port)),
                None if rest.is_empty() => (name, None),
                None => return Err("after the bracket there is no port".to_owned()),
            }
        }
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    if name.is_empty() {
        return Err("there is no host".to_owned());
    }
    if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("a host has no spaces".to_owned());
    }
    let port = port.map(|port| match port.parse() {
        // What stands in the place of a port may be a part of a password.
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535; in a password, write `%40` for `@`, `%2F` for `/` and `%3F` for `?`".to_owned()),
        Ok(port) => Ok(port),
    });
    Ok(Host { name: name.to_owned(), port: port.transpose()? })
}

/// The text with its percent-encoding undone; none where it is no UTF-8 then.
fn decoded(text: &str) -> Option<String> {
    String::from_utf8(percent_bytes(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: &[&str] = &["nats", "tls"];

    #[derive(Default)]
    struct Read {
        stream: String,
        wait: Duration,
        on: bool,
        number: u64,
        mode: u8,
        dir: Option<PathBuf>,
    }

    const OPTIONS: &[Setting<Read>] = &[
        ("stream", |to, option| option.set(&mut to.stream)),
        ("wait", |to, option| option.set(&mut to.wait)),
        ("on", |to, option| option.set(&mut to.on)),
        ("n", |to, option| option.set(&mut to.number)),
        ("mode", |to, option| option.choose(&mut to.mode, &[("a", 1), ("b", 2)])),
        ("dir", |to, option| option.set(&mut to.dir)),
    ];

    fn read(url: &str) -> Address {
        Address::parse(url, SCHEMES).unwrap()
    }

    #[test]
    fn an_address_has_parts_and_options() {
        let address =
            read("tls://ada:p%40ss@one:4222,[::1]:4223,two/shop?stream=S&wait=5s&on&n=7&mode=b&dir=%2Ftmp");
        assert_eq!((address.scheme(), address.path()), ("tls", "shop"));
        assert_eq!(address.user().unwrap().reveal(), "ada");
        assert_eq!(address.password().unwrap().reveal(), "p@ss");
        let hosts: Vec<_> = address.hosts().iter().map(|host| host.with_port(1)).collect();
        assert_eq!(hosts, ["one:4222", "[::1]:4223", "two:1"]);
        let mut read = Read::default();
        address.set_options(&mut read, OPTIONS).unwrap();
        assert_eq!((read.stream.as_str(), read.wait.as_secs(), read.on), ("S", 5, true));
        assert_eq!((read.number, read.mode, read.dir), (7, 2, Some("/tmp".into())));
    }

    #[test]
    fn a_mistake_in_an_address_is_named_with_its_remedy() {
        for (url, named) in [
            ("localhost:4222", "none of the schemes `nats`, `tls`; write `nats://localhost`"),
            ("http://x", "none of the schemes"),
            ("nats:localhost", "has `//`; write `nats://localhost`"),
            ("nats://", "there is no host"),
            ("nats://:4222", "there is no host"),
            ("nats://a,", "there is no host"),
            ("nats://a:port", "a port is a number from 1 to 65535"),
            ("nats://a:0", "a port is a number"),
            ("nats://[::1", "a bracket is not closed"),
            ("nats://a b", "a host has no spaces"),
            ("nats://ada:12?x@a", "in a user or password, write `%3F` for `?`"),
            ("nats://a?stream=x@y", "in the value of an option `%40` for `@`"),
            ("nats://%ff@a", "`nats://a`: its user or password is no UTF-8 text"),
        ] {
            let error = Address::parse(url, SCHEMES).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        for (options, named) in [
            (
                "steam=x",
                "there is no option `steam`; did you mean `stream`? There are `stream`, `wait`, `on`",
            ),
            ("zzz=x", "there is no option `zzz`. There are"),
            ("wait=5", "`wait`: \"5\" is not a duration"),
            ("stream=", "`stream` has no value"),
            ("stream=a&stream=b", "`stream` is given twice"),
        ] {
            let address = read(&format!("nats://a?{options}"));
            let error = address.set_options(&mut Read::default(), OPTIONS).unwrap_err().to_string();
            assert!(error.contains(named) && error.starts_with("`nats://a`: "), "{error}");
        }
    }

    #[test]
    fn what_may_be_secret_is_shown_nowhere() {
        for url in [
            "nats://hunter2@a",
            "nats://ada:hunter2@a",
            "nats://ada:x/hunter2@a",
            "nats://ada:x@hunter2@a",
            "nats://ada:%ff-hunter2@a",
            "nats://a?password=hunter2",
            "nats://a?pasword=hunter2",
            "nats://a?token=hunter2&token=hunter2",
            "nats://ada:hunter2?x@a",
            "nats://hunter2?x@a",
            "nats://x?hunter2@a",
            "nats://ada:12?hunter2@a",
            "nats://ada:12?wait=hunter2@a",
            "nats://ada:12?on=hunter2@a&n=1",
            "nats://ada:12?hunter2=x@a",
            "nats://ada:hunter2#x@a:port",
            "nats:ada:hunter2@a",
            "ada:hunter2@a",
        ] {
            let shown = match Address::parse(url, SCHEMES) {
                Ok(address) => {
                    const SECRET: &[Setting<Option<Secret>>] =
                        &[("password", |to, option| option.set(to)), ("token", |to, option| option.set(to))];
                    let error = address.set_options(&mut None, SECRET);
                    let other = address.set_options(&mut Read::default(), OPTIONS);
                    format!("{address} {address:?} {:?} {error:?} {other:?}", address.password())
                }
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!shown.contains("hunter2"), "{url}: {shown}");
        }
    }
}
