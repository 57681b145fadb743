//! Retention: what is removed, and what is kept whatever the settings say.

mod support;

use eventbus::broker::AuditQuery;
use eventbus::{Bus, Outcome};
use eventbus_sqlite::Retention;
use std::sync::Arc;
use std::time::Duration;
use support::{Log, Ping, pings, publish_pings, until};

/// A bus on the log that keeps what `set` says, and looks after it all the time.
async fn bus(log: &Log, set: impl FnOnce(&mut Retention)) -> Bus {
    let mut retention = Retention::default();
    set(&mut retention);
    let often = Duration::from_millis(5);
    let broker = log.broker_with(|settings| settings.retention(retention).retention_interval(often)).await;
    Bus::builder().without_subscriptions().broker(broker).await.unwrap()
}

/// The numbers of the pings that the log has.
async fn kept(bus: &Bus) -> Vec<u64> {
    let mut query = AuditQuery::default();
    query.limit = usize::MAX;
    let events = bus.audit_log().unwrap().query(query).await.unwrap();
    events.iter().map(|event| event.envelope.event::<Ping>().unwrap().number).collect()
}

#[tokio::test]
async fn the_oldest_events_beyond_a_count_are_removed_and_a_new_event_has_a_higher_offset() {
    let log = Log::new();
    let bus = bus(&log, |retention| retention.count = Some(10)).await;
    publish_pings(&bus, 0..5_000).await;
    until("ten are left", async || kept(&bus).await.len() == 10).await;
    assert_eq!(kept(&bus).await, (4_990..5_000).collect::<Vec<_>>());
    publish_pings(&bus, 5_000..5_001).await;
    let latest = bus.audit_log().unwrap().latest().await.unwrap();
    assert_eq!(latest.map(|offset| offset.get()), Some(5_001));
}

#[tokio::test]
async fn events_are_removed_by_age_but_for_the_latest() {
    let log = Log::new();
    let bus = bus(&log, |retention| retention.age = Some(Duration::from_millis(50))).await;
    publish_pings(&bus, 0..100).await;
    until("one is left", async || kept(&bus).await == [99]).await;
}

#[tokio::test]
async fn events_are_removed_until_the_file_is_small_enough_and_their_room_is_given_back() {
    let log = Log::new();
    let bus = bus(&log, |retention| retention.size = Some(512 << 10)).await;
    for number in 0..40 {
        bus.publish_to("filler.stored", &format!("{number}{}", "x".repeat(100_000))).await.unwrap();
    }
    until("the file is smaller", async || {
        std::fs::metadata(log.path()).is_ok_and(|file| file.len() < 1 << 20)
            && bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len() < 10
    })
    .await;
}

#[tokio::test]
async fn what_a_group_has_not_handled_is_kept_until_it_has() {
    let log = Log::new();
    let bus = bus(&log, |retention| retention.count = Some(1)).await;
    let seen = pings(&bus, "slow").await;
    publish_pings(&bus, 0..100).await;
    bus.publish_to("noise.made", &()).await.unwrap();
    // Time enough to remove everything, were it not for the group.
    tokio::time::sleep(Duration::from_millis(100)).await;
    bus.start().unwrap();
    bus.settled().await.unwrap();
    assert_eq!(seen.sorted(), (0..100).collect::<Vec<_>>());
    until("it was handled, and is removed", async || {
        bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len() == 1
    })
    .await;
}

#[tokio::test]
async fn a_group_that_must_not_hold_it_up_goes_on_with_what_is_left() {
    let log = Log::new();
    let bus = bus(&log, |retention| (retention.count, retention.unhandled) = (Some(10), true)).await;
    let seen = pings(&bus, "late").await;
    publish_pings(&bus, 0..3_000).await;
    until("ten are left", async || kept(&bus).await.len() == 10).await;
    bus.start().unwrap();
    bus.settled().await.unwrap();
    assert!(seen.sorted().ends_with(&(2_990..3_000).collect::<Vec<_>>()));
}

#[tokio::test]
async fn the_event_of_a_dead_letter_is_kept() {
    let log = Log::new();
    let bus = bus(&log, |retention| retention.count = Some(1)).await;
    let handle = |ping: Arc<Ping>| async move {
        if ping.number == 3 { Outcome::Reject("three is not welcome".into()) } else { Outcome::Ack }
    };
    bus.on(handle).group("picky").await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..50).await;
    until("two are left", async || kept(&bus).await == [3, 49]).await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters[0].1.envelope.event::<Ping>().unwrap().number, 3);
}

/// What a pragma says of the file, or -1 where its writer is in the way.
fn pragma(log: &Log, name: &str) -> i64 {
    let connection = rusqlite::Connection::open(log.path()).unwrap();
    connection.pragma_query_value(None, name, |row| row.get(0)).unwrap_or(-1)
}

#[tokio::test]
async fn old_dead_letters_do_not_hold_up_what_comes_after_them() {
    let log = Log::new();
    let bus = bus(&log, |retention| retention.count = Some(10)).await;
    // More than are removed at once, at the very beginning and in the middle.
    let handle = |ping: Arc<Ping>| async move {
        if ping.number < 1_500 || ping.number == 4_000 { Outcome::Reject("no".into()) } else { Outcome::Ack }
    };
    bus.on(handle).group("picky").await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..5_000).await;
    until("the dead letters and ten are left", async || kept(&bus).await.len() == 1_511).await;
    let mut expected: Vec<_> = (0..1_500).chain([4_000]).chain(4_990..5_000).collect();
    assert_eq!(kept(&bus).await, expected);
    // What is purged goes with the next pass.
    let letters = bus.dead_letters().unwrap();
    letters.purge(&letters.list().await.unwrap()[0].0).await.unwrap();
    expected.remove(0);
    until("it is removed", async || kept(&bus).await == expected).await;
}

#[tokio::test]
async fn all_room_that_is_freed_is_given_back_also_what_an_earlier_run_left() {
    let log = Log::new();
    let before = log.bus().await;
    for _ in 0..40 {
        before.publish_to("filler.stored", &"x".repeat(200_000)).await.unwrap();
    }
    before.shutdown().await.unwrap();
    let full = pragma(&log, "page_count");
    assert_eq!(pragma(&log, "auto_vacuum"), 2, "incremental");
    rusqlite::Connection::open(log.path())
        .unwrap()
        .execute("delete from event where offset < 30", [])
        .unwrap();
    assert!(pragma(&log, "freelist_count") > 1_000);
    let bus = bus(&log, |retention| retention.count = Some(10)).await;
    until("nothing is free", async || pragma(&log, "freelist_count") == 0).await;
    assert!(pragma(&log, "page_count") < full / 3);
    bus.shutdown().await.unwrap();
}
