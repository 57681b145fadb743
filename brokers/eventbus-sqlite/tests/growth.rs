//! Growth: what does not grow with subscriptions, topics and readers that stay.

mod support;

use eventbus::{Bus, Envelope, Topic};
use eventbus_sqlite::Durability;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use support::{Log, Ping, publish_pings, settled, until};

/// A bus on the log that writes without syncs.
async fn bus(log: &Log) -> Bus {
    let lease = Duration::from_secs(1);
    let broker = log.broker_with(|settings| settings.durability(Durability::Off).lease(lease)).await;
    Bus::builder().without_subscriptions().broker(broker).await.unwrap()
}

/// Subscribes groups that count what they handle, all of them on pings.
async fn counting(bus: &Bus, groups: u64) -> Arc<AtomicU64> {
    let handled = Arc::new(AtomicU64::new(0));
    for number in 0..groups {
        let handled = Arc::clone(&handled);
        let count = move |_: Arc<Ping>| {
            handled.fetch_add(1, Relaxed);
            async {}
        };
        bus.on(count).group(format!("group-{number}")).await.unwrap();
    }
    handled
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_hundreds_of_subscriptions_listen_on_is_settled_when_all_have_handled_it() {
    let log = Log::new();
    let bus = bus(&log).await;
    let handled = counting(&bus, 300).await;
    bus.start().unwrap();
    // Publishers are answered before everybody is called, and nothing is settled before.
    for number in 1..=20 {
        bus.publish(&Ping { number }).await.unwrap();
        settled(&bus).await;
        assert_eq!(handled.load(Relaxed), 300 * number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_subscriptions_miss_nothing_that_two_processes_publish() {
    let log = Log::new();
    let (here, there) = (bus(&log).await, bus(&log).await);
    let handled = counting(&here, 200).await;
    here.start().unwrap();
    for number in 0..50 {
        let publisher = if number % 2 == 0 { &here } else { &there };
        publisher.publish(&Ping { number }).await.unwrap();
        there.publish_to("noise.made", &number).await.unwrap();
    }
    until("all is handled", async || handled.load(Relaxed) == 200 * 50).await;
    settled(&here).await;
    // None of them is left behind by what was not theirs.
    let groups = here.groups().unwrap();
    until("all have come to the end", async || {
        groups
            .list()
            .await
            .unwrap()
            .iter()
            .all(|group| group.cursor.is_some_and(|cursor| cursor.get() == 100))
    })
    .await;
    assert_eq!(handled.load(Relaxed), 200 * 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_made_up_at_run_time_are_all_delivered() {
    let log = Log::new();
    let bus = bus(&log).await;
    let (handled, sum) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (count, add) = (handled.clone(), sum.clone());
    bus.on_topic("user.>", move |delivery: eventbus::Delivery| {
        let number: u64 = serde_json::from_slice(delivery.envelope().payload().unwrap()).unwrap();
        assert_eq!(delivery.envelope().topic().as_str(), format!("user.{number}.changed"));
        count.fetch_add(1, Relaxed);
        add.fetch_add(number, Relaxed);
        async {}
    })
    .group("users")
    .await
    .unwrap();
    // More than are remembered, read from the file and not from memory.
    for from in (0..10_000u64).step_by(1_000) {
        let envelope = |number: u64| {
            Envelope::from_json(Topic::new(format!("user.{number}.changed")).unwrap(), &number).unwrap()
        };
        for result in bus.publish_envelopes((from..from + 1_000).map(envelope)).await {
            result.unwrap();
        }
    }
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!((handled.load(Relaxed), sum.load(Relaxed)), (10_000, (0..10_000).sum()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_is_cut_back_once_a_reader_that_stayed_has_gone() {
    let log = Log::new();
    let bus = bus(&log).await;
    let _handled = counting(&bus, 1).await;
    bus.start().unwrap();
    publish_pings(&bus, 0..1).await;
    let wal = log.path().with_file_name("log.db-wal");
    let size = || std::fs::metadata(&wal).unwrap().len();
    let reader = rusqlite::Connection::open(log.path()).unwrap();
    reader.execute_batch("begin; select count(*) from event").unwrap();
    let filler = "x".repeat(4 << 20);
    while size() < 80 << 20 {
        bus.publish_to("filler.stored", &filler).await.unwrap();
    }
    reader.execute_batch("rollback").unwrap();
    // Nothing more is published, but the lease is renewed.
    until("it is cut back", async || size() <= 64 << 20).await;
}
