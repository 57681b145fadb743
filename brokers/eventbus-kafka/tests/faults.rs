//! Faults under load: what becomes of events when the server or a process fails.

mod support;

use eventbus::PublishError;
use eventbus::broker::{Broker, Connection};
use eventbus_kafka::KafkaBroker;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::cpu::cpu_time;
use support::servers::Server;
use support::{event, number, receive, request, until};

const KEYS: u64 = 16;

async fn connect(server: &Server) -> KafkaBroker {
    let builder = KafkaBroker::builder(&server.url()).expect("an address");
    let builder =
        builder.partitions(4).session_timeout(support::SESSION).publish_timeout(support::PATIENCE * 3);
    builder.connect().await.expect("the server answers")
}

/// Publishers and one group that handles what they publish, while something fails.
struct Load {
    broker: KafkaBroker,
    confirmed: Arc<AtomicU64>,
    publishing: Vec<tokio::task::JoinHandle<()>>,
    handling: tokio::task::JoinHandle<Vec<(u64, u64)>>,
}

impl Load {
    async fn begin(broker: KafkaBroker, events: u64) -> Self {
        let confirmed = Arc::new(AtomicU64::new(0));
        let mut deliveries = broker.subscribe(request("group", "load.*")).await.unwrap();
        let handling = tokio::spawn(async move {
            let (mut seen, mut all) = (Vec::new(), BTreeSet::new());
            while (all.len() as u64) < events {
                for received in receive(&mut deliveries, 1).await {
                    if !received.settler.holds(&received.receipt) {
                        continue;
                    }
                    seen.push((number(&received) % KEYS, number(&received)));
                    all.insert(number(&received));
                    // What is not committed comes again.
                    let _ = received.settler.ack(received.receipt).await;
                }
            }
            seen
        });
        // Each publisher has a key of its own, and publishes in order.
        let publishers = (0..KEYS).map(|key| {
            let (broker, confirmed) = (broker.clone(), Arc::clone(&confirmed));
            tokio::spawn(async move {
                for number in (0..events).filter(|number| number % KEYS == key) {
                    broker
                        .publish(event("load.a", &key.to_string(), number))
                        .await
                        .expect("it is stored in the end");
                    confirmed.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let publishing = publishers.collect();
        Self { broker, confirmed, publishing, handling }
    }

    async fn confirmed(&self, events: u64) {
        until("events are confirmed", async || self.confirmed.load(Ordering::SeqCst) >= events).await;
    }

    /// Everything that was confirmed is handled, in order by key.
    async fn end(self) {
        for publisher in self.publishing {
            publisher.await.expect("nothing that was published is lost");
        }
        let seen = self.handling.await.expect("everything is handled");
        let mut by_key: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (key, number) in seen {
            let of_key = by_key.entry(key).or_default();
            if !of_key.contains(&number) {
                of_key.push(number);
            }
        }
        for (key, numbers) in by_key {
            assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_or_paused_and_goes_on_loses_nothing_that_was_confirmed() {
    let server = Server::up("kafka", "eventbus-kafka-killed");
    let load = Load::begin(connect(&server).await, 3_000).await;
    load.confirmed(1_000).await;
    server.order("kill");
    until("the loss is noticed", async || matches!(load.broker.connection(), Connection::Lost { .. })).await;
    let (before, outage) = (cpu_time(), Duration::from_secs(2));
    tokio::time::sleep(outage).await;
    let spent = cpu_time() - before;
    assert!(spent < outage / 2, "{spent:?} of the processor in {outage:?}");
    server.order("restart");
    load.confirmed(2_000).await;
    server.order("pause");
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.order("continue");
    until("the connection is back", async || load.broker.connection() == Connection::Up).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_during_an_outage_ends_in_time_and_says_what_is_not_known() {
    let server = Server::up("kafka", "eventbus-kafka-ended");
    let broker = connect(&server).await;
    let mut deliveries = broker.subscribe(request("group", "load.a")).await.unwrap();
    broker.publish(event("load.a", "k", 1)).await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    server.order("kill");
    received.settler.ack(received.receipt).await.unwrap();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(event("load.a", "k", 2)).await }
    });
    until("the loss is noticed", async || matches!(broker.connection(), Connection::Lost { .. })).await;
    let begun = Instant::now();
    let error = broker.close().await.unwrap_err().to_string();
    assert!(error.contains("may be delivered again"), "{error}");
    let answer = publishing.await.unwrap();
    assert!(matches!(answer, Err(PublishError::Unconfirmed { .. })), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
