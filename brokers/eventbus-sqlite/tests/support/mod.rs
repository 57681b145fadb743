//! What several test binaries share: event types, a list that handlers write to, and waiting.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long to wait for what should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

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

/// A folder for the log of one test.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// The log in it.
pub fn log(folder: &TempDir) -> PathBuf {
    folder.path().join("log.db")
}

/// The same as an address.
pub fn address(folder: &TempDir) -> String {
    // The scheme is registered by the crate, which has to be linked for that.
    let _ = eventbus_sqlite::SqliteBroker::builder(log(folder));
    format!("sqlite:{}", log(folder).display())
}

/// A bus on it, on which no `#[subscribe]` of the binary runs.
pub async fn connect(folder: &TempDir) -> Bus {
    Bus::builder().only([] as [&str; 0]).connect(&address(folder)).await.expect("the bus connects")
}

/// Subscribes a group that notes the number of every ping.
pub async fn note(bus: &Bus, group: &str, seen: &Seen<u64>) {
    let seen = seen.clone();
    let handler = move |ping: Arc<Ping>| {
        let seen = seen.clone();
        async move { seen.push(ping.number) }
    };
    bus.on(handler).group(group).await.expect("the group is free");
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
        self.lock().push(item);
    }

    pub fn all(&self) -> Vec<T> {
        self.lock().clone()
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap()
    }
}
