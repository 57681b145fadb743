//! Kafka: rdkafka by itself, and what our side needs to know of the server.

use crate::ours::{At, GROUP};
use crate::reader::Reader;
use crate::work::{Contestant, Handler, SOURCE, Stored, TOPIC};
use eventbus::EventId;
use eventbus::jiff::Timestamp;
use eventbus::kafka::KafkaBroker;
use eventbus::kafka::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use eventbus::kafka::rdkafka::client::DefaultClientContext;
use eventbus::kafka::rdkafka::config::ClientConfig;
use eventbus::kafka::rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, StreamConsumer};
use eventbus::kafka::rdkafka::message::{Header, Message, OwnedHeaders};
use eventbus::kafka::rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use eventbus::kafka::rdkafka::{Offset, TopicPartitionList};
use futures_util::FutureExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is committed what was handled.
const COMMIT: Duration = Duration::from_millis(100);
/// What is taken at once of what is at hand.
const MANY: usize = 256;

/// A topic and a group at the server.
#[derive(Clone)]
pub(crate) struct Place {
    config: ClientConfig,
    pub(crate) topic: String,
    pub(crate) group: String,
}

impl Place {
    /// What our broker calls them where its prefix is this name and a dot.
    pub(crate) fn new(url: &str, name: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", url.trim_start_matches("kafka://"));
        Self { config, topic: format!("{name}.{TOPIC}"), group: format!("{name}.{GROUP}@{TOPIC}") }
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config.create().unwrap()
    }

    /// Makes the topic as ours is: with the server's number of partitions.
    pub(crate) async fn make(&self) {
        let topic = NewTopic::new(&self.topic, -1, TopicReplication::Fixed(-1));
        let topic = topic.set("message.timestamp.type", "LogAppendTime");
        let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
    }

    /// How far the group is from the end of the topic.
    pub(crate) async fn unacked(&self) -> u64 {
        let Self { mut config, topic, group } = self.clone();
        let look = move || {
            let consumer: BaseConsumer = config.set("group.id", group).create().unwrap();
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
            let mut partitions = TopicPartitionList::new();
            for partition in metadata.topics()[0].partitions() {
                partitions.add_partition(&topic, partition.id());
            }
            let committed = consumer.committed_offsets(partitions, PATIENCE).unwrap();
            let open = committed
                .elements()
                .iter()
                .map(|element| {
                    let (low, high) =
                        consumer.fetch_watermarks(&topic, element.partition(), PATIENCE).unwrap();
                    let at = if let Offset::Offset(at) = element.offset() { at } else { low };
                    (high - at).unsigned_abs()
                })
                .sum();
            open
        };
        tokio::task::spawn_blocking(look).await.unwrap()
    }

    /// Removes every topic that begins as this one.
    pub(crate) async fn remove(&self) {
        let begin = self.topic.trim_end_matches(TOPIC).to_owned();
        let admin = self.admin();
        let metadata = admin.inner().fetch_metadata(None, PATIENCE).unwrap();
        let topics: Vec<_> = metadata
            .topics()
            .iter()
            .map(|topic| topic.name())
            .filter(|name| name.starts_with(&begin))
            .collect();
        admin.delete_topics(&topics, &AdminOptions::new()).await.unwrap();
        admin.delete_groups(&[&self.group], &AdminOptions::new()).await.unwrap();
    }
}

/// The headers of the CloudEvents binding, as ours writes them.
pub(crate) fn headers() -> OwnedHeaders {
    let id = EventId::from_u128(fastrand::u128(..)).to_string();
    let time = Timestamp::now().to_string();
    let all = [
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", SOURCE),
        ("ce_type", TOPIC),
        ("ce_time", &time),
        ("content-type", "application/json"),
        ("ce_eventversion", "1"),
    ];
    let headers = OwnedHeaders::new_with_capacity(all.len());
    all.into_iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// The client by itself, as somebody uses it who knows it well: what is sent is confirmed apart, by all replicas, and sent
/// again by the client in its order; of what was read, the first offset that is not handled is committed ten times a second.
#[derive(Clone)]
pub(crate) struct KafkaRaw {
    place: Place,
    producer: FutureProducer,
    reader: Reader,
}

/// The settings of our producer.
pub(crate) const PRODUCER: [(&str, &str); 6] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("max.in.flight.requests.per.connection", "1"),
    ("linger.ms", "0"),
    ("partitioner", "murmur2_random"),
    ("message.timeout.ms", "30000"),
];

/// How our consumer is fetched for, and keeps its group.
pub(crate) const CONSUMER: [(&str, &str); 11] = [
    ("isolation.level", "read_committed"),
    ("queued.min.messages", "1000"),
    ("queued.max.messages.kbytes", "2048"),
    ("fetch.max.bytes", "2097152"),
    ("fetch.message.max.bytes", "524288"),
    ("fetch.wait.max.ms", "500"),
    ("fetch.error.backoff.ms", "100"),
    ("fetch.queue.backoff.ms", "10"),
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "2500"),
    ("topic.metadata.refresh.interval.ms", "5000"),
];

fn consumer(place: &Place) -> ClientConfig {
    let mut config = place.config.clone();
    config.set("group.id", &place.group).set("auto.offset.reset", "earliest");
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.extend(CONSUMER.map(|(name, value)| (name.to_owned(), value.to_owned())));
    config
}

impl KafkaRaw {
    fn send(&self, event: &Stored) -> DeliveryFuture {
        let payload = serde_json::to_vec(event).unwrap();
        let record = FutureRecord::<str, _>::to(&self.place.topic).headers(headers()).payload(&payload);
        self.producer.send_result(record).unwrap()
    }
}

/// Commits where each partition goes on.
fn commit(consumer: &StreamConsumer, topic: &str, next: &mut BTreeMap<i32, i64>, mode: CommitMode) {
    let mut list = TopicPartitionList::with_capacity(next.len());
    for (partition, offset) in std::mem::take(next) {
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    }
    if list.count() > 0 {
        consumer.commit(&list, mode).unwrap();
    }
}

impl Contestant for KafkaRaw {
    const NAME: &'static str = "rdkafka";

    async fn connect(url: &str, name: &str) -> Self {
        let place = Place::new(url, name);
        place.make().await;
        let mut config = place.config.clone();
        config.extend(PRODUCER.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Self { place, producer: config.create().unwrap(), reader: Reader::default() }
    }

    async fn publish(&self, event: Stored) {
        self.send(&event).await.unwrap().unwrap();
    }

    async fn publish_all(&self, events: Vec<Stored>) {
        let confirmations: Vec<_> = events.iter().map(|event| self.send(event)).collect();
        for confirmation in confirmations {
            confirmation.await.unwrap().unwrap();
        }
    }

    async fn consume(&self, handler: Arc<Handler>) {
        let topic = self.place.topic.clone();
        let consumer: StreamConsumer = consumer(&self.place).create().unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        self.reader.begin(|leaving| async move {
            let mut due = tokio::time::interval(COMMIT);
            let mut next = BTreeMap::new();
            loop {
                tokio::select! {
                    first = consumer.recv() => {
                        let (mut read, mut taken) = (Some(first), 0);
                        while let Some(message) = read {
                            let message = message.unwrap();
                            handler.handle(&serde_json::from_slice(message.payload().unwrap()).unwrap());
                            next.insert(message.partition(), message.offset() + 1);
                            taken += 1;
                            read = if taken < MANY { consumer.recv().now_or_never() } else { None };
                        }
                    }
                    _ = due.tick() => {
                        if leaving.is_told() {
                            break;
                        }
                        commit(&consumer, &topic, &mut next, CommitMode::Async);
                    }
                }
            }
            tokio::task::block_in_place(|| {
                commit(&consumer, &topic, &mut next, CommitMode::Sync);
                drop(consumer);
            });
        });
    }

    async fn leave(&self) {
        self.reader.end().await;
    }

    async fn unacked(&self) -> u64 {
        self.place.unacked().await
    }

    async fn remove(self) {
        self.place.remove().await;
    }
}

/// The broker on Kafka.
#[derive(Clone)]
pub(crate) struct OnKafka(Place);

impl At for OnKafka {
    type Broker = KafkaBroker;

    async fn open(url: &str, name: &str) -> (Self, KafkaBroker) {
        let builder = KafkaBroker::builder(url).unwrap().prefix(format!("{name}."));
        (Self(Place::new(url, name)), builder.connect().await.unwrap())
    }

    async fn unacked(&self) -> u64 {
        self.0.unacked().await
    }

    async fn remove(&self) {
        self.0.remove().await;
    }
}
