//! Amazon is out of reach, slow, or has others who take what is ours. Names are promises.

mod support;

use eventbus::broker::{Broker, Connection};
use eventbus::{Backoff, Bus, Delivery, PublishError};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::servers::Server;
use support::{
    PATIENCE, ack, connect, event, failure, number, prefix, receive, request, server, until, url, url_at,
};

/// What a bus has handled.
type Handled = Arc<Mutex<Vec<u64>>>;

async fn handling(bus: &Bus, topic: &str) -> Handled {
    let handled = Handled::default();
    let noted = Arc::clone(&handled);
    let handle = move |delivery: Delivery| {
        let number = serde_json::from_slice(delivery.envelope().payload().unwrap()).unwrap();
        noted.lock().unwrap().push(number);
        async {}
    };
    let topic = eventbus::Topic::new(topic).unwrap();
    bus.on_topic(&topic, handle)
        .group("mail")
        .backoff(Backoff::new(Duration::ZERO, Duration::ZERO))
        .await
        .unwrap();
    bus.start_quietly().unwrap();
    handled
}

async fn bus(url: &str) -> Bus {
    let broker = connect(url).await;
    Bus::builder().without_subscriptions().drain(Duration::from_secs(5)).broker(broker).await.unwrap()
}

#[tokio::test]
async fn nothing_confirmed_is_lost_while_connections_break_under_load() {
    let (proxy, prefix) = (Proxy::to(&server()).await, prefix());
    let bus = bus(&url_at(&proxy.url(), &prefix, true)).await;
    let handled = handling(&bus, "order.placed").await;
    let (confirmed, ends) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
    let publishers: Vec<_> = (0..10_u64)
        .map(|publisher| {
            let (bus, confirmed, ends) = (bus.clone(), Arc::clone(&confirmed), Arc::clone(&ends));
            tokio::spawn(async move {
                let mut number = publisher;
                while !ends.load(Ordering::SeqCst) {
                    let published = bus.publish_envelope((*event("order.placed", "k", number)).clone());
                    if published.await.is_ok() {
                        confirmed.lock().unwrap().insert(number);
                    }
                    number += 10;
                }
            })
        })
        .collect();
    let enough = |count: usize| {
        let confirmed = Arc::clone(&confirmed);
        async move { until("events are confirmed", async || confirmed.lock().unwrap().len() >= count).await }
    };
    for round in 1..=3 {
        enough(round * 40).await;
        proxy.cut();
        proxy.refuse(true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.refuse(false);
    }
    enough(200).await;
    ends.store(true, Ordering::SeqCst);
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let confirmed = confirmed.lock().unwrap().clone();
    until("all that was confirmed is handled", async || {
        let handled: BTreeSet<_> = handled.lock().unwrap().iter().copied().collect();
        confirmed.is_subset(&handled)
    })
    .await;
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_publish_that_is_not_confirmed_says_that_it_may_be_stored() {
    let (proxy, prefix) = (Proxy::to(&server()).await, prefix());
    let broker = connect(&format!("{}&publish_timeout=2s", url_at(&proxy.url(), &prefix, true))).await;
    let other = connect(&url(&prefix, true)).await;
    let mut deliveries = other.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    // What is answered is lost, after it was stored.
    proxy.mute(true);
    let begun = Instant::now();
    let lost = event("a.b", "k", 2);
    let error = broker.publish(Arc::clone(&lost)).await.unwrap_err();
    assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    proxy.cut();
    proxy.mute(false);
    // Published again with its id, it is stored once.
    broker.publish(lost).await.unwrap();
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let received = receive(&mut deliveries, 1).await.remove(0);
        numbers.push(number(&received));
        ack(received).await;
    }
    assert_eq!(numbers, [1, 2, 3]);
}

#[tokio::test]
async fn a_process_that_is_silent_for_too_long_loses_what_it_has_and_its_acks_are_refused() {
    let (proxy, prefix) = (Proxy::to(&server()).await, prefix());
    let short = |url: String| url.replace("visibility_timeout=10s", "visibility_timeout=2s");
    let silent = connect(&short(url_at(&proxy.url(), &prefix, true))).await;
    let mut deliveries = silent.subscribe(request("mail", "a.b")).await.unwrap();
    let other = connect(&short(url(&prefix, true))).await;
    for number in 1..=3 {
        other.publish(event("a.b", "k", number)).await.unwrap();
    }
    let first = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&first), 1);
    proxy.swallow(true);
    let mut others = other.subscribe(request("mail", "a.b")).await.unwrap();
    let mut numbers = Vec::new();
    for attempt in [2, 1, 1] {
        let received = receive(&mut others, 1).await.remove(0);
        assert!(received.receipt.attempt >= attempt, "{received:?}");
        numbers.push(number(&received));
        ack(received).await;
    }
    assert_eq!(numbers, [1, 2, 3]);
    assert!(!first.settler.holds(&first.receipt));
    let error = first.settler.ack(first.receipt).await.unwrap_err().to_string();
    assert!(error.contains("another process of the group `mail`"), "{error}");
}

#[tokio::test]
async fn a_shutdown_during_an_outage_ends_in_time_and_says_what_is_not_known() {
    let (proxy, prefix) = (Proxy::to(&server()).await, prefix());
    let bus = bus(&url_at(&proxy.url(), &prefix, true)).await;
    let handled = handling(&bus, "order.placed").await;
    bus.publish_envelope((*event("order.placed", "k", 1)).clone()).await.unwrap();
    until("it is handled", async || handled.lock().unwrap().len() == 1).await;
    proxy.swallow(true);
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish_envelope((*event("order.placed", "k", 2)).clone()).await }
    });
    tokio::task::yield_now().await;
    let begun = Instant::now();
    let _ = tokio::time::timeout(PATIENCE, bus.shutdown()).await.expect("it ends");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(publishing.await.unwrap().is_err());
}

#[tokio::test]
async fn a_server_that_stands_still_for_a_while_loses_nothing_that_was_confirmed() {
    let (server, prefix) = (Server::up("aws", "aws-faults-pause"), prefix());
    let bus = bus(&url_at(&server.url(), &prefix, true)).await;
    let handled = handling(&bus, "order.placed").await;
    let publish = |numbers: std::ops::Range<u64>| {
        let bus = bus.clone();
        tokio::spawn(async move {
            let mut confirmed = BTreeSet::new();
            for number in numbers {
                let published = bus.publish_envelope((*event("order.placed", "k", number)).clone());
                if published.await.is_ok() {
                    confirmed.insert(number);
                }
            }
            confirmed
        })
    };
    let before = publish(0..20).await.unwrap();
    server.order("pause");
    let during = publish(20..40);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!during.is_finished(), "nobody has confirmed them");
    server.order("continue");
    let confirmed: BTreeSet<_> = before.union(&during.await.unwrap()).copied().collect();
    until("all that was confirmed is handled", async || {
        let handled: BTreeSet<_> = handled.lock().unwrap().iter().copied().collect();
        confirmed.is_subset(&handled)
    })
    .await;
    assert_eq!(confirmed.len(), 40, "publishes wait for the server");
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn after_a_server_was_killed_with_all_that_it_had_publishes_go_on_and_readers_are_told() {
    let (server, prefix) = (Server::up("aws", "aws-faults-kill"), prefix());
    let broker = connect(&url_at(&server.url(), &prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    ack(receive(&mut deliveries, 1).await.remove(0)).await;
    server.order("kill");
    until("the loss is known", async || matches!(broker.connection(), Connection::Lost { .. })).await;
    server.order("restart");
    // An emulator that is killed has forgotten its queues, as Amazon has after somebody has removed them.
    let said = failure(&mut deliveries).await;
    assert!(said.contains("open the subscription anew"), "{said}");
    drop(deliveries);
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 2)).await.unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2);
}
