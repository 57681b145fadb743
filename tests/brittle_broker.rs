//! A broker that panics wherever it is called, once: the group goes on, and nothing that can be told is lost.

mod support;

use eventbus::broker::{
    Broker, BrokerFuture, DeadLetter, DeadLetters, Deliveries, Features, Parked, Receipt, Received, Settler,
    SubscribeRequest,
};
use eventbus::bus::SubscriptionHandle;
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Backoff, Bus, Envelope, PublishError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use support::{Ping, Seen};

/// Where the broker panics, once.
#[derive(Clone, Debug, Default)]
struct Fuse(Arc<Mutex<Option<&'static str>>>);

impl Fuse {
    fn at(&self, place: &str) {
        let burnt = {
            let mut armed = self.0.lock().unwrap();
            armed.take_if(|armed| *armed == place).is_some()
        };
        assert!(!burnt, "at {place} of a broker");
    }

    fn is_armed_for(&self, place: &str) -> bool {
        self.0.lock().unwrap().is_some_and(|armed| armed == place)
    }

    fn is_burnt(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }
}

/// The in-process broker, with a fuse.
#[derive(Clone)]
struct Brittle(MemoryBroker, Fuse);

impl Broker for Brittle {
    fn name(&self) -> &str {
        "brittle"
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        self.1.at("publish");
        let (published, fuse) = (self.0.publish(envelope), self.1.clone());
        BrokerFuture::new(async move {
            tokio::task::yield_now().await;
            fuse.at("the future of publish");
            published.await
        })
    }

    fn publish_all(&self, envelopes: Vec<Arc<Envelope>>) -> BrokerFuture<Vec<Result<(), PublishError>>> {
        self.1.at("publish_all");
        self.0.publish_all(envelopes)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let (opening, fuse) = (self.0.subscribe(request), self.1.clone());
        BrokerFuture::new(async move {
            Ok(Box::new(BrittleDeliveries(opening.await?, fuse)) as Box<dyn Deliveries>)
        })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.0.dead_letters()
    }
}

struct BrittleDeliveries(Box<dyn Deliveries>, Fuse);

impl Deliveries for BrittleDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        self.1.at("poll_receive");
        let before = into.len();
        let polled = self.0.poll_receive(context, into, limit);
        for received in &mut into[before..] {
            received.settler = Arc::new(BrittleSettler(Arc::clone(&received.settler), self.1.clone()));
        }
        if into.len() > before {
            self.1.at("the end of poll_receive");
        }
        polled
    }
}

impl Drop for BrittleDeliveries {
    fn drop(&mut self) {
        self.1.at("the destructor of deliveries");
    }
}

/// Panics before it takes what it is told, or afterwards.
#[derive(Debug)]
struct BrittleSettler(Arc<dyn Settler>, Fuse);

impl Settler for BrittleSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.1.at("ack");
        let (settler, fuse) = (Arc::clone(&self.0), self.1.clone());
        if self.1.is_armed_for("the future of ack, before") {
            return BrokerFuture::new(async move {
                tokio::task::yield_now().await;
                fuse.at("the future of ack, before");
                settler.ack(receipt).await
            });
        }
        let acked = self.0.ack(receipt);
        self.1.at("the end of ack");
        BrokerFuture::new(async move {
            tokio::task::yield_now().await;
            fuse.at("the future of ack");
            acked.await
        })
    }

    fn reject(&self, receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.1.at("reject");
        let (settler, fuse) = (Arc::clone(&self.0), self.1.clone());
        if self.1.is_armed_for("the future of reject, before") {
            return BrokerFuture::new(async move {
                tokio::task::yield_now().await;
                fuse.at("the future of reject, before");
                settler.reject(receipt, dead_letter).await
            });
        }
        let rejected = self.0.reject(receipt, dead_letter);
        self.1.at("the end of reject");
        BrokerFuture::new(async move {
            tokio::task::yield_now().await;
            fuse.at("the future of reject");
            rejected.await
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        self.1.at("park");
        self.0.park(receipt, parked)
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        self.1.at("holds");
        self.0.holds(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.1.at("release");
        self.0.release(receipt);
        self.1.at("the end of release");
    }
}

/// A handler that fails for every third number, once for each.
async fn thirds(bus: &Bus) -> (Seen<u64>, SubscriptionHandle) {
    let seen = Seen::new();
    let numbers = seen.clone();
    let handle = bus
        .on_topic("ping.sent", move |delivery| {
            let Ping { number } = delivery.owned_event().unwrap();
            let fails = number % 3 == 0 && (delivery.attempt() == 1 || number % 2 == 0);
            if !fails {
                numbers.push(number);
            }
            async move { if fails { Err("a third") } else { Ok(()) } }
        })
        .group("thirds")
        .retries(1)
        .backoff(Backoff::parse("1ms..2ms"))
        .concurrency(2)
        .await
        .unwrap();
    (seen, handle)
}

async fn within_a_while<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it goes on")
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_panics_as_it_delivers_or_settles_does_not_stop_the_group() {
    let places = [
        "poll_receive",
        "the end of poll_receive",
        "holds",
        "ack",
        "the end of ack",
        "the future of ack, before",
        "the future of ack",
        "park",
        "reject",
        "the end of reject",
        "the future of reject, before",
        "the future of reject",
        "the destructor of deliveries",
    ];
    for place in places {
        let (broker, fuse) = (MemoryBroker::new(), Fuse::default());
        let builder = Bus::builder().without_subscriptions();
        let bus = builder.broker(Brittle(broker.clone(), fuse.clone())).await.unwrap();
        let (seen, handle) = thirds(&bus).await;
        *fuse.0.lock().unwrap() = Some(place);
        bus.start().unwrap();
        for number in 0..12 {
            bus.publish(&Ping { number }).await.unwrap();
        }
        within_a_while(broker.settled()).await;
        bus.publish(&Ping { number: 100 }).await.unwrap();
        within_a_while(broker.settled()).await;
        let mut handled = seen.all();
        handled.sort_unstable();
        assert_eq!(handled, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 100], "{place}");
        assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 2, "{place}");
        handle.stop().await;
        bus.shutdown().await.unwrap();
        assert!(fuse.is_burnt(), "{place} was reached");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_that_panics_was_to_take_back_is_given_back_again() {
    for place in ["release", "the end of release"] {
        let (broker, fuse) = (MemoryBroker::new(), Fuse::default());
        let builder = Bus::builder().without_subscriptions().drain(Duration::from_millis(10));
        let bus = builder.broker(Brittle(broker.clone(), fuse.clone())).await.unwrap();
        bus.on_topic("ping.sent", |_| std::future::pending::<()>()).group("hangs").await.unwrap();
        bus.start().unwrap();
        bus.publish(&Ping { number: 1 }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let other = Bus::builder().without_subscriptions().broker(broker.clone()).await.unwrap();
        let seen = Seen::new();
        let numbers = seen.clone();
        let note = move |ping: Arc<Ping>| {
            numbers.push(ping.number);
            async {}
        };
        other.on(note).group("hangs").await.unwrap();
        *fuse.0.lock().unwrap() = Some(place);
        within_a_while(bus.shutdown()).await.unwrap_err();
        other.start().unwrap();
        within_a_while(broker.settled()).await;
        assert!(fuse.is_burnt(), "the delivery was given back");
        assert_eq!(seen.all(), [1], "it was given back once, at {place}");
    }
}

#[tokio::test]
async fn a_broker_that_panics_as_it_publishes_is_an_error_for_the_publisher() {
    let (broker, fuse) = (MemoryBroker::new(), Fuse::default());
    let bus =
        Bus::builder().without_subscriptions().broker(Brittle(broker.clone(), fuse.clone())).await.unwrap();
    for place in ["publish", "the future of publish", "publish_all"] {
        *fuse.0.lock().unwrap() = Some(place);
        let results = match place {
            "publish_all" => bus.publish_all([Ping { number: 1 }, Ping { number: 2 }]).await,
            _ => vec![bus.publish(&Ping { number: 1 }).await],
        };
        for result in results {
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains(&format!("panicked: at {place} of a broker; publish it again")),
                "{error}"
            );
        }
        bus.publish(&Ping { number: 2 }).await.unwrap();
    }
}

/// A waker that panics.
struct Alarm(AtomicBool);
impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
        panic!("at a waker");
    }
}

#[tokio::test]
async fn a_waker_that_panics_leaves_nobody_asleep_who_waits_for_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for url in ["memory:".to_owned(), format!("sqlite:{}", folder.path().join("log.db").display())] {
        let bus = Bus::builder().without_subscriptions().connect(&url).await.unwrap();
        let (_seen, _handle) = thirds(&bus).await;
        bus.publish(&Ping { number: 1 }).await.unwrap();
        let alarms: [_; 3] = std::array::from_fn(|_| Arc::new(Alarm(AtomicBool::new(false))));
        let mut alarmed = Vec::new();
        let mut waiting = Vec::new();
        for alarm in &alarms {
            let mut settled = Box::pin(bus.settled());
            let waker = Waker::from(Arc::clone(alarm));
            assert!(settled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            alarmed.push(settled);
            let (bus, waits) = (bus.clone(), Arc::new(tokio::sync::Notify::new()));
            let begun = Arc::clone(&waits);
            waiting.push(tokio::spawn(async move {
                let mut settled = Box::pin(bus.settled());
                assert!(waits_after_a_poll(settled.as_mut()).await, "nothing is handled yet");
                begun.notify_one();
                settled.await
            }));
            waits.notified().await;
        }
        bus.start().unwrap();
        for waits in waiting {
            within_a_while(waits).await.unwrap().unwrap();
        }
        assert!(alarms.iter().all(|alarm| alarm.0.load(Ordering::SeqCst)), "each was told, on {url}");
        drop(alarmed);
        within_a_while(bus.shutdown()).await.unwrap();
    }
}

/// Polls once; whether it waits.
async fn waits_after_a_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[tokio::test]
async fn a_waker_that_panics_hurts_nobody_but_who_waits() {
    let folder = tempfile::tempdir().unwrap();
    for url in ["memory:".to_owned(), format!("sqlite:{}", folder.path().join("log.db").display())] {
        let bus = Bus::builder().without_subscriptions().connect(&url).await.unwrap();
        let (seen, _handle) = thirds(&bus).await;
        bus.publish(&Ping { number: 1 }).await.unwrap();
        let alarm = Arc::new(Alarm(AtomicBool::new(false)));
        {
            let waker = Waker::from(Arc::clone(&alarm));
            let mut settled = std::pin::pin!(bus.settled());
            assert!(settled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            bus.start().unwrap();
            let rung = async {
                while !alarm.0.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            within_a_while(rung).await;
        }
        for number in [2, 4, 5] {
            bus.publish(&Ping { number }).await.unwrap();
        }
        within_a_while(bus.settled()).await.unwrap();
        let mut handled = seen.all();
        handled.sort_unstable();
        assert_eq!(handled, [1, 2, 4, 5], "on {url}");
        within_a_while(bus.shutdown()).await.unwrap();
    }
}
