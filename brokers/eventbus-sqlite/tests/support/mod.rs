//! What several test binaries share: a log in a folder of its own, two event types, and a list that handlers write to.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use eventbus::bus::BusBuilder;
use eventbus::{Bus, Event};
use eventbus_sqlite::{SqliteBroker, SqliteBrokerBuilder};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long to wait for what should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An event with a key.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.placed", key = customer)]
pub struct OrderPlaced {
    pub customer: u64,
    pub number: u64,
}

/// An event without a key.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "ping.sent")]
pub struct Ping {
    pub number: u64,
}

/// A log in a folder that is removed in the end.
pub struct Log(TempDir);

impl Log {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("log.db")
    }

    /// The closed file, with all that was written.
    pub fn bytes(&self) -> Vec<u8> {
        let connection = rusqlite::Connection::open(self.path()).expect("the file opens");
        let since = Instant::now();
        // Some reader may be about to close its connection.
        while connection.query_row("pragma wal_checkpoint(truncate)", [], |row| row.get(0)) != Ok(0) {
            assert!(since.elapsed() < PATIENCE, "the log is not closed");
        }
        std::fs::read(self.path()).expect("the file is read")
    }

    pub async fn broker(&self) -> SqliteBroker {
        self.broker_with(|settings| settings).await
    }

    pub async fn broker_with(
        &self,
        set: impl FnOnce(SqliteBrokerBuilder) -> SqliteBrokerBuilder,
    ) -> SqliteBroker {
        set(SqliteBroker::builder(self.path())).open().await.expect("the log opens")
    }

    /// A bus on the log, with no subscription yet.
    pub async fn bus(&self) -> Bus {
        self.bus_with(Bus::builder()).await
    }

    pub async fn bus_with(&self, builder: BusBuilder) -> Bus {
        builder.without_subscriptions().broker(self.broker().await).await.expect("the bus connects")
    }
}

/// Subscribes a group that notes the number of every ping.
pub async fn pings(bus: &Bus, group: &str) -> Seen<u64> {
    let seen = Seen::new();
    let numbers = seen.clone();
    let note = move |ping: Arc<Ping>| {
        let numbers = numbers.clone();
        async move { numbers.push(ping.number) }
    };
    bus.on(note).group(group).await.expect("the group is free");
    seen
}

/// Publishes pings.
pub async fn publish_pings(bus: &Bus, numbers: std::ops::Range<u64>) {
    for result in bus.publish_all(numbers.map(|number| Arc::new(Ping { number }))).await {
        result.expect("the log takes it");
    }
}

/// Waits until everything is settled.
pub async fn settled(bus: &Bus) {
    tokio::time::timeout(PATIENCE, bus.settled()).await.expect("everything is settled in time").unwrap();
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What handlers have seen, in order.
#[derive(Clone)]
pub struct Seen<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Seen<T> {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    pub fn push(&self, item: T) {
        self.0.lock().unwrap().push(item);
    }

    pub fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }

    pub fn sorted(&self) -> Vec<T>
    where
        T: Ord,
    {
        let mut all = self.all();
        all.sort();
        all
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}
