//! One subscription changes nothing for another.

mod support;

use eventbus::broker::FailureKind;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Ping, Seen, bus, pings};

#[tokio::test(start_paused = true)]
async fn a_failing_subscriber_does_not_delay_the_others() {
    let (bus, broker) = bus().await;
    let (healthy, start) = (Seen::new(), tokio::time::Instant::now());
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("always") }).group("failing").await.unwrap();
    let seen = healthy.clone();
    bus.on(move |ping: Arc<Ping>| {
        let seen = seen.clone();
        async move { seen.push((ping.number, start.elapsed())) }
    })
    .group("healthy")
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(healthy.len(), 20);
    assert!(healthy.all().iter().all(|(_, after)| after.is_zero()), "{:?}", healthy.all());
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_subscriber_hurts_nobody_and_its_event_is_kept() {
    let (bus, broker) = bus().await;
    bus.on(|ping: Arc<Ping>| async move {
        if ping.number == 1 {
            panic!("number {}", ping.number)
        }
    })
    .group("panicking")
    .retries(0)
    .await
    .unwrap();
    let healthy = pings(&bus, "healthy").await;
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(healthy.all(), [0, 1, 2]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let [(_, letter)] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.kind, letter.reason.as_str()), (FailureKind::Panicked, "number 1"));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_never_finishes_holds_up_only_itself_and_times_out() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| pending::<()>())
        .group("stuck")
        .timeout(Duration::from_secs(5))
        .retries(1)
        .await
        .unwrap();
    let healthy = pings(&bus, "healthy").await;
    bus.start().unwrap();
    let start = tokio::time::Instant::now();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(healthy.all(), [1]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters[0].1.kind, letters[0].1.attempts), (FailureKind::TimedOut, 2));
    // Two attempts of 5 s, and one delay of 100 to 200 ms between them.
    assert!((10_100..10_500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_panics_are_ten_thousand_dead_letters_and_nothing_else() {
    std::panic::set_hook(Box::new(|_| {}));
    let (bus, broker) = bus().await;
    bus.on(|ping: Arc<Ping>| async move { assert!(ping.number > u64::MAX - 1, "again") })
        .group("panicking")
        .retries(0)
        .await
        .unwrap();
    bus.start().unwrap();
    for number in 0..10_000 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let _ = std::panic::take_hook();
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 10_000);
    bus.shutdown().await.unwrap();
}

/// A handler that needs its events in time, though whoever publishes goes on to block the thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_blocks_its_thread_does_not_keep_the_handler_from_running() {
    let (bus, _broker) = bus().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    bus.on(move |ping: Arc<Ping>| {
        let sender = sender.clone();
        async move { sender.send(ping.number).unwrap() }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    let receiver = Arc::new(Mutex::new(receiver));
    // Once with a worker that is new, then with one that sleeps, then with one that took the place of a late one.
    for number in 0..3 {
        let (bus, receiver) = (bus.clone(), Arc::clone(&receiver));
        let publishing = tokio::spawn(async move {
            bus.publish(&Ping { number }).await.unwrap();
            let handled = receiver.lock().unwrap().recv_timeout(Duration::from_secs(60));
            assert_eq!(handled, Ok(number), "the handler waits for the thread of its publisher");
        });
        publishing.await.unwrap();
    }
    bus.shutdown().await.unwrap();
}

/// Spends its budget in each poll, as a handler does that reads from a busy channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_spends_its_budget_in_each_poll_is_timed_out_all_the_same() {
    let (bus, broker) = bus().await;
    let limit = Duration::from_millis(200);
    bus.on(|ping: Arc<Ping>| async move {
        while ping.number > 0 {
            tokio::task::consume_budget().await;
        }
    })
    .group("busy")
    .timeout(limit)
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), broker.settled()).await.expect("it is timed out");
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters[0].1.kind, FailureKind::TimedOut);
}
