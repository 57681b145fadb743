//! What an outcome means: ack, retry, reject.

mod support;

use eventbus::broker::FailureKind;
use eventbus::{Backoff, BoxError, Bus, Delivery, Outcome, Permanent};
use std::sync::Arc;
use std::time::Duration;
use support::{Ping, Seen, bus, bus_with};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn delays_grow_are_never_shorter_than_asked_and_at_most_twice_as_long() {
    let (bus, broker) = bus().await;
    let attempts = Seen::new();
    let seen = attempts.clone();
    bus.on_topic("ping.sent", move |delivery: Delivery| {
        let seen = seen.clone();
        async move {
            seen.push((delivery.attempt(), Instant::now()));
            Err::<(), _>("no")
        }
    })
    .retries(5)
    .backoff(Backoff::parse("100ms..1s"))
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let attempts = attempts.all();
    assert_eq!(attempts.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    for (pair, asked) in attempts.windows(2).zip([100, 200, 400, 800, 1_000]) {
        let waited = (pair[1].1 - pair[0].1).as_millis();
        // The clock of tokio counts whole milliseconds.
        assert!((asked..=2 * asked + 1).contains(&waited), "asked for {asked} ms, waited {waited} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn five_attempts_are_made_by_default() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("no") }).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters[0].1.attempts, letters[0].1.kind), (5, FailureKind::Failed));
}

#[tokio::test(start_paused = true)]
async fn the_bus_sets_the_default_and_the_subscription_has_the_last_word() {
    let (bus, broker) = bus_with(Bus::builder().retries(1)).await;
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("no") }).group("a").await.unwrap();
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("no") }).group("b").retries(2).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let mut attempts: Vec<_> = bus.dead_letters().unwrap().list().await.unwrap();
    attempts.sort_by_key(|(_, letter)| letter.group.clone());
    assert_eq!(attempts.iter().map(|(_, letter)| letter.attempts).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_event_is_given_up_at_once() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async { Outcome::Reject("no such account".into()) })
        .group("outcome")
        .await
        .unwrap();
    let permanent = |_: Arc<Ping>| async { Err::<(), BoxError>(Permanent::new("closed").into()) };
    bus.on(permanent).group("permanent").await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters.len(), 2);
    for (_, letter) in letters {
        assert_eq!((letter.attempts, letter.kind), (1, FailureKind::Rejected), "{letter:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_can_choose_the_time_of_its_next_attempt() {
    let (bus, broker) = bus().await;
    let start = Instant::now();
    bus.on_topic("ping.sent", |delivery: Delivery| async move {
        if delivery.attempt() == 1 { Outcome::RetryAfter(Duration::from_secs(90)) } else { Outcome::Ack }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(start.elapsed(), Duration::from_secs(90));
}

#[tokio::test(start_paused = true)]
async fn asking_for_another_time_does_not_make_attempts_endless() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async { Outcome::RetryAfter(Duration::from_millis(1)) }).retries(3).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap()[0].1.attempts, 4);
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_attempt_is_dropped_within_a_tenth_of_its_limit() {
    struct OnDrop(Seen<Instant>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.push(Instant::now());
        }
    }

    let (bus, broker) = bus().await;
    let dropped = Seen::new();
    let (seen, start) = (dropped.clone(), Instant::now());
    bus.on(move |_: Arc<Ping>| {
        let dropped = OnDrop(seen.clone());
        async move {
            let _dropped = dropped;
            std::future::pending::<()>().await;
        }
    })
    .timeout(Duration::from_secs(10))
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let after = dropped.all()[0] - start;
    assert!((10.0..=11.0).contains(&after.as_secs_f64()), "{after:?}");
}
