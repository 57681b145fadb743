//! Bounded queues: publishers wait, or are told.

mod support;

use eventbus::broker::{Broker, BrokerFuture, Deliveries, SubscribeRequest};
use eventbus::memory::{MemoryBroker, MemoryBrokerBuilder, Overflow};
use eventbus::subscription::Pattern;
use eventbus::{Bus, Envelope, PublishError, Topic};
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;
use support::{Ping, Seen, pings};
use tokio::sync::Semaphore;
use tokio::time::timeout;

async fn bus_on(broker: MemoryBrokerBuilder) -> (Bus, MemoryBroker) {
    let broker = broker.build();
    let bus = Bus::builder().only([] as [&str; 0]).in_flight(1).broker(broker.clone()).await.unwrap();
    (bus, broker)
}

#[tokio::test(start_paused = true)]
async fn a_publisher_waits_while_a_queue_is_full_and_goes_on_when_there_is_room() {
    let (bus, broker) = bus_on(MemoryBroker::builder().capacity(2)).await;
    let gate = Arc::new(Semaphore::new(0));
    let handled = Seen::new();
    let (pass, seen) = (Arc::clone(&gate), handled.clone());
    bus.on(move |ping: Arc<Ping>| {
        let (pass, seen) = (Arc::clone(&pass), seen.clone());
        async move {
            pass.acquire().await.unwrap().forget();
            seen.push(ping.number);
        }
    })
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    let mut published = 0;
    while timeout(Duration::from_secs(1), bus.publish(&Ping { number: published })).await.is_ok() {
        published += 1;
    }
    assert_eq!(published, 3, "one is being handled, and two are in the queue");
    let publish = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&Ping { number: 3 }).await }
    });
    gate.add_permits(4);
    publish.await.unwrap().unwrap();
    broker.settled().await;
    assert_eq!(handled.all(), [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_publisher_is_told_which_queue_is_full_and_no_group_gets_the_event() {
    let (bus, broker) = bus_on(MemoryBroker::builder().capacity(2).overflow(Overflow::Error)).await;
    let roomy = pings(&bus, "roomy").await;
    let other = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    other.on(|_: Arc<Ping>| async {}).group("stalled").await.unwrap();
    bus.start().unwrap();
    for number in 0..2 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    while roomy.len() < 2 {
        tokio::task::yield_now().await;
    }
    let error = bus.publish(&Ping { number: 2 }).await.unwrap_err();
    let PublishError::Full { group, capacity, .. } = &error else { panic!("{error}") };
    assert_eq!((group.as_str(), *capacity), ("stalled", 2));
    assert!(error.to_string().contains("Overflow::Wait"), "{error}");
    other.start().unwrap();
    broker.settled().await;
    assert_eq!(roomy.all(), [0, 1], "the refused event reached nobody");
    bus.publish(&Ping { number: 3 }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn handlers_that_publish_to_each_other_through_full_queues_do_not_wait_for_each_other() {
    let broker = MemoryBroker::builder().capacity(4).build();
    let bus = Bus::builder().only([] as [&str; 0]).causation_limit(12).broker(broker.clone()).await.unwrap();
    for (from, to) in [("ball.left", "ball.right"), ("ball.right", "ball.left")] {
        let inner = bus.clone();
        bus.on_topic(from, move |delivery: eventbus::Delivery| {
            let bus = inner.clone();
            async move {
                if delivery.envelope().causation_depth() < 12 {
                    bus.publish_to(to, &1).await?;
                }
                Ok::<_, PublishError>(())
            }
        })
        .concurrency(1)
        .await
        .unwrap();
    }
    bus.start().unwrap();
    for _ in 0..64 {
        bus.publish_to("ball.left", &1).await.unwrap();
    }
    timeout(Duration::from_secs(3600), broker.settled()).await.expect("nobody waits for themselves");
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_backlog_does_not_grow_past_its_capacity() {
    let (bus, broker) = bus_on(MemoryBroker::builder().capacity(100).overflow(Overflow::Error)).await;
    bus.on(|_: Arc<Ping>| tokio::time::sleep(Duration::from_millis(1))).concurrency(1).await.unwrap();
    bus.start().unwrap();
    let mut refused = 0;
    for number in 0..10_000 {
        if bus.publish(&Ping { number }).await.is_err() {
            refused += 1;
        }
    }
    assert!(refused >= 10_000 - 102, "{refused}");
    broker.settled().await;
}

#[tokio::test(start_paused = true)]
async fn what_handlers_publish_has_a_reserve_of_the_same_size_and_never_waits() {
    let (bus, _broker) = bus_on(MemoryBroker::builder().capacity(1)).await;
    bus.on(|_: Arc<Ping>| async {}).group("stalled").await.unwrap();
    let cause = Envelope::from_event(&Ping { number: 0 });
    let caused =
        |number| bus.publish_envelope(Envelope::from_event(&Ping { number }).caused_by(&cause)).into_future();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    caused(2).await.expect("the reserve takes it");
    let third =
        timeout(Duration::from_secs(3600), caused(3)).await.expect("a handler does not wait for itself");
    assert!(matches!(third, Err(PublishError::Full { .. })), "{third:?}");
    let outside = timeout(Duration::from_secs(3600), bus.publish(&Ping { number: 4 }).into_future()).await;
    assert!(outside.is_err(), "a publisher outside waits for room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_in_one_go_keeps_its_order_while_it_waits_for_room() {
    for _ in 0..100 {
        let (bus, broker) = bus_on(MemoryBroker::builder().capacity(2)).await;
        let seen = Seen::new();
        let noted = seen.clone();
        let note = move |ping: Arc<Ping>| {
            noted.push(ping.number);
            async {}
        };
        bus.on(note).concurrency(1).await.unwrap();
        bus.start().unwrap();
        let pings: Vec<_> = (0..64).map(|number| Ping { number }).collect();
        let answers = bus.publish_all(&pings).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        broker.settled().await;
        assert!(seen.all().into_iter().eq(0..64), "{:?}", seen.all());
    }
}

#[tokio::test]
async fn a_publish_that_is_dropped_while_it_waits_takes_no_place() {
    let (bus, broker) = bus_on(MemoryBroker::builder().capacity(2)).await;
    let (roomy, full) = (pings(&bus, "roomy").await, pings(&bus, "full").await);
    for number in 0..2 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    for _ in 0..100 {
        let mut publish = bus.publish(&Ping { number: 9 }).into_future();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(std::pin::Pin::new(&mut publish).poll(&mut context).is_pending());
    }
    bus.start().unwrap();
    for number in 2..100 {
        timeout(Duration::from_secs(30), bus.publish(&Ping { number }))
            .await
            .expect("there is room")
            .unwrap();
    }
    broker.settled().await;
    for seen in [roomy, full] {
        assert_eq!(seen.len(), 100, "{:?}", seen.all());
    }
}

async fn open(broker: &MemoryBroker, group: &str, pattern: &str) -> Box<dyn Deliveries> {
    broker.subscribe(SubscribeRequest::new(group, Pattern::new(pattern).unwrap())).await.unwrap()
}

fn envelope(topic: &'static str) -> Envelope {
    Envelope::from_json(Topic::from_static(topic), &1).unwrap()
}

/// The answer of a broker that does not let its publishers wait.
fn at_once<T>(mut answer: BrokerFuture<T>) -> T {
    match Pin::new(&mut answer).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("it waits"),
    }
}

#[tokio::test]
async fn a_publisher_is_told_that_a_queue_is_full_only_where_it_is() {
    for (overflow, in_a_row) in [(Overflow::Error, 1), (Overflow::Wait, 2)] {
        let broker = MemoryBroker::builder().capacity(1).overflow(overflow).build();
        let mut roomy = Vec::new();
        for group in ["a", "b", "c", "d"] {
            roomy.push(open(&broker, group, "ping.>").await);
        }
        let _full = open(&broker, "full", "ping.refused").await;
        let cause = envelope("ping.asked");
        // What handlers publish never waits, and has as much room again.
        let caused = |topic| Arc::new(envelope(topic).caused_by(&cause));
        let (refused, taken) = match overflow {
            Overflow::Error => (Arc::new(envelope("ping.refused")), Arc::new(envelope("ping.taken"))),
            Overflow::Wait => (caused("ping.refused"), caused("ping.taken")),
        };
        let mut drain = || {
            for deliveries in &mut roomy {
                let (mut received, mut context) = (Vec::new(), Context::from_waker(Waker::noop()));
                assert!(deliveries.poll_receive(&mut context, &mut received, 8).is_ready());
                for one in received {
                    drop(one.settler.ack(one.receipt));
                }
            }
        };
        while broker.publish(Arc::clone(&refused)).await.is_ok() {
            drain();
        }
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    at_once(broker.publish(Arc::clone(&refused))).unwrap_err();
                }
            });
            let published = (0..20_000).try_for_each(|_| {
                for _ in 0..in_a_row {
                    at_once(broker.publish(Arc::clone(&taken)))?;
                }
                drain();
                Ok::<_, PublishError>(())
            });
            over.store(true, Ordering::Relaxed);
            published.unwrap();
        });
    }
}
