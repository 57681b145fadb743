//! Publishing: sent at once, confirmed apart, and sent again until it is confirmed.

use crate::connection::{Inbox, Link, Refusal};
use crate::wire::{self, MAX_HEADERS};
use async_nats::client::PublishErrorKind;
use async_nats::jetstream::ErrorCode;
use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::waiters::Waiters;
use eventbus_core::{BoxError, BrokerError, DecodeError, Envelope, PublishError, foreign};
use eventbus_server::publishes::{Order, Overdue, Publishes, Ticket};
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// So long a confirmation may take before the event is sent again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look for what is to be sent again.
const TICK: Duration = Duration::from_millis(250);
/// So long after a connection was made anew, confirmations of what was on its way may come.
const GRACE: Duration = Duration::from_millis(150);
/// How many confirmations are taken before others have a turn.
const AT_ONCE: usize = 256;
/// So long what the server has said of the stream is taken to be so.
const CURRENT: Duration = Duration::from_secs(2);
/// So long nobody may take what is sent.
const UNTAKEN: Duration = Duration::from_secs(5);

/// What sends events and waits for their confirmations.
pub(crate) struct Outlet {
    link: Arc<Link>,
    /// Confirmations come under this and the number of the ticket.
    inbox: String,
    open: Lock<Sending>,
    /// Somebody waits until nothing is open.
    emptied: Waiters,
    batches: AtomicU64,
    /// Nobody has taken something that was sent.
    untaken: AtomicBool,
    hasher: RandomState,
}

struct Sending {
    publishes: Publishes<Sent, oneshot::Sender<Answer>>,
    /// The connection on which everything was sent again that was open when it was made. On another one nothing is sent
    /// past that.
    connection: u64,
    /// When the server has said last what it knows of the stream. While a cluster chooses a leader, nobody does.
    answered: Option<Instant>,
}

/// What is sent. It is written again where it is sent again.
#[derive(Clone)]
pub(crate) enum Sent {
    Event(Arc<Envelope>),
    Other(Arc<Other>),
}

/// A message of ours that is no event, such as a dead letter.
pub(crate) struct Other {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
}

enum Answer {
    Stored,
    Refused(String),
    Unconfirmed,
}

/// Why something is not stored, or not known to be.
pub(crate) enum Unsent {
    Refused(BrokerError),
    Unconfirmed,
    TooLarge { part: &'static str, size: usize, limit: usize },
    Unwritable(BoxError),
}

impl Outlet {
    /// Begins to listen for confirmations; the future is the task that does so.
    pub(crate) async fn open(
        link: Arc<Link>,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + use<>), BrokerError> {
        let Inbox { client, subject: inbox, messages: confirmations } = link.inbox().await?;
        let sending =
            Sending { publishes: Publishes::default(), connection: link.state.times(), answered: None };
        let outlet = Arc::new(Self {
            link,
            inbox,
            open: Lock::new(Rank::BROKER, sending),
            emptied: Waiters::new(),
            batches: AtomicU64::new(0),
            untaken: AtomicBool::new(false),
            hasher: RandomState::new(),
        });
        let task = Arc::clone(&outlet).listen(confirmations, client);
        Ok((outlet, task))
    }

    /// Stores an event.
    pub(crate) async fn publish(self: Arc<Self>, envelope: Arc<Envelope>) -> Result<(), PublishError> {
        let sent = self.send(Sent::Event(Arc::clone(&envelope)), None, self.deadline()).await;
        self.answer(sent).await.map_err(|unsent| self.error(&envelope, unsent))
    }

    /// Stores events, those with one key in their order.
    pub(crate) async fn publish_all(
        self: Arc<Self>,
        envelopes: Vec<Arc<Envelope>>,
    ) -> Vec<Result<(), PublishError>> {
        let batch = self.batches.fetch_add(1, Ordering::Relaxed);
        let deadline = self.deadline();
        let mut sent = Vec::with_capacity(envelopes.len());
        for envelope in &envelopes {
            let order = envelope.key().map(|key| Order { batch, key: self.hasher.hash_one(key) });
            sent.push(self.send(Sent::Event(Arc::clone(envelope)), order, deadline).await);
        }
        let mut answers = Vec::with_capacity(envelopes.len());
        for (sent, envelope) in sent.into_iter().zip(&envelopes) {
            answers.push(self.answer(sent).await.map_err(|unsent| self.error(envelope, unsent)));
        }
        answers
    }

    /// Stores a message of ours; `what` names it in an error.
    pub(crate) async fn store(&self, what: &str, message: Other) -> Result<(), BrokerError> {
        #[cfg(test)]
        let is_lost_here = self.link.faults.meet(&message.subject, BrokerError::new("a fault"))?;
        let sent = self.send(Sent::Other(Arc::new(message)), None, self.deadline()).await;
        let answer = self.answer(sent).await;
        #[cfg(test)]
        let answer = if is_lost_here { Err(Unsent::Unconfirmed) } else { answer };
        answer.map_err(|unsent| match unsent {
            Unsent::Refused(error) => BrokerError::new(format!("cannot store {what}")).with_cause(error),
            Unsent::Unconfirmed => {
                BrokerError::new(format!("the server did not confirm {what} within {:?}", self.link.settings.publish_timeout))
            }
            Unsent::TooLarge { part, size, limit } => BrokerError::new(format!(
                "{what} is too large: its {part} has {size} bytes, and {limit} are allowed; raise `max_payload` of the server"
            )),
            Unsent::Unwritable(error) => BrokerError::new(format!("cannot write {what}")).with_cause(error),
        })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.link.settings.publish_timeout
    }

    async fn answer(&self, sent: Result<oneshot::Receiver<Answer>, Unsent>) -> Result<(), Unsent> {
        match sent?.await {
            Ok(Answer::Stored) => Ok(()),
            Ok(Answer::Refused(said)) => Err(Unsent::Refused(BrokerError::new(said))),
            Ok(Answer::Unconfirmed) | Err(_) => Err(Unsent::Unconfirmed),
        }
    }

    /// Sends something, and says where its answer comes.
    async fn send(
        &self,
        sent: Sent,
        order: Option<Order>,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Answer>, Unsent> {
        let message = self.write(&sent)?;
        let (answer, answered) = oneshot::channel();
        let now = Instant::now();
        if now >= deadline {
            let lost = "it was not sent in time, since the connection is lost or the server is slow";
            return Err(Unsent::Refused(BrokerError::new(lost)));
        }
        let (ticket, at_once) = {
            let mut open = self.open.lock();
            let at_once = open.connection == self.link.state.times() && self.link.state.lost().is_none();
            (open.publishes.open(sent, answer, order, at_once, [now, deadline]), at_once)
        };
        if at_once {
            self.hand_over(ticket, message, deadline).await;
        }
        Ok(answered)
    }

    /// Hands a message to the connection, and waits for room there at most until `deadline`.
    async fn hand_over(&self, ticket: Ticket, message: Outbound, deadline: Instant) {
        let reply = format!("{}.{ticket}", self.inbox);
        let Outbound { subject, headers, payload } = message;
        let current = self.link.client();
        let sending = current.client.publish_with_reply_and_headers(subject, reply, headers, payload);
        let sent = tokio::time::timeout_at(deadline.into(), sending).await;
        if let Ok(Err(error)) = sent {
            if error.kind() == PublishErrorKind::Send && !self.link.state.is_closed() {
                // The client has ended; the next one sends it again.
                return;
            }
            let answer = self.open.lock().publishes.refuse(ticket);
            if let Some(answer) = answer {
                tell(answer, Answer::Refused(error.to_string()));
            }
        }
    }

    fn write(&self, sent: &Sent) -> Result<Outbound, Unsent> {
        match sent {
            Sent::Event(envelope) => {
                let written =
                    wire::write(envelope, self.link.settings.content_mode).map_err(|error| match error {
                        DecodeError::Encode { cause, .. } => Unsent::Unwritable(cause),
                        other => Unsent::Unwritable(other.into()),
                    })?;
                let (size, limit) = (written.payload.len(), self.link.max_payload());
                if written.header_size > self.link.max_headers() {
                    let (size, limit) = (written.header_size, self.link.max_headers());
                    return Err(Unsent::TooLarge { part: "headers", size, limit });
                }
                if size > limit {
                    return Err(Unsent::TooLarge { part: "payload", size, limit });
                }
                let subject = self.link.settings.subject(envelope.topic().as_str());
                Ok(Outbound { subject, headers: written.headers, payload: written.payload })
            }
            Sent::Other(other) => Ok(Outbound {
                subject: other.subject.clone(),
                headers: other.headers.clone(),
                payload: other.payload.clone(),
            }),
        }
    }

    fn error(&self, envelope: &Envelope, unsent: Unsent) -> PublishError {
        let topic = envelope.topic().to_string();
        match unsent {
            Unsent::Refused(error) => PublishError::Broker { topic, cause: error.into() },
            Unsent::Unconfirmed => PublishError::Unconfirmed { topic, cause: self.unconfirmed().into() },
            Unsent::TooLarge { part, size, limit } => PublishError::TooLarge { topic, part, size, limit },
            Unsent::Unwritable(cause) => PublishError::Encode { topic, cause },
        }
    }

    fn unconfirmed(&self) -> BrokerError {
        let within = self.link.settings.publish_timeout;
        match self.link.state.lost() {
            Some(lost) => BrokerError::new(format!(
                "the connection has been lost for {:.1?}, and the server did not confirm it within {within:?} \
                 (`publish_timeout`)",
                lost.at.elapsed()
            ))
            .with_cause(lost.error),
            None => BrokerError::new(format!("the server did not confirm it within {within:?} (`publish_timeout`)")),
        }
    }

    /// Takes confirmations, and sends again what gets none.
    async fn listen(self: Arc<Self>, mut confirmations: Subscriber, mut client: u64) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut connection, mut denied) = (self.link.state.times(), self.link.denied.times());
        let (mut again_at, mut ended) = (None, false);
        let mut making: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                biased;
                confirmation = confirmations.next(), if !ended => {
                    let Some(confirmation) = confirmation else {
                        // There will be another client. What is open gets an answer all the same, once it is late.
                        ended = true;
                        continue;
                    };
                    self.take(&confirmation);
                    // Those that are there already, without looking at the rest in between.
                    for _ in 0..AT_ONCE {
                        let Some(Some(confirmation)) = confirmations.next().now_or_never() else { break };
                        self.take(&confirmation);
                    }
                    self.emptied.tell();
                }
                (times, said) = self.link.denied.after(denied) => {
                    denied = times;
                    self.refuse_denied(&said);
                }
                another = self.link.state.another(connection) => {
                    connection = another;
                    let current = self.link.client();
                    if current.number != client
                        && let Ok(subscribed) = current.client.subscribe(format!("{}.*", self.inbox)).await
                    {
                        (confirmations, client, ended) = (subscribed, current.number, false);
                    }
                    again_at = Some(Instant::now() + GRACE);
                }
                _ = tick.tick() => {
                    let now = Instant::now();
                    if making.as_ref().is_none_or(JoinHandle::is_finished) && self.untaken.swap(false, Relaxed) {
                        making = Some(tokio::spawn(Arc::clone(&self).make_streams_again()));
                    }
                    let Some(past) = now.checked_sub(PATIENCE) else { continue };
                    match again_at {
                        // What was on its way is confirmed by now, if it arrived.
                        Some(at) if now >= at => {
                            again_at = None;
                            self.send_again(connection, at - GRACE).await;
                        }
                        Some(_) => {}
                        None => self.send_again(connection, past).await,
                    }
                }
            }
        }
    }

    /// Sends again what was not sent since `sent_before`, in order, and gives up what is late. Afterwards others may be
    /// sent on this connection.
    async fn send_again(&self, connection: u64, sent_before: Instant) {
        loop {
            let is_up = self.link.state.lost().is_none();
            let Overdue { again, given_up } = {
                let mut open = self.open.lock();
                // While there is no connection, only deadlines pass.
                let sent_before = if is_up { Some(sent_before) } else { None };
                let overdue = match sent_before {
                    Some(sent_before) => open.publishes.overdue(Instant::now(), sent_before),
                    None => open.publishes.late(Instant::now()),
                };
                if is_up && overdue.again.is_empty() && open.connection != connection {
                    open.connection = connection;
                }
                overdue
            };
            for answer in given_up {
                tell(answer, Answer::Unconfirmed);
            }
            self.emptied.tell();
            if again.is_empty() {
                return;
            }
            for (ticket, sent) in again {
                // It was written once, and so it is again.
                if let Ok(message) = self.write(&sent) {
                    self.hand_over(ticket, message, Instant::now() + TICK).await;
                }
            }
            if self.link.state.times() != connection || self.link.state.lost().is_some() {
                return;
            }
        }
    }

    /// A message that answers a publish.
    fn take(&self, message: &Message) {
        let Some(ticket) = message.subject.rsplit('.').next().and_then(|number| number.parse().ok()) else {
            return;
        };
        let (answer, said) = {
            let mut open = self.open.lock();
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                self.untaken.store(true, Relaxed);
                let is_known = open.answered.is_some_and(|at| at.elapsed() < CURRENT);
                match open.publishes.return_to_sender(ticket, Instant::now()) {
                    Some(age) if age > UNTAKEN && is_known && !open.publishes.may_be_stored(ticket) => {
                        let said = format!(
                            "no stream takes it; is the stream `{}` there, with the subjects `{}.>`?",
                            self.link.settings.stream, self.link.settings.prefix
                        );
                        (open.publishes.refuse(ticket), Answer::Refused(said))
                    }
                    _ => return,
                }
            } else {
                match confirmation(&message.payload) {
                    Confirmation::Stored => (open.publishes.confirm(ticket), Answer::Stored),
                    Confirmation::Refused(said) => (open.publishes.refuse(ticket), Answer::Refused(said)),
                    Confirmation::Later => {
                        open.publishes.return_to_sender(ticket, Instant::now());
                        return;
                    }
                    Confirmation::Scarce(said) => {
                        match open.publishes.return_to_sender(ticket, Instant::now()) {
                            Some(age) if age > UNTAKEN && !open.publishes.may_be_stored(ticket) => {
                                (open.publishes.refuse(ticket), Answer::Refused(said))
                            }
                            _ => return,
                        }
                    }
                }
            }
        };
        if let Some(answer) = answer {
            tell(answer, said);
        }
    }

    /// Nobody takes what is published: the stream may be gone.
    async fn make_streams_again(self: Arc<Self>) {
        if let Err(error) = self.link.make_streams_again().await {
            log::debug!(
                target: "eventbus", error = %printable(&error.to_string()),
                "it is not known whether the streams are there"
            );
        }
        if !matches!(self.link.birth().await, Err(Refusal::Silence)) {
            self.open.lock().answered = Some(Instant::now());
        }
    }

    /// Refuses what the user may not publish.
    fn refuse_denied(&self, said: &str) {
        let Some(subject) = said.split('"').nth(1) else { return };
        let refused = self.open.lock().publishes.refuse_where(|sent| match sent {
            Sent::Event(envelope) => self.link.settings.subject(envelope.topic().as_str()) == subject,
            Sent::Other(other) => other.subject == subject,
        });
        for (_, answer) in refused {
            let said = format!("the user of this program lacks a permission; the server says: {said}");
            tell(answer, Answer::Refused(said));
        }
    }

    /// How many publishes are neither confirmed nor refused.
    pub(crate) fn open_publishes(&self) -> usize {
        self.open.lock().publishes.len()
    }

    /// Resolves once nothing is open.
    pub(crate) async fn emptied(&self) {
        self.emptied.until(|| self.open.lock().publishes.is_empty().then_some(())).await;
    }
}

impl Link {
    /// The largest payload that is taken. The server counts the headers as well, so there is room left for them.
    pub(crate) fn max_payload(&self) -> usize {
        self.client().client.max_payload().saturating_sub(self.max_headers())
    }

    /// The largest that the headers of a message may be together.
    fn max_headers(&self) -> usize {
        MAX_HEADERS.min(self.client().client.max_payload() / 4)
    }
}

struct Outbound {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

/// Tells whoever waits; its waker is code of others.
fn tell(answer: oneshot::Sender<Answer>, said: Answer) {
    foreign::tell("a waker", || drop(answer.send(said)));
}

enum Confirmation {
    Stored,
    Refused(String),
    /// JetStream cannot take it now.
    Later,
    /// It cannot for want of room, or since a cluster lags.
    Scarce(String),
}

/// What the server has answered to a publish.
fn confirmation(payload: &[u8]) -> Confirmation {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow, default)]
        error: Option<Error<'a>>,
        #[serde(default)]
        seq: Option<u64>,
    }
    #[derive(Deserialize)]
    struct Error<'a> {
        #[serde(default)]
        code: u16,
        #[serde(default)]
        err_code: u64,
        #[serde(borrow, default)]
        description: std::borrow::Cow<'a, str>,
    }

    match serde_json::from_slice::<Answer<'_>>(payload) {
        Ok(Answer { error: Some(error), .. }) => {
            let said = format!("the server refuses it: {} ({})", error.description, error.err_code);
            match ErrorCode(error.err_code) {
                // It is being stored: an earlier time that it was sent is under way in the cluster.
                ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => Confirmation::Later,
                ErrorCode::INSUFFICIENT_RESOURCES => Confirmation::Scarce(said),
                // A limit of the stream, or of the server: it stays so until somebody makes room.
                ErrorCode::STREAM_STORE_FAILED | ErrorCode::STORAGE_RESOURCES_EXCEEDED => {
                    Confirmation::Refused(said)
                }
                _ if error.code == 503 => Confirmation::Later,
                _ => Confirmation::Refused(said),
            }
        }
        Ok(Answer { seq: Some(_), .. }) => Confirmation::Stored,
        Ok(_) => Confirmation::Refused(
            "the server has answered it with something else than a confirmation".to_owned(),
        ),
        Err(error) => Confirmation::Refused(format!("the answer of the server cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_is_told_from_a_refusal() {
        assert!(matches!(confirmation(br#"{"stream":"S","seq":7,"duplicate":true}"#), Confirmation::Stored));
        let full = br#"{"error":{"code":503,"err_code":10047,"description":"insufficient \"storage\""},"stream":"S","seq":0}"#;
        assert!(
            matches!(confirmation(full), Confirmation::Refused(said) if said.contains("insufficient \"storage\" (10047)"))
        );
        let busy = br#"{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}"#;
        assert!(matches!(confirmation(busy), Confirmation::Later));
        let twice = br#"{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"seq":0}"#;
        assert!(matches!(confirmation(twice), Confirmation::Later), "it may be stored in a moment");
        let limit =
            br#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"seq":0}"#;
        assert!(
            matches!(confirmation(limit), Confirmation::Refused(said) if said.contains("maximum messages"))
        );
        let scarce =
            br#"{"error":{"code":503,"err_code":10023,"description":"insufficient resources"},"seq":0}"#;
        assert!(matches!(confirmation(scarce), Confirmation::Scarce(_)));
        for strange in ["", "{}", "[]", "+OK"] {
            assert!(matches!(confirmation(strange.as_bytes()), Confirmation::Refused(_)), "{strange}");
        }
    }
}
