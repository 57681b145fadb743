//! The server is out of reach for a while. The one test of its binary, since it measures the time that the process computes.

mod support;

use eventbus::broker::{Broker, Connection};
use eventbus_redis::RedisBroker;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::cpu::cpu_time;
use support::proxy::Proxy;
use support::{Place, ack, event, number, publish, receive, subscribe, until};

#[tokio::test]
async fn an_outage_is_known_costs_no_processor_time_and_ends_within_ten_seconds_of_the_return() {
    let place = Place::new();
    let proxy = Proxy::to(&place.url).await;
    let broker = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).open().await.unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    publish(&broker, event("order.placed", 1)).await;
    ack(receive(&mut deliveries, 1).await.remove(0)).await;
    proxy.refuse(true);
    proxy.cut();
    until("the loss is known", async || matches!(broker.connection(), Connection::Lost { .. })).await;
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(Arc::new(event("order.placed", 2))).await }
    });
    let (begun, before) = (Instant::now(), cpu_time());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = cpu_time() - before;
    assert!(used < begun.elapsed() / 4, "{used:?} of {:?}", begun.elapsed());
    assert!(!publishing.is_finished(), "it is tried again");
    proxy.refuse(false);
    let back = Instant::now();
    publishing.await.unwrap().unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2);
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    until("the connection is known to be back", async || broker.connection() == Connection::Up).await;
}
