//! The connection: how it is made, what is wrong where it cannot be, and what the server says while it is there.

use crate::config::{Login, Settings};
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError, rustls,
};
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_server::connection::{ConnectionState, Failure, patiently, pause_before};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How often the server is asked for a sign of life; without one for three times as long the connection is made anew.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long one try to connect may take.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long an answer of the server may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// The connection, and what is known of it.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) state: Arc<ConnectionState>,
    pub(crate) denied: Arc<Denied>,
    pub(crate) settings: Settings,
}

/// What the server did not let this program do. It says so beside the call, which gets no answer.
pub(crate) struct Denied {
    said: Lock<Said>,
    changed: Waiters,
}

#[derive(Default)]
struct Said {
    times: u64,
    latest: Option<String>,
}

impl Denied {
    fn new() -> Self {
        Self { said: Lock::new(Rank::LEAF, Said::default()), changed: Waiters::new() }
    }

    fn hear(&self, said: &str) {
        {
            let mut state = self.said.lock();
            state.times += 1;
            state.latest = Some(said.to_owned());
        }
        self.changed.tell();
    }

    /// How often something was denied.
    pub(crate) fn times(&self) -> u64 {
        self.said.lock().times
    }

    /// Resolves with what is denied next.
    pub(crate) async fn after(&self, times: u64) -> (u64, String) {
        let look = || {
            let said = self.said.lock();
            let latest = said.latest.clone().filter(|_| said.times != times)?;
            Some((said.times, latest))
        };
        self.changed.until(look).await
    }
}

impl Link {
    /// Connects, and waits for a server that does not answer as long as the settings say.
    pub(crate) async fn open(settings: Settings) -> Result<Self, BrokerError> {
        let shown = settings.shown();
        let state = Arc::new(ConnectionState::up(shown.clone()));
        let denied = Arc::new(Denied::new());
        let options = options(&settings, &state, &denied).await?;
        let mut servers = Vec::new();
        for server in &settings.servers {
            let scheme = if settings.tls { "tls" } else { "nats" };
            let server = format!("{scheme}://{server}").parse::<ServerAddr>();
            servers.push(
                server.map_err(|error| {
                    BrokerError::new(format!("`{shown}` is no address")).with_cause(error)
                })?,
            );
        }
        let connect = || {
            let connecting = options.clone().connect(servers.clone());
            let settings = &settings;
            async move { connecting.await.map_err(|error| explain(settings, &error)) }
        };
        let client = patiently(&shown, settings.connect_timeout, connect).await?;
        let mut jetstream = match &settings.domain {
            Some(domain) => jetstream::with_domain(client.clone(), domain),
            None => jetstream::new(client.clone()),
        };
        jetstream.set_timeout(ANSWER);
        Ok(Self { client, jetstream, state, denied, settings })
    }

    /// Asks JetStream for something, by the subject of its API.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: impl AsRef<str>,
        request: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, Refusal> {
        let mut denied = self.denied.times();
        let mut question =
            std::pin::pin!(self.jetstream.request::<_, _, Response<T>>(subject.as_ref().to_owned(), request));
        loop {
            tokio::select! {
                biased;
                answer = &mut question => return match answer {
                    Ok(Response::Ok(answer)) => Ok(answer),
                    Ok(Response::Err { error }) => Err(Refusal::Error { code: error.error_code(), said: error.to_string() }),
                    Err(error) => Err(match error.kind() {
                        RequestErrorKind::TimedOut | RequestErrorKind::NoResponders => Refusal::Silence,
                        _ => Refusal::Unreadable(error.to_string()),
                    }),
                },
                (times, said) = self.denied.after(denied) => {
                    denied = times;
                    if is_of_jetstream(&said) {
                        return Err(Refusal::Denied(said));
                    }
                }
            }
        }
    }

    /// Asks again where an answer may have been lost with a connection. `ask` may be done twice.
    pub(crate) async fn insist<T, F: Future<Output = T>>(&self, mut ask: impl FnMut() -> F) -> T {
        loop {
            let connection = self.state.times();
            tokio::select! {
                biased;
                answer = ask() => return answer,
                _ = self.state.another(connection) => {}
            }
        }
    }

    /// The subject of JetStream's API that messages are asked for under, in the domain of the settings.
    pub(crate) fn api_subject(&self, name: &str) -> String {
        match &self.settings.domain {
            Some(domain) => format!("$JS.{domain}.API.{name}"),
            None => format!("$JS.API.{name}"),
        }
    }

    /// An error of JetStream with its remedy; `what` is what could not be done.
    pub(crate) fn explain(&self, what: impl fmt::Display, refusal: Refusal) -> BrokerError {
        let Settings { stream, prefix, .. } = &self.settings;
        let (remedy, said) = match refusal {
            Refusal::Silence if self.state.lost().is_some() => {
                ("the connection is lost, and is tried again".to_owned(), None)
            }
            Refusal::Silence => (
                "JetStream does not answer; start the server with `-js`, or wait until its cluster has a leader".to_owned(),
                None,
            ),
            Refusal::Denied(said) => (
                "the user of this program lacks a permission; let it publish to `$JS.API.>`, `$JS.ACK.>` and `$KV.>`, and \
                 subscribe to `_INBOX.>`"
                    .to_owned(),
                Some(said),
            ),
            Refusal::Unreadable(said) => ("the answer of the server cannot be read".to_owned(), Some(said)),
            Refusal::Error { code, said } => {
                let remedy = match code {
                    ErrorCode::JETSTREAM_NOT_ENABLED => {
                        "JetStream is off at this server; start it with `-js`, or with `jetstream {}` in its configuration"
                            .to_owned()
                    }
                    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                        "JetStream is off for the account of this user; enable it for the account".to_owned()
                    }
                    ErrorCode::STREAM_SUBJECT_OVERLAP => format!(
                        "another stream has some of the subjects `{prefix}.>` already; take another prefix (`?prefix=…`), or \
                         name that stream (`?stream=…`)"
                    ),
                    ErrorCode::STREAM_NOT_FOUND => {
                        format!("there is no stream `{stream}`; make it, or let this program do so (`?topology=create`)")
                    }
                    ErrorCode::STORAGE_RESOURCES_EXCEEDED
                    | ErrorCode::INSUFFICIENT_RESOURCES
                    | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => {
                        "the storage of the server or of the account is used up; make room, or raise its limit".to_owned()
                    }
                    _ => "the server refuses it".to_owned(),
                };
                (remedy, Some(said))
            }
        };
        let error = BrokerError::new(format!("cannot {what}: {remedy}"));
        match said {
            Some(said) => error.with_cause(said),
            None => error,
        }
    }
}

fn is_of_jetstream(denied: &str) -> bool {
    denied.contains("\"$JS.") || denied.contains("\"$KV.") || denied.contains("\"_INBOX.")
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.settings.shown()).finish_non_exhaustive()
    }
}

/// A request that says nothing more.
#[derive(Serialize)]
pub(crate) struct Nothing {}

/// What came in place of what JetStream was asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Nobody has answered in time.
    Silence,
    /// The user lacks a permission.
    Denied(String),
    /// JetStream says no.
    Error {
        code: ErrorCode,
        said: String,
    },
    Unreadable(String),
}

impl Refusal {
    pub(crate) fn is(&self, wanted: ErrorCode) -> bool {
        matches!(self, Self::Error { code, .. } if *code == wanted)
    }
}

async fn options(
    settings: &Settings,
    state: &Arc<ConnectionState>,
    denied: &Arc<Denied>,
) -> Result<ConnectOptions, BrokerError> {
    let (state, denied) = (Arc::clone(state), Arc::clone(denied));
    let mut options = ConnectOptions::new()
        .name(format!("eventbus {}", settings.stream))
        .require_tls(settings.tls)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(ATTEMPT)
        .request_timeout(Some(ANSWER))
        .reconnect_delay_callback(pause_before)
        .event_callback(move |event| {
            hear(&state, &denied, &event);
            std::future::ready(())
        });
    options = match &settings.login {
        Login::Nobody => options,
        Login::User(user, password) => options.user_and_password(user.clone(), password.reveal().to_owned()),
        Login::Token(token) => options.token(token.reveal().to_owned()),
        Login::NKey(seed) => options.nkey(seed.reveal().to_owned()),
        Login::Credentials(path) => options.credentials_file(path).await.map_err(|error| {
            BrokerError::new(format!(
                "cannot read the credentials `{}`; take a file that `nsc generate creds` has made",
                path.display()
            ))
            .with_cause(error)
        })?,
    };
    if let Some(ca) = &settings.ca {
        readable("ca", ca)?;
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((certificate, key)) = &settings.certificate {
        readable("certificate", certificate)?;
        readable("key", key)?;
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(if settings.tls_first { options.tls_first() } else { options })
}

fn readable(option: &str, path: &std::path::Path) -> Result<(), BrokerError> {
    std::fs::metadata(path).map(drop).map_err(|error| {
        BrokerError::new(format!("cannot read the file `{}` of `{option}`", path.display())).with_cause(error)
    })
}

/// What the client tells of the connection.
fn hear(state: &ConnectionState, denied: &Denied, event: &Event) {
    match event {
        Event::Connected => state.is_up(),
        Event::Disconnected | Event::Closed => {
            state.is_lost("the server has ended it, or does not answer any more")
        }
        Event::ClientError(error) if state.lost().is_some() => state.is_lost(&error.to_string()),
        Event::ServerError(ServerError::Other(said))
            if said.to_lowercase().contains("permissions violation") =>
        {
            denied.hear(said);
        }
        _ => {}
    }
}

/// What is wrong where a connection cannot be made, and what to do.
fn explain(settings: &Settings, error: &ConnectError) -> Failure {
    let server = settings.shown();
    let lasting = |remedy: String| Failure::Lasting(BrokerError::new(remedy).with_cause(chain(error)));
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => lasting(match &settings.login {
            Login::Nobody => format!(
                "`{server}` lets in nobody without a password; write `user:password@` before the host, or give `token`, \
                 `nkey` or `credentials`"
            ),
            Login::User(user, _) => {
                format!("`{server}` does not let in the user `{user}`; correct the user or the password")
            }
            Login::Token(_) => {
                format!("`{server}` does not let in this token; correct it, or write `user:password@`")
            }
            Login::NKey(_) => {
                format!("`{server}` does not let in this NKey; add its public key to the server's users")
            }
            Login::Credentials(path) => {
                format!("`{server}` does not let in the credentials `{}`", path.display())
            }
        }),
        ConnectErrorKind::Authentication => {
            lasting("the seed of the NKey is none; it is a text that begins with `SU`".to_owned())
        }
        ConnectErrorKind::ServerParse => lasting(format!("`{server}` is no address")),
        _ => match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(_)) => lasting(format!(
                "the certificate of `{server}` is not to be trusted; name the authority that has signed it by `?ca=…`, and \
                 the server by a name that stands in it"
            )),
            Some(rustls::Error::InvalidMessage(_)) => {
                lasting(format!("`{server}` does not speak TLS here; write `nats://`, or correct the port"))
            }
            Some(_) => lasting(format!("`{server}` and this program do not come to terms about TLS")),
            None if error.kind() == ConnectErrorKind::Tls => {
                lasting("cannot set up TLS; look at the files of `ca`, `certificate` and `key`".to_owned())
            }
            None => Failure::Passing(chain(error)),
        },
    }
}

/// What went wrong in TLS, where that is the cause.
fn tls_error(error: &ConnectError) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(error) = inner.and_then(|error| error.downcast_ref::<rustls::Error>()) {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

fn chain(error: &ConnectError) -> String {
    error.to_string()
}
