//! Locating the server that a bus talks to: at its address, or where sentinels or the nodes of a cluster say that it is.

use crate::config::{Deployment, RedisBrokerBuilder};
use crate::keys::slot;
use crate::trouble::Trouble;
use eventbus_core::BrokerError;
use eventbus_server::url::Secret;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo,
    RedisConnectionInfo, TlsCertificates, Value,
};
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Finds the server, each time anew: it may be another one by now.
pub(crate) struct Locator {
    deployment: Deployment,
    hosts: Vec<(String, u16)>,
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
            hosts: hosts.map(|host| (host.name.clone(), host.port.unwrap_or(port))).collect(),
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
        let (host, port) = self.locate().await?;
        let client = self.client(&host, port, &self.credentials)?;
        let connection = self.open(&client, purpose).await?;
        Ok((client, connection))
    }

    async fn locate(&self) -> Result<(String, u16), Trouble> {
        if self.deployment == Deployment::Single {
            return Ok(self.hosts[0].clone());
        }
        let mut trouble = None;
        for (host, port) in &self.hosts {
            match self.ask(host, *port).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                // One that tells more than that nobody listens there is worth more.
                Err(one) => trouble = trouble.filter(|known: &Trouble| known.lasting).or(Some(one)),
            }
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

    async fn ask(&self, host: &str, port: u16) -> Result<Option<(String, u16)>, Trouble> {
        let (credentials, command) = match self.deployment {
            Deployment::Sentinel => {
                let mut command = Cmd::new();
                command.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.primary);
                (&self.sentinel, command)
            }
            _ => {
                let mut command = Cmd::new();
                command.arg("CLUSTER").arg("SLOTS");
                (&self.credentials, command)
            }
        };
        let client = self.client(host, port, credentials)?;
        let mut connection = self.open(&client, Purpose::Shared).await?;
        let answer = connection.send_packed_command(&command).await.and_then(Value::extract_error);
        let answer = answer
            .map_err(|error| Trouble::of(format!("cannot ask {host}:{port} for the server"), &error))?;
        Ok(match self.deployment {
            Deployment::Sentinel => named(&answer, host),
            _ => owner(&answer, self.slot, host),
        })
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

    async fn open(&self, client: &Client, purpose: Purpose) -> Result<MultiplexedConnection, Trouble> {
        let waits = (purpose == Purpose::Shared).then_some(self.patience);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_patience))
            .set_response_timeout(waits)
            .set_pipeline_buffer_size(1_024);
        let what = || format!("cannot connect to {}", client.get_connection_info().addr());
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| {
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
    let client_tls = match &settings.certificate {
        Some((certificate, key)) => Some(ClientTlsConfig {
            client_cert: read("certificate", certificate)?,
            client_key: read("key", key)?,
        }),
        None => None,
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
fn named(answer: &Value, asked: &str) -> Option<(String, u16)> {
    let Value::Array(parts) = answer else { return None };
    match &parts[..] {
        [host, port, ..] => Some((host_of(host, asked), number(port)?)),
        _ => None,
    }
}

/// The primary of a slot, as `CLUSTER SLOTS` tells: of each range its ends, its primary, and its replicas.
fn owner(answer: &Value, slot: u16, asked: &str) -> Option<(String, u16)> {
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
    fn a_sentinel_names_the_primary_or_does_not_know_it() {
        let answer = Value::Array(vec![text("10.0.0.1"), text("6380")]);
        assert_eq!(named(&answer, "asked"), Some(("10.0.0.1".to_owned(), 6380)));
        assert_eq!(named(&Value::Nil, "asked"), None);
    }
}
