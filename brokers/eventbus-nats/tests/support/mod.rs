//! What the tests share: the server, and a stream of its own for each.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

#[path = "../../../eventbus-server/tests/support/cpu.rs"]
pub mod cpu;
pub mod own;
#[path = "../../../eventbus-server/tests/support/proxy.rs"]
pub mod proxy;
#[path = "../../../eventbus-server/tests/support/servers.rs"]
pub mod servers;

use eventbus::broker::{Deliveries, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, EventId, Start, Topic};
use eventbus_nats::{NatsBroker, NatsBrokerBuilder};
pub use servers::setting;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// As long as anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The address of the server for tests.
pub fn server() -> String {
    setting("EVENTBUS_TEST_NATS_URL").unwrap_or_else(|| {
        panic!(
            "there is no NATS server for tests; run `cargo xtask brokers up nats`, or set EVENTBUS_TEST_NATS_URL to the \
             address of one with JetStream"
        )
    })
}

/// A variable that comes with the server for tests.
pub fn secure(name: &str) -> String {
    setting(name).unwrap_or_else(|| {
        panic!("{name} is not set; run `cargo xtask brokers up nats`, which begins a server with TLS and users as well")
    })
}

/// Host and port of the server with TLS.
pub fn secure_server() -> String {
    let url = secure("EVENTBUS_TEST_NATS_TLS_URL");
    url.rsplit('@').next().unwrap().to_owned()
}

/// A stream of its own, which is removed at the end.
pub struct Place {
    pub name: String,
    pub server: String,
    kept: bool,
}

impl Place {
    pub fn new() -> Self {
        Self::at(server())
    }

    pub fn at(server: String) -> Self {
        Self { name: format!("T{:x}", fastrand::u64(..)), server, kept: false }
    }

    /// The one of this name on the server for tests, which stays there.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), server: server(), kept: true }
    }

    pub fn remove(mut self) {
        self.kept = false;
    }

    /// The same stream by another way, which does not remove it.
    pub fn by_way_of(&self, server: String) -> Self {
        Self { name: self.name.clone(), server, kept: true }
    }

    /// Its name; the stream stays.
    pub fn keep(mut self) -> String {
        self.kept = true;
        self.name.clone()
    }

    /// The address of a broker on it.
    pub fn url(&self) -> String {
        let Self { name, server, .. } = self;
        let sign = if server.contains('?') { '&' } else { '?' };
        format!("{server}{sign}stream={name}&prefix={name}&ack_wait=2s")
    }

    pub fn builder(&self) -> NatsBrokerBuilder {
        NatsBroker::builder(&self.url()).unwrap()
    }

    pub async fn broker(&self) -> NatsBroker {
        self.builder().connect().await.unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let (name, server) = (self.name.clone(), self.server.clone());
        // A runtime of its own, since that of the test may be at its end.
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let sign = if server.contains('?') { '&' } else { '?' };
            runtime.block_on(async {
                let builder = NatsBroker::builder(&format!(
                    "{server}{sign}stream={name}&prefix={name}&connect_timeout=2s"
                ));
                let Ok(broker) = builder.unwrap().connect().await else { return };
                let jetstream = async_nats::jetstream::new(broker.client());
                for stream in [name.clone(), format!("{name}-DEAD"), format!("KV_{name}-PARKED")] {
                    let _ = jetstream.delete_stream(stream).await;
                }
            });
        });
        let _ = removed.join();
    }
}

pub fn event(topic: &str, key: &str, number: u64) -> Arc<Envelope> {
    Arc::new(Envelope::from_json(Topic::new(topic).unwrap(), &number).unwrap().with_key(key))
}

pub fn number(received: &Received) -> u64 {
    serde_json::from_slice(received.receipt.envelope.payload().unwrap()).unwrap()
}

pub fn request(group: &str, pattern: &str) -> SubscribeRequest {
    SubscribeRequest::new(group, Pattern::new(pattern).unwrap())
}

pub fn early(group: &str, pattern: &str) -> SubscribeRequest {
    let mut request = request(group, pattern);
    request.start = Start::Earliest;
    request
}

/// Receives at least one delivery.
pub async fn receive(deliveries: &mut Box<dyn Deliveries>, limit: usize) -> Vec<Received> {
    let mut received = Vec::new();
    let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, limit));
    tokio::time::timeout(PATIENCE, receiving).await.expect("something comes").unwrap();
    received
}

/// Receives so many deliveries.
pub async fn receive_all(deliveries: &mut Box<dyn Deliveries>, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    while received.len() < count {
        let more = receive(deliveries, count - received.len()).await;
        assert!(!more.is_empty(), "the subscription has ended after {} deliveries", received.len());
        received.extend(more);
    }
    received
}

/// Whether something is at hand now.
pub async fn has_some(deliveries: &mut Box<dyn Deliveries>, into: &mut Vec<Received>) -> bool {
    poll_fn(|context| Poll::Ready(deliveries.poll_receive(context, into, 1_000).is_ready())).await
}

pub async fn ack(received: Received) {
    let Received { receipt, settler, .. } = received;
    settler.ack(receipt).await.unwrap();
}

/// Gives back what was received, as a bus does that ends; its numbers.
pub fn give_back(received: Vec<Received>) -> Vec<u64> {
    let numbers = received.iter().map(number).collect();
    for Received { receipt, settler, .. } in received {
        settler.release(receipt);
    }
    numbers
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "{what} within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn id(text: &str) -> EventId {
    EventId::new(text)
}
