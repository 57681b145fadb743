//! What the tests share: the server, and an exchange of its own for each.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

#[path = "../../../eventbus-server/tests/support/alarm.rs"]
pub mod alarm;
pub mod between;
#[path = "../../../eventbus-server/tests/support/cpu.rs"]
pub mod cpu;
#[path = "../../../eventbus-server/tests/support/load.rs"]
pub mod load;
#[path = "../../../eventbus-server/tests/support/proxy.rs"]
pub mod proxy;
#[path = "../../../eventbus-server/tests/support/servers.rs"]
pub mod servers;

use eventbus::broker::{Broker, Deliveries, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Topic};
use eventbus_rabbitmq::lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use eventbus_rabbitmq::{RabbitMqBroker, RabbitMqBrokerBuilder};
pub use servers::setting;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As long as anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The address of the server for tests.
pub fn server() -> String {
    setting("EVENTBUS_TEST_AMQP_URL").unwrap_or_else(|| {
        panic!(
            "there is no RabbitMQ server for tests; run `cargo xtask brokers up rabbitmq`, or set EVENTBUS_TEST_AMQP_URL to \
             the address of one"
        )
    })
}

/// The address of a server with TLS, which has other users as well.
pub fn secure_server() -> String {
    setting("EVENTBUS_TEST_AMQP_TLS_URL").unwrap_or_else(|| {
        panic!("EVENTBUS_TEST_AMQP_TLS_URL is not set; run `cargo xtask brokers up rabbitmq`, which begins one with TLS")
    })
}

/// The name of an exchange that no other test has.
pub fn exchange() -> String {
    format!("t{:012x}", fastrand::u64(..1 << 48))
}

/// The address of a broker on it.
pub fn url(exchange: &str) -> String {
    url_at(&server(), exchange)
}

/// The same on another server.
pub fn url_at(server: &str, exchange: &str) -> String {
    let sign = if server.contains('?') { '&' } else { '?' };
    format!("{server}{sign}exchange={exchange}")
}

/// A proxy before the server of an address, and the address by way of it.
pub async fn behind_proxy(server: &str) -> (proxy::Proxy, String) {
    let (credentials, rest) = server.split_once("://").unwrap().1.split_once('@').unwrap();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let proxy = proxy::Proxy::to(&format!("amqp://{host}")).await;
    let url = proxy.url().replace("://", &format!("://{credentials}@"));
    (proxy, format!("{url}/{path}"))
}

pub fn builder(exchange: &str) -> RabbitMqBrokerBuilder {
    RabbitMqBroker::builder(&url(exchange)).unwrap()
}

pub async fn connect(url: &str) -> RabbitMqBroker {
    RabbitMqBroker::builder(url).unwrap().connect().await.unwrap()
}

/// Removes what tests have left on an exchange.
pub async fn remove(exchange: &str) {
    let broker = connect(&url(exchange)).await;
    let groups = broker.groups().expect("it lists them").list().await.unwrap();
    let channel = broker.channel().await.unwrap();
    let queues = groups.iter().flat_map(|state| {
        let group = format!("{exchange}:group:{}:{}", state.group, state.pattern);
        [group, format!("{exchange}:dead-letters:{}", state.group)]
    });
    for queue in queues.chain([format!("{exchange}:groups"), format!("{exchange}:events")]) {
        let options = QueueDeleteOptions::default();
        channel.queue_delete(queue.as_str().into(), options).await.unwrap();
    }
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    broker.close().await.unwrap();
}

pub fn event(topic: &str, key: &str, number: u64) -> Arc<Envelope> {
    Arc::new(Envelope::from_json(Topic::new(topic).unwrap(), &number).unwrap().with_key(key))
}

pub fn number(received: &Received) -> u64 {
    serde_json::from_slice(received.receipt.envelope.payload().unwrap()).unwrap()
}

/// What a group asks for whose events are handled in order by key.
pub fn request(group: &str, pattern: &str) -> SubscribeRequest {
    SubscribeRequest::new(group, Pattern::new(pattern).unwrap())
}

/// Receives so many deliveries.
pub async fn receive(deliveries: &mut Box<dyn Deliveries>, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    while received.len() < count {
        let before = received.len();
        let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, count - before));
        let answer = tokio::time::timeout(PATIENCE, receiving).await.expect("something comes");
        // It connects again by itself.
        if answer.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
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
