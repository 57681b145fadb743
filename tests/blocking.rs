//! Handlers that block: each call on a thread of its own, with everything around it that an `async` handler has.

mod support;

use eventbus::broker::FailureKind;
use eventbus::memory::MemoryBroker;
use eventbus::middleware::{Next, from_fn};
use eventbus::{Attempt, Bus, Delivery, Error, Event, Publisher, State, subscribe};
use serde::{Deserialize, Serialize};
use std::future::IntoFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use support::{Log, OrderPlaced, Ping, Seen};
use tokio::runtime::Handle;

/// What the log says of a handler that does not return in time.
const OVERDUE: &str = "has not returned within its timeout";

/// A gate at which handlers wait, until the test opens it.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// How many calls run, and the most that ran at once.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
    calls: AtomicUsize,
}

impl Running {
    fn during(&self, call: impl FnOnce()) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        call();
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[subscribe(blocking, timeout = "5ms", retries = 3)]
fn behind_a_gate(order: OrderPlaced, gate: State<Gate>, running: State<Running>, seen: State<Seen<u64>>) {
    running.during(|| gate.wait());
    seen.push(order.number);
}

#[tokio::test]
async fn a_handler_that_takes_longer_than_its_timeout_is_waited_for_and_its_answer_counts() {
    let (log, _guard) = Log::capture();
    let (gate, running, seen) = (Arc::new(Gate::default()), Arc::new(Running::default()), Seen::<u64>::new());
    let builder = Bus::builder()
        .only([behind_a_gate::SUBSCRIBER])
        .shared_state(Arc::clone(&gate))
        .shared_state(Arc::clone(&running))
        .state(seen.clone());
    let broker = MemoryBroker::new();
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    for number in 0..12 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    until("the handler is late", || log.text().contains(OVERDUE)).await;
    gate.open();
    broker.settled().await;
    assert_eq!(seen.all(), (0..12).collect::<Vec<_>>());
    assert_eq!(running.most(), 1, "calls of one key at once");
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
    let returned = log.text();
    assert!(
        returned.lines().any(|line| line.contains("WARN") && line.contains("has returned")),
        "{returned}"
    );
}

#[subscribe(blocking, timeout = "5ms", retries = 3, backoff = "1ms..2ms")]
fn late_and_failing(_: OrderPlaced, log: State<Log>, running: State<Running>) -> Result<(), String> {
    running.during(|| {
        let calls = running.calls.load(Ordering::SeqCst);
        while log.text().matches(OVERDUE).count() < calls {
            thread::sleep(Duration::from_millis(1));
        }
    });
    Err("the shelf is full".to_owned())
}

#[tokio::test]
async fn attempts_do_not_run_beside_each_other() {
    let (log, _guard) = Log::capture();
    let running = Arc::new(Running::default());
    let builder = Bus::builder()
        .only([late_and_failing::SUBSCRIBER])
        .state(log.clone())
        .shared_state(Arc::clone(&running));
    let broker = MemoryBroker::new();
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!((running.calls.load(Ordering::SeqCst), running.most()), (12, 1), "calls, and calls at once");
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let whys: Vec<_> = letters.iter().map(|(_, letter)| (letter.attempts, letter.reason.as_str())).collect();
    assert_eq!(whys, [(4, "the shelf is full"); 3]);
}

#[subscribe(blocking, retries = 1, backoff = "1ms..2ms")]
fn slower_than_a_layer(_: OrderPlaced, running: State<Running>) {
    running.during(|| thread::sleep(Duration::from_millis(100)));
}

#[tokio::test]
async fn a_layer_that_gives_up_earlier_does_not_begin_the_next_attempt_earlier() {
    let running = Arc::new(Running::default());
    let builder = Bus::builder()
        .only([slower_than_a_layer::SUBSCRIBER])
        .layer(tower::timeout::TimeoutLayer::new(Duration::from_millis(5)))
        .shared_state(Arc::clone(&running));
    let broker = MemoryBroker::new();
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    for number in 0..2 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!((running.calls.load(Ordering::SeqCst), running.most()), (4, 1), "calls, and calls at once");
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap()[0].1.reason, "request timed out");
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.written")]
struct OrderWritten {
    number: u64,
}

/// A bus that handlers publish with, as they find it in a static of theirs: it does not know their event.
type Anywhere = Arc<Mutex<Option<Publisher>>>;

#[subscribe(blocking)]
fn write(
    order: OrderPlaced,
    own: Publisher,
    anywhere: State<Anywhere>,
) -> Result<(), eventbus::PublishError> {
    tracing::info!("writing");
    let written = OrderWritten { number: order.number };
    let anywhere = anywhere.lock().unwrap().clone().unwrap();
    Handle::current().block_on(async {
        own.publish(&written).await?;
        anywhere.publish(&written).await?;
        Ok(())
    })
}

#[tokio::test]
async fn what_it_publishes_has_a_cause_and_what_it_logs_has_a_span() {
    let (log, _guard) = Log::capture();
    let anywhere = Anywhere::default();
    let broker = MemoryBroker::new();
    let builder = Bus::builder().only([write::SUBSCRIBER]).state(Arc::clone(&anywhere));
    let bus = builder.broker(broker.clone()).await.unwrap();
    *anywhere.lock().unwrap() = Some(bus.publisher());
    let causes = Seen::new();
    let noted = causes.clone();
    bus.on_topic("order.written", move |delivery| {
        let envelope = delivery.envelope();
        noted.push((
            envelope.causation_id().cloned(),
            envelope.causation_depth(),
            envelope.headers().get("traceparent").map(|trace| trace[3..35].to_owned()),
        ));
        async {}
    })
    .group("causes")
    .await
    .unwrap();
    bus.start().unwrap();
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let placed =
        bus.publish(&OrderPlaced { customer: 1, number: 7 }).header("traceparent", TRACE).await.unwrap();
    broker.settled().await;
    let expected = (Some(placed.clone()), 1, Some(TRACE[3..35].to_owned()));
    assert_eq!(causes.all(), [expected.clone(), expected]);
    let text = log.text();
    let line = text.lines().find(|line| line.contains("writing")).expect("the handler has logged");
    assert!(line.contains("handle{") && line.contains(&placed.to_string()), "{line}");
}

#[subscribe(blocking, retries = 0)]
fn around_in_circles(ping: Ping, anywhere: State<Anywhere>) -> Result<(), eventbus::PublishError> {
    let anywhere = anywhere.lock().unwrap().clone().unwrap();
    Handle::current().block_on(anywhere.publish(&ping).into_future()).map(drop)
}

#[tokio::test]
async fn a_circle_through_it_is_stopped() {
    let anywhere = Anywhere::default();
    let broker = MemoryBroker::new();
    let builder = Bus::builder().only([around_in_circles::SUBSCRIBER]).causation_limit(8);
    let bus = builder.state(Arc::clone(&anywhere)).broker(broker.clone()).await.unwrap();
    *anywhere.lock().unwrap() = Some(bus.publisher());
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    let settled = tokio::time::timeout(Duration::from_secs(30), broker.settled());
    settled.await.expect("the circle is stopped");
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].1.reason.contains("caused by 8 events in a row"), "{}", letters[0].1.reason);
}

#[subscribe(blocking, retries = 1, backoff = "1ms..2ms")]
fn panicking(ping: Ping, Attempt(attempt): Attempt, seen: State<Seen<u64>>) {
    assert!(ping.number != 13, "attempt {attempt} of an unlucky number");
    seen.push(ping.number);
}

#[tokio::test]
async fn a_panic_on_the_thread_is_a_failed_attempt() {
    let (broker, seen) = (MemoryBroker::new(), Seen::<u64>::new());
    let builder = Bus::builder().only([panicking::SUBSCRIBER]).state(seen.clone());
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    for number in [12, 13, 14] {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let whys: Vec<_> = letters.iter().map(|(_, letter)| (letter.kind, letter.reason.as_str())).collect();
    assert_eq!(whys, [(FailureKind::Panicked, "attempt 2 of an unlucky number")]);
    let mut seen = seen.all();
    seen.sort_unstable();
    assert_eq!(seen, [12, 14]);
}

#[subscribe(blocking, group = "cut-off")]
fn cut_off(order: OrderPlaced, gate: State<Gate>, began: State<Seen<()>>, seen: State<Seen<u64>>) {
    began.push(());
    gate.wait();
    seen.push(order.number);
}

#[tokio::test]
async fn a_handler_that_is_cut_off_is_left_unsettled_whatever_it_answers_later() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let (gate, began, seen) = (Arc::new(Gate::default()), Seen::<()>::new(), Seen::<u64>::new());
    let connect = || {
        let builder = Bus::builder().only([cut_off::SUBSCRIBER]).drain(Duration::from_millis(20));
        builder.shared_state(Arc::clone(&gate)).state(began.clone()).state(seen.clone())
    };
    let bus = connect().connect(&url).await.unwrap();
    bus.start().unwrap();
    bus.publish(&OrderPlaced { customer: 1, number: 7 }).await.unwrap();
    until("the handler has begun", || began.len() == 1).await;
    assert!(matches!(bus.shutdown().await, Err(Error::Drain { unfinished: 1, .. })));
    gate.open();
    until("the handler has returned", || seen.len() == 1).await;
    drop(bus);
    let bus = connect().connect(&url).await.unwrap();
    bus.start().unwrap();
    bus.settled().await.unwrap();
    assert_eq!(seen.all(), [7, 7], "it was handled again");
    bus.shutdown().await.unwrap();
}

#[subscribe(blocking)]
fn for_ever(_: Ping, gate: State<Gate>, seen: State<Seen<()>>) {
    seen.push(());
    gate.wait();
}

#[test]
fn a_handler_that_never_returns_does_not_keep_a_runtime_from_ending() {
    let (ended, waiting) = channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let seen = Seen::<()>::new();
            let builder =
                Bus::builder().only([for_ever::SUBSCRIBER]).state(Gate::default()).state(seen.clone());
            let bus = builder.drain(Duration::from_millis(20)).connect("memory:").await.unwrap();
            bus.start().unwrap();
            bus.publish(&Ping { number: 1 }).await.unwrap();
            until("the handler has begun", || seen.len() == 1).await;
            bus.shutdown().await.unwrap_err();
        });
        drop(runtime);
        ended.send(()).unwrap();
    });
    waiting.recv_timeout(Duration::from_secs(30)).expect("the runtime has ended");
}

#[subscribe(blocking, timeout = "20ms", retries = 0)]
fn late_inside_of_a_layer(_: Ping, seen: State<Seen<()>>) {
    thread::sleep(Duration::from_millis(100));
    seen.push(());
}

/// A bus that has that handler, with a layer that takes a moment once it has answered.
async fn bus_with_a_layer(seen: &Seen<()>, broker: &MemoryBroker) -> Bus {
    let layer = from_fn(async |delivery: Delivery, next: Next| {
        let outcome = next.run(delivery).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        outcome
    });
    let builder = Bus::builder().only([late_inside_of_a_layer::SUBSCRIBER]).state(seen.clone()).layer(layer);
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    bus
}

#[tokio::test]
async fn an_answer_that_comes_late_counts_also_where_a_layer_has_something_to_do_with_it() {
    let (seen, broker) = (Seen::<()>::new(), MemoryBroker::new());
    let bus = bus_with_a_layer(&seen, &broker).await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.len(), 1);
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_comes_late_counts_also_where_the_runtime_is_later() {
    let (seen, broker) = (Seen::<()>::new(), MemoryBroker::new());
    let bus = bus_with_a_layer(&seen, &broker).await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    // The handler's time limit passes, and it returns, before the only thread of the runtime has time for either.
    while seen.len() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20));
    broker.settled().await;
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}
