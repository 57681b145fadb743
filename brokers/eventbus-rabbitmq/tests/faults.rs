//! Faults under load: what becomes of events when the server, the connection or its memory fails.

mod support;

use eventbus::PublishError;
use eventbus::broker::{Broker, Connection, Parked};
use eventbus_core::jiff::Timestamp;
use eventbus_rabbitmq::lapin::BasicProperties;
use eventbus_rabbitmq::lapin::options::BasicPublishOptions;
use std::time::{Duration, Instant};
use support::between::{BLOCKED, Between, CLOSE, UNBLOCKED};
use support::cpu::cpu_time;
use support::load::{Load, Publishing, RECOVERY};
use support::servers::Server;
use support::{
    PATIENCE, ack, behind_proxy, builder, connect, event, exchange, number, receive, remove, request, server,
    until, url_at,
};

/// What is published while something fails.
const PUBLISHING: Publishing = Publishing { topics: &["load.a", "load.b"], again: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_begun_again_loses_nothing_that_was_confirmed() {
    let server = Server::up("rabbitmq", "eventbus-rabbitmq-killed");
    let load = Load::begin(connect(&server.url()).await, PUBLISHING).await;
    for _ in 0..2 {
        load.goes_on(500).await;
        server.order("kill");
        load.is_lost().await;
        let (before, outage) = (cpu_time(), Duration::from_secs(2));
        tokio::time::sleep(outage).await;
        let busy = cpu_time() - before;
        assert!(busy < outage / 2, "{busy:?} of {outage:?} were spent on waiting");
        server.order("restart");
        load.recovers_within(RECOVERY).await;
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_five_seconds_loses_nothing_and_goes_on() {
    let server = Server::up("rabbitmq", "eventbus-rabbitmq-paused");
    let load = Load::begin(connect(&server.url()).await, PUBLISHING).await;
    load.goes_on(500).await;
    server.order("pause");
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.order("continue");
    load.recovers_within(RECOVERY).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_or_leads_nowhere_is_noticed_and_loses_nothing() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let load =
        Load::begin(connect(&format!("{}&heartbeat=1s", url_at(&url, &exchange))).await, PUBLISHING).await;
    for _ in 0..2 {
        load.goes_on(500).await;
        proxy.cut();
        load.recovers_within(RECOVERY).await;
    }
    load.goes_on(500).await;
    proxy.swallow(true);
    load.is_lost().await;
    proxy.cut();
    proxy.swallow(false);
    load.recovers_within(RECOVERY).await;
    load.end().await;
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_runs_out_of_memory_is_known_and_gets_what_waited_once_it_has_some() {
    let server = Server::up("rabbitmq", "eventbus-rabbitmq-starved");
    let broker = connect(&server.url()).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    server.order("starve");
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move {
            for number in 1..20 {
                let begun = Instant::now();
                while broker.publish(event("a.b", "k", number)).await.is_err() {
                    assert!(begun.elapsed() < PATIENCE);
                }
            }
        }
    });
    until("the alarm is known", async || matches!(broker.connection(), Connection::Slowed { .. })).await;
    assert!(!publishing.is_finished());
    let received = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&received), 0, "what is there is handled meanwhile");
    ack(received).await;
    server.order("feed");
    publishing.await.unwrap();
    until("it is over", async || broker.connection() == Connection::Up).await;
    for (received, expected) in receive(&mut deliveries, 19).await.into_iter().zip(1..) {
        assert_eq!(number(&received), expected);
        ack(received).await;
    }
    broker.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_short_of_memory_is_known_and_what_is_there_is_handled_meanwhile() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&format!("{}&publish_timeout=2s", url_at(&between.url, &exchange))).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let other = builder(&exchange).connect().await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    between.say(BLOCKED);
    until("the alarm is known", async || match broker.connection() {
        Connection::Slowed { error, .. } => error.contains("low memory"),
        _ => false,
    })
    .await;
    let refused = broker.publish(event("a.b", "k", 2)).await;
    assert!(matches!(&refused, Err(PublishError::Broker { .. })), "it was not sent: {refused:?}");
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("`publish_timeout`") && said.contains("low memory"), "{said}");
    other.publish(event("a.b", "k", 3)).await.unwrap();
    for expected in [1, 3] {
        let received = receive(&mut deliveries, 1).await.remove(0);
        assert_eq!(number(&received), expected);
        ack(received).await;
    }
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(event("a.b", "k", 4)).await }
    });
    between.say(UNBLOCKED);
    waiting.await.unwrap().unwrap();
    assert_eq!(broker.connection(), Connection::Up);
    broker.close().await.unwrap();
    other.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_is_under_way_as_the_server_ends_is_not_said_to_be_refused() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    between.mute(true);
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(event("a.b", "k", 2)).await }
    });
    // It is stored, and its confirmation is nowhere.
    for (received, expected) in receive(&mut deliveries, 2).await.into_iter().zip(1..) {
        assert_eq!(number(&received), expected);
        ack(received).await;
    }
    between.say(CLOSE);
    let unconfirmed = publishing.await.unwrap();
    assert!(matches!(&unconfirmed, Err(PublishError::Unconfirmed { .. })), "{unconfirmed:?}");
    between.mute(false);
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_while_the_server_is_short_of_memory_acks_what_was_handled() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    let broker = connect(&url_at(&between.url, &exchange)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    between.say(BLOCKED);
    until("the alarm is known", async || matches!(broker.connection(), Connection::Slowed { .. })).await;
    ack(received).await;
    broker.close().await.unwrap();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 2)).await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&received), 2, "the first was acked");
    ack(received).await;
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_during_an_outage_ends_in_time_and_says_what_is_not_known() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let broker = connect(&url_at(&url, &exchange)).await;
    let drain = Duration::from_secs(2);
    let bus =
        eventbus::Bus::builder().without_subscriptions().drain(drain).broker(broker.clone()).await.unwrap();
    bus.on_topic("a.b", |_| async {}).group("mail").await.unwrap();
    bus.start_quietly().unwrap();
    proxy.refuse(true);
    proxy.cut();
    until("the loss is known", async || matches!(broker.connection(), Connection::Lost { .. })).await;
    let publishing = tokio::spawn(async move { broker.publish(event("a.b", "k", 1)).await });
    let begun = Instant::now();
    let _ = tokio::time::timeout(Duration::from_secs(30), bus.shutdown()).await.expect("it ends");
    assert!(begun.elapsed() < drain + Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(publishing.await.unwrap().is_err());
    proxy.refuse(false);
    remove(&exchange).await;
}

/// The shortest time for which the server lets anybody hold a delivery.
const SHORTEST: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_longer_than_the_server_allows_stays_with_its_process_in_its_order() {
    let exchange = exchange();
    let connect = || builder(&exchange).consumer_timeout(SHORTEST).connect();
    let broker = connect().await.unwrap();
    let (mut alone, mut shared) = (request("mail", "a.b"), request("share", "a.b"));
    (alone.timeout, shared.timeout, shared.competing) =
        (Duration::from_secs(5), Duration::from_secs(30), true);
    let mut mail = broker.subscribe(alone.clone()).await.unwrap();
    let mut share = broker.subscribe(shared.clone()).await.unwrap();
    for number in 0..6 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    // One of another program, which has no id.
    let channel = broker.channel().await.unwrap();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel
        .basic_publish(exchange.as_str().into(), "a.b".into(), options, b"6", properties)
        .await
        .unwrap()
        .await
        .unwrap();
    // Two are handed out, of which one is tried again and again; four and the stranger wait at hand.
    let mut held = receive(&mut mail, 2).await;
    let shared_out = receive(&mut share, 2).await;
    let begun = Instant::now();
    while begun.elapsed() < SHORTEST + Duration::from_secs(5) {
        let mut receipt = held[0].receipt.clone();
        receipt.attempt += 1;
        let now = Timestamp::now();
        let parked = Parked { first_failed_at: now, last_failed_at: now, due: now + Duration::from_secs(3) };
        held[0].settler.park(&receipt, parked).await.unwrap();
        assert!(held.iter().all(|one| one.settler.holds(&one.receipt)), "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    held.extend(receive(&mut mail, 5).await);
    let mut others = shared_out;
    others.extend(receive(&mut share, 5).await);
    for all in [held, others] {
        assert_eq!(all.iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert!(all.iter().all(|one| one.receipt.attempt == 1));
        for one in all {
            assert!(one.settler.holds(&one.receipt), "{}", number(&one));
            ack(one).await;
        }
    }
    broker.settled().unwrap().await;
    broker.close().await.unwrap();
    let broker = connect().await.unwrap();
    let (mut mail, mut share) =
        (broker.subscribe(alone).await.unwrap(), broker.subscribe(shared).await.unwrap());
    broker.publish(event("a.b", "k", 7)).await.unwrap();
    for deliveries in [&mut mail, &mut share] {
        let next = receive(deliveries, 1).await.remove(0);
        assert_eq!(number(&next), 7, "everything before was acked");
        ack(next).await;
    }
    broker.close().await.unwrap();
    remove(&exchange).await;
}
