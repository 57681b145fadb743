//! Transactions: what handlers have returned is stored in one with the settlement of their events.
//!
//! One at a time is on its way, from the thread that commits as well: whatever that commits next comes behind it.

use crate::connection::{CALL, Context, Link, cannot, client, explain, is_passing, tell};
use crate::held::Token;
use crate::publish::headers;
use crate::wire::Written;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long to wait where the producer's queue is full, and before a call is made again.
const MOMENT: Duration = Duration::from_millis(5);
/// Servers give up a transaction after this time at most (`transaction.max.timeout.ms`).
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Records with their Kafka topics.
pub(crate) type Records = Arc<[(String, Written)]>;

/// A delivery whose handler has returned events, on its way into a transaction.
pub(crate) struct Answering {
    pub(crate) token: Token,
    pub(crate) records: Records,
    /// Since when it waits.
    pub(crate) since: Instant,
    /// One of several that were refused together goes by itself, so that it is known which is to blame.
    pub(crate) alone: bool,
    told: oneshot::Sender<Told>,
}

/// What becomes of it.
pub(crate) enum Told {
    /// Its events are stored, and it is settled.
    Done,
    /// Kafka does not take the record in this place. Nothing is stored, and it is not settled.
    Refused(usize, KafkaError),
    /// No transaction was committed in time. Nothing is stored, and it is not settled.
    Late,
    /// It is not what this process has any more.
    Lost,
}

impl Answering {
    pub(crate) fn new(token: Token, records: Records) -> (Self, oneshot::Receiver<Told>) {
        let (told, hears) = oneshot::channel();
        (Self { token, records, since: Instant::now(), alone: false, told }, hears)
    }

    /// How much memory its records take.
    pub(crate) fn size(&self) -> usize {
        self.records.iter().map(|(_, written)| written.size()).sum()
    }

    /// Whether nobody waits for it: the delivery was given back.
    pub(crate) fn is_given_up(&self) -> bool {
        self.told.is_closed()
    }

    pub(crate) fn tell(self, told: Told) {
        // Who waited may have gone.
        drop(self.told.send(told));
    }
}

/// One transaction.
pub(crate) struct Transaction {
    /// Of each delivery that it settles.
    pub(crate) records: Vec<Records>,
    pub(crate) offsets: TopicPartitionList,
    /// As which member of the group: the server refuses one that the group has gone on without.
    pub(crate) member: ConsumerGroupMetadata,
}

/// What has become of it.
pub(crate) enum Transacted {
    Committed,
    /// Kafka does not take records of these deliveries: their places, and those of the records.
    Refused(Vec<(usize, usize, KafkaError)>),
    /// It was aborted, by what the server has refused where it has, and may be tried again.
    Aborted(Option<KafkaError>),
    /// Its producer is of no use any more, and what has become of it the server alone knows.
    Unknown(String),
}

/// The producer of transactions of one session in its group.
pub(crate) struct Transactor {
    link: Arc<Link>,
    group: String,
    producer: Option<ThreadedProducer<Reports>>,
}

/// What the producer tells: which records were not stored.
struct Reports {
    context: Context,
    failed: Lock<Vec<(usize, KafkaError)>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, said: &str) {
        self.context.log(level, facility, said);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ProducerContext for Reports {
    /// The place of a record in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        if let Err((error, _)) = result {
            self.failed.lock().push((place, error.clone()));
        }
    }
}

impl Transactor {
    pub(crate) fn new(link: &Arc<Link>, group: &str) -> Self {
        Self { link: Arc::clone(link), group: group.to_owned(), producer: None }
    }

    /// Runs a transaction, and waits until it is known what has become of it.
    pub(crate) fn run(&mut self, transaction: &Transaction) -> Transacted {
        let until = Instant::now() + self.timeout();
        let producer = match self.producer.take().map_or_else(|| self.begun(), Ok) {
            Ok(producer) => producer,
            Err(error) if is_passing(&error) || is_retriable(&error) => {
                tell("TRANSACTION", &explain(&error));
                return Transacted::Aborted(None);
            }
            Err(error) => {
                return Transacted::Unknown(cannot("begin transactions", &error).to_string());
            }
        };
        producer.context().failed.lock().clear();
        match self.attempt(&producer, transaction, until) {
            Ok(()) => {
                self.step("a transaction is committed", transaction);
                self.link.state.is_up();
                self.producer = Some(producer);
                Transacted::Committed
            }
            Err(failed) => {
                let again = until.max(Instant::now() + CALL);
                match patiently(again, || producer.abort_transaction(CALL)) {
                    Ok(()) => {}
                    Err(error) => {
                        return Transacted::Unknown(match failed {
                            Failed::At(step) => format!("{}, and {}", explain(&step), explain(&error)),
                            Failed::Records => explain(&error),
                        });
                    }
                }
                let to_blame = self.to_blame(&producer, transaction);
                self.producer = Some(producer);
                match failed {
                    _ if !to_blame.is_empty() => Transacted::Refused(to_blame),
                    Failed::Records => Transacted::Aborted(None),
                    Failed::At(error) => {
                        tell("TRANSACTION", &explain(&error));
                        Transacted::Aborted(Some(error))
                    }
                }
            }
        }
    }

    fn attempt(
        &self,
        producer: &ThreadedProducer<Reports>,
        transaction: &Transaction,
        until: Instant,
    ) -> Result<(), Failed> {
        producer.begin_transaction()?;
        let records = transaction.records.iter().flat_map(|records| records.iter());
        for (place, (topic, written)) in records.enumerate() {
            send(producer, place, topic, written, until);
        }
        producer.flush(until.saturating_duration_since(Instant::now()))?;
        if !producer.context().failed.lock().is_empty() {
            return Err(Failed::Records);
        }
        self.step("a transaction has what handlers have returned", transaction);
        patiently(until, || {
            producer.send_offsets_to_transaction(&transaction.offsets, &transaction.member, CALL)
        })?;
        self.step("a transaction has what it settles", transaction);
        patiently(until, || producer.commit_transaction(CALL))?;
        Ok(())
    }

    /// The records that Kafka has refused for what they are. Others have failed with them, or since nobody answers.
    fn to_blame(
        &self,
        producer: &ThreadedProducer<Reports>,
        transaction: &Transaction,
    ) -> Vec<(usize, usize, KafkaError)> {
        let mut failed = std::mem::take(&mut *producer.context().failed.lock());
        failed.retain(|(_, error)| is_to_blame(error));
        failed.sort_by_key(|(place, _)| *place);
        let mut failed = failed.into_iter().peekable();
        let (mut found, mut begin) = (Vec::new(), 0);
        for (delivery, records) in transaction.records.iter().enumerate() {
            let end = begin + records.len();
            while let Some((place, error)) = failed.next_if(|(place, _)| *place < end) {
                found.push((delivery, place - begin, error));
            }
            begin = end;
        }
        // One of a delivery says enough.
        found.dedup_by_key(|(delivery, ..)| *delivery);
        found
    }

    fn step(&self, step: &str, transaction: &Transaction) {
        log::debug!(
            target: "eventbus", group = %printable(&self.group), deliveries = transaction.records.len(),
            "{}", printable(step)
        );
    }

    /// After this time the server gives up what a process has left open.
    fn timeout(&self) -> Duration {
        self.link.settings.session_timeout.min(LONGEST)
    }

    fn begun(&self) -> KafkaResult<ThreadedProducer<Reports>> {
        let settings = &self.link.settings;
        let mut config = settings.producer();
        // Another one for each session: which of two members may settle something the server knows by the group.
        let unique = RandomState::new().hash_one(std::process::id());
        config.set("transactional.id", format!("eventbus-{}-{unique:016x}", self.group));
        let timeout = self.timeout();
        config.set("transaction.timeout.ms", timeout.as_millis().to_string());
        let message = timeout.min(settings.publish_timeout).as_millis().max(1);
        config.set("message.timeout.ms", message.to_string());
        let context = Context::new(&self.link.state);
        let reports = Reports { context, failed: Lock::new(Rank::LEAF, Vec::new()) };
        let producer: ThreadedProducer<Reports> =
            client(&config, reports).map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        producer.init_transactions(CALL)?;
        Ok(producer)
    }
}

/// Why a transaction is not committed.
enum Failed {
    /// Some of its records are not stored.
    Records,
    /// By a call.
    At(KafkaError),
}

impl From<KafkaError> for Failed {
    fn from(error: KafkaError) -> Self {
        Self::At(error)
    }
}

/// Gives a record to the producer, once there is room. What it does not take is noted as what Kafka does not take.
fn send(producer: &ThreadedProducer<Reports>, place: usize, topic: &str, written: &Written, until: Instant) {
    let mut record: BaseRecord<'_, str, [u8], usize> = BaseRecord::with_opaque_to(topic, place);
    record = record.headers(headers(written)).payload(&written.payload[..]);
    record.key = written.key.as_deref();
    loop {
        let Err((error, refused)) = producer.send(record) else { return };
        let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
        if !is_full || Instant::now() >= until {
            producer.context().failed.lock().push((place, error));
            return;
        }
        record = refused;
        std::thread::sleep(MOMENT);
    }
}

/// Calls again while the client says that this is of use.
fn patiently(until: Instant, mut call: impl FnMut() -> KafkaResult<()>) -> KafkaResult<()> {
    loop {
        match call() {
            Err(error) if is_retriable(&error) && Instant::now() < until => std::thread::sleep(MOMENT),
            answer => return answer,
        }
    }
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(error) if error.is_retriable())
}

/// Whether a record was refused for what it is, or where it goes to.
fn is_to_blame(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    !is_passing(error)
        && !matches!(
            error.rdkafka_error_code(),
            None | Some(
                Code::PurgeQueue
                    | Code::PurgeInflight
                    | Code::QueueFull
                    | Code::Fatal
                    | Code::State
                    | Code::Fenced
                    | Code::ProducerFenced
                    | Code::InvalidProducerEpoch
                    | Code::InvalidProducerIdMapping
                    | Code::InvalidTransactionalState
                    | Code::OutOfOrderSequenceNumber
                    | Code::UnknownProducerId
                    | Code::NotEnoughReplicasAfterAppend
            )
        )
}
