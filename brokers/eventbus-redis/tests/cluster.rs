//! A bus in a cluster: the conformance suite, and what becomes of a bus whose node fails or gives its slot away.

mod support;

use eventbus::broker::{Broker, Deliveries, Received};
use eventbus_redis::RedisBroker;
use eventbus_testing::conformance::Fixture;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use support::several::Cluster;
use support::{ack, event, number, publish, receive, receive_all, subscribe, until};

/// One cluster for all cases.
static SHARED: LazyLock<Cluster> = LazyLock::new(|| Cluster::up(false));

struct InCluster;

impl Fixture for InCluster {
    type Broker = RedisBroker;

    /// Its address too, since other processes open it as well.
    async fn place() -> String {
        format!("{}?lease=5s&prefix={}", SHARED.url(), support::prefix())
    }

    async fn open(place: &str) -> RedisBroker {
        RedisBroker::open(place).await.expect("the cluster takes the connection")
    }
}

eventbus_testing::conformance!(InCluster);

/// Waits until everything that a node has is with its replica.
fn replicated(cluster: &Cluster, node: usize) {
    let node = &cluster.nodes[node];
    node.until("the replica has everything", |node| node.ask::<u64>(&["WAIT", "1", "1000"]) == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_goes_on_with_the_replica_of_a_node_that_fails_and_loses_nothing_that_was_replicated() {
    let mut cluster = Cluster::up(true);
    // Of the nodes only one is named: the others are learnt.
    let (owner, _) = cluster.of("{eventbus}:clock");
    let named = &cluster.nodes[(owner + 1) % 3];
    let broker =
        RedisBroker::open(&format!("redis+cluster://127.0.0.1:{}?lease=2s", named.port)).await.unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    for number in 0..200 {
        publish(&broker, event("order.placed", number).with_key("one")).await;
    }
    let mut open = receive_all(&mut deliveries, 200).await;
    for received in open.drain(..100) {
        ack(received).await;
    }
    until("the acks are saved", async || backlog(&broker).await == 100).await;
    replicated(&cluster, owner);
    cluster.nodes[owner].kill();
    let killed = Instant::now();
    let publishing: Vec<_> = (200..300)
        .map(|number| {
            let broker = broker.clone();
            let envelope = Arc::new(event("order.paid", number).with_key("one"));
            tokio::spawn(async move { broker.publish(envelope).await })
        })
        .collect();
    for published in publishing {
        published.await.unwrap().expect("it is stored in the end");
    }
    // Two seconds until the failure is seen, and an election.
    assert!(killed.elapsed() < Duration::from_secs(25), "{:?}", killed.elapsed());
    // What was open is here still, or comes again.
    for received in open {
        let _ = received.settler.ack(received.receipt).await;
    }
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    while !(200..300).all(|number| seen.contains(&number)) || backlog(&broker).await > 0 {
        for received in receive_some(&mut deliveries).await {
            seen.insert(number(&received));
            let _ = received.settler.ack(received.receipt).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_follows_its_slot_to_another_node_and_loses_nothing() {
    let cluster = Cluster::up(false);
    let broker = RedisBroker::open(&cluster.url()).await.unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move {
            for number in 0..1_000 {
                publish(&broker, event("order.placed", number).with_key("one")).await;
            }
        }
    });
    let (from, slot) = cluster.of("{eventbus}:clock");
    let mut seen = Vec::new();
    while seen.len() < 200 {
        for received in receive(&mut deliveries, 50).await {
            seen.push(number(&received));
            ack(received).await;
        }
    }
    cluster.move_slot(slot, from, (from + 1) % 3);
    while seen.iter().collect::<BTreeSet<_>>().len() < 1_000 {
        for received in receive(&mut deliveries, 50).await {
            seen.push(number(&received));
            let _ = received.settler.ack(received.receipt).await;
        }
    }
    publishing.await.expect("no publish is refused");
    let mut first: Vec<u64> = Vec::new();
    seen.into_iter().for_each(|number| {
        if !first.contains(&number) {
            first.push(number)
        }
    });
    assert!(first.is_sorted(), "{first:?}");
    until("everything is settled", async || backlog(&broker).await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_without_ids_while_a_slot_is_moved_is_stored_once() {
    let cluster = Cluster::up(false);
    let broker = RedisBroker::open(&format!("{}?duplicate_window=0s", cluster.url())).await.unwrap();
    for topic in ["order.moved", "order.here"] {
        publish(&broker, event(topic, 0)).await;
    }
    let ((from, slot), to) = (cluster.of("{eventbus}:clock"), cluster.nodes.len() - 1);
    let to = if to == from { 0 } else { to };
    cluster.begin_move(slot, from, to);
    cluster.move_keys(&["{eventbus}:topic:order.moved".to_owned()], from, to);
    // Several scripts: the first is refused, and of the next ones, under way behind it, the node stores the events.
    let topics = [("order.moved", 1..=128), ("order.here", 1..=256)];
    let events = topics.into_iter().flat_map(|(topic, numbers)| numbers.map(move |number| (topic, number)));
    let events = events.map(|(topic, number)| Arc::new(event(topic, number))).collect();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish_all(events).await }
    });
    cluster.nodes[from].until("it stores what it has the key of", |node| {
        node.ask::<u64>(&["XLEN", "{eventbus}:topic:order.here"]) > 1
    });
    cluster.end_move(slot, from, to);
    let stored = publishing.await.unwrap();
    assert!(stored.iter().all(Result::is_ok), "{:?}", stored.iter().find(|stored| stored.is_err()));
    for (topic, count) in [("order.moved", 129), ("order.here", 257)] {
        let stored: u64 = cluster.nodes[to].ask(&["XLEN", &format!("{{eventbus}}:topic:{topic}")]);
        assert_eq!(stored, count, "{topic}");
    }
}

async fn backlog(broker: &RedisBroker) -> u64 {
    let groups = broker.groups().expect("it has them").list().await;
    groups.map_or(u64::MAX, |groups| groups.iter().map(|group| group.backlog).sum())
}

/// What comes within a moment.
async fn receive_some(deliveries: &mut Box<dyn Deliveries>) -> Vec<Received> {
    let mut received = Vec::new();
    let asked = poll_fn(|context| deliveries.poll_receive(context, &mut received, 100));
    let _ = tokio::time::timeout(Duration::from_millis(200), asked).await;
    received
}
