//! Order by key, and parallelism for everything else.

mod support;

use eventbus::{Delivery, Outcome};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{OrderPlaced, Ping, Seen, bus, bus_with};
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn events_with_one_key_are_handled_in_publish_order_under_concurrency_and_retries() {
    let (bus, broker) = bus().await;
    let done = Seen::new();
    let seen = done.clone();
    bus.on_topic("order.placed", move |delivery: Delivery| {
        let seen = seen.clone();
        async move {
            let order = delivery.arc_event::<OrderPlaced>()?;
            sleep(Duration::from_millis(fastrand::u64(0..20))).await;
            if delivery.attempt() <= order.number as u32 % 3 {
                return Err(eventbus::BoxError::from("not yet"));
            }
            seen.push((order.customer, order.number));
            Ok(())
        }
    })
    .concurrency(8)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..400 {
        bus.publish(&OrderPlaced { customer: number % 16, number }).await.unwrap();
    }
    broker.settled().await;
    let mut by_customer: HashMap<u64, Vec<u64>> = HashMap::new();
    for (customer, number) in done.all() {
        by_customer.entry(customer).or_default().push(number);
    }
    assert_eq!(by_customer.values().map(Vec::len).sum::<usize>(), 400);
    for (customer, numbers) in by_customer {
        assert!(numbers.is_sorted(), "customer {customer}: {numbers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_event_of_a_key_is_not_delivered_while_one_is_open() {
    let (bus, broker) = bus().await;
    let open = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&open);
    bus.on(move |_: Arc<OrderPlaced>| {
        let open = Arc::clone(&seen);
        async move {
            assert_eq!(open.fetch_add(1, Ordering::SeqCst), 0, "two events of one key at once");
            sleep(Duration::from_millis(5)).await;
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .concurrency(4)
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..50 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    broker.settled().await;
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn different_keys_and_events_without_a_key_run_in_parallel_up_to_the_concurrency() {
    let (bus, broker) = bus().await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        move |_: Delivery| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, Ordering::SeqCst);
            }
        }
    };
    bus.on_topic(">", handler).concurrency(7).await.unwrap();
    bus.start().unwrap();
    let start = Instant::now();
    for number in 0..35 {
        bus.publish(&OrderPlaced { customer: number, number }).await.unwrap();
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(most.load(Ordering::SeqCst), 7);
    assert_eq!(start.elapsed(), Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_parked_retry_holds_no_worker_and_no_other_key() {
    let (bus, broker) = bus().await;
    let done = Seen::new();
    let (seen, start) = (done.clone(), Instant::now());
    bus.on_topic("order.placed", move |delivery: Delivery| {
        let seen = seen.clone();
        async move {
            let order = delivery.arc_event::<OrderPlaced>().unwrap();
            if order.customer == 0 && delivery.attempt() == 1 {
                return Outcome::RetryAfter(Duration::from_secs(3600));
            }
            seen.push((order.customer, start.elapsed()));
            Outcome::Ack
        }
    })
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    for customer in [0, 0, 1, 2] {
        bus.publish(&OrderPlaced { customer, number: 0 }).await.unwrap();
    }
    broker.settled().await;
    let hour = Duration::from_secs(3600);
    assert_eq!(done.all(), [(1, Duration::ZERO), (2, Duration::ZERO), (0, hour), (0, 2 * hour)]);
}

#[tokio::test(start_paused = true)]
async fn a_poison_event_is_a_dead_letter_after_its_attempts_and_its_lane_goes_on() {
    let (bus, broker) = bus().await;
    let done = Seen::new();
    let seen = done.clone();
    bus.on(move |order: Arc<OrderPlaced>| {
        let seen = seen.clone();
        async move {
            if order.number == 0 {
                return Err("poison");
            }
            seen.push(order.number);
            Ok(())
        }
    })
    .retries(2)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(done.all(), [1, 2]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters.len(), letters[0].1.attempts), (1, 3));
}

/// Handlers that compute and never await must run on several threads, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_never_await_run_in_parallel_on_several_threads() {
    let (bus, broker) = bus().await;
    let meeting = Arc::new(std::sync::Barrier::new(2));
    let seen = Arc::clone(&meeting);
    bus.on(move |_: Arc<Ping>| {
        let meeting = Arc::clone(&seen);
        // Blocks its thread until another handler of the same subscription does so, too.
        async move {
            let _ = meeting.wait();
        }
    })
    .concurrency(2)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..6 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(60), broker.settled()).await.expect("two handlers run at once");
}

/// How long to wait for what takes no time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Publishes `stuck` events of customers from 1,000 on, `each` of one customer, then one of customer 1, and waits until
/// that one is handled. What a handler does with the stuck ones is up to `attempt`.
///
/// The clock stands still meanwhile, so none of them becomes unstuck: it goes ahead where the runtime has nothing to do,
/// also while the watchdog, which goes by the real one, is about to call a worker.
async fn is_handled_behind<F>(
    builder: eventbus::bus::BusBuilder,
    stuck: u64,
    each: u64,
    attempt: impl Fn(u64) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Outcome> + Send,
{
    let still = tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let (bus, _broker) = bus_with(builder).await;
    let (handled, start, since) = (Arc::new(AtomicUsize::new(0)), Instant::now(), std::time::Instant::now());
    let count = Arc::clone(&handled);
    bus.on(move |order: Arc<OrderPlaced>| {
        let (count, attempt) = (Arc::clone(&count), attempt.clone());
        async move {
            if order.customer == 1 {
                count.fetch_add(1, Ordering::SeqCst);
                return Outcome::Ack;
            }
            attempt(order.number).await
        }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..stuck {
        bus.publish(&OrderPlaced { customer: 1_000 + number / each, number }).await.unwrap();
    }
    bus.publish(&OrderPlaced { customer: 1, number: stuck }).await.unwrap();
    while handled.load(Ordering::SeqCst) == 0 {
        assert!(since.elapsed() < PATIENCE, "it waits behind {stuck} others");
        tokio::task::yield_now().await;
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    still.abort();
}

async fn later(_number: u64) -> Outcome {
    Outcome::RetryAfter(Duration::from_secs(30))
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_behind_a_poison_event_of_their_key_keep_no_other_key_waiting() {
    for (in_flight, behind) in [(8, 100), (8, 5_000), (1_024, 1_100), (1_024, 5_000), (1_024, 15_000)] {
        let builder = eventbus::Bus::builder().in_flight(in_flight);
        is_handled_behind(builder, behind, behind, later).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_slow_keeps_no_other_key_waiting() {
    let slowly = |_| async {
        sleep(Duration::from_millis(100)).await;
        Outcome::Ack
    };
    for in_flight in [8, 1_024] {
        let builder = eventbus::Bus::builder().in_flight(in_flight).concurrency(2);
        is_handled_behind(builder, 2_000, 2_000, slowly).await;
    }
}

#[tokio::test(start_paused = true)]
async fn retries_that_wait_keep_no_other_key_waiting_however_many_they_are() {
    for (in_flight, parked) in [(8, 100), (1_024, 5_000)] {
        let builder = eventbus::Bus::builder().in_flight(in_flight);
        is_handled_behind(builder, parked, 1, later).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_holds_no_more_than_its_limits() {
    let (bus, broker) = bus_with(eventbus::Bus::builder().in_flight(8).held_back(12)).await;
    let failed = Seen::new();
    let seen = failed.clone();
    bus.on(move |ping: Arc<Ping>| {
        let seen = seen.clone();
        async move {
            seen.push(ping.number);
            Outcome::RetryAfter(Duration::from_secs(60))
        }
    })
    .retries(1)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..50 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    sleep(Duration::from_secs(30)).await;
    let held = failed.len();
    assert!((12..=20).contains(&held), "the other events wait at the broker while {held} are parked");
    broker.settled().await;
    assert_eq!(failed.len(), 100);
}
