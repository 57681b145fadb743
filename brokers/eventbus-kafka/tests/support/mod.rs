//! Parts of the server for tests, each with its own prefix.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

#[path = "../../../eventbus-server/tests/support/cpu.rs"]
pub mod cpu;
#[path = "../../../eventbus-server/tests/support/load.rs"]
pub mod load;
#[path = "../../../eventbus-server/tests/support/proxy.rs"]
pub mod proxy;
pub mod raw;
#[path = "../../../eventbus-server/tests/support/servers.rs"]
pub mod servers;

use eventbus::broker::{Deliveries, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Topic};
pub use eventbus_kafka::rdkafka;
use eventbus_kafka::{KafkaBroker, KafkaBrokerBuilder};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
pub use servers::setting;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a process that does not answer keeps its partitions in tests.
pub const SESSION: Duration = Duration::from_secs(6);

/// The server's address.
pub fn server() -> String {
    setting("EVENTBUS_TEST_KAFKA_URL").expect(
        "the tests want a server: `cargo xtask brokers up kafka`, or its address in EVENTBUS_TEST_KAFKA_URL",
    )
}

/// A prefix that no other test has.
pub fn prefix() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
    format!("t{since:x}-{}-{}.", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A broker in the part of the server with this prefix.
pub fn builder(prefix: &str) -> KafkaBrokerBuilder {
    let builder = KafkaBroker::builder(&server()).expect("an address");
    builder.prefix(prefix).session_timeout(SESSION)
}

/// A broker in a part of its own.
pub async fn broker() -> KafkaBroker {
    builder(&prefix()).connect().await.expect("the server takes the connection")
}

/// What clients of other programs begin with.
pub fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", server().trim_start_matches("kafka://"));
    config
}

/// Removes the topics and groups of a part.
pub async fn remove(prefix: &str) {
    let admin: AdminClient<DefaultClientContext> = client().create().expect("a client");
    let (topics, groups) = names(prefix);
    let (topics, groups) = (
        topics.iter().map(String::as_str).collect::<Vec<_>>(),
        groups.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    if !topics.is_empty() {
        drop(admin.delete_topics(&topics, &AdminOptions::new()).await);
    }
    if !groups.is_empty() {
        drop(admin.delete_groups(&groups, &AdminOptions::new()).await);
    }
}

/// The topics and groups of a part.
fn names(prefix: &str) -> (Vec<String>, Vec<String>) {
    let consumer: BaseConsumer = client().create().expect("a client");
    let limit = Duration::from_secs(10);
    let of_it = |names: Vec<String>| names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    let metadata = consumer.fetch_metadata(None, limit);
    let topics = metadata.map(|found| found.topics().iter().map(|topic| topic.name().to_owned()).collect());
    let groups = consumer.fetch_group_list(None, limit);
    let groups = groups.map(|found| found.groups().iter().map(|group| group.name().to_owned()).collect());
    (of_it(topics.unwrap_or_default()), of_it(groups.unwrap_or_default()))
}

/// As long as anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub fn event(topic: &str, key: &str, number: u64) -> Arc<Envelope> {
    Arc::new(Envelope::from_json(Topic::new(topic).unwrap(), &number).unwrap().with_key(key))
}

pub fn number(received: &Received) -> u64 {
    serde_json::from_slice(received.receipt.envelope.payload().unwrap()).unwrap()
}

pub fn request(group: &str, pattern: &str) -> SubscribeRequest {
    SubscribeRequest::new(group, Pattern::new(pattern).unwrap())
}

/// Receives so many deliveries.
pub async fn receive(deliveries: &mut Box<dyn Deliveries>, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    while received.len() < count {
        let before = received.len();
        let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, count - before));
        tokio::time::timeout(PATIENCE, receiving).await.expect("something comes").unwrap();
        assert!(received.len() > before, "the subscription has ended after {before} deliveries");
    }
    received
}

pub async fn ack(received: Received) {
    let Received { receipt, settler, .. } = received;
    settler.ack(receipt).await.unwrap();
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "{what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
