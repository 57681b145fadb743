//! Sixty-four publishers, twenty groups whose handlers fail in every way, and a shutdown at a random instant, again and
//! again: what was acknowledged is handled by each group, once, in the order of its key, and everything ends.
//!
//! ```text
//! cargo test --test stress
//! EVENTBUS_STRESS_SECONDS=1800 EVENTBUS_STRESS_SEED=7 cargo test --test stress
//! ```
//!
//! A failure names the seed of its round, with which that round comes first.

mod support;

use eventbus::bus::BusBuilder;
use eventbus::memory::MemoryBroker;
use eventbus::observe::{Attempted, Observer};
use eventbus::{Backoff, Bus, Delivery, Outcome};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::OrderPlaced;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const PUBLISHERS: u64 = 64;
const ORDERS: u64 = 6;
const GROUPS: usize = 20;
/// How long anything may take that takes milliseconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What handlers panic with here.
const PANIC: &str = "a handler panics on purpose";

#[test]
fn what_is_acknowledged_in_process_is_handled_once_and_in_order_whenever_the_bus_ends() {
    again_and_again("in process", async |round| {
        let broker = MemoryBroker::builder().capacity(if round.seed % 3 == 0 { 8 } else { 1_000 }).build();
        let bus = round.builder().broker(broker).await.unwrap();
        let (acknowledged, ended) = round.run(&bus).await;
        // What the bus could not finish in its drain time is told by the error.
        if ended.is_ok() {
            round.check(&acknowledged);
        }
    });
}

#[test]
fn what_is_acknowledged_by_the_log_is_handled_once_and_in_order_whenever_the_bus_ends() {
    again_and_again("on the embedded log", async |round| {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}?durability=off", folder.path().join("log.db").display());
        let bus = round.builder().connect(&url).await.unwrap();
        let (acknowledged, ended) = round.run(&bus).await;
        ended.unwrap();
        drop(bus);
        // Whoever opens the log next handles what is left.
        let bus = round.builder().connect(&url).await.unwrap();
        round.subscribe(&bus).await;
        bus.start().unwrap();
        in_time("the rest is settled", bus.settled()).await.unwrap();
        in_time("the second bus ends", bus.shutdown()).await.unwrap();
        round.check(&acknowledged);
    });
}

/// Runs rounds until the time is over, each on a runtime of its own.
fn again_and_again(place: &str, one: impl AsyncFn(&Arc<Round>)) {
    quiet_panics();
    let variable = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = variable("EVENTBUS_STRESS_SECONDS").unwrap_or(15);
    let first = variable("EVENTBUS_STRESS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    let began = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || began.elapsed() < Duration::from_secs(seconds) {
        let seed = first + rounds;
        let named = NamedSeed(seed);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(one(&Arc::new(Round::new(seed))));
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(named);
        rounds += 1;
    }
    println!("{rounds} rounds {place} from seed {first} (EVENTBUS_STRESS_SEED, EVENTBUS_STRESS_SECONDS)");
}

/// Names the seed of a round that panics.
struct NamedSeed(u64);

impl Drop for NamedSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the round was that of EVENTBUS_STRESS_SEED={}", self.0);
        }
    }
}

/// Panics of handlers are part of a round, and not worth a line each.
fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload_as_str() != Some(PANIC) {
                before(panic);
            }
        }));
    });
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("it hangs: {what}"))
}

/// An order in a group: the group's number, the customer, the order's number.
type Place = (usize, u64, u64);

/// One round, and what was seen in it.
struct Round {
    seed: u64,
    /// What each group attempted, in order.
    attempts: Vec<Mutex<Vec<(u64, u64)>>>,
    /// How often each order was settled by each group.
    settled: Mutex<HashMap<Place, u32>>,
}

impl Round {
    fn new(seed: u64) -> Self {
        let attempts = (0..GROUPS).map(|_| Mutex::default()).collect();
        Self { seed, attempts, settled: Mutex::default() }
    }

    fn builder(self: &Arc<Self>) -> BusBuilder {
        Bus::builder()
            .only([] as [&str; 0])
            .observer(Watch(Arc::clone(self)))
            .drain(PATIENCE / 2)
            .backoff(Backoff::new(Duration::from_micros(500), Duration::from_millis(2)))
            .retries(200)
            .in_flight(64)
    }

    async fn subscribe(self: &Arc<Self>, bus: &Bus) {
        for group in 0..GROUPS {
            let round = Arc::clone(self);
            bus.on_topic("order.placed", move |delivery: Delivery| {
                let round = Arc::clone(&round);
                async move { round.handle(group, &delivery).await }
            })
            .group(group.to_string())
            .concurrency(1 + group % 5)
            .await
            .unwrap();
        }
    }

    /// Publishes beside a shutdown, or until shortly before it; which orders were acknowledged, and how the bus ended.
    async fn run(self: &Arc<Self>, bus: &Bus) -> (Vec<(u64, u64)>, eventbus::Result<()>) {
        self.subscribe(bus).await;
        bus.start().unwrap();
        let mut random = fastrand::Rng::with_seed(self.seed);
        let (beside, instant) = (random.bool(), Duration::from_micros(random.u64(..60_000)));
        let stop = Arc::new(AtomicBool::new(false));
        let mut publishers = JoinSet::new();
        for customer in 0..PUBLISHERS {
            publishers.spawn(publish(bus.clone(), customer, Arc::clone(&stop)));
        }
        sleep(instant).await;
        let mut acknowledged = Vec::new();
        if !beside {
            stop.store(true, Ordering::Release);
            let before = std::mem::take(&mut publishers).join_all();
            acknowledged = in_time("publishers before a shutdown", before).await.concat();
        }
        let ended = in_time("the shutdown", bus.shutdown()).await;
        acknowledged.extend(in_time("publishers beside a shutdown", publishers.join_all()).await.concat());
        (acknowledged, ended)
    }

    async fn handle(&self, group: usize, delivery: &Delivery) -> Outcome {
        let order = delivery.event::<OrderPlaced>().unwrap();
        self.attempts[group].lock().unwrap().push((order.customer, order.number));
        let place = (group as u64) << 32 | order.customer << 16 | order.number << 8;
        let mut random = fastrand::Rng::with_seed(self.seed ^ place ^ u64::from(delivery.attempt()) << 48);
        match random.u8(..) {
            0..8 => sleep(Duration::from_micros(300)).await,
            8..40 => tokio::task::yield_now().await,
            _ => {}
        }
        match random.u8(..) {
            0..10 => Outcome::Retry("again".into()),
            10..14 => Outcome::RetryAfter(Duration::from_millis(1)),
            14..16 => std::panic::panic_any(PANIC),
            16..18 => Outcome::Reject("no".into()),
            _ => Outcome::Ack,
        }
    }

    fn check(&self, acknowledged: &[(u64, u64)]) {
        let settled = self.settled.lock().unwrap();
        for (place, times) in settled.iter() {
            assert_eq!(*times, 1, "an order was settled more than once: (group, customer, number) {place:?}");
        }
        for group in 0..GROUPS {
            for (customer, number) in acknowledged {
                let place = (group, *customer, *number);
                assert!(settled.contains_key(&place), "lost: (group, customer, number) {place:?}");
            }
            let mut latest: HashMap<u64, u64> = HashMap::new();
            for (customer, number) in self.attempts[group].lock().unwrap().iter() {
                let before = latest.insert(*customer, *number);
                let follows = before.is_none_or(|before| *number == before || *number == before + 1);
                assert!(
                    follows,
                    "group {group}, customer {customer}: order {number} was attempted after {before:?}"
                );
            }
        }
    }
}

/// Publishes the orders of a customer one after the other, until one is refused.
async fn publish(bus: Bus, customer: u64, stop: Arc<AtomicBool>) -> Vec<(u64, u64)> {
    let mut acknowledged = Vec::new();
    for number in 0..ORDERS {
        if stop.load(Ordering::Acquire) || bus.publish(OrderPlaced { customer, number }).await.is_err() {
            break;
        }
        acknowledged.push((customer, number));
        tokio::task::yield_now().await;
    }
    acknowledged
}

/// Counts what is settled.
struct Watch(Arc<Round>);

impl Observer for Watch {
    fn attempted(&self, delivery: &Delivery, result: &Attempted) {
        if matches!(result, Attempted::Acked | Attempted::DeadLettered(_)) {
            let order = delivery.event::<OrderPlaced>().unwrap();
            let group = delivery.subscription().group.parse().unwrap();
            let mut settled = self.0.settled.lock().unwrap();
            *settled.entry((group, order.customer, order.number)).or_default() += 1;
        }
    }
}
