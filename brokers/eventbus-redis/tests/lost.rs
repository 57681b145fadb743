//! Data that is removed, trimmed or too much for the server while programs go on. Names are promises.

mod support;

use eventbus::broker::{
    Broker, Connection, DeadLetterQuery, Received, ReplayFrom, ReplayRequest, ReplayUntil, SubscribeRequest,
};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Start, Topic};
use eventbus_redis::{RedisBroker, Retention};
use redis::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::servers::Server;
use support::{Place, ack, dead_letter, event, number, publish, receive, receive_all, subscribe, until};

/// A database of the server that one test has for itself.
fn database(number: u32) -> Place {
    let place = Place::on(&format!("{}/{number}", support::server("REDIS")));
    clear(&place);
    place
}

fn clear(place: &Place) {
    place.command::<()>(&redis::cmd("FLUSHDB"));
}

fn numbers(received: &[Received]) -> Vec<u64> {
    received.iter().map(number).collect()
}

async fn publish_all(broker: &RedisBroker, numbers: std::ops::Range<u64>) {
    let events = numbers.map(|number| Arc::new(event("order.placed", number).with_key("k"))).collect();
    assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
}

fn latest(pattern: &str, competing: bool) -> SubscribeRequest {
    let mut request = SubscribeRequest::new("group", Pattern::new(pattern).unwrap());
    request.start = Start::Latest;
    request.competing = competing;
    request
}

#[tokio::test]
async fn what_is_published_after_all_data_was_removed_is_not_missed() {
    let place = database(5);
    for (pattern, competing) in
        [("order.placed", false), ("order.placed", true), ("order.*", false), ("order.*", true)]
    {
        clear(&place);
        let broker = place.broker().await;
        let mut deliveries = broker.subscribe(latest(pattern, competing)).await.unwrap();
        publish_all(&broker, 0..5).await;
        for received in receive_all(&mut deliveries, 5).await {
            ack(received).await;
        }
        clear(&place);
        publish_all(&broker, 5..10).await;
        let received = receive_all(&mut deliveries, 5).await;
        assert_eq!(numbers(&received), [5, 6, 7, 8, 9], "{pattern} {competing}");
        for received in received {
            ack(received).await;
        }
        tokio::time::timeout(Duration::from_secs(10), broker.settled().unwrap()).await.unwrap();
        broker.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_gone_on_with() {
    let place = database(6);
    for (pattern, competing) in [("order.placed", false), ("order.*", false), ("order.*", true)] {
        clear(&place);
        let proxy = Proxy::to(&support::server("REDIS")).await;
        let url = format!("{}/6", proxy.url());
        let broker = RedisBroker::builder(&url).unwrap().prefix(&place.prefix).open().await.unwrap();
        let other = place.broker().await;
        let mut deliveries = broker.subscribe(latest(pattern, competing)).await.unwrap();
        publish_all(&other, 0..5).await;
        for received in receive_all(&mut deliveries, 5).await {
            ack(received).await;
        }
        proxy.refuse(true);
        proxy.cut();
        until("the loss is noticed", async || matches!(broker.connection(), Connection::Lost { .. })).await;
        clear(&place);
        publish_all(&other, 5..10).await;
        proxy.refuse(false);
        let received = receive_all(&mut deliveries, 5).await;
        assert_eq!(numbers(&received), [5, 6, 7, 8, 9], "{pattern} {competing}");
    }
}

#[tokio::test]
async fn a_group_that_is_removed_where_none_may_be_made_is_named() {
    let place = database(7);
    for pattern in ["order.placed", "order.*"] {
        clear(&place);
        let maker = place.broker().await;
        drop(maker.subscribe(latest(pattern, false)).await.unwrap());
        publish_all(&maker, 0..1).await;
        let broker = place.builder().topology(eventbus::broker::Topology::Check).open().await.unwrap();
        let mut deliveries = broker.subscribe(latest(pattern, false)).await.unwrap();
        ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
        clear(&place);
        publish_all(&maker, 1..3).await;
        let mut received = Vec::new();
        let error = loop {
            let asked = std::future::poll_fn(|context| deliveries.poll_receive(context, &mut received, 9));
            let asked = tokio::time::timeout(Duration::from_secs(10), asked).await;
            if let Err(error) = asked.expect("it says something") {
                break error.to_string();
            }
        };
        assert!(error.contains("does not know the group `group`"), "{error}");
    }
}

#[tokio::test]
async fn a_group_that_is_destroyed_goes_on_with_the_first_event_that_is_not_settled() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    publish_all(&broker, 0..5).await;
    let mut open = receive_all(&mut deliveries, 5).await;
    for received in open.drain(..2) {
        ack(received).await;
    }
    until("it is saved", async || {
        let mut pending = redis::cmd("XPENDING");
        let pending: Value = place.command(pending.arg(place.key("topic:order.placed")).arg("group"));
        matches!(pending, Value::Array(parts) if parts[0] == Value::Int(3))
    })
    .await;
    let mut destroy = redis::cmd("XGROUP");
    place.command::<u64>(destroy.arg("DESTROY").arg(place.key("topic:order.placed")).arg("group"));
    publish_all(&broker, 5..8).await;
    let received = receive_all(&mut deliveries, 6).await;
    assert_eq!(numbers(&received), [2, 3, 4, 5, 6, 7]);
    for received in received {
        ack(received).await;
    }
    tokio::time::timeout(Duration::from_secs(10), broker.settled().unwrap()).await.unwrap();
}

#[tokio::test]
async fn entries_that_are_trimmed_while_a_process_has_them_hold_nobody_up() {
    let place = Place::new();
    let lease = Duration::from_secs(1);
    for (number, competing) in [(0, false), (1, true)] {
        let topic = format!("order.placed{number}");
        let proxy = Proxy::to(&place.url).await;
        let first = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).lease(lease);
        let first = first.open().await.unwrap();
        let second = place.builder().lease(lease).open().await.unwrap();
        let mut had = first.subscribe(latest(&topic, competing)).await.unwrap();
        for number in 0..6 {
            publish(&second, event(&topic, number + 10 * u64::from(competing))).await;
        }
        let _held = receive_all(&mut had, 6).await;
        let mut waits = second.subscribe(latest(&topic, competing)).await.unwrap();
        proxy.refuse(true);
        proxy.cut();
        let stream = place.key(&format!("topic:{topic}"));
        place.command::<u64>(redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg("=").arg(2));
        let received = receive_all(&mut waits, 2).await;
        for received in received {
            ack(received).await;
        }
        tokio::time::timeout(Duration::from_secs(20), second.settled().unwrap()).await.expect(&topic);
        proxy.refuse(false);
    }
}

#[tokio::test]
async fn a_backlog_that_was_trimmed_is_not_counted() {
    let place = Place::new();
    let broker = place.broker().await;
    drop(subscribe(&broker, "group", "order.placed").await);
    publish_all(&broker, 0..10).await;
    let stream = place.key("topic:order.placed");
    place.command::<u64>(redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg("=").arg(3));
    let groups = broker.groups().unwrap().list().await.unwrap();
    assert_eq!(groups[0].backlog, 3);
}

#[tokio::test]
async fn large_events_are_not_read_ahead_by_the_hundred() {
    let place = Place::new();
    let broker = place.broker().await;
    let large = |number: u64| {
        let bytes = vec![number as u8; 1 << 20];
        Arc::new(Envelope::from_bytes(Topic::from_static("order.placed"), "x/y", bytes.into()))
    };
    for number in 0..150 {
        broker.publish(large(number)).await.unwrap();
    }
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    let stream = place.key("topic:order.placed");
    let pending = || {
        let pending: Value = place.command(redis::cmd("XPENDING").arg(&stream).arg("group"));
        let Value::Array(parts) = pending else { return 0 };
        if let Value::Int(count) = parts[0] { count } else { 0 }
    };
    until("some are read", async || pending() > 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(pending() <= 24, "{} of 1 MiB are read ahead", pending());
    // What is unfinished at a takeover is no less.
    let mut count = 0;
    while count < 150 {
        for received in receive(&mut deliveries, 10).await {
            count += 1;
            ack(received).await;
        }
        assert!(pending() <= 40, "{}", pending());
    }
}

/// An event of 1 MiB.
fn large(topic: &str) -> Arc<Envelope> {
    Arc::new(Envelope::from_bytes(Topic::new(topic).unwrap(), "x/y", vec![7; 1 << 20].into()))
}

/// How many deliveries of a topic are read and not settled.
fn pending(place: &Place, topic: &str) -> i64 {
    let stream = place.key(&format!("topic:{topic}"));
    let pending: Value = place.command(redis::cmd("XPENDING").arg(&stream).arg("group"));
    let Value::Array(parts) = pending else { return 0 };
    if let Value::Int(count) = parts[0] { count } else { 0 }
}

#[tokio::test]
async fn large_events_on_many_topics_are_not_read_by_the_hundred() {
    const TOPICS: u64 = 20;
    let place = Place::new();
    let broker = place.broker().await;
    let topics: Vec<_> = (0..TOPICS).map(|number| format!("order.{number}")).collect();
    for (number, topic) in (0..).zip(&topics) {
        publish(&broker, event(topic, number)).await;
    }
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    for received in receive_all(&mut deliveries, topics.len()).await {
        ack(received).await;
    }
    // One topic has many, so that a read takes many of it; then all have.
    for _ in 0..20 {
        broker.publish(large(&topics[0])).await.unwrap();
    }
    let all = || topics.iter().map(|topic| pending(&place, topic)).sum::<i64>();
    until("as many are read as there is room for", async || all() >= 8).await;
    for topic in topics[1..].iter().cycle().take(5 * 19) {
        broker.publish(large(topic)).await.unwrap();
    }
    let _received = receive_all(&mut deliveries, 7).await;
    until("others are read", async || all() > 15).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // A read takes one of each at least.
    assert!(all() <= 15 + 2 * 20, "{} of 1 MiB are read", all());
}

#[tokio::test]
async fn large_events_behind_many_small_ones_are_not_read_by_the_hundred() {
    let place = Place::new();
    let broker = place.broker().await;
    publish_all(&broker, 0..300).await;
    for _ in 0..150 {
        broker.publish(large("order.placed")).await.unwrap();
    }
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    for received in receive_all(&mut deliveries, 300).await {
        ack(received).await;
    }
    until("large ones are read", async || pending(&place, "order.placed") > 0).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(pending(&place, "order.placed") <= 128, "{}", pending(&place, "order.placed"));
}

#[tokio::test]
async fn one_of_many_large_dead_letters_is_found_without_reading_them_all() {
    let place = Place::new();
    let proxy = Proxy::to(&place.url).await;
    let broker = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).open().await.unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    for _ in 0..30 {
        broker.publish(large("order.placed")).await.unwrap();
        let received = receive(&mut deliveries, 1).await.remove(0);
        let letter = dead_letter(&received);
        received.settler.reject(received.receipt, letter).await.unwrap();
    }
    let before = proxy.passed();
    let mut query = DeadLetterQuery::default();
    query.limit = 1;
    assert_eq!(broker.dead_letters().unwrap().find(query).await.unwrap().len(), 1);
    let passed = proxy.passed() - before;
    assert!(passed < 6 << 20, "{passed} bytes were read");
    assert_eq!(broker.dead_letters().unwrap().list().await.unwrap().len(), 30);
}

#[tokio::test]
async fn events_are_counted_and_removed_without_copies_of_all_that_they_hold() {
    let server = Server::up("redis", "eventbus-redis-copies");
    let place = Place::on(&server.url());
    let broker = place.broker().await;
    for _ in 0..100 {
        broker.publish(large("order.placed")).await.unwrap();
    }
    let peak = || {
        let info: String = place.command(redis::cmd("INFO").arg("memory"));
        let peak = info.lines().find_map(|line| line.strip_prefix("used_memory_peak:")).expect("it tells");
        peak.parse::<u64>().expect("a number")
    };
    let before = peak();
    let pattern = Pattern::new("order.placed").unwrap();
    let request = ReplayRequest {
        group: "group".to_owned(),
        pattern,
        from: ReplayFrom::Earliest,
        until: ReplayUntil::Now,
    };
    let replay = broker.replayable().unwrap().replay(request).await.unwrap();
    assert_eq!(replay.events, 100);
    drop(replay);
    let mut retention = Retention::default();
    retention.count = Some(1);
    let interval = Duration::from_millis(50);
    let trims = place.builder().retention(retention).retention_interval(interval).open().await.unwrap();
    let length = || place.command::<u64>(redis::cmd("XLEN").arg(place.key("topic:order.placed")));
    until("old events are removed", async || length() == 1).await;
    trims.close().await.unwrap();
    let copied = peak() - before;
    assert!(copied < 50 << 20, "{copied} bytes were copied");
}

#[tokio::test]
async fn any_number_of_events_is_removed_to_the_last_one_by_count_and_by_age() {
    let place = Place::new();
    let broker = place.broker().await;
    publish_all(&broker, 0..12_345).await;
    let length = || place.command::<u64>(redis::cmd("XLEN").arg(place.key("topic:order.placed")));
    let (mut count, mut age) = (Retention::default(), Retention::default());
    (count.count, age.age) = (Some(77), Some(Duration::from_millis(1)));
    for (retention, left) in [(count, 77), (age, 0)] {
        let builder = place.builder().retention(retention).retention_interval(Duration::from_millis(50));
        let trims = builder.open().await.unwrap();
        until("the others are removed", async || length() == left).await;
        trims.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_memory_is_full_lets_groups_go_on() {
    let server = Server::up("redis", "eventbus-redis-full");
    let place = Place::on(&server.url());
    let lease = Duration::from_secs(2);
    let broker = place.builder().lease(lease).open().await.unwrap();
    let other = place.builder().lease(lease).open().await.unwrap();
    publish_all(&broker, 0..100).await;
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    let mut waits = subscribe(&other, "group", "order.placed").await;
    for received in receive_all(&mut deliveries, 10).await {
        ack(received).await;
    }
    let mut config = redis::cmd("CONFIG");
    place.command::<()>(config.arg("SET").arg("maxmemory").arg(1));
    let error = broker.publish(Arc::new(event("order.placed", 1_000))).await.unwrap_err();
    assert!(error.to_string().contains("memory of the server is full"), "{error}");
    let begun = Instant::now();
    let mut next = 10;
    while begun.elapsed() < lease * 3 {
        for received in receive_all(&mut deliveries, 2).await {
            assert_eq!(number(&received), next);
            next += 1;
            ack(received).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // The next process takes over.
    drop(deliveries);
    for received in receive_all(&mut waits, 100 - usize::try_from(next).unwrap()).await {
        assert_eq!(number(&received), next);
        next += 1;
        ack(received).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_a_replica_for_a_while_refuses_no_publish() {
    let server = Server::up("redis", "eventbus-redis-replica");
    let place = Place::on(&server.url());
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    publish_all(&broker, 0..5).await;
    for received in receive_all(&mut deliveries, 5).await {
        ack(received).await;
    }
    // Of a primary that nobody finds, so that it keeps its data.
    place.command::<()>(redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1));
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { publish_all(&broker, 5..10).await }
    });
    until("it is known", async || matches!(broker.connection(), Connection::Lost { .. })).await;
    place.command::<()>(redis::cmd("REPLICAOF").arg("NO").arg("ONE"));
    publishing.await.unwrap();
    assert_eq!(numbers(&receive_all(&mut deliveries, 5).await), [5, 6, 7, 8, 9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_stored_is_confirmed_although_memory_was_full_when_it_was_sent_again() {
    let server = Server::up("redis", "eventbus-redis-again");
    let place = Place::on(&server.url());
    let proxy = Proxy::to(&place.url).await;
    let broker = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).open().await.unwrap();
    proxy.mute(true);
    let publishing = tokio::spawn(async move { broker.publish(Arc::new(event("order.placed", 1))).await });
    let stream = place.key("topic:order.placed");
    until("it is stored", async || place.command::<u64>(redis::cmd("XLEN").arg(&stream)) == 1).await;
    place.command::<()>(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1));
    proxy.cut();
    proxy.mute(false);
    publishing.await.unwrap().unwrap();
    assert_eq!(place.command::<u64>(redis::cmd("XLEN").arg(&stream)), 1);
}
