//! Groups on the log: their names, their patterns, and what they have when nobody is there.

mod support;

use eventbus::broker::GroupState;
use eventbus::jiff::Timestamp;
use eventbus::{Bus, Delivery, State, subscribe};
use eventbus_sqlite::SqliteBrokerBuilder;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{Log, OrderPlaced, Ping, Seen, pings, publish_pings, settled, until};

#[tokio::test]
async fn a_closure_without_a_group_is_refused_since_its_source_line_moves() {
    let log = Log::new();
    let bus = log.bus().await;
    let error = bus.on_topic("order.>", |_| async {}).await.unwrap_err().to_string();
    for part in ["\"order.>\"", "tests/groups.rs", "SQLite", "`.group(\"…\")`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(bus.on(|_: Arc<Ping>| async {}).await.is_err());
    assert!(bus.groups().unwrap().list().await.unwrap().is_empty(), "and leaves nothing behind");
}

#[tokio::test]
async fn a_group_whose_pattern_is_changed_goes_on_from_its_cursor() {
    let log = Log::new();
    let publisher = log.bus().await;
    let handled = async |pattern: &str| {
        let bus = log.bus().await;
        let seen = Seen::new();
        let topics = seen.clone();
        let note = move |delivery: Delivery| {
            let topics = topics.clone();
            async move { topics.push(delivery.envelope().topic().to_string()) }
        };
        bus.on_topic(pattern, note).group("orders").await.unwrap();
        bus.start().unwrap();
        bus.settled().await.unwrap();
        bus.shutdown().await.unwrap();
        seen.sorted()
    };
    assert!(handled("order.placed").await.is_empty());
    publisher.publish_to("order.placed", &1).await.unwrap();
    publisher.publish_to("order.paid", &1).await.unwrap();
    assert_eq!(handled("order.*").await, ["order.paid", "order.placed"], "nothing is missed by the change");
    publisher.publish_to("order.placed", &2).await.unwrap();
    publisher.publish_to("order.paid", &2).await.unwrap();
    assert_eq!(handled("order.paid").await, ["order.paid"]);
    let groups = publisher.groups().unwrap().list().await.unwrap();
    let groups: Vec<_> = groups.iter().map(|state| (state.pattern.as_str(), state.backlog)).collect();
    assert_eq!(groups, [("order.*", 1), ("order.paid", 0)]);
    assert_eq!(handled("order.placed").await, ["order.placed"], "what was left over");
    publisher.publish_to("order.placed", &3).await.unwrap();
    assert_eq!(handled("order.>").await, ["order.placed"], "each from where it was");
    assert_eq!(publisher.groups().unwrap().list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_published_while_a_process_has_no_subscription_is_delivered_to_the_next_one() {
    let log = Log::new();
    let bus = log.bus().await;
    let mut all = Vec::new();
    for round in 0..3u64 {
        let seen = Seen::new();
        let numbers = seen.clone();
        let note = move |ping: Arc<Ping>| {
            let numbers = numbers.clone();
            async move { numbers.push(ping.number) }
        };
        let handle = bus.on(note).group("pings").await.unwrap();
        if round == 0 {
            bus.start().unwrap();
        }
        settled(&bus).await;
        // One is handled at once, one is published while the group is left, and one when nobody is there.
        publish_pings(&bus, round * 3..round * 3 + 1).await;
        settled(&bus).await;
        handle.stop().await;
        for number in [round * 3 + 1, round * 3 + 2] {
            publish_pings(&bus, number..number + 1).await;
        }
        all.extend(seen.all());
    }
    let seen = pings(&bus, "pings").await;
    settled(&bus).await;
    all.extend(seen.all());
    assert_eq!(all, (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_transaction_without_events_passes_over_none_that_another_process_has_stored() {
    let log = Log::new();
    // It looks for what others have stored in its transactions only.
    let settings = |settings: SqliteBrokerBuilder| settings.poll_interval(Duration::from_secs(60 * 60));
    let here = log.broker_with(settings).await;
    let here = Bus::builder().without_subscriptions().broker(here).await.unwrap();
    let there = log.bus().await;
    let seen = pings(&here, "pings").await;
    here.start().unwrap();
    publish_pings(&here, 0..1).await;
    settled(&here).await;
    publish_pings(&there, 1..2).await;
    here.on(|_: Arc<OrderPlaced>| async {}).group("another").await.unwrap();
    until("the ping from elsewhere is handled", async || seen.len() == 2).await;
    // So it is at the end, where the group is moved on to the end of the log.
    publish_pings(&there, 2..3).await;
    here.shutdown().await.unwrap();
    let again = log.bus().await;
    let later = pings(&again, "pings").await;
    again.start().unwrap();
    settled(&again).await;
    assert_eq!([seen.all(), later.all()].concat(), [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_whose_groups_others_handle_is_settled_when_they_are_done() {
    let log = Log::new();
    let (first, second) = (log.bus().await, log.bus().await);
    let here = pings(&first, "pings").await;
    pings(&second, "pings").await;
    first.start().unwrap();
    second.start().unwrap();
    publish_pings(&second, 0..500).await;
    second.settled().await.unwrap();
    assert_eq!(here.len(), 500);
}

#[tokio::test]
async fn since_when_nobody_handles_a_group_is_told() {
    let log = Log::new();
    let looking = log.bus().await;
    let state = async || looking.groups().unwrap().list().await.unwrap().remove(0);
    let began = Timestamp::now();
    let bus = log.bus().await;
    pings(&bus, "pings").await;
    bus.start().unwrap();
    let live = state().await;
    // Of times the log keeps the milliseconds.
    let lately = |state: &GroupState| {
        let last = state.last_active.expect("it is known");
        last.as_millisecond() >= began.as_millisecond() && last <= Timestamp::now()
    };
    assert!(live.active && lately(&live), "{live:?} since {began}");
    bus.shutdown().await.unwrap();
    let left = state().await;
    assert!(!left.active && lately(&left), "{left:?} since {began}");
    until("it is longer ago", async || Timestamp::now() > left.last_active.unwrap()).await;
    assert_eq!(state().await.last_active, left.last_active, "whoever looks is no sign of life");
}

/// A read model: how many pings there were.
struct Count(Arc<AtomicUsize>);

#[subscribe(group = "projection")]
async fn count(_ping: Ping, State(count): State<Count>) {
    count.0.fetch_add(1, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_is_rebuilt_beside_the_live_one_and_swapped() {
    let log = Log::new();
    let (old, new) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let builder = Bus::builder().state(Count(Arc::clone(&old))).only([count::SUBSCRIBER]);
    let bus = builder.broker(log.broker().await).await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..3_000).await;
    bus.settled().await.unwrap();
    old.store(0, Ordering::SeqCst);
    let publishing = bus.clone();
    let meanwhile = tokio::spawn(async move { publish_pings(&publishing, 3_000..4_000).await });
    let (swapped, model) = (Arc::clone(&old), Arc::clone(&new));
    let report = bus
        .rebuild(count::SUBSCRIBER)
        .state(Count(Arc::clone(&new)))
        .swap(async move || {
            swapped.store(model.load(Ordering::SeqCst), Ordering::SeqCst);
            Ok::<(), eventbus::BoxError>(())
        })
        .await
        .unwrap();
    meanwhile.await.unwrap();
    bus.settled().await.unwrap();
    assert!(report.events >= 3_000);
    assert_eq!(old.load(Ordering::SeqCst), 4_000, "each event once: in the rebuilt model, or live after it");
}
