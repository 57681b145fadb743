//! What several test binaries share: a server, and a part of it for each test.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

#[path = "../../../eventbus-server/tests/support/cpu.rs"]
pub mod cpu;
#[path = "../../../eventbus-server/tests/support/load.rs"]
pub mod load;
#[path = "../../../eventbus-server/tests/support/proxy.rs"]
pub mod proxy;
#[path = "../../../eventbus-server/tests/support/servers.rs"]
pub mod servers;
pub mod several;

use eventbus::broker::{Broker, DeadLetter, Deliveries, FailureKind, Received, SubscribeRequest};
use eventbus::jiff::Timestamp;
use eventbus::subscription::Pattern;
use eventbus::{Envelope, EventId, Start, Topic};
use eventbus_redis::{RedisBroker, RedisBrokerBuilder};
use redis::{Cmd, FromRedisValue};
pub use servers::setting;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long to wait for what should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The address of the server for tests of this kind: `REDIS` or `VALKEY`.
pub fn server(kind: &str) -> String {
    let variable = format!("EVENTBUS_TEST_{kind}_URL");
    setting(&variable).unwrap_or_else(|| {
        panic!(
            "there is no server for tests; run `cargo xtask brokers up {}`, or set {variable} to the address of one",
            kind.to_lowercase()
        )
    })
}

/// A prefix that nobody had before.
pub fn prefix() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{}-{number}", std::process::id(), time.as_nanos())
}

/// Sends a command, past the broker.
pub fn command<T: FromRedisValue>(url: &str, command: &Cmd) -> T {
    let client = redis::Client::open(url).expect("an address");
    let mut connection = client.get_connection().expect("a connection");
    command.query(&mut connection).expect("the server takes the command")
}

/// Removes everything under a prefix.
pub fn remove(url: &str, prefix: &str) {
    let keys: Vec<String> = command(url, redis::cmd("KEYS").arg(format!("{prefix}:*")));
    for keys in keys.chunks(1_000) {
        command::<u64>(url, redis::cmd("UNLINK").arg(keys));
    }
}

/// A part of a server that a test has for itself; what is in it is removed in the end.
pub struct Place {
    pub url: String,
    pub prefix: String,
}

impl Place {
    pub fn new() -> Self {
        Self::on(&server("REDIS"))
    }

    pub fn on(url: &str) -> Self {
        Self { url: url.to_owned(), prefix: prefix() }
    }

    pub fn builder(&self) -> RedisBrokerBuilder {
        RedisBroker::builder(&self.url).expect("an address").prefix(&self.prefix)
    }

    pub async fn broker(&self) -> RedisBroker {
        self.builder().open().await.expect("the server takes the connection")
    }

    /// The name of a key.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    /// Sends a command, past the broker.
    pub fn command<T: FromRedisValue>(&self, sent: &Cmd) -> T {
        command(&self.url, sent)
    }

    /// Sends several commands, past the broker.
    pub fn pipeline(&self, sent: &redis::Pipeline) {
        let client = redis::Client::open(self.url.as_str()).expect("an address");
        let mut connection = client.get_connection().expect("a connection");
        sent.query::<()>(&mut connection).expect("the server takes the commands");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            remove(&self.url, &self.prefix);
        }
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An event on a topic, with a number as its payload and as its id.
pub fn event(topic: &str, number: u64) -> Envelope {
    let topic = Topic::new(topic).expect("a topic");
    Envelope::from_json(topic, &number)
        .expect("a number is JSON")
        .with_id(EventId::new(format!("event-{number}")))
}

/// The number in a delivery.
pub fn number(received: &Received) -> u64 {
    serde_json::from_slice(received.receipt.envelope.payload().expect("it has one")).expect("it is a number")
}

/// Subscribes a group from the first event on.
pub async fn subscribe(broker: &RedisBroker, group: &str, pattern: &str) -> Box<dyn Deliveries> {
    let mut request = SubscribeRequest::new(group, Pattern::new(pattern).expect("a pattern"));
    request.start = Start::Earliest;
    broker.subscribe(request).await.expect("the group can be subscribed")
}

/// What comes next, whatever fails before.
pub async fn receive(deliveries: &mut Box<dyn Deliveries>, limit: usize) -> Vec<Received> {
    let since = Instant::now();
    loop {
        let mut received = Vec::new();
        let asked = poll_fn(|context| deliveries.poll_receive(context, &mut received, limit));
        let _ = tokio::time::timeout(Duration::from_millis(500), asked).await;
        if !received.is_empty() {
            return received;
        }
        assert!(since.elapsed() < PATIENCE, "waited in vain for a delivery");
    }
}

/// Receives so many deliveries, and acks none of them.
pub async fn receive_all(deliveries: &mut Box<dyn Deliveries>, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(receive(deliveries, count - all.len()).await);
    }
    all
}

/// Publishes, and waits until it is stored.
pub async fn publish(broker: &RedisBroker, envelope: Envelope) {
    broker.publish(Arc::new(envelope)).await.expect("the server takes it");
}

pub async fn ack(received: Received) {
    received.settler.ack(received.receipt).await.expect("it is ours");
}

/// As the bus does with what it has not settled when it ends.
pub fn give_back(received: Vec<Received>) {
    received.into_iter().for_each(|received| received.settler.release(received.receipt));
}

pub fn dead_letter(received: &Received) -> DeadLetter {
    let now = Timestamp::now();
    DeadLetter {
        envelope: Arc::clone(&received.receipt.envelope),
        group: "group".to_owned(),
        handler: "a handler".to_owned(),
        kind: FailureKind::Failed,
        reason: "it failed".to_owned(),
        attempts: 5,
        first_failed_at: now,
        last_failed_at: now,
        offset: received.receipt.offset,
    }
}
