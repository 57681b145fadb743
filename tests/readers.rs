//! Subscriptions that share a group, and those that end while others go on.

mod support;

use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Error, Outcome};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use support::{OrderPlaced, Ping, Seen, bus_with};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

const NONE: [&str; 0] = [];

#[tokio::test]
async fn what_a_reader_gives_back_keeps_its_order() {
    for stop in [true, false] {
        let broker = MemoryBroker::new();
        let first = Bus::builder().only(NONE).broker(broker.clone()).await.unwrap();
        let second = Bus::builder().only(NONE).broker(broker.clone()).await.unwrap();
        let (entered, pass) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (enter, held) = (Arc::clone(&entered), Arc::clone(&pass));
        let stopping = first.on(move |_: Arc<OrderPlaced>| {
            let (enter, held) = (Arc::clone(&enter), Arc::clone(&held));
            async move {
                enter.add_permits(1);
                drop(held.acquire().await);
            }
        });
        let stopping = stopping.group("g").await.unwrap();
        let seen = Seen::new();
        let noted = seen.clone();
        let note = move |order: Arc<OrderPlaced>| {
            noted.push((order.customer, order.number));
            async {}
        };
        second.on(note).group("g").concurrency(1).await.unwrap();
        first.start().unwrap();
        for number in 0..30 {
            first.publish(&OrderPlaced { customer: number % 3, number }).await.unwrap();
        }
        // One of each customer is at work, the others wait in their lanes.
        drop(entered.acquire_many(3).await.unwrap());
        let ended = tokio::spawn(async move {
            if stop {
                stopping.stop().await;
            } else {
                drop(stopping);
                first.shutdown().await.unwrap();
            }
        });
        tokio::task::yield_now().await;
        second.publish(&OrderPlaced { customer: 0, number: 30 }).await.unwrap();
        pass.add_permits(3);
        if stop {
            ended.await.unwrap();
            second.start().unwrap();
        } else {
            // The backlog is handled before the end, by whoever reads the queue.
            second.start().unwrap();
            pass.add_permits(30);
            ended.await.unwrap();
        }
        broker.settled().await;
        for customer in 0..3 {
            let all = seen.all();
            let of_customer = all.iter().filter(|(other, _)| *other == customer).map(|(_, number)| *number);
            assert!(of_customer.is_sorted(), "{all:?}");
        }
        if stop {
            assert_eq!(seen.len(), 28, "all but the three that were at work");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_subscriptions_that_are_made_at_once_with_one_group_and_topic_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for url in ["memory:".to_owned(), format!("sqlite:{}", folder.path().join("log.db").display())] {
        let bus = Bus::builder().only(NONE).connect(&url).await.unwrap();
        for round in 0..20 {
            let mut both = tokio::task::JoinSet::new();
            for pattern in ["ping.sent", "ping.*"] {
                let bus = bus.clone();
                let group = format!("same-{round}");
                both.spawn(async move { bus.on_topic(pattern, |_| async {}).group(group).await });
            }
            let answers = both.join_all().await;
            let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
            let [Error::Startup(error)] = refused.as_slice() else { panic!("{url}: {refused:?}") };
            assert!(error.to_string().contains(&format!("same-{round}")), "{error}");
        }
        assert_eq!(bus.subscriptions().len(), 20);
    }
}

#[tokio::test]
async fn a_group_is_free_again_where_the_opening_of_its_subscription_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let bus = Bus::builder().only(NONE).connect(&url).await.unwrap();
    loop {
        let mut opening = std::pin::pin!(bus.on(|_: Arc<Ping>| async {}).group("g").into_future());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(opened) = opening.as_mut().poll(&mut context) {
            // The log's own thread has answered already, which is rare: once more.
            opened.unwrap().stop().await;
            continue;
        }
        let second = bus.on(|_: Arc<Ping>| async {}).group("g").await;
        assert!(matches!(second, Err(Error::Startup(_))), "it is being opened: {second:?}");
        break;
    }
    bus.on(|_: Arc<Ping>| async {}).group("g").await.expect("the group is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_published_again_while_its_group_ends_is_handled_or_kept() {
    for _ in 0..200 {
        let (bus, broker) = bus_with(Bus::builder()).await;
        let handle =
            bus.on(|_: Arc<Ping>| async { Outcome::Reject("never".into()) }).group("g").await.unwrap();
        bus.start().unwrap();
        bus.publish(&Ping { number: 1 }).await.unwrap();
        broker.settled().await;
        let letters = bus.dead_letters().unwrap();
        let (id, _) = letters.list().await.unwrap()[0].clone();
        let stop = tokio::spawn(handle.stop());
        let again = letters.republish(&id, None).await;
        stop.await.unwrap();
        broker.settled().await;
        let kept = letters.list().await.unwrap().len();
        match again {
            Ok(true) => assert!(kept <= 1),
            Err(_) => assert_eq!(kept, 1, "it was refused, and is gone"),
            Ok(false) => panic!("it was there"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_whose_stop_is_not_waited_for_ends_all_the_same() {
    let broker = MemoryBroker::new();
    let bus = Bus::builder().only(NONE).broker(broker.clone()).await.unwrap();
    let slow = bus.on(|_: Arc<Ping>| sleep(Duration::from_secs(5))).group("slow").await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    timeout(Duration::from_secs(1), slow.stop()).await.unwrap_err();
    sleep(Duration::from_secs(10)).await;
    assert!(bus.subscriptions().is_empty());
    bus.publish(&Ping { number: 2 }).await.unwrap();
    timeout(Duration::from_secs(1), broker.settled()).await.expect("nobody has to handle it");
    bus.on(|_: Arc<Ping>| async {}).group("slow").await.expect("the group is free again");
}
