//! What one delivery costs, beside what the same work costs without a bus. Run it with `cargo bench`.
//!
//! Every row publishes 1,000 orders and waits until the last one is handled, on one thread; divan shows the time
//! and the allocations of one such batch. Rows of one run are to be compared, not runs.

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use eventbus::bus::BusBuilder;
use eventbus::middleware::{Next, from_fn};
use eventbus::{Bus, Delivery, Event, Outcome};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, mpsc};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const ORDERS: usize = 1_000;

fn main() {
    divan::main();
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed")]
struct Order {
    id: u64,
    customer: String,
    total_cents: u64,
}

/// An order whose events are handled in publish order, order by order.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.keyed", key = id)]
struct KeyedOrder {
    id: u64,
    customer: String,
    total_cents: u64,
}

fn order(id: u64) -> Order {
    Order { id, customer: "ada".to_owned(), total_cents: 129_900 }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn handle(order: &Order) {
    black_box(order.total_cents);
}

async fn pass(delivery: Delivery, next: Next) -> Outcome {
    next.run(delivery).await
}

/// Publishes orders that exist already, so that a publish allocates for the bus alone.
fn deliver<E: Event>(bencher: Bencher<'_, '_>, bus: BusBuilder, subscribers: usize, order: fn(u64) -> E) {
    let runtime = runtime();
    let (done, mut all_done) = mpsc::unbounded_channel();
    let bus = runtime.block_on(async {
        let bus = bus.connect("memory:").await.expect("a bus");
        for subscriber in 0..subscribers {
            let (done, handled) = (done.clone(), AtomicUsize::new(0));
            let handler = move |order: Arc<E>| {
                black_box(&order);
                if handled.fetch_add(1, Ordering::Relaxed) % ORDERS == ORDERS - 1 {
                    done.send(()).expect("the bench waits");
                }
                async {}
            };
            bus.on(handler).group(format!("subscriber-{subscriber}")).await.expect("a subscription");
        }
        bus.start().expect("subscriptions");
        bus
    });
    let orders: Vec<_> = (0..ORDERS as u64).map(|id| Arc::new(order(id))).collect();
    bencher.counter(ItemsCount::new(ORDERS)).bench_local(|| {
        runtime.block_on(async {
            for order in &orders {
                bus.publish(Arc::clone(order)).await.expect("published");
            }
            for _ in 0..subscribers {
                all_done.recv().await;
            }
        });
    });
}

#[divan::bench(args = [1, 3])]
fn eventbus(bencher: Bencher<'_, '_>, subscribers: usize) {
    deliver(bencher, Bus::builder(), subscribers, order);
}

#[divan::bench]
fn eventbus_with_keys(bencher: Bencher<'_, '_>) {
    deliver(bencher, Bus::builder(), 1, |id| {
        let Order { id, customer, total_cents } = order(id);
        KeyedOrder { id, customer, total_cents }
    });
}

#[divan::bench]
fn eventbus_with_middleware(bencher: Bencher<'_, '_>) {
    deliver(bencher, Bus::builder().layer(from_fn(pass)), 1, order);
}

#[divan::bench]
fn direct_call(bencher: Bencher<'_, '_>) {
    let (runtime, order) = (runtime(), order(1));
    bencher.counter(ItemsCount::new(ORDERS)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..ORDERS {
                handle(black_box(&order)).await;
            }
        });
    });
}

#[divan::bench]
fn tokio_mpsc(bencher: Bencher<'_, '_>) {
    let (runtime, order) = (runtime(), Arc::new(order(1)));
    let (sender, mut receiver) = mpsc::channel::<Arc<Order>>(ORDERS);
    let (done, mut all_done) = mpsc::unbounded_channel();
    runtime.spawn(async move {
        loop {
            for _ in 0..ORDERS {
                let Some(order) = receiver.recv().await else { return };
                handle(&order).await;
            }
            done.send(()).expect("the bench waits");
        }
    });
    bencher.counter(ItemsCount::new(ORDERS)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..ORDERS {
                sender.send(Arc::clone(&order)).await.expect("a receiver");
            }
            all_done.recv().await;
        });
    });
}

#[divan::bench(args = [1, 3])]
fn tokio_broadcast(bencher: Bencher<'_, '_>, subscribers: usize) {
    let (runtime, order) = (runtime(), Arc::new(order(1)));
    let (sender, _) = broadcast::channel::<Arc<Order>>(2 * ORDERS);
    let (done, mut all_done) = mpsc::unbounded_channel();
    for _ in 0..subscribers {
        let (mut receiver, done) = (sender.subscribe(), done.clone());
        runtime.spawn(async move {
            loop {
                for _ in 0..ORDERS {
                    let Ok(order) = receiver.recv().await else { return };
                    handle(&order).await;
                }
                done.send(()).expect("the bench waits");
            }
        });
    }
    bencher.counter(ItemsCount::new(ORDERS)).bench_local(|| {
        runtime.block_on(async {
            for _ in 0..ORDERS {
                sender.send(Arc::clone(&order)).expect("a receiver");
            }
            for _ in 0..subscribers {
                all_done.recv().await;
            }
        });
    });
}

#[divan::bench]
fn serde_json_round_trip(bencher: Bencher<'_, '_>) {
    let order = order(1);
    bencher.counter(ItemsCount::new(ORDERS)).bench_local(|| {
        for _ in 0..ORDERS {
            let bytes = serde_json::to_vec(black_box(&order)).expect("JSON");
            black_box(serde_json::from_slice::<Order>(&bytes).expect("JSON"));
        }
    });
}
