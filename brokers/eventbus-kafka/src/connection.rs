//! The clients that everything of a broker shares, what their errors mean, and whether the servers answer.

use crate::committed::MAX_LENGTH;
use crate::config::Settings;
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_server::connection::{ConnectionState, Failure, patiently};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use std::collections::HashMap;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a call waits for its answer.
pub(crate) const CALL: Duration = Duration::from_secs(10);
/// How long a server may take to answer the first question, before it is asked anew.
const GREETING: Duration = Duration::from_millis(1_500);
/// So much of the patience is kept to say why nobody has answered.
const SAYING: Duration = Duration::from_millis(10);

/// What the clients of a broker tell it.
#[derive(Clone)]
pub(crate) struct Context {
    state: Arc<ConnectionState>,
    told: Arc<AtomicU64>,
    cause: Arc<Cause>,
}

impl Context {
    pub(crate) fn new(state: &Arc<ConnectionState>) -> Self {
        Self { state: Arc::clone(state), told: Arc::default(), cause: Arc::default() }
    }
}

/// Why a client has no connection, in its words.
pub(crate) struct Cause(Lock<Option<String>>);

impl Default for Cause {
    fn default() -> Self {
        Self(Lock::new(Rank::LEAF, None))
    }
}

impl Cause {
    /// The client tells of an error. That no server is left says nothing of why: what it told of each of them does.
    pub(crate) fn hear(&self, state: &ConnectionState, error: &KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            state.is_lost(self.get().as_deref().unwrap_or(reason));
            return;
        }
        tell("ERROR", reason);
        // How long it took, and how often, is nobody's cause.
        let reason = reason.split_once(" (after ").map_or(reason, |(reason, _)| reason);
        *self.0.lock() = Some(reason.to_owned());
    }

    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().clone()
    }

    /// A server has answered.
    fn forget(&self) {
        let forgotten = self.0.lock().take();
        drop(forgotten);
    }
}

/// Who counts what a client has told it.
pub(crate) trait Tells: ConsumerContext {
    /// How many lines, errors and rebalances it was told of.
    fn told(&self) -> u64;
}

impl Tells for Context {
    fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

/// What a client has at hand next. It hands one thing over at a time: a line that it tells looks as if there was nothing, and
/// everything else is behind it.
pub(crate) fn next<C: Tells>(client: &BaseConsumer<C>) -> Option<KafkaResult<BorrowedMessage<'_>>> {
    loop {
        let before = client.context().told();
        let next = client.poll(Duration::ZERO);
        if next.is_some() || client.context().told() == before {
            return next;
        }
    }
}

/// Takes everything that a client has at hand, and that nobody waits for.
pub(crate) fn drain<C: Tells>(client: &BaseConsumer<C>) {
    while next(client).is_some() {}
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, said: &str) {
        self.told.fetch_add(1, Ordering::Relaxed);
        tell(facility, said);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.told.fetch_add(1, Ordering::Relaxed);
        self.cause.hear(&self.state, &error, reason);
    }
}

impl ConsumerContext for Context {}

/// A line of the client: what is wrong is said by whoever asked for something, so this is for who looks closely.
pub(crate) fn tell(facility: &str, said: &str) {
    log::debug!(target: "eventbus", facility = %printable(facility), "the Kafka client says: {}", printable(said));
}

/// The connection of a broker.
pub(crate) struct Link {
    pub(crate) settings: Settings,
    pub(crate) state: Arc<ConnectionState>,
    /// For everything that is asked of the servers, and for nobody's events.
    pub(crate) client: Arc<BaseConsumer<Context>>,
    pub(crate) admin: AdminClient<Context>,
    /// Clients that may ask for what a group has committed, by its name, and when each was used last.
    members: Lock<HashMap<String, (Member, Instant)>>,
    /// How long a text beside an offset may be, as far as the server has said.
    longest_text: AtomicUsize,
}

/// A client with the name of a group, which it has not joined.
pub(crate) type Member = Arc<BaseConsumer<Context>>;

/// A client that nobody has used for so long goes.
const UNUSED: Duration = Duration::from_secs(60);

/// A client could not be made: a file is not there, or the settings do not fit.
pub(crate) fn unusable(error: &KafkaError) -> BrokerError {
    let said = match error {
        KafkaError::ClientConfig(_, reason, name, _) => format!("{reason} (`{name}`)"),
        KafkaError::ClientCreation(reason) => reason.clone(),
        other => other.to_string(),
    };
    BrokerError::new(format!("cannot set the Kafka client up: {said}; correct the options of the address"))
}

/// Makes a client.
pub(crate) fn client<T, C>(config: &ClientConfig, context: C) -> Result<T, BrokerError>
where
    T: FromClientConfigAndContext<C>,
    C: ClientContext,
{
    config.create_with_context(context).map_err(|error| unusable(&error))
}

impl Link {
    /// Makes the clients.
    pub(crate) fn new(settings: Settings) -> Result<Self, BrokerError> {
        let state = Arc::new(ConnectionState::up(settings.shown()));
        let context = Context::new(&state);
        let mut config = settings.client();
        // Metadata is asked for with it, and no topic is made by asking for it.
        config.set("enable.partition.eof", "false");
        Ok(Self {
            client: Arc::new(client(&config, context.clone())?),
            admin: client(&settings.base(), context)?,
            members: Lock::new(Rank::BROKER, HashMap::new()),
            longest_text: AtomicUsize::new(MAX_LENGTH),
            state,
            settings,
        })
    }

    /// Makes the clients, and waits until a server answers.
    pub(crate) async fn open(settings: Settings) -> Result<Self, BrokerError> {
        let link = Self::new(settings)?;
        let (shown, patience) = (link.settings.shown(), link.settings.connect_timeout);
        // A try ends before the patience does, to say why.
        let until = Instant::now() + patience.saturating_sub(SAYING);
        patiently(&shown, patience, || link.greet(until)).await?;
        link.state.is_up();
        Ok(link)
    }

    /// Asks whether a server answers, until then at most. Why none does comes with events, whenever they come; the question
    /// alone is answered by a timeout.
    async fn greet(&self, until: Instant) -> Result<(), Failure> {
        let client = Arc::clone(&self.client);
        let mut asking = pin!(blocking(move || client.fetch_metadata(None, GREETING).map(drop)));
        let mut codes = Vec::new();
        let error = loop {
            let look = until.min(Instant::now() + Duration::from_millis(20));
            let answer = tokio::time::timeout_at(look.into(), &mut asking).await;
            while let Some(event) = next(&self.client) {
                codes.extend(event.err().and_then(|error| error.rdkafka_error_code()));
            }
            match answer {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => break error,
                Err(_) if Instant::now() < until => {}
                Err(_) => break KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut),
            }
        };
        let cause = self.cause(&error);
        let shown = self.settings.shown();
        let lasting = |said: String| Err(Failure::Lasting(BrokerError::new(said)));
        let mechanism =
            [RDKafkaErrorCode::UnsupportedSASLMechanism, RDKafkaErrorCode::SaslAuthenticationFailed];
        if codes.contains(&RDKafkaErrorCode::Authentication)
            || codes.iter().any(|code| mechanism.contains(code))
        {
            return lasting(format!(
                "`{shown}` does not let this program in: authentication has failed; correct user, password or `sasl` in the \
                 address"
            ));
        }
        if codes.contains(&RDKafkaErrorCode::SSL) {
            return lasting(format!(
                "`{shown}` cannot be trusted, or speaks no TLS ({cause}); name its authority (`?ca=…`), or write `kafka://` \
                 for a server without TLS"
            ));
        }
        let other =
            if self.settings.tls { "it speaks no TLS (`kafka://`)" } else { "it may want TLS (`kafkas://`)" };
        Err(Failure::Passing(format!(
            "{cause}: nobody listens there, or something other than Kafka, or {other}"
        )))
    }

    /// Why there was no answer, as well as it is known.
    fn cause(&self, error: &KafkaError) -> String {
        self.client.context().cause.get().unwrap_or_else(|| explain(error))
    }

    /// A client that may ask for what a group has committed, and commit for it while nobody has it.
    pub(crate) fn member(&self, id: &str) -> Result<Member, BrokerError> {
        let now = Instant::now();
        let member = self.members.lock().get_mut(id).map(|(member, used)| {
            *used = now;
            Arc::clone(member)
        });
        if let Some(member) = member {
            return Ok(member);
        }
        let member: Member = Arc::new(client(&self.settings.member(id), Context::new(&self.state))?);
        self.members.lock().insert(id.to_owned(), (Arc::clone(&member), now));
        Ok(member)
    }

    /// A client that asks for what a group has committed once nothing of that is in a transaction.
    pub(crate) fn patient_member(&self, id: &str) -> Result<BaseConsumer<Context>, BrokerError> {
        let mut config = self.settings.member(id);
        config.set("isolation.level", "read_committed");
        client(&config, Context::new(&self.state))
    }

    /// Takes what the clients of groups are told, which is kept for them otherwise, and forgets those that nobody uses.
    pub(crate) fn serve_members(&self) {
        let now = Instant::now();
        let (members, unused) = {
            let mut members = self.members.lock();
            let unused: Vec<_> =
                members.extract_if(|_, (_, used)| now.duration_since(*used) > UNUSED).collect();
            (members.values().map(|(member, _)| Arc::clone(member)).collect::<Vec<_>>(), unused)
        };
        drop(unused);
        members.iter().for_each(|member| drain(member));
    }

    /// How long a text beside an offset may be.
    pub(crate) fn longest_text(&self) -> usize {
        self.longest_text.load(Ordering::Relaxed)
    }

    /// The server finds a text of this length too long.
    pub(crate) fn shorten_texts(&self, length: usize) {
        let before = self.longest_text.fetch_min(length / 2, Ordering::Relaxed);
        if before == MAX_LENGTH {
            log::warn!(
                target: "eventbus", server = %printable(&self.settings.shown()),
                "the server does not take {length} bytes beside an offset, so more is delivered again after a crash; set its \
                 `offset.metadata.max.bytes` to {MAX_LENGTH}"
            );
        }
    }

    /// Forgets the clients of groups.
    pub(crate) fn forget_members(&self) {
        let members = std::mem::take(&mut *self.members.lock());
        drop(members);
    }

    /// Notes what an answer says of the connection.
    pub(crate) fn heard<T>(&self, answer: &Result<T, KafkaError>) {
        match answer {
            Ok(_) => {
                self.client.context().cause.forget();
                self.state.is_up();
            }
            Err(error) if is_passing(error) => self.state.is_lost(&self.cause(error)),
            Err(_) => self.state.is_up(),
        }
    }
}

impl Settings {
    /// A client with the name of a group. What a group has committed it is told at once: one that reads committed records alone
    /// waits until it is known what becomes of transactions, and one of a process that was killed stays open for long.
    fn member(&self, id: &str) -> ClientConfig {
        let mut config = self.client();
        config.set("group.id", id).set("enable.auto.commit", "false");
        config.set("isolation.level", "read_uncommitted");
        config
    }

    /// What is enough for clients that read nothing.
    fn base(&self) -> ClientConfig {
        let mut config = self.client();
        // It is for consumers.
        config.remove("allow.auto.create.topics");
        config
    }
}

/// How long an answer to an administrator's call may take.
pub(crate) fn patience() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(CALL)).operation_timeout(Some(CALL))
}

/// Runs what blocks where that hurts nobody.
///
/// # Cancel safety
/// Dropped, it goes on to its end.
pub(crate) async fn blocking<T: Send + 'static>(code: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(code).await {
        Ok(answer) => answer,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Whether it may be otherwise another time: nobody answers, or the one who does has not settled in.
pub(crate) fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::MessageTimedOut
                | Code::NetworkException
                | Code::Resolve
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::BrokerNotAvailable
                | Code::ReplicaNotAvailable
                | Code::NotEnoughReplicas
                | Code::NotController
        )
    )
}

/// Whether a topic is not known, as one that was just made is not everywhere.
pub(crate) fn is_settling(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
    )
}

/// An error in the words of the client.
pub(crate) fn explain(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => code.to_string(),
        None => error.to_string(),
    }
}

/// An error with what was to be done.
pub(crate) fn cannot(what: impl std::fmt::Display, error: &KafkaError) -> BrokerError {
    use RDKafkaErrorCode as Code;
    let hint = match error.rdkafka_error_code() {
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed,
        ) => "; give the user of this program the right",
        Some(Code::OperationTimedOut | Code::BrokerTransportFailure | Code::AllBrokersDown) => {
            "; the servers do not answer"
        }
        Some(Code::InvalidTransactionTimeout) => {
            "; lower `session_timeout`, or raise `transaction.max.timeout.ms` of the servers"
        }
        _ => "",
    };
    BrokerError::new(format!("cannot {what}: {}{hint}", explain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_tells_does_not_stand_before_what_it_has() {
        let context = Context::new(&Arc::new(ConnectionState::up("nobody".to_owned())));
        // It tells of its settings, in a line each.
        let mut config = ClientConfig::new();
        config.set("group.id", "group").set("debug", "conf").set_log_level(RDKafkaLogLevel::Debug);
        let consumer: BaseConsumer<Context> = client(&config, context).expect("a client");
        assert!(next(&consumer).is_none());
        let told = consumer.context().told();
        assert!(told > 1, "{told} lines were taken at once");
    }
}
