//! Mended payloads: what a dead letter was published again with is what its group gets from then on.

mod support;

use eventbus::broker::Offset;
use eventbus::bus::SubscriptionHandle;
use eventbus::{BoxError, Bus, Delivery};
use eventbus_sqlite::Retention;
use rusqlite::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Log, Ping, Seen, pings, publish_pings, settled, until};

const MENDED: u64 = 1_000;

/// Subscribes a group that refuses the ping with the number 2 and notes the others, with what is live and what is not.
async fn model(bus: &Bus) -> (SubscriptionHandle, Seen<(u64, bool)>) {
    let seen = Seen::new();
    let noted = seen.clone();
    let handle = bus
        .on_topic("ping.sent", move |delivery: Delivery| {
            let noted = noted.clone();
            async move {
                let number = delivery.event::<Ping>()?.number;
                if number == 2 {
                    return Err(BoxError::from("2 is not a number"));
                }
                noted.push((number, delivery.replayed()));
                Ok(())
            }
        })
        .group("model")
        .retries(0)
        .concurrency(1)
        .await
        .unwrap();
    (handle, seen)
}

/// A log of four pings, of which one was refused.
async fn refused(log: &Log) -> (Bus, Seen<(u64, bool)>) {
    let bus = log.bus().await;
    let (_handle, seen) = model(&bus).await;
    bus.start().unwrap();
    publish_pings(&bus, 0..4).await;
    settled(&bus).await;
    (bus, seen)
}

/// A log of four pings, of which one was refused and published again with another payload.
async fn mended(log: &Log) {
    let (bus, seen) = refused(log).await;
    let letters = bus.dead_letters().unwrap();
    let (id, letter) = letters.list().await.unwrap().remove(0);
    assert_eq!(letter.reason, "2 is not a number");
    let payload = format!("{{\"number\":{MENDED}}}");
    assert!(letters.republish(&id, Some(payload.into())).await.unwrap());
    settled(&bus).await;
    assert_eq!(seen.all().last(), Some(&(MENDED, false)));
    bus.shutdown().await.unwrap();
}

fn ask(log: &Log, sql: &str) -> Vec<String> {
    let connection = Connection::open(log.path()).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_replay_and_a_rebuild_have_the_mended_payload_in_the_place_of_the_event() {
    let log = Log::new();
    mended(&log).await;
    let bus = log.bus().await;
    let ((_handle, seen), other) = (model(&bus).await, pings(&bus, "other").await);
    bus.start().unwrap();
    let report = bus.replay("model").await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(seen.all(), [(0, true), (1, true), (MENDED, true), (3, true)]);
    bus.rebuild("model").swap(async || Ok::<(), BoxError>(())).await.unwrap();
    assert_eq!(seen.all()[4..], [(0, true), (1, true), (MENDED, true), (3, true)]);
    bus.replay("other").await.unwrap();
    assert_eq!(other.all(), [0, 1, 2, 3], "another group gets the event as it was published");
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 0);
}

#[tokio::test]
async fn an_event_that_fails_neither_blocks_a_rebuild_that_skips_it_nor_becomes_a_dead_letter_once_more() {
    let log = Log::new();
    let (bus, seen) = refused(&log).await;
    let letters = bus.dead_letters().unwrap();
    let (id, _) = letters.list().await.unwrap().remove(0);
    let swap = async || Ok::<(), BoxError>(());
    for _ in 0..3 {
        let error = bus.rebuild("model").swap(swap).await.unwrap_err().to_string();
        assert!(error.contains("1 of 4 events failed") && error.contains("2 is not a number"), "{error}");
        bus.replay("model").await.unwrap_err();
    }
    let kept = letters.list().await.unwrap();
    assert_eq!(kept.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&id]);
    assert_eq!(kept[0].1.attempts, 1, "it is the one of the live subscription");
    assert!(letters.purge(&id).await.unwrap());
    let report = bus.rebuild("model").skip_failures().swap(swap).await.unwrap();
    assert_eq!((report.acked, report.failed, report.failures[0].offset.get()), (3, 1, 3));
    assert_eq!(letters.list().await.unwrap().len(), 0);
    publish_pings(&bus, 4..5).await;
    settled(&bus).await;
    assert_eq!(seen.all().last(), Some(&(4, false)), "the live subscription goes on");
}

#[tokio::test]
async fn a_cursor_that_is_moved_back_finds_the_mended_payload() {
    let log = Log::new();
    mended(&log).await;
    let bus = log.bus().await;
    let groups = bus.groups().unwrap();
    assert!(groups.seek("model", None).await.unwrap());
    // It goes on meanwhile, so that the latest events stay in memory.
    let other = pings(&bus, "other").await;
    let (handle, seen) = model(&bus).await;
    bus.start().unwrap();
    settled(&bus).await;
    let all = [(0, false), (1, false), (MENDED, false), (3, false)];
    assert_eq!(seen.all(), all);
    // What was just published is read from memory, where it is as it was published.
    publish_pings(&bus, 2..3).await;
    settled(&bus).await;
    let letters = bus.dead_letters().unwrap();
    let (id, _) = letters.list().await.unwrap().remove(0);
    assert!(letters.republish(&id, Some("{\"number\":1001}".into())).await.unwrap());
    settled(&bus).await;
    handle.stop().await;
    until("the group is free", async || {
        groups.seek("model", Some(eventbus::broker::Offset::new(4))).await.is_ok_and(|moved| moved)
    })
    .await;
    let (_handle, again) = model(&bus).await;
    settled(&bus).await;
    assert_eq!(again.all(), [(1_001, false)]);
    assert_eq!(other.all(), [2]);
}

#[tokio::test]
async fn a_mended_payload_is_kept_through_a_retry_that_outlives_its_process() {
    let log = Log::new();
    mended(&log).await;
    let fails = Arc::new(AtomicBool::new(true));
    let handler = |fails: &Arc<AtomicBool>, seen: &Seen<u64>| {
        let (fails, seen) = (Arc::clone(fails), seen.clone());
        move |delivery: Delivery| {
            let (fails, seen) = (fails.load(Ordering::SeqCst), seen.clone());
            async move {
                let number = delivery.event::<Ping>()?.number;
                seen.push(number);
                if fails && number == MENDED { Err(BoxError::from("later")) } else { Ok(()) }
            }
        }
    };
    let seen = Seen::new();
    let bus = log.bus().await;
    let groups = bus.groups().unwrap();
    assert!(groups.seek("model", None).await.unwrap());
    let on = bus.on_topic("ping.sent", handler(&fails, &seen)).group("model");
    on.backoff(eventbus::Backoff::parse("50ms..50ms")).retries(1_000_000).await.unwrap();
    bus.start().unwrap();
    until("it is parked and all else is settled", async || {
        let group = groups.list().await.unwrap().remove(0);
        (group.parked, group.backlog) == (1, 1)
    })
    .await;
    bus.shutdown_within(Duration::from_millis(1)).await.ok();
    fails.store(false, Ordering::SeqCst);
    let (bus, again) = (log.bus().await, Seen::new());
    bus.on_topic("ping.sent", handler(&fails, &again)).group("model").await.unwrap();
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(again.all(), [MENDED]);
}

#[tokio::test]
async fn mended_payloads_follow_their_group_and_go_with_their_event() {
    let log = Log::new();
    mended(&log).await;
    let bus = log.bus().await;
    assert!(bus.groups().unwrap().rename("model", "renamed").await.unwrap());
    let events = bus.audit_log().unwrap();
    let mended = events.mended(Offset::new(3)).await.unwrap();
    assert_eq!(mended, [("renamed".to_owned(), "{\"number\":1000}".into())], "the audit log tells of it");
    assert_eq!(events.mended(Offset::new(2)).await.unwrap(), []);
    bus.shutdown().await.unwrap();
    assert_eq!(
        ask(&log, "select \"group\" || ' ' || offset || ' ' || payload from mended"),
        ["renamed 3 {\"number\":1000}"]
    );
    let mut retention = Retention::default();
    (retention.count, retention.unhandled) = (Some(1), true);
    let broker =
        log.broker_with(|log| log.retention(retention).retention_interval(Duration::from_millis(10))).await;
    until("the event is removed", async || ask(&log, "select offset || '' from event") == ["4"]).await;
    assert_eq!(ask(&log, "select payload from mended"), [] as [&str; 0]);
    drop(broker);
}

#[tokio::test]
async fn a_mended_payload_that_is_damaged_is_found_and_is_delivered_to_nobody() {
    let log = Log::new();
    mended(&log).await;
    Connection::open(log.path())
        .unwrap()
        .execute("update mended set payload = cast('{\"number\":7000}' as blob)", [])
        .unwrap();
    let broker = log.broker().await;
    let found = broker.verify().await.unwrap();
    assert_eq!(found, ["the mended payload of 3 for the group `model` is damaged"]);
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let (_handle, seen) = model(&bus).await;
    let report = bus.replay("model").skip_failures().await.unwrap();
    assert_eq!(
        (report.acked, report.failed, seen.all().len()),
        (3, 1, 3),
        "as a damaged event, it is left out"
    );
    assert!(!seen.all().contains(&(7_000, true)));
    assert_eq!(bus.audit_log().unwrap().mended(Offset::new(3)).await.unwrap(), [], "nor is it shown");
}

#[tokio::test]
async fn a_payload_that_is_mended_may_be_as_large_as_one_that_is_published() {
    let log = Log::new();
    let (bus, _seen) = refused(&log).await;
    bus.shutdown().await.unwrap();
    let broker = log.broker_with(|log| log.max_payload(20)).await;
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let letters = bus.dead_letters().unwrap();
    let (id, _) = letters.list().await.unwrap().remove(0);
    let error = letters.republish(&id, Some("{\"number\":1000000000}".into())).await.unwrap_err();
    assert!(error.to_string().contains("21 bytes, and 20 are allowed"), "{error}");
    assert_eq!(letters.list().await.unwrap().len(), 1);
    assert!(letters.republish(&id, Some("{\"number\":100000000}".into())).await.unwrap());
}
