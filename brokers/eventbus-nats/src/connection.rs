//! The connection: how it is made, what is wrong where it cannot be, and what the server says while it is there.

use crate::birth::Births;
use crate::config::{Login, Settings};
use crate::suspects::Turns;
use async_nats::connection::State;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, Message, RequestErrorKind, ServerAddr,
    ServerError, Subscriber, rustls,
};
use bytes::Bytes;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, foreign};
use eventbus_server::connection::{ConnectionState, Failure, patiently, pause_before};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often the server is asked for a sign of life; without one for three times as long the connection is made anew.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long one try to connect may take.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How long an answer of the server may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);
/// A client that has ended after a shorter time than this is not replaced at once.
const SHORT: Duration = Duration::from_secs(10);
/// Why a connection is lost, before more is known.
const ENDED: &str = "the server has ended it, or does not answer any more";

/// The connection, and what is known of it.
pub(crate) struct Link {
    client: Lock<Arc<Numbered>>,
    pub(crate) state: Arc<ConnectionState>,
    pub(crate) denied: Arc<Denied>,
    pub(crate) settings: Settings,
    /// Whose turn it is among what may have ended an earlier process.
    pub(crate) turns: Lock<Turns>,
    subscriptions: AtomicU64,
    /// How many of them are open.
    pub(crate) open: AtomicUsize,
    pub(crate) births: Births,
    #[cfg(test)]
    pub(crate) faults: crate::faults::Faults,
}

/// A client. It ends by itself where it panics, as it does over some messages, and is replaced then.
pub(crate) struct Numbered {
    pub(crate) client: Client,
    /// Which client of the link it is. What another one was subscribed to, it is not.
    pub(crate) number: u64,
}

/// Where answers come.
pub(crate) struct Inbox {
    /// The client that is subscribed to them.
    pub(crate) client: u64,
    /// What stands before a last token of any kind.
    pub(crate) subject: String,
    pub(crate) messages: Subscriber,
}

impl Numbered {
    /// Subscribes to a subject that nobody else has. None: the client has ended.
    pub(crate) async fn inbox(&self) -> Option<Inbox> {
        let subject = self.client.new_inbox();
        let messages = self.client.subscribe(format!("{subject}.*")).await.ok()?;
        Some(Inbox { client: self.number, subject, messages })
    }
}

/// Resolves once a client has ended.
pub(crate) type Ended = oneshot::Receiver<()>;

/// A client that is connected.
struct Made {
    client: Client,
    ended: Ended,
    told: Arc<Told>,
}

/// What a client tells of its connection. It counts once the client is the one of the link: whoever heard of another
/// connection before would take the client that has ended, and wait for one more.
struct Told {
    state: Arc<ConnectionState>,
    denied: Arc<Denied>,
    counts: AtomicBool,
}

impl Told {
    fn hear(&self, event: &Event) {
        if !self.counts.load(Ordering::Acquire) {
            return;
        }
        match event {
            Event::Connected => self.state.is_up(),
            Event::Disconnected | Event::Closed => self.is_lost(),
            Event::ClientError(error) if self.state.lost().is_some() => {
                self.state.is_lost(&error.to_string())
            }
            Event::ServerError(ServerError::Other(said))
                if said.to_lowercase().contains("permissions violation") =>
            {
                self.denied.hear(said);
            }
            _ => {}
        }
    }

    fn is_lost(&self) {
        if self.counts.load(Ordering::Acquire) {
            self.state.is_lost(ENDED);
        }
    }

    /// The client is the one of the link, and is connected unless it has lost the server meanwhile.
    fn begin(&self, client: &Client) {
        self.counts.store(true, Ordering::Release);
        self.state.is_up();
        if client.connection_state() != State::Connected {
            // What it has said of that was not heeded.
            self.is_lost();
        }
    }
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
    /// Connects, and waits for a server that does not answer as long as the settings say. The second of the answer is for
    /// [`keep`](Self::keep).
    pub(crate) async fn open(settings: Settings) -> Result<(Self, Ended), BrokerError> {
        let shown = settings.shown();
        let state = Arc::new(ConnectionState::up(shown.clone()));
        let denied = Arc::new(Denied::new());
        let servers = servers(&settings)?;
        let connect = || connect(&settings, &servers, (&state, &denied));
        let Made { client, ended, told } = patiently(&shown, settings.connect_timeout, connect).await?;
        told.begin(&client);
        let turns = Lock::new(Rank::LEAF, Turns::new(client.new_inbox()));
        let link = Self {
            client: Lock::new(Rank::LEAF, Arc::new(Numbered { client, number: 1 })),
            state,
            denied,
            settings,
            turns,
            subscriptions: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            births: Births::default(),
            #[cfg(test)]
            faults: crate::faults::Faults::default(),
        };
        Ok((link, ended))
    }

    /// A number that no other subscription of this broker has.
    pub(crate) fn number_of_subscription(&self) -> u64 {
        self.subscriptions.fetch_add(1, Ordering::Relaxed)
    }

    /// The client as it is now.
    pub(crate) fn client(&self) -> Arc<Numbered> {
        Arc::clone(&self.client.lock())
    }

    /// Puts another client in the place of one that has ended, each time. To whoever uses the link that is another
    /// connection: what was subscribed to is to be subscribed to again, and what was asked for may be lost.
    pub(crate) async fn keep(self: Arc<Self>, mut ended: Ended) {
        let (mut since, mut tries) = (Instant::now(), 0);
        loop {
            // Nothing is sent: it is dropped with the client.
            let _ = ended.await;
            if self.state.is_closed() {
                return;
            }
            self.state.is_lost("the client of NATS has ended, as it does over a message that it cannot read");
            tries = if since.elapsed() < SHORT { tries } else { 0 };
            ended = loop {
                tries += 1;
                tokio::time::sleep(pause_before(tries)).await;
                match self.replace().await {
                    Ok(ended) => break ended,
                    Err(error) => self.state.is_lost(&error),
                }
            };
            since = Instant::now();
        }
    }

    async fn replace(&self) -> Result<Ended, String> {
        let servers = servers(&self.settings).map_err(|error| error.to_string())?;
        let connected = connect(&self.settings, &servers, (&self.state, &self.denied)).await;
        let made = connected.map_err(|failure| match failure {
            Failure::Passing(error) | Failure::Advised(error) => error,
            Failure::Lasting(error) => error.to_string(),
        })?;
        Ok(self.put(made))
    }

    /// Puts a client in the place of the one that has ended.
    fn put(&self, Made { client, ended, told }: Made) -> Ended {
        let former = {
            let mut current = self.client.lock();
            let another = Numbered { client: client.clone(), number: current.number + 1 };
            std::mem::replace(&mut *current, Arc::new(another))
        };
        // Its destructor is code of others.
        foreign::tell("the NATS client", || drop(former));
        told.begin(&client);
        ended
    }

    /// Subscribes to a subject that nobody else has, on whichever client there is.
    pub(crate) async fn inbox(&self) -> Result<Inbox, BrokerError> {
        loop {
            let connection = self.state.times();
            if let Some(inbox) = self.client().inbox().await {
                return Ok(inbox);
            }
            if self.state.is_closed() {
                return Err(BrokerError::new("cannot listen for answers: the broker is closed"));
            }
            self.state.another(connection).await;
        }
    }

    /// Asks JetStream for something, by the subject of its API. Where the client ends meanwhile, the next one asks again:
    /// what is asked for may be done twice.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        subject: impl AsRef<str>,
        request: &(impl Serialize + Sync + ?Sized),
    ) -> Result<T, Refusal> {
        let payload = serde_json::to_vec(request).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        let subject = self.api_subject(subject.as_ref());
        let answer = self.request(subject, payload.into()).await?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => {
                Err(Refusal::Error { code: error.error_code(), said: error.to_string() })
            }
            Err(error) => Err(Refusal::Unreadable(error.to_string())),
        }
    }

    /// Sends something that is answered, on whichever client there is.
    pub(crate) async fn request(&self, subject: String, payload: Bytes) -> Result<Message, Refusal> {
        #[cfg(test)]
        let is_lost_here = self.faults.meet(&subject, Refusal::Silence)?;
        let mut denied = self.denied.times();
        let mut asking = pin!(tokio::time::timeout(ANSWER, self.ask(&subject, &payload)));
        loop {
            tokio::select! {
                biased;
                answer = &mut asking => {
                    #[cfg(test)]
                    let answer = if is_lost_here { Ok(Err(Refusal::Silence)) } else { answer };
                    return answer.unwrap_or(Err(Refusal::Silence));
                }
                (times, said) = self.denied.after(denied) => {
                    denied = times;
                    if is_of_jetstream(&said) {
                        return Err(Refusal::Denied(said));
                    }
                }
            }
        }
    }

    async fn ask(&self, subject: &str, payload: &Bytes) -> Result<Message, Refusal> {
        loop {
            let connection = self.state.times();
            let current = self.client();
            let request = async_nats::client::Request::new().payload(payload.clone());
            match current.client.send_request(subject.to_owned(), request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => match error.kind() {
                    RequestErrorKind::TimedOut | RequestErrorKind::NoResponders => {
                        return Err(Refusal::Silence);
                    }
                    RequestErrorKind::Other if self.state.is_closed() => return Err(Refusal::Silence),
                    // It has ended.
                    RequestErrorKind::Other => self.state.another(connection).await,
                    _ => return Err(Refusal::Unreadable(error.to_string())),
                },
            };
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

fn servers(settings: &Settings) -> Result<Vec<ServerAddr>, BrokerError> {
    let scheme = if settings.tls { "tls" } else { "nats" };
    let parse = |server: &String| {
        format!("{scheme}://{server}").parse::<ServerAddr>().map_err(|error| {
            BrokerError::new(format!("`{}` is no address", settings.shown())).with_cause(error)
        })
    };
    settings.servers.iter().map(parse).collect()
}

/// Makes a client.
async fn connect(
    settings: &Settings,
    servers: &[ServerAddr],
    (state, denied): (&Arc<ConnectionState>, &Arc<Denied>),
) -> Result<Made, Failure> {
    let (ends, ended) = oneshot::channel();
    let (state, denied, counts) = (Arc::clone(state), Arc::clone(denied), AtomicBool::new(false));
    let told = Arc::new(Told { state, denied, counts });
    let (ends_here, hears) = (Arc::clone(&told), Arc::clone(&told));
    let options = options(settings).await.map_err(Failure::Lasting)?;
    // It is asked before there is another connection, and the callback below a little later: by then something could be on
    // its way to another stream than it was meant for.
    let options = options.reconnect_delay_callback(move |attempt| {
        ends_here.is_lost();
        pause_before(attempt)
    });
    let options = options.event_callback(move |event| {
        // The client has it as long as it lives: so its end is seen, which it tells nobody where it panics.
        let _ = &ends;
        hears.hear(&event);
        std::future::ready(())
    });
    let client = options.connect(servers.to_vec()).await.map_err(|error| explain(settings, &error))?;
    Ok(Made { client, ended, told })
}

async fn options(settings: &Settings) -> Result<ConnectOptions, BrokerError> {
    let mut options = ConnectOptions::new()
        .name(format!("eventbus {}", settings.stream))
        .require_tls(settings.tls)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(ATTEMPT)
        .request_timeout(Some(ANSWER));
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
    if let (Some(certificate), Some(key)) = (&settings.certificate, &settings.key) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever asks waits for another connection, takes the client that there is then, and waits again where it has ended.
    #[tokio::test]
    async fn nobody_hears_of_another_connection_before_its_client_is_there() {
        let place = crate::faults::Place::new();
        let broker = place.broker().await;
        let link = &broker.shared().link;
        // As long as it is here nobody sees its end.
        let _former = link.client();
        let times = link.state.times();
        link.state.is_lost("it has ended");
        let servers = servers(&link.settings).unwrap();
        let made = connect(&link.settings, &servers, (&link.state, &link.denied)).await;
        let made = made.unwrap_or_else(|failure| panic!("{failure:?}"));
        // As it does at some time of its own.
        made.told.hear(&Event::Connected);
        assert!(link.state.lost().is_some() && link.client().number == 1, "it is not there yet");
        let _ended = link.put(made);
        assert_eq!((link.state.another(times).await, link.client().number), (times + 1, 2));
        link.ensure_streams().await.unwrap();
        place.remove().await;
    }
}
