//! What a case runs with: a place, brokers on it, and names that no other run has.

use super::Fixture;
use super::reader::Reader;
use super::seen::Seen;
use eventbus_core::broker::{Broker, Features, SubscribeRequest};
use eventbus_core::{Bus, BusBuilder, Delivery, Envelope, Error, Pattern, Topic};
use std::fmt::Display;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a bus may take to end where a case has left something unfinished.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a case looks for what must not come, where the broker cannot tell that nothing more will. Too short a time
/// finds less, and never fails by mistake.
const LOOK: Duration = Duration::from_millis(500);

pub(super) type Opened = Pin<Box<dyn Future<Output = Arc<dyn Broker>> + Send>>;

/// One run of one case.
pub(crate) struct Case {
    place: String,
    open: fn(String) -> Opened,
    patience: Duration,
    features: Features,
    name: String,
    /// What begins the names of its topics and groups.
    prefix: String,
    /// The broker that told the features, until somebody wants it.
    first: Mutex<Option<Arc<dyn Broker>>>,
    buses: Mutex<Vec<Bus>>,
    brokers: Mutex<Vec<Arc<dyn Broker>>>,
    /// What chance decides in this run.
    pub(super) seed: u64,
    /// See [`Fixture::MANY`].
    pub(super) many: u64,
    /// See [`Fixture::LEASE`].
    pub(super) lease: Duration,
    /// The module whose tests these are.
    pub(super) module: &'static str,
}

impl Case {
    pub(super) async fn new<F: Fixture>(place: String, module: &'static str, seed: u64) -> Arc<Self> {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let open = |place: String| -> Opened {
            Box::pin(async move { Arc::new(F::open(&place).await) as Arc<dyn Broker> })
        };
        let first = open(place.clone()).await;
        // The time keeps runs apart that other programs have made on a server before.
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            place,
            open,
            patience: F::PATIENCE,
            features: first.features(),
            name: first.name().to_owned(),
            prefix: format!("c{since:x}-{run}-{}", std::process::id()),
            first: Mutex::new(Some(first)),
            buses: Mutex::default(),
            brokers: Mutex::default(),
            seed,
            many: F::MANY,
            lease: F::LEASE,
            module,
        })
    }

    /// What the broker is called in errors.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Where it runs.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// What the broker says that it can do.
    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// A broker on the place: another one with each call, as another process has.
    pub(super) async fn broker(&self) -> Arc<dyn Broker> {
        let first = lock(&self.first).take();
        let broker = match first {
            Some(first) => first,
            None => {
                assert!(self.features.durable, "what is opened again is durable");
                (self.open)(self.place.clone()).await
            }
        };
        lock(&self.brokers).push(Arc::clone(&broker));
        broker
    }

    /// A bus on a broker of its own, with no subscription yet.
    pub(super) async fn bus(&self) -> Bus {
        let broker = self.broker().await;
        self.bus_on(&broker).await
    }

    /// A bus on a broker.
    pub(super) async fn bus_on(&self, broker: &Arc<dyn Broker>) -> Bus {
        self.connect(self.builder(&**broker), broker).await
    }

    pub(super) async fn connect(&self, builder: BusBuilder, broker: &Arc<dyn Broker>) -> Bus {
        let bus = builder.broker(Arc::clone(broker)).await.expect("the bus connects");
        lock(&self.buses).push(bus.clone());
        bus
    }

    /// The settings of a bus that asks for nothing that the broker has not.
    pub(super) fn builder(&self, broker: &dyn Broker) -> BusBuilder {
        Bus::builder()
            .without_subscriptions()
            .drain(DRAIN)
            .competing(!self.features.key_order)
            .dead_letter(broker.dead_letters().is_some())
    }

    /// A topic of this run.
    pub(super) fn topic(&self, name: &str) -> Topic {
        Topic::new(format!("{}.{name}", self.prefix)).expect("the name is a topic's")
    }

    /// A pattern on topics of this run.
    pub(super) fn pattern(&self, pattern: &str) -> Pattern {
        Pattern::new(format!("{}.{pattern}", self.prefix)).expect("it is a pattern")
    }

    /// A group of this run.
    pub(super) fn group(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// Subscribes a group that notes the number of each event.
    pub(super) async fn notes(&self, bus: &Bus, topic: &Topic, group: &str) -> Seen<u64> {
        let seen = self.seen();
        let noting = bus.on_topic(topic, seen.noting(number)).group(self.group(group));
        noting.await.expect("the group is free");
        seen
    }

    /// Subscribes a group at the broker itself.
    pub(super) async fn reader(&self, broker: &Arc<dyn Broker>, topic: &Topic, group: &str) -> Reader {
        let pattern = Pattern::new(topic).expect("a topic is a pattern");
        let mut request = SubscribeRequest::new(self.group(group), pattern);
        request.competing = !self.features.key_order;
        Reader::new(broker.subscribe(request).await.expect("the group is free"), self.patience)
    }

    /// A list for handlers to write to.
    pub(super) fn seen<T: Clone>(&self) -> Seen<T> {
        Seen::new(self.patience)
    }

    /// Waits until `condition` holds.
    pub(super) async fn until(&self, what: &str, condition: impl AsyncFnMut() -> bool) {
        until(self.patience, what, condition).await;
    }

    /// Waits for something, and no longer than it may take.
    pub(super) async fn in_time<T>(&self, what: impl Display, future: impl Future<Output = T>) -> T {
        match tokio::time::timeout(self.patience, future).await {
            Ok(answer) => answer,
            Err(_) => panic!("{what}: not within {:?}", self.patience),
        }
    }

    /// Waits until nothing more will be delivered on `bus`, as well as that can be known.
    pub(super) async fn quiet(&self, bus: &Bus) {
        if self.in_time("everything is settled", bus.settled()).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asserts that a bus has refused to start, with an error that names the broker and says these words.
    pub(super) fn assert_refused<T>(&self, result: Result<T, Error>, words: &[&str]) {
        let Err(error) = result else {
            panic!("the {} broker has not what was asked for, and the bus has started", self.name)
        };
        let text = error.to_string();
        assert!(matches!(error, Error::Startup(_)), "a start-up error was expected: {text}");
        for word in words.iter().copied().chain([self.name.as_str()]) {
            assert!(text.contains(word), "the error does not say {word:?}: {text}");
        }
    }

    /// Ends whatever is left of the run.
    pub(super) async fn end(&self) {
        let (buses, brokers) =
            (std::mem::take(&mut *lock(&self.buses)), std::mem::take(&mut *lock(&self.brokers)));
        let first = lock(&self.first).take();
        for bus in buses {
            // What it has not finished, the case has left so.
            drop(tokio::time::timeout(self.patience, bus.shutdown()).await);
        }
        for broker in brokers.into_iter().chain(first) {
            drop(tokio::time::timeout(self.patience, broker.close()).await);
        }
    }
}

/// Publishes numbers, in one go and in their order.
pub(super) async fn publish(bus: &Bus, topic: &Topic, numbers: std::ops::Range<u64>) {
    publish_envelopes(bus, numbers.map(|number| numbered(topic, number))).await;
}

/// Publishes envelopes, in one go and in their order.
pub(super) async fn publish_envelopes(bus: &Bus, envelopes: impl IntoIterator<Item = Envelope>) {
    for published in bus.publish_envelopes(envelopes).await {
        published.expect("the broker takes it");
    }
}

/// An event that carries a number.
pub(super) fn numbered(topic: &Topic, number: u64) -> Envelope {
    Envelope::from_json(topic.clone(), &number).expect("a number has a form in JSON")
}

/// The number that an event carries.
pub(super) fn number(delivery: &Delivery) -> u64 {
    number_of(delivery.envelope())
}

pub(super) fn number_of(envelope: &Envelope) -> u64 {
    let payload = envelope.payload().expect("it has bytes");
    serde_json::from_slice(payload).unwrap_or_else(|_| panic!("no number: {} bytes", payload.len()))
}

pub(super) async fn until(patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !condition().await {
        assert!(since.elapsed() < patience, "waited {patience:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
