//! Groups that are left, moved or sent something while something else is under way: nothing is lost or stays behind.

mod support;

use eventbus::broker::{
    Broker, DeadLetter, DeadLetterQuery, Deliveries, FailureKind, Parked, Received, Start, SubscribeRequest,
};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Topic};
use eventbus_sqlite::SqliteBroker;
use jiff::Timestamp;
use std::future::{IntoFuture, poll_fn};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use support::{Log, PATIENCE};

fn request(group: &str, pattern: &str) -> SubscribeRequest {
    let mut request = SubscribeRequest::new(group, Pattern::new(pattern).unwrap());
    request.start = Start::Earliest;
    request
}

async fn publish(broker: &SqliteBroker, topic: &'static str) {
    let envelope = Envelope::from_json(Topic::from_static(topic), &1).unwrap();
    broker.publish(Arc::new(envelope)).await.unwrap();
}

/// What comes first, in time.
async fn first(deliveries: &mut Box<dyn Deliveries>) -> Received {
    let mut received = Vec::new();
    let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1));
    tokio::time::timeout(PATIENCE, receiving).await.expect("it comes in time").unwrap();
    received.remove(0)
}

#[tokio::test]
async fn a_group_whose_opening_is_dropped_at_once_is_free_for_other_processes() {
    let log = Log::new();
    let (here, there) = (log.broker().await, log.broker().await);
    let _keeps_its_leases = here.subscribe(request("another", "a.x")).await.unwrap();
    // While the writer waits for the file, both the opening and its end come to wait for it.
    let other = rusqlite::Connection::open(log.path()).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let waiting = here.publish(Arc::new(Envelope::from_json(Topic::from_static("a.x"), &1).unwrap()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut opening = Box::pin(here.subscribe(request("g", "a.x")).into_future());
    assert!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(opening);
    other.execute_batch("rollback").unwrap();
    waiting.await.unwrap();
    let mut deliveries = there.subscribe(request("g", "a.x")).await.unwrap();
    first(&mut deliveries).await;
}

#[tokio::test]
async fn a_group_that_was_dropped_while_it_waited_begins_again_beside_a_new_one() {
    let log = Log::new();
    let here = log.broker().await;
    // It looks for what others left so seldom that all of this happens in between.
    let there = log.broker_with(|settings| settings.poll_interval(Duration::from_secs(3))).await;
    let deliveries = here.subscribe(request("g", "a.x")).await.unwrap();
    let mut waits = there.subscribe(request("g", "a.x")).await.unwrap();
    drop(deliveries);
    assert!(here.groups().unwrap().remove("g").await.unwrap());
    let _other = here.subscribe(request("g", "b.y")).await.unwrap();
    publish(&here, "a.x").await;
    first(&mut waits).await;
}

#[tokio::test]
async fn a_process_that_goes_on_keeps_its_groups_when_the_clock_is_set() {
    for jump in [-3_000, 3_600_000] {
        let log = Log::new();
        let (here, there) = (log.broker().await, log.broker().await);
        let _handles = here.subscribe(request("g", "a.x")).await.unwrap();
        let _stands_by = there.subscribe(request("g", "a.x")).await.unwrap();
        let other = rusqlite::Connection::open(log.path()).unwrap();
        other.busy_timeout(PATIENCE).unwrap();
        let lease = || {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)?));
            other.query_row("select owner, leased_until from subscription", [], row).unwrap()
        };
        let (owner, begun) = lease();
        // From here on there is some time until the next one.
        support::until("the lease is renewed", async || lease().1 != begun).await;
        other.execute("update subscription set leased_until = leased_until - ?1", [jump]).unwrap();
        let (_, set) = lease();
        support::until("the lease is renewed again", async || lease().1 != set).await;
        assert_eq!(lease().0, owner, "the clock was set by {jump} ms");
    }
}

#[tokio::test]
async fn a_dead_letter_is_kept_while_its_group_has_the_event_at_hand_anyway() {
    let log = Log::new();
    let broker = log.broker().await;
    let (groups, letters) = (broker.groups().unwrap(), broker.dead_letters().unwrap());
    let mut deliveries = broker.subscribe(request("g", "a.x")).await.unwrap();
    publish(&broker, "a.x").await;
    let now = Timestamp::now();
    let Received { receipt, settler, .. } = first(&mut deliveries).await;
    let letter = DeadLetter {
        envelope: Arc::clone(&receipt.envelope),
        group: "g".to_owned(),
        handler: "here".to_owned(),
        kind: FailureKind::Rejected,
        reason: "on purpose".to_owned(),
        attempts: 1,
        first_failed_at: now,
        last_failed_at: now,
        offset: receipt.offset,
    };
    settler.reject(receipt, letter).await.unwrap();
    drop((deliveries, settler));
    support::until("the group is moved back", async || groups.seek("g", None).await.is_ok()).await;
    let mut deliveries = broker.subscribe(request("g", "a.x")).await.unwrap();
    let Received { receipt, settler, .. } = first(&mut deliveries).await;
    let parked = Parked { first_failed_at: now, last_failed_at: now, due: now };
    settler.park(&receipt, parked).await.unwrap();
    let (id, _) = letters.find(DeadLetterQuery::default()).await.unwrap()[0].clone();
    let refused = letters.republish(&id, Some("2".into())).await.unwrap_err().to_string();
    assert!(refused.contains("at hand"), "{refused}");
    settler.ack(receipt).await.unwrap();
    support::until("it is published again", async || {
        letters.republish(&id, Some("2".into())).await.is_ok_and(|published| published)
    })
    .await;
    let Received { receipt, .. } = first(&mut deliveries).await;
    assert_eq!(receipt.envelope.payload().unwrap(), "2");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_log_that_is_closed_before_its_subscriptions_are_dropped_holds_no_file_open() {
    let log = Log::new();
    let folder = log.path().parent().unwrap().canonicalize().unwrap();
    let broker = log.broker().await;
    let mut deliveries = broker.subscribe(request("g", "a.x")).await.unwrap();
    publish(&broker, "a.x").await;
    let Received { receipt, settler, .. } = first(&mut deliveries).await;
    broker.close().await.unwrap();
    let _ = settler.ack(receipt).await;
    drop((broker, deliveries, settler));
    let open = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let files = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        files.filter(|file| file.starts_with(&folder)).collect::<Vec<_>>()
    };
    support::until("nothing is open", async || open().is_empty()).await;
}
