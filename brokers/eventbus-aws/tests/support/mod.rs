//! What the tests share: the emulator, and names of its own for each.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

#[path = "../../../eventbus-server/tests/support/alarm.rs"]
pub mod alarm;
#[path = "../../../eventbus-server/tests/support/cpu.rs"]
pub mod cpu;
pub mod gateway;
#[path = "../../../eventbus-server/tests/support/proxy.rs"]
pub mod proxy;
#[path = "../../../eventbus-server/tests/support/servers.rs"]
pub mod servers;

use eventbus::broker::{Deliveries, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Topic};
use eventbus_aws::{AwsBroker, AwsBrokerBuilder};
pub use servers::setting;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As long as anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The address of the server for tests.
pub fn server() -> String {
    setting("EVENTBUS_TEST_AWS_URL").unwrap_or_else(|| {
        panic!(
            "there is no server of SNS and SQS for tests; run `cargo xtask brokers up aws`, or set EVENTBUS_TEST_AWS_URL to \
             the address of one"
        )
    })
}

/// A prefix that no other test has.
pub fn prefix() -> String {
    format!("t{:012x}", fastrand::u64(..1 << 48))
}

/// The address of a broker whose names begin so.
pub fn url(prefix: &str, fifo: bool) -> String {
    url_at(&server(), prefix, fifo)
}

/// The same on another server.
pub fn url_at(server: &str, prefix: &str, fifo: bool) -> String {
    format!(
        "sns://test:test@us-east-1?endpoint={server}&prefix={prefix}&fifo={fifo}&visibility_timeout=10s&wait_time=1s"
    )
}

pub fn builder(prefix: &str, fifo: bool) -> AwsBrokerBuilder {
    AwsBroker::builder(&url(prefix, fifo)).unwrap()
}

pub async fn connect(url: &str) -> AwsBroker {
    AwsBroker::builder(url).unwrap().connect().await.unwrap()
}

pub fn event(topic: &str, key: &str, number: u64) -> Arc<Envelope> {
    Arc::new(Envelope::from_json(Topic::new(topic).unwrap(), &number).unwrap().with_key(key))
}

pub fn number(received: &Received) -> u64 {
    serde_json::from_slice(received.receipt.envelope.payload().unwrap()).unwrap()
}

/// What a group that competes asks for.
pub fn request(group: &str, pattern: &str) -> SubscribeRequest {
    let mut request = SubscribeRequest::new(group, Pattern::new(pattern).unwrap());
    request.competing = true;
    request
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

/// Waits for what a subscription says that is wrong.
pub async fn failure(deliveries: &mut Box<dyn Deliveries>) -> String {
    let mut received = Vec::new();
    let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1));
    let answer = tokio::time::timeout(PATIENCE, receiving).await.expect("it is said");
    answer.expect_err("it fails").to_string()
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
