//! The file, as other tools and other users of the machine see it.

mod support;

use eventbus::broker::Broker;
use eventbus::{Bus, Envelope, EventId, Outcome, Topic};
use eventbus_sqlite::Durability;
use rusqlite::Connection;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Log, OrderPlaced, Ping, pings, publish_pings, settled};

fn rows(log: &Log, sql: &str) -> Vec<String> {
    let connection = Connection::open(log.path()).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let text = |row: &rusqlite::Row<'_>| {
        let column = |column| match row.get_ref_unwrap(column) {
            rusqlite::types::ValueRef::Null => "-".to_owned(),
            rusqlite::types::ValueRef::Integer(number) => number.to_string(),
            value => value.as_str().unwrap_or("?").to_owned(),
        };
        Ok((0..columns).map(column).collect::<Vec<_>>().join("|"))
    };
    statement.query_map([], text).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn people_read_events_groups_and_dead_letters_with_any_sqlite_tool() {
    let log = Log::new();
    let bus = log.bus().await;
    bus.on(|order: Arc<OrderPlaced>| async move {
        if order.number == 2 { Outcome::Reject("out of stock".into()) } else { Outcome::Ack }
    })
    .group("stock")
    .await
    .unwrap();
    bus.start().unwrap();
    let first = bus.publish(OrderPlaced { customer: 7, number: 1 }).header("tenant", "acme").await.unwrap();
    bus.publish(OrderPlaced { customer: 7, number: 2 }).await.unwrap();
    let time = "2026-07-01T12:00:00.25Z".parse().unwrap();
    let image = Envelope::from_bytes(Topic::from_static("scan.stored"), "image/png", vec![0xff, 0].into())
        .with_id(EventId::new("scan/1"))
        .with_time(time);
    bus.publish_envelope(image).await.unwrap();
    bus.settled().await.unwrap();
    bus.shutdown().await.unwrap();
    let events = rows(&log, "select topic, key, payload, id, headers from events order by offset limit 1");
    assert_eq!(
        events,
        [format!("order.placed|7|{{\"customer\":7,\"number\":1}}|{first}|{{\"tenant\":\"acme\"}}")]
    );
    let scan =
        rows(&log, "select time, payload, id, type, datacontenttype from events where topic = 'scan.stored'");
    assert_eq!(scan, ["2026-07-01T12:00:00.250000Z|FF00|scan/1|scan.stored|image/png"]);
    assert_eq!(rows(&log, "select * from groups"), ["stock|order.placed|3|0|0|1"]);
    let letters = rows(&log, "select \"group\", kind, reason, attempts, topic, payload from dead_letters");
    assert_eq!(letters, ["stock|rejected|out of stock|1|order.placed|{\"customer\":7,\"number\":2}"]);
}

#[tokio::test]
async fn people_see_text_where_the_media_type_says_text_or_json() {
    let log = Log::new();
    let bus = log.bus().await;
    for (content_type, shown) in [
        ("application/vnd.shop+json; charset=utf-8", "{}"),
        ("Text/JSON", "{}"),
        ("", "{}"),
        (" ; a=b", "{}"),
        ("text/plain", "{}"),
        ("application/zip; name=x.json", "7B7D"),
    ] {
        let stored = Envelope::from_bytes(Topic::from_static("scan.typed"), content_type, "{}".into());
        bus.publish_envelope(stored).await.unwrap();
        let last = rows(&log, "select payload from events order by offset desc limit 1");
        assert_eq!(last, [shown], "{content_type}");
    }
    bus.shutdown().await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_on_the_machine_reads_the_file_and_nothing_stays_beside_it() {
    use std::os::unix::fs::PermissionsExt;

    let log = Log::new();
    let bus = log.bus().await;
    pings(&bus, "pings").await;
    publish_pings(&bus, 0..1).await;
    let folder = log.path().parent().unwrap().to_owned();
    let files = || std::fs::read_dir(&folder).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    assert!(files().len() > 1, "the log, its write-ahead log, and a lock");
    for file in files() {
        let name = file.file_name().into_string().unwrap();
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert!(mode == 0o600, "{name}: {mode:o}");
    }
    bus.shutdown().await.unwrap();
    let left: Vec<_> = files().iter().map(std::fs::DirEntry::file_name).collect();
    assert_eq!(left, ["log.db"]);
}

#[tokio::test]
async fn every_durability_stores_and_another_can_be_chosen_later() {
    let log = Log::new();
    for (round, durability) in [Durability::Off, Durability::Normal, Durability::Full].into_iter().enumerate()
    {
        let broker = log.broker_with(|settings| settings.durability(durability)).await;
        let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
        publish_pings(&bus, 0..10).await;
        bus.shutdown().await.unwrap();
        assert_eq!(rows(&log, "select count(*) from event"), [((round + 1) * 10).to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_does_not_wait_for_another_program_that_holds_the_file() {
    let log = Log::new();
    let broker = log.broker_with(|settings| settings.lease(Duration::from_millis(500))).await;
    let builder = Bus::builder().without_subscriptions().drain(Duration::from_secs(1));
    let bus = builder.broker(broker.clone()).await.unwrap();
    pings(&bus, "pings").await;
    bus.start().unwrap();
    publish_pings(&bus, 0..10).await;
    settled(&bus).await;
    let other = Connection::open(log.path()).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let waits = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&Ping { number: 10 }).await }
    });
    let since = Instant::now();
    // Others hold files for up to half a minute, and publishers wait for them.
    let error = broker.close().await.unwrap_err().to_string();
    assert!(since.elapsed() < Duration::from_secs(10), "it took {:?}", since.elapsed());
    assert!(
        error.contains("not everything was written") && error.contains("end the one that does"),
        "{error}"
    );
    waits.await.unwrap().expect_err("it was not stored");
    other.execute_batch("rollback").unwrap();
    drop(bus);
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    publish_pings(&bus, 11..12).await;
    settled(&bus).await;
    assert_eq!(seen.all(), [11], "what was settled is settled, and what was not stored does not come");
}
