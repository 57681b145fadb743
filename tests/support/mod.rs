//! What several test binaries share: two event types, a list that handlers write to, and a captured log.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

pub mod around;

use eventbus::bus::BusBuilder;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

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

/// A bus on an in-process broker that no `#[subscribe]` of the binary runs on.
pub async fn bus() -> (Bus, MemoryBroker) {
    bus_with(Bus::builder()).await
}

/// The same, with settings of the test's own.
pub async fn bus_with(builder: BusBuilder) -> (Bus, MemoryBroker) {
    let broker = MemoryBroker::new();
    let bus = builder.only([] as [&str; 0]).broker(broker.clone()).await.expect("the bus connects");
    (bus, broker)
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

/// The log of the current thread, until the guard is dropped.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
