//! Faults under load: what becomes of events when the server, the connection or a process fails.

mod support;

use eventbus::broker::{Broker, Connection, Standing, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Bus, Delivery, PublishError};
use eventbus_redis::{RedisBroker, RedisBrokerBuilder};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::load::{Load, Publishing, RECOVERY};
use support::proxy::Proxy;
use support::servers::Server;
use support::{PATIENCE, Place, event, number, publish, receive, subscribe, until};

/// A builder on a connection that fails as the proxy is told to.
async fn through_proxy(place: &Place) -> (Proxy, RedisBrokerBuilder) {
    let proxy = Proxy::to(&place.url).await;
    let builder = RedisBroker::builder(&proxy.url()).expect("an address");
    (proxy, builder.prefix(&place.prefix).response_timeout(Duration::from_secs(2)))
}

/// What is published while something fails.
const PUBLISHING: Publishing = Publishing { topics: &["load.a", "load.b"], again: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_begun_again_loses_nothing_that_was_confirmed() {
    let server = Server::up("redis", "eventbus-redis-killed");
    let url = server.url();
    let broker = RedisBroker::open(&url).await.unwrap();
    let load = Load::begin(broker, PUBLISHING).await;
    for _ in 0..2 {
        // With `everysec` a server on a slow disk answers before it has written. What was confirmed before is
        // written with the next events.
        support::command::<()>(&url, redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg("always"));
        load.goes_on(1_000).await;
        server.order("kill");
        load.is_lost().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.order("restart");
        load.recovers_within(RECOVERY).await;
    }
    let repeats = load.end().await.repeats;
    assert!(repeats <= 2 * 1_100, "{repeats} are repeated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_five_seconds_loses_nothing_and_goes_on() {
    let server = Server::up("redis", "eventbus-redis-paused");
    let broker = RedisBroker::open(&server.url()).await.unwrap();
    let load = Load::begin(broker, PUBLISHING).await;
    load.goes_on(1_000).await;
    server.order("pause");
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.order("continue");
    load.recovers_within(RECOVERY).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_again_and_again_loses_nothing_and_stores_nothing_twice() {
    let place = Place::new();
    let (proxy, builder) = through_proxy(&place).await;
    let load = Load::begin(builder.open().await.unwrap(), PUBLISHING).await;
    for part in 1..6 {
        load.goes_on(400).await;
        // Once with the confirmations lost, so that it is not known what was stored.
        proxy.mute(part % 2 == 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
        proxy.cut();
        proxy.mute(false);
    }
    let handled = load.end().await;
    let stored = |topic: &str| place.command::<u64>(redis::cmd("XLEN").arg(place.key(topic)));
    assert_eq!(stored("topic:load.a") + stored("topic:load.b"), handled.events());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_swallows_everything_is_given_up_and_made_again() {
    let place = Place::new();
    let (proxy, builder) = through_proxy(&place).await;
    let load = Load::begin(builder.open().await.unwrap(), PUBLISHING).await;
    load.goes_on(500).await;
    proxy.swallow(true);
    load.is_lost().await;
    proxy.cut();
    proxy.swallow(false);
    load.recovers_within(RECOVERY).await;
    load.end().await;
}

#[tokio::test]
async fn each_of_many_publishes_ends_in_time_on_a_connection_that_is_mute() {
    let place = Place::new();
    let (proxy, builder) = through_proxy(&place).await;
    let timeout = Duration::from_secs(2);
    // The connection is not given up before.
    let builder = builder.response_timeout(PATIENCE * 2).publish_timeout(timeout);
    let broker = Arc::new(builder.open().await.unwrap());
    publish(&broker, event("order.placed", 0)).await;
    proxy.mute(true);
    let mut publishes = Vec::new();
    // More than there are scripts under way at once, so that the last of them only wait.
    for number in 1..=8 {
        let broker = Arc::clone(&broker);
        publishes.push(tokio::spawn(async move {
            let error = broker.publish(Arc::new(event("order.placed", number))).await.unwrap_err();
            matches!(error, PublishError::Unconfirmed { .. })
        }));
        // Each has a deadline, and the first of them a script, of its own.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut unconfirmed = Vec::new();
    for publish in publishes {
        unconfirmed.push(tokio::time::timeout(PATIENCE, publish).await.expect("it ends").unwrap());
    }
    // What was sent may be stored, and what was not is not.
    assert_eq!((unconfirmed[0], unconfirmed[7]), (true, false), "{unconfirmed:?}");
    assert!(unconfirmed.is_sorted_by(|one, next| one >= next), "{unconfirmed:?}");
    proxy.mute(false);
    broker.publish(Arc::new(event("order.placed", 9))).await.expect("it goes on");
}

#[tokio::test]
async fn a_publish_that_is_not_confirmed_in_time_is_neither_ok_nor_without_end() {
    let place = Place::new();
    let (proxy, builder) = through_proxy(&place).await;
    let timeout = Duration::from_secs(1);
    let broker = builder.publish_timeout(timeout).open().await.unwrap();
    publish(&broker, event("order.placed", 1)).await;
    proxy.mute(true);
    let begun = Instant::now();
    let error = broker.publish(Arc::new(event("order.placed", 2))).await.unwrap_err();
    assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
    assert!(begun.elapsed() >= timeout && begun.elapsed() < timeout * 5, "{:?}", begun.elapsed());
    proxy.mute(false);
    // The same event again is stored once.
    until("it is confirmed", async || broker.publish(Arc::new(event("order.placed", 2))).await.is_ok()).await;
    assert_eq!(place.command::<u64>(redis::cmd("XLEN").arg(place.key("topic:order.placed"))), 2);
    // What was never sent is not stored.
    proxy.refuse(true);
    proxy.cut();
    until("the loss is noticed", async || broker.connection() != Connection::Up).await;
    let error = broker.publish(Arc::new(event("order.placed", 3))).await.unwrap_err();
    assert!(matches!(error, PublishError::Broker { .. }), "{error}");
    assert!(error.to_string().contains("there is no connection to the server"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stands_still_for_longer_than_its_lease_is_replaced_and_changes_nothing_afterwards() {
    let place = Place::new();
    let lease = Duration::from_secs(2);
    let (proxy, builder) = through_proxy(&place).await;
    let (first, second) =
        (builder.lease(lease).open().await.unwrap(), place.builder().lease(lease).open().await.unwrap());
    let mut here = subscribe(&first, "group", "order.placed").await;
    let mut there = subscribe(&second, "group", "order.placed").await;
    for number in 0..20 {
        publish(&second, event("order.placed", number).with_key("one")).await;
    }
    let open = support::receive_all(&mut here, 5).await;
    proxy.swallow(true);
    let mut seen = Vec::new();
    while seen.len() < 20 {
        for received in receive(&mut there, 20).await {
            seen.push(number(&received));
            received.settler.ack(received.receipt).await.unwrap();
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(open.iter().all(|received| !received.settler.holds(&received.receipt)));
    proxy.swallow(false);
    for number in 20..40 {
        publish(&second, event("order.placed", number).with_key("one")).await;
    }
    while seen.len() < 40 {
        for received in receive(&mut there, 20).await {
            seen.push(number(&received));
            received.settler.ack(received.receipt).await.unwrap();
        }
    }
    // Nothing came into the hands of the one that was taken for dead.
    assert_eq!(seen, Vec::from_iter(0..40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_closed_during_an_outage_without_waiting_for_its_end() {
    let place = Place::new();
    let (proxy, builder) = through_proxy(&place).await;
    let broker = builder.open().await.unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    publish(&broker, event("order.placed", 1)).await;
    let received = receive(&mut deliveries, 1).await;
    proxy.refuse(true);
    proxy.cut();
    for received in received {
        received.settler.ack(received.receipt).await.unwrap();
    }
    drop(deliveries);
    let closed = AtomicBool::new(false);
    // A bus gives a broker half a second.
    let _ = tokio::time::timeout(Duration::from_millis(500), async {
        let _ = broker.close().await;
        closed.store(true, Ordering::SeqCst);
    })
    .await;
    let error = broker.publish(Arc::new(event("order.placed", 2))).await.unwrap_err();
    assert!(error.to_string().contains("the broker is closed"), "{error}");
}

#[tokio::test]
async fn a_broker_that_is_dropped_during_an_outage_leaves_nothing_that_connects() {
    let place = Place::new();
    let (proxy, builder) = through_proxy(&place).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let broker = builder.connect_timeout(Duration::from_secs(1)).open().await.unwrap();
    let deliveries = subscribe(&broker, "group", "order.placed").await;
    proxy.refuse(true);
    proxy.cut();
    until("the loss is noticed", async || matches!(broker.connection(), Connection::Lost { .. })).await;
    drop(deliveries);
    drop(broker);
    until("all of its tasks have ended", async || tasks() <= before).await;
}

#[tokio::test]
async fn an_idle_program_ends_soon_while_the_server_is_down() {
    for competing in [false, true] {
        let place = Place::new();
        let (proxy, builder) = through_proxy(&place).await;
        // Leases are renewed all the time, so that this is under way when the program ends.
        let broker = builder.lease(Duration::from_millis(600)).open().await.unwrap();
        let watched = broker.clone();
        let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
        bus.on_topic("order.placed", |_: Delivery| async { Ok::<(), String>(()) })
            .group("group")
            .competing(competing)
            .await
            .unwrap();
        bus.start().unwrap();
        let subscribed = SubscribeRequest::new("group", Pattern::new("order.placed").unwrap());
        until("it has the group", async || watched.standing(&subscribed) == Standing::Active).await;
        proxy.refuse(true);
        proxy.cut();
        until("the loss is known", async || matches!(watched.connection(), Connection::Lost { .. })).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let begun = Instant::now();
        bus.shutdown().await.unwrap();
        // A question waits for a connection for 10 s.
        assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    }
}
