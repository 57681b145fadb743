//! Code of others may take any lock: nothing of ours is held while it is called.

mod support;

use eventbus::broker::DeadLetterQuery;
use eventbus::memory::{MemoryBroker, Overflow};
use eventbus::{Bus, Event, Outcome};
use serde::{Deserialize, Serialize};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use support::Ping;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::coop;

/// What the destructor of a `Guest` does.
static FAREWELL: Mutex<Option<Arc<dyn Fn() + Send + Sync>>> = Mutex::new(None);

/// An event whose destructor calls whatever it likes.
#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "guest.came")]
struct Guest {
    number: u64,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let farewell = FAREWELL.lock().unwrap().clone();
        if let Some(farewell) = farewell {
            farewell();
        }
    }
}

/// What a future answers that waits for nobody.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

/// Runs `test` on a thread of its own, and fails where that takes too long: it waits for itself.
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || {
        test();
        let _ = ended.send(());
    });
    end.recv_timeout(Duration::from_secs(60)).expect("it failed, or waits for itself");
}

#[test]
fn the_destructor_of_an_event_may_use_the_bus_wherever_the_event_is_dropped() {
    in_time(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = MemoryBroker::builder().history(2).dead_letter_capacity(2).capacity(3);
            let broker = broker.overflow(Overflow::Error).build();
            let bus = Bus::builder().only([] as [&str; 0]).retries(0).broker(broker.clone()).await.unwrap();
            let reject = |_: Arc<Guest>| async { Outcome::Reject("no room".into()) };
            bus.on(reject).group("inn").await.unwrap();
            let idle = bus.on(|_: Arc<Guest>| async {}).group("idle");
            let dropped = Arc::new(AtomicUsize::new(0));
            let (inner, count) = (bus.clone(), Arc::clone(&dropped));
            *FAREWELL.lock().unwrap() = Some(Arc::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
                drop(at_once(inner.publish(&Ping { number: 1 }).into_future()));
                let letters = inner.dead_letters().unwrap();
                drop(at_once(letters.find(DeadLetterQuery::default())));
                drop(at_once(inner.audit_log().unwrap().latest()));
                drop(at_once(inner.replay("inn").into_future()));
            }));
            bus.start().unwrap();
            // Through the history and the dead letters, whose oldest make room.
            for number in 0..8 {
                bus.publish(Guest { number }).await.unwrap();
                broker.settled().await;
            }
            let letters = bus.dead_letters().unwrap();
            for (id, _) in letters.find(DeadLetterQuery::default()).await.unwrap() {
                assert!(letters.purge(&id).await.unwrap());
            }
            // With a queue that closes.
            let other = Bus::builder().only([] as [&str; 0]).broker(MemoryBroker::new()).await.unwrap();
            other.on(|_: Arc<Guest>| async {}).group("closing").await.unwrap();
            other.publish(Guest { number: 9 }).await.unwrap();
            drop(other);
            while dropped.load(Ordering::SeqCst) < 9 {
                tokio::task::yield_now().await;
            }
            *FAREWELL.lock().unwrap() = None;
            drop(idle);
        });
    });
}

/// A waker that uses the bus it is woken by.
struct Nosy(Bus, AtomicBool);

impl Wake for Nosy {
    fn wake(self: Arc<Self>) {
        drop(at_once(self.0.publish(&Ping { number: 2 }).into_future()));
        drop(at_once(self.0.audit_log().unwrap().latest()));
        self.1.store(true, Ordering::SeqCst);
    }
}

#[test]
fn whoever_is_woken_may_use_the_bus_at_once() {
    in_time(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = MemoryBroker::builder().history(8).capacity(1).build();
            let bus = Bus::builder().only([] as [&str; 0]).broker(broker).await.unwrap();
            bus.on(|_: Arc<Ping>| async {}).group("g").await.unwrap();
            bus.publish(&Ping { number: 0 }).await.unwrap();
            let wakers: Vec<_> =
                (0..3).map(|_| Arc::new(Nosy(bus.clone(), AtomicBool::new(false)))).collect();
            let log = bus.audit_log().unwrap();
            let mut room = bus.publish(&Ping { number: 1 }).into_future();
            let mut grown = log.wait(log.latest().await.unwrap());
            let mut settled = std::pin::pin!(bus.settled());
            let contexts: Vec<_> = wakers.iter().map(|waker| Waker::from(Arc::clone(waker))).collect();
            let [mut first, mut second, mut third] = [0, 1, 2].map(|at| Context::from_waker(&contexts[at]));
            assert!(Pin::new(&mut room).poll(&mut first).is_pending());
            assert!(Pin::new(&mut grown).poll(&mut second).is_pending());
            assert!(settled.as_mut().poll(&mut third).is_pending());
            bus.start().unwrap();
            let began = Instant::now();
            while !wakers.iter().all(|waker| waker.1.load(Ordering::SeqCst)) {
                assert!(began.elapsed() < Duration::from_secs(30), "somebody was not woken");
                bus.publish(&Ping { number: 3 }).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    });
}

#[test]
fn two_readers_of_one_queue_and_its_publishers_never_wait_for_each_other() {
    in_time(|| {
        let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = MemoryBroker::new();
            let mut buses = Vec::new();
            for _ in 0..2 {
                let bus = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
                bus.on(|_: Arc<Ping>| async {}).group("shared").await.unwrap();
                bus.start().unwrap();
                buses.push(bus);
            }
            let mut publishers = tokio::task::JoinSet::new();
            for _ in 0..4 {
                let bus = buses[0].clone();
                publishers.spawn(async move {
                    for number in 0..50_000 {
                        bus.publish(&Ping { number }).await.unwrap();
                        if number % 16 == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                });
            }
            publishers.join_all().await;
            broker.settled().await;
        });
    });
}

#[test]
fn a_replay_with_a_rate_begins_in_a_task_that_has_spent_its_budget() {
    in_time(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let broker = MemoryBroker::builder().history(64).build();
            let bus = Bus::builder().only([] as [&str; 0]).broker(broker).await.unwrap();
            for topic in ["one.sent", "two.sent"] {
                bus.on_topic(topic, |_| async {}).group("g").await.unwrap();
                for number in 0..4 {
                    bus.publish_to(topic, &number).await.unwrap();
                }
            }
            tokio::task::yield_now().await;
            while coop::has_budget_remaining() {
                // What is ready costs budget, and is not waited for.
                let notify = Notify::new();
                notify.notify_one();
                notify.notified().await;
                at_once(coop::consume_budget());
            }
            assert_eq!(bus.replay("g").rate(100).await.unwrap().events, 8);
        });
    });
}
