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

#[tokio::test(start_paused = true)]
async fn a_subscription_holds_no_more_than_its_in_flight_limit() {
    let (bus, broker) = bus_with(eventbus::Bus::builder().in_flight(8)).await;
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
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    sleep(Duration::from_secs(30)).await;
    assert_eq!(failed.len(), 8, "the other events wait at the broker while eight are parked");
    broker.settled().await;
    assert_eq!(failed.len(), 40);
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
