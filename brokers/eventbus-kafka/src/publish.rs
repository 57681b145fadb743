//! Publishing: events go to an idempotent producer in their order, and each is answered once Kafka has it.

use crate::connection::{Context, Link, client, explain};
use crate::topology::Topics;
use crate::wire::{self, Written};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BoxError, BrokerError, Envelope, PublishError};
use eventbus_server::connection::Lost;
use eventbus_server::unanswered::Unanswered;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer, PurgeConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long to wait where the producer's queue is full.
const FULL: Duration = Duration::from_millis(5);

type Sender = FutureProducer<Context>;

/// Where events leave.
pub(crate) struct Outlet {
    link: Arc<Link>,
    topics: Arc<Topics>,
    producer: Lock<Arc<Sender>>,
    open: Unanswered,
    closed: AtomicBool,
    /// Keeps what several publish at once in one order each.
    turn: tokio::sync::Mutex<()>,
}

/// A record that was sent.
pub(crate) struct Sent {
    answer: DeliveryFuture,
    producer: Arc<Sender>,
}

impl Outlet {
    pub(crate) fn new(link: Arc<Link>, topics: Arc<Topics>) -> Result<Self, BrokerError> {
        let producer = Arc::new(client(&link.settings.publisher(), Context::new(&link.state))?);
        Ok(Self {
            link,
            topics,
            producer: Lock::new(Rank::BROKER, producer),
            open: Unanswered::new(),
            closed: AtomicBool::new(false),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) async fn publish(self: Arc<Self>, envelope: Arc<Envelope>) -> Result<(), PublishError> {
        let (open, until) = (self.open.one(), self.until());
        let sent = self.enqueue(&envelope, until).await;
        let answer = self.answered(&envelope, sent, until).await;
        drop(open);
        answer
    }

    pub(crate) async fn publish_all(
        self: Arc<Self>,
        envelopes: Vec<Arc<Envelope>>,
    ) -> Vec<Result<(), PublishError>> {
        let (open, until): (Vec<_>, _) = (envelopes.iter().map(|_| self.open.one()).collect(), self.until());
        let mut sent = Vec::with_capacity(envelopes.len());
        for envelope in &envelopes {
            sent.push(self.enqueue(envelope, until).await);
        }
        let mut answers = Vec::with_capacity(envelopes.len());
        for (envelope, sent) in envelopes.iter().zip(sent) {
            answers.push(self.answered(envelope, sent, until).await);
        }
        drop(open);
        answers
    }

    /// When a publish that begins ends at the latest. The client looks for what is too late once a second.
    fn until(&self) -> Instant {
        Instant::now() + self.link.settings.publish_timeout
    }

    /// Sends an event. One that cannot be sent in time is not stored.
    async fn enqueue(&self, envelope: &Envelope, until: Instant) -> Result<Sent, PublishError> {
        self.in_time(envelope, until, self.enqueued(envelope)).await
    }

    /// The record of an event, and its Kafka topic, which is there.
    pub(crate) async fn written(&self, envelope: &Envelope) -> Result<(String, Written), PublishError> {
        self.in_time(envelope, self.until(), self.write(envelope)).await
    }

    async fn in_time<T>(
        &self,
        envelope: &Envelope,
        until: Instant,
        sending: impl Future<Output = Result<T, PublishError>>,
    ) -> Result<T, PublishError> {
        timeout_at(until, sending).await.unwrap_or_else(|_| {
            let within = self.link.settings.publish_timeout;
            let cause =
                BrokerError::new(format!("it could not be sent within {within:?} (`publish_timeout`)"));
            let cause = Lost::explain(self.link.state.lost(), cause).into();
            Err(PublishError::Broker { topic: envelope.topic().to_string(), cause })
        })
    }

    async fn enqueued(&self, envelope: &Envelope) -> Result<Sent, PublishError> {
        let (topic, written) = self.write(envelope).await?;
        let sent = self.send(&topic, &written).await;
        sent.map_err(|error| refused(envelope, BrokerError::new(explain(&error))))
    }

    async fn write(&self, envelope: &Envelope) -> Result<(String, Written), PublishError> {
        let topic = envelope.topic().as_str();
        let encode = |cause: BoxError| PublishError::Encode { topic: topic.to_owned(), cause };
        let payload = envelope.payload().map_err(|error| encode(error.into()))?.len();
        let settings = &self.link.settings;
        envelope.check_size(payload, settings.max_payload)?;
        let written = wire::write(envelope, settings.content_mode);
        let written = written.map_err(|error| encode(error.into()))?;
        let (size, limit) = (written.size(), settings.max_message());
        if size > limit {
            let part = "headers and payload, as they are written,";
            return Err(PublishError::TooLarge { topic: topic.to_owned(), part, size, limit });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(PublishError::Closed { topic: topic.to_owned() });
        }
        let there = self.link.topic(&self.topics, topic).await;
        there.map_err(|error| refused(envelope, error))?;
        Ok((settings.kafka_topic(topic), written))
    }

    /// Gives a record to the producer, once there is room.
    pub(crate) async fn send(&self, topic: &str, written: &Written) -> Result<Sent, KafkaError> {
        // Who waits for room is not overtaken by who comes later.
        let _turn = self.turn.lock().await;
        loop {
            let producer = self.usable();
            match producer.send_result(record(topic, written)) {
                Ok(answer) => return Ok(Sent { answer, producer }),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    tokio::time::sleep(FULL).await;
                }
                Err((error, _)) if producer.client().fatal_error().is_some() => {
                    self.replace(&producer);
                    if self.closed.load(Ordering::Acquire) {
                        return Err(error);
                    }
                    tokio::time::sleep(FULL).await;
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn usable(&self) -> Arc<Sender> {
        Arc::clone(&self.producer.lock())
    }

    /// Another producer takes the place of one that has failed for good: an idempotent one does, where the server knows
    /// nothing of it any more.
    fn replace(&self, failed: &Arc<Sender>) {
        // Settings that were good once are good again.
        let Ok(another) = client(&self.link.settings.publisher(), Context::new(&self.link.state)) else {
            return;
        };
        let former = {
            let mut producer = self.producer.lock();
            Arc::ptr_eq(&producer, failed).then(|| std::mem::replace(&mut *producer, Arc::new(another)))
        };
        drop(former);
    }

    /// Waits until Kafka has a record.
    pub(crate) async fn stored(&self, sent: Sent) -> Result<Delivery, KafkaError> {
        let Sent { answer, producer } = sent;
        match answer.await {
            Ok(Ok(delivery)) => {
                self.link.state.is_up();
                Ok(delivery)
            }
            Ok(Err((error, _))) => {
                if producer.client().fatal_error().is_some() {
                    self.replace(&producer);
                }
                Err(error)
            }
            Err(_) => Err(KafkaError::Canceled),
        }
    }

    /// Sends a record with no other one in its request, and waits until Kafka has it.
    async fn alone(&self, topic: &str, written: &Written) -> Result<Delivery, KafkaError> {
        let _turn = self.turn.lock().await;
        let producer = self.usable();
        while producer.in_flight_count() > 0 {
            tokio::time::sleep(FULL).await;
        }
        let answer = producer.send_result(record(topic, written)).map_err(|(error, _)| error)?;
        self.stored(Sent { answer, producer }).await
    }

    /// Publishes an event by itself that was refused together with others: one of them was too large.
    async fn retried(&self, envelope: &Envelope) -> Result<(), KafkaError> {
        let too_large = || KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        let written = wire::write(envelope, self.link.settings.content_mode).map_err(|_| too_large())?;
        let topic = self.link.settings.kafka_topic(envelope.topic().as_str());
        self.alone(&topic, &written).await.map(drop)
    }

    async fn answered(
        &self,
        envelope: &Envelope,
        sent: Result<Sent, PublishError>,
        until: Instant,
    ) -> Result<(), PublishError> {
        let sent = sent?;
        let stored = async {
            let Err(error) = self.stored(sent).await else { return Ok(()) };
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                return self.retried(envelope).await;
            }
            Err(error)
        };
        let topic = envelope.topic().to_string();
        // It stays with the client a moment longer, and may be stored.
        let Ok(stored) = timeout_at(until, stored).await else { return Err(self.unconfirmed(topic, None)) };
        let Err(error) = stored else { return Ok(()) };
        if may_be_stored(&error) {
            return Err(self.unconfirmed(topic, Some(&error)));
        }
        Err(self.not_taken(envelope, &error))
    }

    /// Kafka does not take an event: why, and what to do.
    pub(crate) fn not_taken(&self, envelope: &Envelope, error: &KafkaError) -> PublishError {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition) {
            self.topics.forget(&self.link.settings.kafka_topic(envelope.topic().as_str()));
        }
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            return refused(envelope, BrokerError::new(explain(error)));
        }
        let size = envelope.payload().map(|payload| payload.len()).unwrap_or_default();
        let said = format!(
            "Kafka takes no record of that size on this topic: {size} bytes of payload; raise `max.message.bytes` of the \
             topic, or send less"
        );
        refused(envelope, BrokerError::new(said))
    }

    /// What is said of a record that was sent, and of which it is not known whether it is stored.
    fn unconfirmed(&self, topic: String, error: Option<&KafkaError>) -> PublishError {
        if self.closed.load(Ordering::Acquire) {
            let cause = BrokerError::new("the broker was closed before Kafka has confirmed it").into();
            return PublishError::Unconfirmed { topic, cause };
        }
        let within = self.link.settings.publish_timeout;
        let said = error.map(|error| format!(": {}", explain(error))).unwrap_or_default();
        let cause = BrokerError::new(format!(
            "Kafka has not confirmed it within {within:?} (`publish_timeout`){said}"
        ));
        PublishError::Unconfirmed { topic, cause: Lost::explain(self.link.state.lost(), cause).into() }
    }

    /// How many publishes are not answered.
    pub(crate) fn open(&self) -> usize {
        self.open.count()
    }

    /// Resolves once all publishes are answered.
    pub(crate) async fn emptied(&self) {
        self.open.none().await;
    }

    /// Nothing is sent any more; who waits is told.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.usable().purge(PurgeConfig::default().queue().inflight());
    }
}

fn refused(envelope: &Envelope, error: BrokerError) -> PublishError {
    PublishError::Broker { topic: envelope.topic().to_string(), cause: error.into() }
}

/// Whether a record that was not confirmed may be there all the same.
fn may_be_stored(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(
            Code::MessageTimedOut
            | Code::PurgeInflight
            | Code::PurgeQueue
            | Code::RequestTimedOut
            | Code::OperationTimedOut
            | Code::BrokerTransportFailure
            | Code::NetworkException
            | Code::NotEnoughReplicasAfterAppend
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::Fatal
            | Code::Inconsistent,
        ) => true,
        Some(_) => false,
        None => true,
    }
}

pub(crate) fn record<'a>(topic: &'a str, written: &'a Written) -> FutureRecord<'a, str, [u8]> {
    let mut record = FutureRecord::to(topic).headers(headers(written)).payload(&written.payload[..]);
    record.key = written.key.as_deref();
    record
}

pub(crate) fn headers(written: &Written) -> OwnedHeaders {
    let headers = OwnedHeaders::new_with_capacity(written.headers.len());
    written
        .headers
        .iter()
        .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_bytes()) }))
}
