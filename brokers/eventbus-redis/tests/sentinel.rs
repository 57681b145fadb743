//! A bus behind sentinels: what becomes of it when these name another server.

mod support;

use eventbus::broker::{Broker, Connection};
use eventbus_redis::RedisBroker;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::several::Sentinels;
use support::{ack, event, number, publish, receive, receive_all, subscribe, until};

async fn open(sentinels: &Sentinels) -> RedisBroker {
    RedisBroker::open(&format!("{}?lease=2s", sentinels.url())).await.expect("the sentinels name a primary")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_goes_on_with_the_replica_that_takes_over_and_loses_nothing_that_was_replicated() {
    let mut sentinels = Sentinels::up();
    let broker = open(&sentinels).await;
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    let mut published = 0;
    // To the replica, and back again.
    for _ in 0..2 {
        let primary = sentinels.primary();
        for number in published..published + 200 {
            publish(&broker, event("order.placed", number).with_key("one")).await;
        }
        for received in receive_all(&mut deliveries, 200).await {
            assert_eq!(number(&received), published);
            published += 1;
            ack(received).await;
        }
        until("the acks are saved", async || broker.groups().unwrap().list().await.unwrap()[0].backlog == 0)
            .await;
        let server = &sentinels.servers[primary];
        server.until("the replica has everything", |node| node.ask::<u64>(&["WAIT", "1", "1000"]) == 1);
        sentinels.servers[primary].kill();
        let killed = Instant::now();
        let events =
            (published..published + 100).map(|number| Arc::new(event("order.paid", number).with_key("one")));
        let stored = broker.publish_all(events.collect()).await;
        assert!(stored.iter().all(Result::is_ok), "they are stored in the end: {stored:?}");
        // A second until the failure is seen, and an election.
        assert!(killed.elapsed() < Duration::from_secs(25), "{:?}", killed.elapsed());
        for received in receive_all(&mut deliveries, 100).await {
            assert_eq!(number(&received), published);
            published += 1;
            ack(received).await;
        }
        assert_eq!(broker.connection(), Connection::Up);
        sentinels.servers[primary].resume();
        let other = &sentinels.servers[1 - primary];
        other.until("it follows again", |node| node.ask::<u64>(&["WAIT", "1", "1000"]) == 1);
        sentinels.settle(primary);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_and_deliveries_go_on_through_a_failover_that_is_ordered() {
    let sentinels = Sentinels::up();
    let broker = open(&sentinels).await;
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move {
            for number in 0..1_000 {
                publish(&broker, event("order.placed", number).with_key("one")).await;
            }
        }
    });
    let (mut seen, mut ordered) = (BTreeSet::new(), false);
    while !publishing.is_finished() || seen.len() < 1_000 {
        for received in receive(&mut deliveries, 50).await {
            seen.insert(number(&received));
            let _ = received.settler.ack(received.receipt).await;
        }
        if seen.len() > 300 && !ordered {
            ordered = true;
            sentinels.fail_over();
        }
        // What was not replicated as the primary changed may be lost, and everything that came later is there.
        if publishing.is_finished() && seen.contains(&999) {
            break;
        }
    }
    publishing.await.expect("no publish is refused");
    assert!(seen.contains(&999) && seen.len() > 900, "{} of 1,000", seen.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sentinel_that_is_out_of_reach_is_passed_over() {
    let mut sentinels = Sentinels::up();
    let url = sentinels.url();
    sentinels.end_sentinel(0);
    let broker = RedisBroker::open(&url).await.expect("another one answers");
    publish(&broker, event("order.placed", 1)).await;
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_is_an_error_that_says_so() {
    let sentinels = Sentinels::up();
    let url = sentinels.url().replace("/shop", "/shopp?connect_timeout=1s");
    let error = RedisBroker::open(&url).await.expect_err("there is none").to_string();
    assert!(error.contains("no sentinel knows one of the name `shopp`"), "{error}");
}
