//! Locating the server that a bus talks to: at its address, or where sentinels or the nodes of a cluster say that it is.

use crate::config::{Deployment, RedisBrokerBuilder};
use crate::keys::slot;
use crate::trouble::Trouble;
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use eventbus_server::url::Secret;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates, Value,
};
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Finds the server, each time anew: it may be another one by now.
pub(crate) struct Locator {
    deployment: Deployment,
    /// Who is asked, or in the end the server itself: those of the address, then those that they have named. Whoever has
    /// answered last comes first.
    hosts: Lock<Vec<Host>>,
    /// The name that sentinels have for the primary.
    primary: String,
    slot: u16,
    tls: Option<TlsCertificates>,
    credentials: RedisConnectionInfo,
    sentinel: RedisConnectionInfo,
    /// How long a server may take for an answer.
    patience: Duration,
    /// How long one try to connect may take.
    connect_patience: Duration,
}

/// A name and a port.
type Host = (String, u16);

/// No more are known at once than so many.
const HOSTS: usize = 64;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Short commands of many, at once.
    Shared,
    /// Reads that wait for something: whoever reads watches the time.
    Waiting,
}

impl Locator {
    /// # Errors
    /// Where a file with certificates cannot be read.
    pub(crate) fn new(settings: &RedisBrokerBuilder, clock: &str) -> Result<Self, BrokerError> {
        let credentials = |user: &Option<Secret>, password: &Option<Secret>, db| {
            let mut info =
                RedisConnectionInfo::default().set_db(db).set_lib_name("eventbus", env!("CARGO_PKG_VERSION"));
            if let Some(user) = user {
                info = info.set_username(user.reveal());
            }
            if let Some(password) = password {
                info = info.set_password(password.reveal());
            }
            info
        };
        let port = if settings.deployment == Deployment::Sentinel { SENTINEL_PORT } else { PORT };
        let hosts = settings.address.hosts().iter();
        Ok(Self {
            deployment: settings.deployment,
            hosts: Lock::new(
                Rank::LEAF,
                hosts.map(|host| (host.name.clone(), host.port.unwrap_or(port))).collect(),
            ),
            primary: settings.address.path().to_owned(),
            slot: slot(clock),
            tls: settings.tls.then(|| certificates(settings)).transpose()?,
            credentials: credentials(&settings.user, &settings.password, settings.db),
            sentinel: credentials(&settings.sentinel_user, &settings.sentinel_password, 0),
            patience: settings.response_timeout,
            connect_patience: settings.response_timeout.min(settings.connect_timeout / 2),
        })
    }

    /// A connection to the server, and what makes more of them.
    pub(crate) async fn connect(&self, purpose: Purpose) -> Result<(Client, MultiplexedConnection), Trouble> {
        let hosts = self.hosts.lock().clone();
        if self.deployment == Deployment::Single {
            return self.connect_to(&hosts[0], purpose).await;
        }
        let (mut trouble, mut tried) = (None, Vec::new());
        // One that tells more than that nobody listens there is worth more.
        let worse = |known: Option<Trouble>, one| known.filter(|known| known.lasting).or(Some(one));
        for host in hosts {
            let found = match self.ask(&host).await {
                Ok(Some(found)) if !tried.contains(&found) => found,
                Ok(_) => continue,
                Err(one) => {
                    trouble = worse(trouble, one);
                    continue;
                }
            };
            // Whoever was asked may be cut off from the others, and know of no failover.
            match self.connect_to_primary(&found, purpose).await {
                Ok(connected) => {
                    self.prefer(&host);
                    return Ok(connected);
                }
                Err(one) => trouble = worse(trouble, one),
            }
            tried.push(found);
        }
        Err(trouble.unwrap_or_else(|| match self.deployment {
            Deployment::Sentinel => Trouble::lasting(
                "cannot find the primary",
                format!("no sentinel knows one of the name `{}`; correct it in the address", self.primary),
            ),
            _ => Trouble::lasting(
                "cannot find the node of the bus",
                format!("no node has the slot {}", self.slot),
            ),
        }))
    }

    async fn connect_to(
        &self,
        (host, port): &Host,
        purpose: Purpose,
    ) -> Result<(Client, MultiplexedConnection), Trouble> {
        let client = self.client(host, *port, &self.credentials)?;
        let connection = self.open(&client, purpose).await?;
        Ok((client, connection))
    }

    /// The same, where that is no replica by now.
    async fn connect_to_primary(
        &self,
        host: &Host,
        purpose: Purpose,
    ) -> Result<(Client, MultiplexedConnection), Trouble> {
        let (client, mut connection) = self.connect_to(host, purpose).await?;
        let role = redis::cmd("ROLE");
        let what = || format!("cannot ask {}:{} for its role", host.0, host.1);
        let answer = match tokio::time::timeout(self.patience, connection.send_packed_command(&role)).await {
            Ok(answer) => answer.and_then(Value::extract_error),
            Err(_) => return Err(Trouble::late(what())),
        };
        match answer {
            Ok(Value::Array(parts)) if parts.first().is_some_and(|role| !is_text(role, "master")) => {
                Err(Trouble::passing(
                    format!("cannot use {}:{}", host.0, host.1),
                    "it is a replica, and no other primary is known",
                ))
            }
            Ok(_) => Ok((client, connection)),
            // Who may not ask goes without.
            Err(error) => match Trouble::of(what(), &error) {
                trouble if trouble.broken => Err(trouble),
                _ => Ok((client, connection)),
            },
        }
    }

    /// Asks this one first from now on.
    fn prefer(&self, host: &Host) {
        let mut hosts = self.hosts.lock();
        if let Some(at) = hosts.iter().position(|known| known == host) {
            hosts[..=at].rotate_right(1);
        }
    }

    /// These may be asked as well.
    fn learn(&self, others: impl IntoIterator<Item = Host>) {
        let mut hosts = self.hosts.lock();
        for other in others {
            if hosts.len() < HOSTS && !hosts.contains(&other) {
                hosts.push(other);
            }
        }
    }

    /// Where the server is, as a sentinel or a node knows it.
    async fn ask(&self, (host, port): &Host) -> Result<Option<Host>, Trouble> {
        let sentinel = self.deployment == Deployment::Sentinel;
        let credentials = if sentinel { &self.sentinel } else { &self.credentials };
        let client = self.client(host, *port, credentials)?;
        let mut connection = self.open(&client, Purpose::Shared).await?;
        let mut ask = async |words: &[&str]| {
            let mut command = Cmd::new();
            command.arg(words);
            let answer = connection.send_packed_command(&command).await.and_then(Value::extract_error);
            answer.map_err(|error| Trouble::of(format!("cannot ask {host}:{port} for the server"), &error))
        };
        if !sentinel {
            let answer = ask(&["CLUSTER", "SLOTS"]).await?;
            self.learn(nodes(&answer, host));
            return Ok(owner(&answer, self.slot, host));
        }
        let answer = ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.primary]).await?;
        // Who may not ask for them knows those of the address.
        if let Ok(others) = ask(&["SENTINEL", "SENTINELS", &self.primary]).await {
            self.learn(sentinels(&others));
        }
        Ok(named(&answer, host))
    }

    fn client(&self, host: &str, port: u16, credentials: &RedisConnectionInfo) -> Result<Client, Trouble> {
        let failed = |error: redis::RedisError| Trouble::lasting("cannot use the address", error.to_string());
        let address = match self.tls {
            None => ConnectionAddr::Tcp(host.to_owned(), port),
            Some(_) => {
                ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None }
            }
        };
        let info = address.into_connection_info().map_err(failed)?.set_redis_settings(credentials.clone());
        match &self.tls {
            None => Client::open(info),
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        }
        .map_err(failed)
    }

    /// Another connection of a client.
    pub(crate) async fn open(
        &self,
        client: &Client,
        purpose: Purpose,
    ) -> Result<MultiplexedConnection, Trouble> {
        let waits = (purpose == Purpose::Shared).then_some(self.patience);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_patience))
            .set_response_timeout(waits)
            .set_pipeline_buffer_size(1_024);
        let what = || format!("cannot connect to {}", client.get_connection_info().addr());
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| {
            // What it said may be of several lines, and tells of the parser only.
            if error.kind() == ErrorKind::Parse {
                let said = "what answers there is no Redis or Valkey";
                return Trouble::lasting(what(), said).hint("correct host and port");
            }
            let mut trouble = Trouble::of(what(), &error);
            if self.tls.is_none() && error.is_connection_dropped() && !error.is_connection_refusal() {
                trouble = trouble.hint(
                    "if that is a port for TLS, write `rediss://…`; otherwise the server is about to end or to begin",
                );
            }
            // A server that waits for a command waits for the end of a handshake as well.
            if self.tls.is_some() && error.is_timeout() {
                trouble = trouble.hint("if that is no TLS port, write `redis://…`, or name the TLS port");
            }
            trouble
        })
    }
}

/// The certificates of a connection with TLS. The first one decides on the provider of rustls, where the program has not.
fn certificates(settings: &RedisBrokerBuilder) -> Result<TlsCertificates, BrokerError> {
    // A program that has chosen one already keeps it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |option: &str, path: &Path| {
        std::fs::read(path).map_err(|error| {
            let text = format!("cannot read the file of `{option}`, `{}`", path.display());
            BrokerError::new(text).with_cause(error)
        })
    };
    let client_tls = match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("certificate", certificate)?,
            client_key: read("key", key)?,
        }),
        _ => None,
    };
    let root_cert = settings.ca.as_deref().map(|path| read("ca", path)).transpose()?;
    if let (Some(pem), Some(path)) = (&root_cert, &settings.ca)
        && !String::from_utf8_lossy(pem).contains("BEGIN CERTIFICATE")
    {
        return Err(BrokerError::new(format!(
            "the file of `ca`, `{}`, holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)",
            path.display()
        )));
    }
    Ok(TlsCertificates { client_tls, root_cert })
}

/// The server that a sentinel has named.
fn named(answer: &Value, asked: &str) -> Option<Host> {
    let Value::Array(parts) = answer else { return None };
    match &parts[..] {
        [host, port, ..] => Some((host_of(host, asked), number(port)?)),
        _ => None,
    }
}

/// The primary of a slot, as `CLUSTER SLOTS` tells: of each range its ends, its primary, and its replicas.
fn owner(answer: &Value, slot: u16, asked: &str) -> Option<Host> {
    let Value::Array(ranges) = answer else { return None };
    ranges.iter().find_map(|range| match range {
        Value::Array(parts) => match &parts[..] {
            [first, last, Value::Array(primary), ..]
                if (number(first)?..=number(last)?).contains(&slot) && primary.len() >= 2 =>
            {
                Some((host_of(&primary[0], asked), number(&primary[1])?))
            }
            _ => None,
        },
        _ => None,
    })
}

/// All nodes that `CLUSTER SLOTS` names.
fn nodes(answer: &Value, asked: &str) -> Vec<Host> {
    let Value::Array(ranges) = answer else { return Vec::new() };
    let parts =
        ranges.iter().filter_map(|range| if let Value::Array(parts) = range { Some(parts) } else { None });
    let nodes = parts.flat_map(|parts| parts.iter().skip(2));
    let host = |node: &Value| match node {
        Value::Array(node) if node.len() >= 2 => Some((host_of(&node[0], asked), number(&node[1])?)),
        _ => None,
    };
    nodes.filter_map(host).collect()
}

/// The other sentinels that one knows: of each, names and values.
fn sentinels(answer: &Value) -> Vec<Host> {
    let Value::Array(others) = answer else { return Vec::new() };
    let host = |other: &Value| {
        let pairs: Vec<_> = match other {
            Value::Array(words) => words.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
            Value::Map(pairs) => pairs.iter().map(|(name, value)| (name, value)).collect(),
            _ => return None,
        };
        let fact = |name| pairs.iter().find(|(is, _)| is_text(is, name)).map(|(_, value)| *value);
        let Value::BulkString(host) = fact("ip")? else { return None };
        Some((String::from_utf8_lossy(host).into_owned(), number(fact("port")?)?))
    };
    others.iter().filter_map(host).collect()
}

fn is_text(value: &Value, text: &str) -> bool {
    match value {
        Value::BulkString(is) => is == text.as_bytes(),
        Value::SimpleString(is) => is == text,
        _ => false,
    }
}

/// A host in an answer; one that is empty or unknown is the host that was asked.
fn host_of(value: &Value, asked: &str) -> String {
    match value {
        Value::BulkString(host) if !host.is_empty() && host != b"?" => {
            String::from_utf8_lossy(host).into_owned()
        }
        _ => asked.to_owned(),
    }
}

fn number(value: &Value) -> Option<u16> {
    match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn the_primary_of_a_slot_is_found_among_its_ranges() {
        let range = |first, last, host, port| {
            let node = |host, port| Value::Array(vec![text(host), Value::Int(port), text("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), node(host, port), node("replica", 9)])
        };
        let answer = Value::Array(vec![range(0, 5460, "10.0.0.1", 7001), range(5461, 16383, "", 7002)]);
        assert_eq!(owner(&answer, 17, "asked"), Some(("10.0.0.1".to_owned(), 7001)));
        assert_eq!(owner(&answer, 5461, "asked"), Some(("asked".to_owned(), 7002)));
        assert_eq!(owner(&Value::Array(vec![range(0, 1, "a", 1)]), 2, "asked"), None);
        assert_eq!(owner(&Value::Nil, 2, "asked"), None);
    }

    #[test]
    fn everybody_who_is_named_can_be_asked() {
        let node = |host, port| Value::Array(vec![text(host), Value::Int(port), text("id")]);
        let range = Value::Array(vec![Value::Int(0), Value::Int(5), node("10.0.0.1", 7001), node("", 7002)]);
        let hosts = [("10.0.0.1".to_owned(), 7001), ("asked".to_owned(), 7002)];
        assert_eq!(nodes(&Value::Array(vec![range]), "asked"), hosts);
        let words = ["name", "x", "ip", "10.0.0.2", "port", "26379"].map(text);
        let answer = Value::Array(vec![Value::Array(words.to_vec()), Value::Nil]);
        assert_eq!(sentinels(&answer), [("10.0.0.2".to_owned(), 26_379)]);
    }

    #[test]
    fn a_sentinel_names_the_primary_or_does_not_know_it() {
        let answer = Value::Array(vec![text("10.0.0.1"), text("6380")]);
        assert_eq!(named(&answer, "asked"), Some(("10.0.0.1".to_owned(), 6380)));
        assert_eq!(named(&Value::Nil, "asked"), None);
    }
}
