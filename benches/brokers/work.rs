//! The work: an event, and what its handler does.

use eventbus::Event;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The topic of the event.
pub(crate) const TOPIC: &str = "bench.stored";
/// Where events come from.
pub(crate) const SOURCE: &str = "bench";

/// An event. Without a key, since a bare client has no order by key either.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "bench.stored")]
pub(crate) struct Stored {
    pub(crate) number: u64,
    filler: String,
}

impl Stored {
    /// An event whose JSON has about so many bytes.
    pub(crate) fn new(number: u64, size: usize) -> Self {
        Self { number, filler: "x".repeat(size - 36) }
    }
}

/// One way of doing the work at a server. What it cannot do ends the benchmark.
pub(crate) trait Contestant: Clone + Send + Sync + 'static {
    const NAME: &'static str;

    /// Connects, with a place of its own at the server under this name.
    fn connect(url: &str, name: &str) -> impl Future<Output = Self> + Send;

    /// Publishes one event, and waits until it is stored.
    fn publish(&self, event: Stored) -> impl Future<Output = ()> + Send;

    /// Publishes several, each sent before the one before it is confirmed, and waits until all are stored.
    fn publish_all(&self, events: Vec<Stored>) -> impl Future<Output = ()> + Send;

    /// Begins to handle what is there and what comes, each event acked after it was handled.
    fn consume(&self, handler: Arc<Handler>) -> impl Future<Output = ()> + Send;

    /// Stops reading, once what was handled is acked.
    fn leave(&self) -> impl Future<Output = ()> + Send;

    /// How many events are not acked, as the server has it, after this has left.
    fn unacked(&self) -> impl Future<Output = u64> + Send;

    /// Removes its place.
    fn remove(self) -> impl Future<Output = ()> + Send;
}

/// What every contestant does with an event.
#[derive(Debug, Default)]
pub(crate) struct Handler {
    handled: AtomicU64,
    /// The one that is waited for.
    target: AtomicU64,
    reached: Notify,
    /// When each event was to be sent, by number; when it was handled.
    due: Mutex<Vec<Option<Instant>>>,
    took: Mutex<Vec<Duration>>,
}

impl Handler {
    pub(crate) fn handle(&self, event: &Stored) {
        let due = self.due.lock().unwrap().get(event.number as usize).copied().flatten();
        if let Some(due) = due {
            self.took.lock().unwrap().push(due.elapsed());
        }
        if self.handled.fetch_add(1, Ordering::SeqCst) + 1 == self.target.load(Ordering::SeqCst) {
            self.reached.notify_one();
        }
    }

    /// How many were handled since the beginning.
    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::SeqCst)
    }

    /// Waits until so many were.
    ///
    /// # Panics
    /// Where they are not within a minute.
    pub(crate) async fn until(&self, count: u64, who: &str) {
        self.target.store(count, Ordering::SeqCst);
        while self.handled() < count {
            let reached = tokio::time::timeout(Duration::from_secs(60), self.reached.notified()).await;
            let handled = self.handled();
            assert!(
                reached.is_ok() || handled >= count,
                "{who}: {handled} of {count} events were handled in a minute"
            );
        }
    }

    /// The event of this number is to be sent now.
    pub(crate) fn is_due(&self, number: u64, at: Instant) {
        let mut due = self.due.lock().unwrap();
        let length = due.len().max(number as usize + 1);
        due.resize(length, None);
        due[number as usize] = Some(at);
    }

    /// How long events took from when they were to be sent.
    pub(crate) fn took(&self) -> Vec<Duration> {
        std::mem::take(&mut self.took.lock().unwrap())
    }
}
