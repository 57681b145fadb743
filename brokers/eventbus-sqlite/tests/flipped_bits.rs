//! Single flipped bits in the file: nothing is invented, and nothing is lost in silence.

mod support;

use eventbus::broker::AuditQuery;
use eventbus::broker::Broker;
use eventbus::{Bus, Envelope, Event, Outcome};
use eventbus_sqlite::{Durability, SqliteBroker};
use rusqlite::Connection;
use rusqlite::types::{Value, ValueRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{Log, OrderPlaced, Ping, pings, until};

const FLIPS: u64 = 1_000;
const EVENTS: u64 = 300;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "note.taken")]
struct NoteTaken {
    text: String,
}

/// A log with events on three topics, a group that has handled all, dead letters, and a delivery that waits.
async fn write(log: &Log) -> BTreeMap<u128, Envelope> {
    let bus = log.bus().await;
    let seen = pings(&bus, "all").await;
    bus.on(|order: Arc<OrderPlaced>| async move {
        match order.number % 20 {
            7 => Outcome::Reject("the warehouse does not know this article".into()),
            8 if order.number > EVENTS - 30 => Outcome::RetryAfter(Duration::from_secs(3_600)),
            _ => Outcome::Ack,
        }
    })
    .group("some")
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..EVENTS / 3 {
        bus.publish(&Ping { number }).header("tenant", "Zürich").await.unwrap();
        bus.publish(&OrderPlaced { customer: number % 8, number: 3 * number }).await.unwrap();
        bus.publish(&NoteTaken { text: "long enough for a page now and then ".repeat(8) }).await.unwrap();
    }
    until("all is handled", async || {
        let groups = bus.groups().unwrap().list().await.unwrap();
        seen.len() as u64 == EVENTS / 3 && groups.iter().all(|group| group.backlog == group.parked)
    })
    .await;
    let letters = bus.dead_letters().unwrap();
    for (id, letter) in letters.list().await.unwrap().into_iter().take(3) {
        // In vain, so that it is a dead letter again.
        let payload = letter.envelope.payload().unwrap();
        assert!(letters.republish(&id, Some(payload.clone())).await.unwrap());
    }
    until("they are given up again", async || letters.list().await.unwrap().len() == 5).await;
    let mut all = AuditQuery::default();
    all.limit = usize::MAX;
    let events = bus.audit_log().unwrap().query(all).await.unwrap();
    bus.shutdown().await.unwrap();
    events.into_iter().map(|recorded| (recorded.offset.get(), Envelope::clone(&recorded.envelope))).collect()
}

/// The columns of the tables, as `table.column`.
fn columns(path: &Path) -> Vec<(&'static str, Vec<String>)> {
    let connection = Connection::open(path).unwrap();
    let names = |table: &str| {
        let mut statement =
            connection.prepare(&format!("select name from pragma_table_xinfo('{table}')")).unwrap();
        let names = statement.query_map([], |row| row.get(0)).unwrap();
        names.collect::<Result<Vec<String>, _>>().unwrap()
    };
    ["event", "topic", "source", "subscription", "delivery", "dead_letter", "mended"]
        .map(|table| (table, names(table)))
        .into()
}

/// Every value in the tables, by table and column.
fn dump(
    path: &Path,
    columns: &[(&'static str, Vec<String>)],
) -> rusqlite::Result<BTreeMap<String, Vec<Value>>> {
    let connection = Connection::open(path)?;
    let mut values: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (table, names) in columns {
        let list: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let mut statement =
            connection.prepare(&format!("select {} from {table} order by 1, 2", list.join(", ")))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for (index, name) in names.iter().enumerate() {
                values.entry(format!("{table}.{name}")).or_default().push(lossy(row.get_ref(index)?));
            }
        }
    }
    Ok(values)
}

/// A value, also where a text is none any more.
fn lossy(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Text(bytes) => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        other => other.try_into().expect("everything else is a value"),
    }
}

/// Whether the log says that it is damaged, when it is opened or verified; every event that it shows is one that was
/// published.
async fn is_reported(path: &Path, published: &BTreeMap<u128, Envelope>) -> bool {
    let Ok(broker) = SqliteBroker::builder(path).durability(Durability::Off).open().await else {
        return true;
    };
    let bus = Bus::builder().without_subscriptions().broker(broker.clone()).await.unwrap();
    let mut all = AuditQuery::default();
    all.limit = usize::MAX;
    let shown = bus.audit_log().unwrap().query(all).await;
    for recorded in shown.iter().flatten() {
        let Some(original) = published.get(&recorded.offset.get()) else {
            panic!("invented: {recorded:?}");
        };
        assert_eq!(format!("{:?}", recorded.envelope), format!("{original:?}"), "invented");
    }
    let found = broker.verify().await;
    // What is damaged may be refused when it is left.
    let _ = bus.shutdown().await;
    shown.is_err() || found.map_or(true, |found| !found.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_flipped_bits_invent_nothing_and_lose_nothing_in_silence() {
    let log = Log::new();
    let published = write(&log).await;
    assert_eq!(published.len() as u64, EVENTS);
    let intact = log.broker().await;
    assert_eq!(intact.verify().await.unwrap(), [] as [&str; 0], "what was written is found to be intact");
    intact.close().await.unwrap();
    let columns = columns(&log.path());
    let (bytes, values) = (log.bytes(), dump(&log.path(), &columns).unwrap());
    let seed =
        std::env::var("EVENTBUS_FLIP_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("{FLIPS} bits of {} bytes, from seed {seed} (EVENTBUS_FLIP_SEED)", bytes.len());
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut harmless, mut reported, mut silent) = (0, 0, BTreeMap::<String, u64>::new());
    for _ in 0..FLIPS {
        let flipped = Log::new();
        let bit = random.usize(..bytes.len() * 8);
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(flipped.path(), &damaged).unwrap();
        let read = dump(&flipped.path(), &columns);
        if is_reported(&flipped.path(), &published).await {
            reported += 1;
        } else if read.as_ref().is_ok_and(|read| *read == values) {
            harmless += 1;
        } else {
            let read = read.unwrap_or_default();
            let differs = values.iter().filter(|(name, value)| read.get(*name) != Some(value));
            for (name, _) in differs {
                *silent.entry(name.clone()).or_default() += 1;
            }
        }
    }
    println!("{reported} reported, {harmless} harmless, silent: {silent:?}");
    assert!(silent.is_empty(), "silent: {silent:?}");
}
