//! The health of a bus says whether each subscription gets on.

mod support;

use eventbus::broker::{Broker, BrokerFuture, Connection, GroupState, Groups};
use eventbus::bus::{Health, SubscriptionState};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::around::Around;
use tokio::sync::Semaphore;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "ping.sent", key = number)]
struct Ping {
    number: u64,
}

/// A bus with one subscription that waits for a permit for each event.
async fn waiting(broker: impl Broker) -> (Bus, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let gate = Arc::clone(&permits);
    bus.on(move |_: Arc<Ping>| {
        let gate = Arc::clone(&gate);
        async move { gate.acquire().await.unwrap().forget() }
    })
    .group("pings")
    .timeout(Duration::from_secs(5))
    .retries(1)
    .backoff(eventbus::Backoff::new(Duration::from_secs(600), Duration::from_secs(600)))
    .await
    .unwrap();
    (bus, permits)
}

/// Waits until `reached`, which a test that hangs shows.
async fn until(reached: impl AsyncFn() -> bool) {
    while !reached().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn state(health: &Health) -> SubscriptionState {
    assert_eq!(health.subscriptions.len(), 1);
    health.subscriptions[0].state
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_stopped_then_idle_then_progressing_then_idle_again() {
    let (bus, permits) = waiting(MemoryBroker::new()).await;
    bus.publish(Ping { number: 1 }).await.unwrap();
    let health = bus.health().await;
    assert_eq!(state(&health), SubscriptionState::Stopped);
    assert_eq!(health.subscriptions[0].backlog, Some(1), "it is in the queue of the broker");
    assert!(!health.is_healthy(), "nobody handles what is published");
    bus.start().unwrap();
    until(async || state(&bus.health().await) == SubscriptionState::Progressing).await;
    let health = bus.health().await;
    assert!(health.is_healthy());
    assert_eq!((health.subscriptions[0].backlog, health.subscriptions[0].last_handled), (Some(1), None));
    permits.add_permits(1);
    until(async || state(&bus.health().await) == SubscriptionState::Idle).await;
    let health = bus.health().await;
    assert!(health.subscriptions[0].last_handled.is_some() && health.subscriptions[0].backlog == Some(0));
    bus.shutdown().await.unwrap();
    assert!(!bus.health().await.is_healthy());
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_waits_is_parked_and_no_work() {
    let (bus, _permits) = waiting(MemoryBroker::new()).await;
    bus.start().unwrap();
    bus.publish(Ping { number: 1 }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let health = bus.health().await;
    assert_eq!(state(&health), SubscriptionState::Idle, "its time limit has ended the first attempt");
    assert_eq!((health.subscriptions[0].backlog, health.subscriptions[0].parked), (Some(1), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_beyond_its_limit_is_a_stall() {
    let bus = Bus::builder().without_subscriptions().drain(Duration::ZERO).connect("memory:").await.unwrap();
    let (begun, hold) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (tell, held) = (Arc::clone(&begun), Arc::clone(&hold));
    bus.on(move |_: Arc<Ping>| {
        let (tell, held) = (Arc::clone(&tell), Arc::clone(&held));
        async move {
            tell.store(true, Ordering::Release);
            // Nothing can end it, as nothing can end a loop that computes.
            while held.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    })
    .group("pings")
    .timeout(Duration::from_millis(1))
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(Ping { number: 1 }).await.unwrap();
    until(async || begun.load(Ordering::Acquire)).await;
    assert_eq!(state(&bus.health().await), SubscriptionState::Progressing);
    let stalls = async || state(&bus.health().await) == SubscriptionState::Stalled;
    tokio::time::timeout(Duration::from_secs(60), until(stalls)).await.expect("it is seen ten seconds later");
    hold.store(false, Ordering::Release);
    until(async || state(&bus.health().await) == SubscriptionState::Idle).await;
}

fn far(connection: Connection) -> Around {
    Around::new("far", MemoryBroker::new()).connection(connection)
}

/// What a broker answers that is asked for its groups.
enum Answer {
    Nothing,
    Refusal,
    Groups(Vec<GroupState>),
}

impl Groups for Answer {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        match self {
            Self::Nothing => BrokerFuture::new(std::future::pending()),
            Self::Refusal => BrokerFuture::ready(Err(BrokerError::new("you may not list queues"))),
            Self::Groups(groups) => BrokerFuture::ready(Ok(groups.clone())),
        }
    }

    fn remove(&self, _: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(false))
    }
}

#[tokio::test(start_paused = true)]
async fn a_backlog_that_the_broker_does_not_say_is_unknown_and_no_idleness() {
    for answer in [Answer::Nothing, Answer::Refusal, Answer::Groups(Vec::new())] {
        let (bus, permits) = waiting(far(Connection::Up).groups(answer)).await;
        bus.start().unwrap();
        let asked = tokio::time::Instant::now();
        let health = bus.health().await;
        assert!(asked.elapsed() < Duration::from_secs(3), "a probe does not wait for long");
        assert_eq!((state(&health), health.subscriptions[0].backlog), (SubscriptionState::Unknown, None));
        assert!(!health.is_healthy(), "a stall may hide behind it");
        let json = serde_json::to_value(&health).unwrap();
        assert_eq!(json["subscriptions"][0]["state"], "unknown");
        assert_eq!(json["subscriptions"][0]["backlog"], serde_json::Value::Null);
        permits.add_permits(1);
        bus.publish(Ping { number: 1 }).await.unwrap();
        until(async || bus.health().await.subscriptions[0].last_handled.is_some()).await;
        let health = bus.health().await;
        assert_eq!((state(&health), health.subscriptions[0].backlog), (SubscriptionState::Progressing, None));
        assert!(health.is_healthy(), "an attempt has just ended");
        bus.shutdown().await.unwrap();
    }
    let mut told = GroupState::new("pings", "ping.sent");
    let tells = |told: &GroupState| far(Connection::Up).groups(Answer::Groups(vec![told.clone()]));
    let (bus, _permits) = waiting(tells(&told)).await;
    bus.start().unwrap();
    let health = bus.health().await;
    assert_eq!((state(&health), health.subscriptions[0].backlog), (SubscriptionState::Idle, Some(0)));
    told.backlog = 1;
    told.oldest = Some("2026-01-01T00:00:00Z".parse().unwrap());
    let (bus, _permits) = waiting(tells(&told)).await;
    bus.start().unwrap();
    assert_eq!(state(&bus.health().await), SubscriptionState::Stalled, "it does not arrive");
}

#[tokio::test]
async fn a_lost_connection_is_told_with_its_time_and_its_reason_also_as_json() {
    let since = "2026-01-01T00:00:00Z".parse().unwrap();
    let lost = Connection::Lost { since, error: "refused".to_owned() };
    let (bus, _permits) = waiting(far(lost)).await;
    bus.start().unwrap();
    let health = bus.health().await;
    assert!(!health.is_healthy());
    let json = serde_json::to_value(&health).unwrap();
    let expected = serde_json::json!({
        "broker": "far",
        "closed": false,
        "connection": { "state": "lost", "since": "2026-01-01T00:00:00Z", "error": "refused" },
        "subscriptions": [{
            "group": "pings", "pattern": "ping.sent", "state": "connecting",
            "backlog": null, "parked": 0, "oldest_seconds": null, "last_handled": null,
        }],
    });
    assert_eq!(json, expected);
}

#[tokio::test]
async fn a_server_that_takes_less_is_told_of_and_makes_no_process_unhealthy() {
    let since = "2026-01-01T00:00:00Z".parse().unwrap();
    let slowed = Connection::Slowed { since, error: "too many calls".to_owned() };
    let (bus, _permits) = waiting(far(slowed)).await;
    bus.start().unwrap();
    let health = bus.health().await;
    assert!(health.is_healthy(), "begun again, it would get the same answer");
    assert_eq!(state(&health), SubscriptionState::Idle);
    assert_eq!(health.subscriptions[0].backlog, None, "this broker keeps no account of it");
    let json = serde_json::to_value(&health).unwrap();
    let expected = serde_json::json!({
        "state": "slowed", "since": "2026-01-01T00:00:00Z", "error": "too many calls",
    });
    assert_eq!(json["connection"], expected);
}
