//! The link: the connection that publishes, settlements and questions share, and the task that keeps it up.

use crate::durability::Server;
use crate::locate::{Locator, Purpose};
use crate::trouble::Trouble;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, foreign};
use eventbus_server::connection::{ConnectionState, Failure, Lost, patiently, pause_before};
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, FromRedisValue, Pipeline, RedisResult, Value};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a connection on which nothing happens is looked at.
const IDLE: Duration = Duration::from_secs(5);

/// The shared connection of a broker.
pub(crate) struct Link {
    pub(crate) locator: Locator,
    /// How long a question waits for a connection.
    patience: Duration,
    /// Whether there is a connection, for whoever wants to know.
    connection: ConnectionState,
    state: Lock<State>,
    changed: Waiters,
    /// Wakes the task that keeps the connection up.
    broken: Notify,
}

struct State {
    live: Option<Live>,
    generation: u64,
    closed: bool,
}

/// A connection that works, as far as is known.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) connection: MultiplexedConnection,
    pub(crate) client: Client,
    /// Tells it from earlier ones.
    pub(crate) generation: u64,
}

/// What the server is asked.
#[derive(Clone, Copy)]
enum Asked<'a> {
    One(&'a Cmd),
    Several(&'a Pipeline),
}

impl Live {
    /// Sends a command.
    pub(crate) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.connection.send_packed_command(command).await.and_then(Value::extract_error)
    }

    /// The error of one of several commands is that of all.
    async fn ask(&mut self, asked: Asked<'_>) -> RedisResult<Vec<Value>> {
        match asked {
            Asked::One(command) => Ok(vec![self.send(command).await?]),
            Asked::Several(commands) => {
                let answers = self.connection.send_packed_commands(commands, 0, commands.len()).await?;
                answers.into_iter().map(Value::extract_error).collect()
            }
        }
    }
}

impl Link {
    /// Connects, and waits for a server that does not answer as long as `connect_timeout` says. What is known of the
    /// server comes with it.
    pub(crate) async fn open(
        locator: Locator,
        address: &str,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Result<(Arc<Self>, Server), BrokerError> {
        let attempt = || async {
            connect(&locator, 1).await.map_err(|trouble| match trouble.lasting {
                true => Failure::Lasting(trouble.into()),
                false if trouble.advises() => Failure::Advised(trouble.to_string()),
                false => Failure::Passing(trouble.to_string()),
            })
        };
        let (live, server) = patiently(address, connect_timeout, attempt).await?;
        let link = Arc::new(Self {
            locator,
            patience: connect_timeout.max(response_timeout),
            connection: ConnectionState::up(address),
            state: Lock::new(Rank::LEAF, State { live: Some(live), generation: 1, closed: false }),
            changed: Waiters::new(),
            broken: Notify::new(),
        });
        tokio::spawn(keep(Arc::downgrade(&link)));
        Ok((link, server))
    }

    /// The connection, where there is one.
    pub(crate) fn live(&self) -> Option<Live> {
        self.state.lock().live.clone()
    }

    /// Whether a connection is the one there is.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.state.lock().live.as_ref().is_some_and(|live| live.generation == generation)
    }

    /// The connection, once there is one; none, once the link is closed.
    pub(crate) async fn wait(&self) -> Option<Live> {
        self.changed
            .until(|| {
                let state = self.state.lock();
                match (&state.live, state.closed) {
                    (_, true) => Some(None),
                    (Some(live), _) => Some(Some(live.clone())),
                    (None, _) => None,
                }
            })
            .await
    }

    /// Since when there is no connection.
    pub(crate) fn lost(&self) -> Option<Lost> {
        self.connection.lost()
    }

    /// Somebody has found out that a connection does not work any more.
    pub(crate) fn report(&self, generation: u64, trouble: &Trouble) {
        let gone = {
            let mut state = self.state.lock();
            if state.closed || state.generation != generation || state.live.is_none() {
                return;
            }
            state.live.take()
        };
        drop(gone);
        self.connection.is_lost(&trouble.to_string());
        foreign::tell("a waker", || self.broken.notify_one());
    }

    /// Another connection was lost: this one is looked at as well.
    pub(crate) fn suspect(&self) {
        foreign::tell("a waker", || self.broken.notify_one());
    }

    /// Asks the server, once more where the connection was lost meanwhile. For what may be asked twice.
    pub(crate) async fn ask<T: FromRedisValue>(&self, what: &str, command: &Cmd) -> Result<T, BrokerError> {
        Ok(self.value(what, command).await.and_then(|value| {
            redis::from_redis_value(value).map_err(|error| Trouble::lasting(what, error.to_string()))
        })?)
    }

    /// As [`ask`](Self::ask), for an answer as it came.
    pub(crate) async fn value(&self, what: &str, command: &Cmd) -> Result<Value, Trouble> {
        let mut answers = self.patiently(what, Asked::One(command)).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// As [`value`](Self::value), for several commands, which are sent without waiting for the answers of each.
    pub(crate) async fn values(&self, what: &str, commands: &Pipeline) -> Result<Vec<Value>, Trouble> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.patiently(what, Asked::Several(commands)).await
    }

    /// As [`value`](Self::value), once, and only where there is a connection: for what is of no use later.
    pub(crate) async fn value_at_once(&self, what: &str, command: &Cmd) -> Result<Value, Trouble> {
        let mut answers = self.at_once(what, Asked::One(command)).await?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// As [`values`](Self::values), once, and only where there is a connection.
    pub(crate) async fn values_at_once(
        &self,
        what: &str,
        commands: &Pipeline,
    ) -> Result<Vec<Value>, Trouble> {
        self.at_once(what, Asked::Several(commands)).await
    }

    async fn at_once(&self, what: &str, asked: Asked<'_>) -> Result<Vec<Value>, Trouble> {
        let lost = || self.lost().map_or_else(|| "the broker is closed".to_owned(), |lost| lost.error);
        let mut live = self.live().ok_or_else(|| Trouble::passing(what, lost()))?;
        live.ask(asked).await.map_err(|error| {
            let trouble = Trouble::of(what, &error);
            if trouble.broken {
                self.report(live.generation, &trouble);
            }
            trouble
        })
    }

    async fn patiently(&self, what: &str, asked: Asked<'_>) -> Result<Vec<Value>, Trouble> {
        let deadline = Instant::now() + self.patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut live = match tokio::time::timeout(left, self.wait()).await {
                Ok(Some(live)) => live,
                Ok(None) => return Err(Trouble::lasting(what, "the broker is closed")),
                Err(_) => {
                    return Err(match self.lost() {
                        Some(lost) => Trouble::late(what).because(&lost.error),
                        None => Trouble::late(what),
                    });
                }
            };
            let trouble = match live.ask(asked).await {
                Ok(value) => return Ok(value),
                Err(error) => Trouble::of(what, &error),
            };
            if !trouble.broken {
                return Err(trouble);
            }
            self.report(live.generation, &trouble);
            if Instant::now() >= deadline {
                return Err(trouble);
            }
        }
    }

    /// Ends the connection; whoever waits for one gets none.
    pub(crate) fn close(&self) {
        let gone = {
            let mut state = self.state.lock();
            state.closed = true;
            state.live.take()
        };
        drop(gone);
        self.connection.close();
        self.changed.tell();
        foreign::tell("a waker", || self.broken.notify_one());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

/// Connects again when the connection is lost, until the link is closed or dropped.
async fn keep(link: Weak<Link>) {
    loop {
        let Some(here) = link.upgrade() else { return };
        if here.is_closed() {
            return;
        }
        match here.live() {
            Some(mut live) => {
                // Whoever tells knows more, or suspects something.
                let _ = tokio::time::timeout(IDLE, here.broken.notified()).await;
                if here.live().is_some_and(|known| known.generation == live.generation)
                    && let Err(error) = live.send(&redis::cmd("PING")).await
                {
                    let trouble = Trouble::of("the server does not answer", &error);
                    if trouble.broken {
                        here.report(live.generation, &trouble);
                    }
                }
            }
            None => {
                drop(here);
                connect_again(&link).await;
            }
        }
    }
}

/// Between tries nothing is held: a broker that nobody has any more is not connected.
async fn connect_again(link: &Weak<Link>) {
    let mut pause = Pause::default();
    while let Some(link) = link.upgrade().filter(|link| !link.is_closed()) {
        let generation = link.state.lock().generation + 1;
        match connect(&link.locator, generation).await {
            Ok((live, _)) => {
                {
                    let mut state = link.state.lock();
                    (state.live, state.generation) = (Some(live), generation);
                }
                link.connection.is_up();
                return link.changed.tell();
            }
            Err(trouble) => link.connection.is_lost(&trouble.to_string()),
        }
        drop(link);
        tokio::time::sleep(pause.next()).await;
    }
}

/// Connects, and looks at what kind of server that is.
async fn connect(locator: &Locator, generation: u64) -> Result<(Live, Server), Trouble> {
    let (client, connection) = locator.connect(Purpose::Shared).await?;
    let mut live = Live { connection, client, generation };
    let failed = |error| Trouble::of("cannot ask the server what it is", &error);
    let info = match live.send(&redis::cmd("INFO")).await {
        Ok(info) => redis::from_redis_value::<String>(info).ok(),
        Err(error) => match Trouble::of("", &error) {
            // Whoever has not said who they are may do nothing else either.
            trouble if trouble.broken || trouble.is("NOAUTH") => return Err(failed(error)),
            _ => None,
        },
    };
    if info.as_deref().is_some_and(|info| info.contains("loading:1")) {
        return Err(Trouble::passing("the server is not ready", "it reads its file"));
    }
    let mut config = Vec::new();
    for name in ["appendfsync", "maxmemory-policy", "proto-max-bulk-len", "min-replicas-to-write"] {
        // Who may not ask goes without.
        if let Ok(value) = live.send(redis::cmd("CONFIG").arg("GET").arg(name)).await {
            config.extend(redis::from_redis_value::<Vec<(String, String)>>(value).unwrap_or_default());
        }
    }
    let server = Server::read(info.as_deref(), &config);
    let address = live.client.get_connection_info().addr().to_string();
    // After a failover the address may name what is a replica by now, and no primary for a moment.
    server.check(&address).map_err(|error| Trouble::lasting("cannot use the server", error.to_string()))?;
    Ok((live, server))
}

/// The pauses between tries.
#[derive(Default)]
pub(crate) struct Pause {
    tries: usize,
}

impl Pause {
    pub(crate) fn next(&mut self) -> Duration {
        self.tries += 1;
        pause_before(self.tries + 1)
    }

    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}
