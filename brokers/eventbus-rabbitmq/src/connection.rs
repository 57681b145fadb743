//! Connections to the server, which are opened again when they are lost. One publishes and one consumes: a server that is
//! short of memory or disk stops reading from whoever publishes, and would not hear of acks either.

use crate::config::Settings;
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::waiters::Waiters;
use eventbus_server::connection::{ConnectionState, Failure, Lost, patiently, pause_before};
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the server may take to answer.
pub(crate) const CALL: Duration = Duration::from_secs(10);
/// How long one try to connect may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often is looked whether a connection is there, should nobody tell.
const LOOK: Duration = Duration::from_secs(1);

/// A connection.
pub(crate) struct Link {
    pub(crate) settings: Arc<Settings>,
    pub(crate) state: ConnectionState,
    name: &'static str,
    tls: OwnedTLSConfig,
    current: Lock<Current>,
    changed: Waiters,
}

struct Current {
    connection: Option<Arc<Connection>>,
    /// How many numbers of channels of this connection the client has lost.
    spoiled: u16,
    blocked: Option<Lost>,
    closed: bool,
}

/// Why something has failed.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    /// The number by which the server has refused it. None: nobody answers, or the connection is gone.
    pub(crate) code: Option<u16>,
    pub(crate) said: String,
    /// The server answers, and a queue does not.
    pub(crate) silent: bool,
}

/// What the server says no with.
pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const ACCESS_REFUSED: u16 = 403;
pub(crate) const LOCKED: u16 = 405;
pub(crate) const DIFFERENT: u16 = 406;
const NOT_ALLOWED: u16 = 530;
/// What it says of a type of queues that it does not know.
pub(crate) const UNKNOWN_TYPE: &str = "unsupported queue type";

impl Trouble {
    pub(crate) fn passing(said: impl Into<String>) -> Self {
        Self { code: None, said: said.into(), silent: false }
    }

    /// A queue does not answer the server.
    pub(crate) fn silence(said: impl Into<String>) -> Self {
        Self { silent: true, ..Self::passing(said) }
    }

    pub(crate) fn is(&self, code: u16) -> bool {
        self.code == Some(code)
    }

    /// The server has refused one method on a channel. With any other number it ends the connection, and says nothing of what
    /// was done before.
    pub(crate) fn is_refusal(&self) -> bool {
        [NOT_FOUND, ACCESS_REFUSED, LOCKED, DIFFERENT].into_iter().any(|code| self.is(code))
    }

    /// With this the server has ended the connection, and not the channel alone.
    pub(crate) fn ends_connection(&self) -> bool {
        self.code.is_some() && !self.is_refusal()
    }

    /// An error about what was being done.
    pub(crate) fn explain(self, what: impl fmt::Display) -> BrokerError {
        BrokerError::new(format!("cannot {what}")).with_cause(self.to_string())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)?;
        match self.code {
            Some(ACCESS_REFUSED) => f.write_str("; look at the user's permissions on the virtual host"),
            Some(DIFFERENT) if self.said.contains(UNKNOWN_TYPE) => {
                f.write_str("; take RabbitMQ 4, which has such queues")
            }
            _ => Ok(()),
        }
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(refused) => {
                let said = refused.get_message().to_string();
                Self { code: Some(refused.get_id()), ..Self::passing(said) }
            }
            ErrorKind::IOError(error) => Self::passing(error.to_string()),
            ErrorKind::ChannelsLimitReached => Self::passing(
                "the connection has no channel left, of which each subscription needs one: raise `channel_max` of the server, \
                 or have several processes handle the groups, each some of them",
            ),
            ErrorKind::MissingHeartbeatError => Self::passing("the server has been silent for too long"),
            _ => Self::passing(error.to_string()),
        }
    }
}

/// Waits for an answer of the server, and no longer than it may take.
pub(crate) async fn call<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Trouble> {
    match tokio::time::timeout(CALL, answer).await {
        Ok(answer) => answer.map_err(Trouble::from),
        Err(_) => Err(Trouble::passing(format!("there was no answer within {CALL:?}"))),
    }
}

impl Link {
    /// Connects for the first time. The second of the answer is the task that keeps the connection.
    pub(crate) async fn open(
        settings: &Arc<Settings>,
        name: &'static str,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + use<>), BrokerError> {
        let link = Self {
            settings: Arc::clone(settings),
            state: ConnectionState::up(format!("{} ({name})", settings.shown())),
            name,
            tls: tls(settings)?,
            current: Lock::new(
                Rank::BROKER_LAST,
                Current { connection: None, spoiled: 0, blocked: None, closed: false },
            ),
            changed: Waiters::new(),
        };
        let mut attempt = 0;
        let connect = || {
            attempt += 1;
            link.connect(attempt - 1)
        };
        let connection = patiently(&settings.shown(), settings.connect_timeout, connect).await?;
        link.current.lock().connection = Some(Arc::clone(&connection));
        let link = Arc::new(link);
        let kept = Arc::clone(&link);
        Ok((link, async move { kept.keep(connection).await }))
    }

    async fn connect(&self, attempt: usize) -> Result<Arc<Connection>, Failure> {
        let settings = &self.settings;
        let (host, port) = settings.host(attempt);
        let uri = AMQPUri {
            scheme: if settings.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: settings.user.reveal().to_owned(),
                    password: settings.password.reveal().to_owned(),
                },
                host: host.to_owned(),
                port,
            },
            vhost: settings.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX)),
                ..AMQPQueryString::default()
            },
        };
        let program = std::env::args().next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default();
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{program} ({}, {})", std::process::id(), self.name).into());
        let runtime =
            lapin::runtime::default_runtime().map_err(|error| Failure::Passing(error.to_string()))?;
        let connecting = Connection::connect_uri_with_config(uri, properties, self.tls.clone(), runtime);
        match tokio::time::timeout(ATTEMPT, connecting).await {
            Ok(Ok(connection)) => Ok(Arc::new(connection)),
            Ok(Err(error)) => Err(failure(&error, settings)),
            Err(_) => Err(Failure::Passing(format!("it did not greet within {ATTEMPT:?}"))),
        }
    }

    /// Keeps the connection: notes what becomes of it, and opens another one.
    async fn keep(&self, mut connection: Arc<Connection>) {
        while let Some(error) = self.watch(&connection).await {
            self.lose(&error);
            drop(connection);
            match self.connect_again().await {
                Some(again) => connection = again,
                None => return,
            }
        }
    }

    /// Tries until there is a connection. None, once nobody needs it any more.
    async fn connect_again(&self) -> Option<Arc<Connection>> {
        for attempt in 1.. {
            tokio::time::sleep(pause_before(attempt + 1)).await;
            if self.is_closed() {
                break;
            }
            match self.connect(attempt).await {
                Ok(connection) => {
                    // Whoever finds the connection finds its number.
                    self.state.is_up();
                    {
                        let mut current = self.current.lock();
                        (current.connection, current.spoiled) = (Some(Arc::clone(&connection)), 0);
                    }
                    self.changed.tell();
                    return Some(connection);
                }
                Err(Failure::Passing(error) | Failure::Advised(error)) => self.state.is_lost(&error),
                Err(Failure::Lasting(error)) => self.state.is_lost(&error.to_string()),
            }
        }
        None
    }

    /// Waits until a connection is gone, and says why; none, where nobody needs it any more.
    async fn watch(&self, connection: &Connection) -> Option<String> {
        let mut events = pin!(connection.events_listener());
        while connection.status().connected() {
            // It may have been said before anybody listened.
            if connection.status().blocked() && self.blocked().is_none() {
                self.block("an alarm");
            }
            match tokio::time::timeout(LOOK, events.next()).await {
                Ok(Some(Event::ConnectionBlocked(reason))) => self.block(&reason),
                Ok(Some(Event::ConnectionUnblocked)) => self.unblock(),
                // The errors of channels are told here as well.
                Ok(Some(Event::Error(error))) if !connection.status().connected() => {
                    return self.still_wanted(Trouble::from(error).to_string());
                }
                Ok(Some(_)) | Err(_) => {}
                Ok(None) => break,
            }
        }
        self.still_wanted("the connection was closed".to_owned())
    }

    fn still_wanted(&self, error: String) -> Option<String> {
        (!self.is_closed()).then_some(error)
    }

    fn block(&self, reason: &str) {
        let error = format!(
            "RabbitMQ takes no publishes for now: {reason}; give the server memory or disk space, or let the groups catch up"
        );
        let was_blocked = {
            let mut current = self.current.lock();
            let (since, at) = match &current.blocked {
                Some(blocked) => (blocked.since, blocked.at),
                None => (Timestamp::now(), Instant::now()),
            };
            current.blocked.replace(Lost { since, at, error }).is_some()
        };
        if !was_blocked {
            log::warn!(
                target: "eventbus", server = %printable(self.settings.shown()), reason = %printable(reason),
                "RabbitMQ takes no publishes for now; they wait until `publish_timeout`"
            );
        }
        self.changed.tell();
    }

    fn unblock(&self) {
        let blocked = self.current.lock().blocked.take();
        if let Some(blocked) = blocked {
            log::info!(
                target: "eventbus", server = %printable(self.settings.shown()), after = ?blocked.at.elapsed(),
                "RabbitMQ takes publishes again"
            );
        }
        self.changed.tell();
    }

    fn lose(&self, error: &str) {
        let connection = {
            let mut current = self.current.lock();
            current.blocked = None;
            current.connection.take()
        };
        drop(connection);
        self.state.is_lost(error);
        self.changed.tell();
    }

    /// Why publishes wait.
    pub(crate) fn blocked(&self) -> Option<Lost> {
        self.current.lock().blocked.clone()
    }

    /// Nobody needs the connection any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.current.lock().closed
    }

    /// The number of the connection, while it is there.
    pub(crate) fn number(&self) -> Option<u64> {
        let is_there = self.current.lock().connection.is_some();
        is_there.then(|| self.state.times())
    }

    /// Resolves once there is a connection, with its number. None, once it is closed.
    pub(crate) async fn connected(&self) -> Option<u64> {
        let look = || {
            let current = self.current.lock();
            (current.closed || current.connection.is_some()).then_some(!current.closed)
        };
        self.changed.until(look).await.then(|| self.state.times())
    }

    /// Resolves once this connection is gone, or takes publishes again or no more.
    pub(crate) async fn another(&self, number: Option<u64>, blocked: bool) {
        let look = || {
            let is_blocked = self.blocked().is_some();
            (self.number() != number || is_blocked != blocked || self.is_closed()).then_some(())
        };
        self.changed.until(look).await;
    }

    /// Another channel of the connection.
    ///
    /// The client says of a channel what was refused on an earlier one with its number, as long as the connection lasts, and
    /// has that number no more. The server refuses no opening so: the next number is tried. Where such numbers are why there
    /// is none left, another connection takes the place of this one.
    pub(crate) async fn channel(&self) -> Result<Channel, Trouble> {
        let begun = Instant::now();
        while begun.elapsed() < CALL {
            let (connection, number) = self.current()?;
            let error = match call(async { Ok(connection.create_channel().await) }).await? {
                Ok(channel) => return Ok(channel),
                Err(error) => error,
            };
            let is_full = matches!(error.kind(), ErrorKind::ChannelsLimitReached);
            let trouble = Trouble::from(error);
            if is_full && self.is_spoiled(number, connection.configuration().channel_max()) {
                self.replace(number, "it has no channel left");
                let another = async {
                    self.another(Some(number), self.blocked().is_some()).await;
                    self.connected().await
                };
                let _ = tokio::time::timeout(CALL, another).await;
                if self.number() == Some(number) {
                    return Err(trouble);
                }
            } else if trouble.is_refusal() {
                self.spoil(number);
            } else {
                return Err(trouble);
            }
        }
        Err(Trouble::passing(format!("no channel could be opened within {CALL:?}")))
    }

    /// The connection and its number, while it is there.
    fn current(&self) -> Result<(Arc<Connection>, u64), Trouble> {
        let connection = self.current.lock().connection.clone();
        connection.map(|connection| (connection, self.state.times())).ok_or_else(|| {
            let lost = self.state.lost();
            Trouble::passing(lost.map_or_else(|| "the connection is closed".to_owned(), |lost| lost.error))
        })
    }

    fn spoil(&self, number: u64) {
        let mut current = self.current.lock();
        current.spoiled = current.spoiled.saturating_add((self.state.times() == number).into());
    }

    /// Whether so many of its channels are lost that another connection helps, and not only takes from one who has a channel
    /// what another one gets.
    fn is_spoiled(&self, number: u64, channels: u16) -> bool {
        let spoiled = self.current.lock().spoiled;
        spoiled >= (channels / 8).max(16) && self.state.times() == number
    }

    /// Another connection is to take the place of this one, unless it has.
    pub(crate) fn replace(&self, number: u64, why: &'static str) {
        let connection = {
            let current = self.current.lock();
            current.connection.clone().filter(|_| self.state.times() == number)
        };
        if let Some(connection) = connection {
            tokio::spawn(async move {
                let closing = connection.close(320, why.into());
                // Whoever keeps the connection sees that it is being closed.
                let _ = tokio::time::timeout(LOOK * 2, closing).await;
            });
        }
    }

    /// The connection is closed, once everything on it was said.
    pub(crate) async fn close(&self) {
        self.state.close();
        let connection = {
            let mut current = self.current.lock();
            current.closed = true;
            current.connection.take()
        };
        self.changed.tell();
        if let Some(connection) = connection {
            // Closed at the same moment by the server, it is closed.
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.close(200, "".into())).await;
        }
    }

    /// Nobody needs the connection any more.
    pub(crate) fn abandon(&self) {
        self.state.close();
        let connection = {
            let mut current = self.current.lock();
            current.closed = true;
            current.connection.take()
        };
        drop(connection);
        self.changed.tell();
    }
}

fn failure(error: &lapin::Error, settings: &Settings) -> Failure {
    let trouble = Trouble::from(error.clone());
    let lasting = |hint: &str| {
        let server = settings.shown();
        Failure::Lasting(BrokerError::new(format!(
            "`{server}` does not let this program in: {}; {hint}",
            trouble.said
        )))
    };
    match trouble.code {
        Some(ACCESS_REFUSED) => lasting("correct user and password in the address"),
        Some(NOT_ALLOWED) => lasting(
            "correct the virtual host, which is the path of the address, or give the user permissions on it",
        ),
        _ => {
            let said = trouble.said.to_lowercase();
            if said.contains("certificate") || said.contains("unknownissuer") {
                return lasting(
                    "trust its authority by `?ca=…`, and connect to the name that the certificate is for",
                );
            }
            if settings.tls && (said.contains("corrupt message") || said.contains("invalidcontenttype")) {
                return lasting("it does not speak TLS on this port: write `amqp://`, or correct the port");
            }
            if !settings.tls && matches!(error.kind(), ErrorKind::ParsingError(_)) {
                return lasting("it does not speak AMQP on this port; where it speaks TLS, write `amqps://`");
            }
            Failure::Passing(trouble.said.clone())
        }
    }
}

fn tls(settings: &Settings) -> Result<OwnedTLSConfig, BrokerError> {
    let read = |path: &std::path::Path, option: &str, mark: &str| {
        let pem = std::fs::read_to_string(path).map_err(|error| {
            BrokerError::new(format!("cannot read `{}` (`{option}`)", path.display())).with_cause(error)
        })?;
        if !pem.contains(mark) {
            return Err(BrokerError::new(format!(
                "`{}` (`{option}`) is no PEM file with `{mark}`",
                path.display()
            )));
        }
        Ok(pem)
    };
    let cert_chain = settings.ca.as_ref().map(|path| read(path, "ca", "BEGIN CERTIFICATE")).transpose()?;
    let identity = match (&settings.cert, &settings.key) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 {
            pem: read(cert, "cert", "BEGIN CERTIFICATE")?.into_bytes(),
            key: read(key, "key", "PRIVATE KEY")?.into_bytes(),
        }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}
