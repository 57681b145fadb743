//! Publishes that wait for replicas. Names are promises.

mod support;

use eventbus::PublishError;
use eventbus::broker::Broker;
use eventbus_redis::RedisBroker;
use std::sync::Arc;
use std::time::Duration;
use support::several::{Node, pair};
use support::{event, publish};

fn count(node: &Node) -> u64 {
    node.ask(&["XLEN", "eventbus:topic:order.placed"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_is_confirmed_once_as_many_replicas_have_it_as_are_asked_for() {
    let (primary, mut replica) = pair();
    let broker = RedisBroker::open(&format!("{}?replicas=1", primary.url())).await.unwrap();
    for number in 1..=50 {
        publish(&broker, event("order.placed", number)).await;
        assert_eq!(count(&replica), number);
    }
    replica.kill();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(Arc::new(event("order.placed", 51))).await }
    });
    primary.until("the primary has it", |node| count(node) == 51);
    // The server has waited for a replica more than once by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!publishing.is_finished(), "no replica has it");
    replica.resume();
    publishing.await.unwrap().unwrap();
    assert_eq!((count(&primary), count(&replica)), (51, 51), "it was stored once");
    broker.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_no_replica_takes_in_time_is_unconfirmed_and_says_so() {
    for window in ["2m", "0s"] {
        let (primary, mut replica) = pair();
        let options = format!("replicas=1&publish_timeout=1s&response_timeout=2s&duplicate_window={window}");
        let broker = RedisBroker::open(&format!("{}?{options}", primary.url())).await.unwrap();
        publish(&broker, event("order.placed", 1)).await;
        replica.kill();
        let error = broker.publish(Arc::new(event("order.placed", 2))).await.unwrap_err();
        assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
        assert!(error.to_string().contains("1 of its replicas have it (`replicas`)"), "{error}");
        // Whoever waits for nobody goes on.
        let other = RedisBroker::open(&primary.url()).await.unwrap();
        publish(&other, event("order.placed", 3)).await;
        assert_eq!(count(&primary), 3);
    }
}

#[tokio::test]
async fn a_server_with_fewer_replicas_than_are_asked_for_is_refused() {
    let (primary, _replica) = pair();
    let error = RedisBroker::open(&format!("{}?replicas=2", primary.url())).await.unwrap_err().to_string();
    assert!(error.contains("with 2 replicas (`replicas`)") && error.contains("has 1"), "{error}");
}
