//! Parts of the server for tests, each with its own prefix.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

#[path = "../../../eventbus-server/tests/support/servers.rs"]
mod servers;

pub use eventbus_kafka::rdkafka;
use eventbus_kafka::{KafkaBroker, KafkaBrokerBuilder};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
pub use servers::setting;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
