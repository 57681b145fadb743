//! Publishers and one group that go on while something fails: what the fault tests of brokers with a server share.

use super::{PATIENCE, until};
use eventbus::broker::{Broker, Connection, Deliveries, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const KEYS: u64 = 16;
/// Between two events of a publisher, so that how many there are goes with the time that a test takes.
const PAUSE: Duration = Duration::from_millis(5);
/// In how much time after a connection can be had again events have to be handled.
pub const RECOVERY: Duration = Duration::from_secs(10);

/// How a load is published.
#[derive(Clone, Copy)]
pub struct Publishing {
    /// Each event goes to one of them.
    pub topics: &'static [&'static str],
    /// Whoever is not told that an event is stored publishes it again, and otherwise the test fails.
    pub again: bool,
}

/// Each publisher has a key of its own, and publishes in order until the load ends.
pub struct Load<B> {
    pub broker: B,
    confirmed: Arc<AtomicU64>,
    handled: Arc<Mutex<Handled>>,
    stop: Arc<AtomicBool>,
    publishing: Vec<JoinHandle<()>>,
    handling: JoinHandle<()>,
}

/// What the group has handled.
#[derive(Default)]
pub struct Handled {
    numbers: BTreeSet<u64>,
    /// The first delivery of each event of a key, in their order.
    firsts: BTreeMap<u64, Vec<u64>>,
    /// How many deliveries were of an event that was delivered before.
    pub repeats: usize,
}

impl Handled {
    pub fn events(&self) -> u64 {
        self.numbers.len() as u64
    }

    fn add(&mut self, number: u64) {
        match self.numbers.insert(number) {
            true => self.firsts.entry(number % KEYS).or_default().push(number),
            false => self.repeats += 1,
        }
    }
}

impl<B: Broker + Clone> Load<B> {
    pub async fn begin(broker: B, how: Publishing) -> Self {
        let request = SubscribeRequest::new("group", Pattern::new("load.*").unwrap());
        let deliveries = broker.subscribe(request).await.unwrap();
        let (confirmed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let handled = Arc::new(Mutex::new(Handled::default()));
        let handling = tokio::spawn(handle(deliveries, Arc::clone(&handled)));
        let publishing = (0..KEYS)
            .map(|key| {
                let (broker, confirmed, stop) = (broker.clone(), Arc::clone(&confirmed), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut number = key;
                    while !stop.load(Ordering::SeqCst) {
                        publish(&broker, how, number).await;
                        confirmed.fetch_add(1, Ordering::SeqCst);
                        number += KEYS;
                        tokio::time::sleep(PAUSE).await;
                    }
                })
            })
            .collect();
        Self { broker, confirmed, handled, stop, publishing, handling }
    }

    /// Until so many more events are confirmed.
    pub async fn goes_on(&self, events: u64) {
        let wanted = self.confirmed.load(Ordering::SeqCst) + events;
        until("events are confirmed", async || self.confirmed.load(Ordering::SeqCst) >= wanted).await;
    }

    pub async fn is_lost(&self) {
        let is_lost = async || matches!(self.broker.connection(), Connection::Lost { .. });
        until("the loss is noticed", is_lost).await;
    }

    /// Something is handled in time that is not even published yet, and the connection is known to be back.
    pub async fn recovers_within(&self, limit: Duration) {
        // Of each key one may be on its way.
        let (begun, before) = (Instant::now(), self.confirmed.load(Ordering::SeqCst) + KEYS);
        until("events are handled again", async || self.handled.lock().unwrap().events() > before).await;
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
        until("the connection is known to be back", async || self.broker.connection() == Connection::Up)
            .await;
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    }

    /// Everything that was confirmed is handled, in order by key.
    pub async fn end(self) -> Handled {
        self.stop.store(true, Ordering::SeqCst);
        for publisher in self.publishing {
            publisher.await.expect("nothing that was published is lost");
        }
        let confirmed = self.confirmed.load(Ordering::SeqCst);
        let is_handled = || self.handled.lock().unwrap().events() >= confirmed;
        until("all is handled", async || is_handled() || self.handling.is_finished()).await;
        assert!(is_handled(), "the group has ended");
        self.handling.abort();
        self.broker.close().await.unwrap();
        let handled = std::mem::take(&mut *self.handled.lock().unwrap());
        for (key, numbers) in &handled.firsts {
            let wrong: Vec<_> = numbers.windows(2).filter(|two| two[0] > two[1]).collect();
            assert!(wrong.is_empty(), "key {key}: {wrong:?} of {}", numbers.len());
        }
        handled
    }
}

async fn publish(broker: &impl Broker, how: Publishing, number: u64) {
    let topic = Topic::new(how.topics[number as usize / KEYS as usize % how.topics.len()]).unwrap();
    let envelope = Envelope::from_json(topic, &number).unwrap().with_key((number % KEYS).to_string());
    let envelope = Arc::new(envelope);
    while let Err(error) = broker.publish(Arc::clone(&envelope)).await {
        assert!(how.again, "it is stored in the end: {error}");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn handle(mut deliveries: Box<dyn Deliveries>, handled: Arc<Mutex<Handled>>) {
    let mut received = Vec::new();
    loop {
        let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 64));
        tokio::time::timeout(PATIENCE, receiving).await.expect("something comes").unwrap();
        assert!(!received.is_empty(), "the subscription has ended");
        for received in received.drain(..) {
            if !received.settler.holds(&received.receipt) {
                continue;
            }
            let payload = received.receipt.envelope.payload().unwrap();
            handled.lock().unwrap().add(serde_json::from_slice(payload).unwrap());
            // What is not settled comes again.
            let _ = received.settler.ack(received.receipt).await;
        }
    }
}
