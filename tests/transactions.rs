//! What a handler returns, on a broker that publishes it together with the settlement of its event.

mod support;

use eventbus::broker::{
    Broker, BrokerFuture, DeadLetter, DeadLetters, Deliveries, Features, Receipt, Settler, SubscribeRequest,
};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Delivery, Envelope, Event, Outcome, PublishError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::around::settled_by;
use support::{OrderPlaced, Ping, Seen};

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.shipped", key = number)]
struct OrderShipped {
    number: u64,
}

/// What the broker answers where it is asked to publish and settle together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    Both,
    /// No event of this customer is published.
    Refused(u64),
    /// Somebody else has the delivery.
    Lost,
    /// They do not go together.
    Declines,
}

/// The in-process broker, which counts how it was asked for what.
#[derive(Clone, Debug)]
struct Together {
    broker: MemoryBroker,
    answers: Answers,
    published: Arc<AtomicUsize>,
    together: Arc<AtomicUsize>,
}

impl Together {
    fn new(answers: Answers) -> Self {
        Self { broker: MemoryBroker::new(), answers, published: Arc::default(), together: Arc::default() }
    }

    fn asked(&self) -> (usize, usize) {
        (self.published.load(Ordering::SeqCst), self.together.load(Ordering::SeqCst))
    }
}

impl Broker for Together {
    fn name(&self) -> &str {
        "together"
    }

    fn features(&self) -> Features {
        let mut features = self.broker.features();
        features.transactions = true;
        features
    }

    fn publish(&self, envelope: Arc<Envelope>) -> BrokerFuture<Result<(), PublishError>> {
        self.published.fetch_add(1, Ordering::SeqCst);
        self.broker.publish(envelope)
    }

    fn subscribe(&self, request: SubscribeRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>> {
        let this = self.clone();
        let subscribed = self.broker.subscribe(request);
        BrokerFuture::new(async move {
            Ok(settled_by(subscribed.await?, move |settler| Settling(settler, this.clone())))
        })
    }

    fn dead_letters(&self) -> Option<Arc<dyn DeadLetters>> {
        self.broker.dead_letters()
    }
}

#[derive(Debug)]
struct Settling(Arc<dyn Settler>, Together);

impl Settler for Settling {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.ack(receipt)
    }

    fn ack_with(
        &self,
        receipt: &Receipt,
        events: &[Arc<Envelope>],
    ) -> Option<BrokerFuture<Result<Result<(), BrokerError>, PublishError>>> {
        let answers = self.1.answers;
        if answers == Answers::Declines {
            return None;
        }
        assert!(!events.is_empty(), "what returns nothing is acked");
        self.1.together.fetch_add(1, Ordering::SeqCst);
        let topic = events[0].topic().to_string();
        let is_refused = |envelope: &Arc<Envelope>, customer| {
            envelope.event::<OrderPlaced>().is_ok_and(|order| order.customer == customer)
        };
        Some(match answers {
            Answers::Lost => BrokerFuture::ready(Ok(Err(BrokerError::new("it is somebody else's")))),
            Answers::Refused(customer) if is_refused(&receipt.envelope, customer) => {
                BrokerFuture::ready(Err(PublishError::Broker { topic, cause: "the topic is full".into() }))
            }
            _ => {
                let (settler, receipt) = (Arc::clone(&self.0), receipt.clone());
                let (broker, events) = (self.1.broker.clone(), events.to_vec());
                BrokerFuture::new(async move {
                    for event in events {
                        broker.publish(event).await?;
                    }
                    Ok(settler.ack(receipt).await)
                })
            }
        })
    }

    fn reject(&self, receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.reject(receipt, dead_letter)
    }

    fn release(&self, receipt: Receipt) {
        self.0.release(receipt);
    }
}

/// Ships so many orders, each of its own customer, and lists what was published.
async fn ship(broker: &Together, orders: u64) -> (Bus, Vec<Arc<Envelope>>) {
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    let seen = Seen::new();
    let envelopes = seen.clone();
    let audit = move |delivery: Delivery| {
        let envelopes = envelopes.clone();
        async move { envelopes.push(Arc::clone(delivery.envelope())) }
    };
    bus.on_topic(">", audit).group("audit").await.unwrap();
    let ship = |order: Arc<OrderPlaced>| async move {
        let shipped = |number| OrderShipped { number };
        Outcome::publish(shipped(order.number)).and_publish(shipped(order.number + 100))
    };
    bus.on(ship).group("ship").retries(1).await.unwrap();
    bus.start().unwrap();
    for customer in 0..orders {
        bus.publish(&OrderPlaced { customer, number: customer }).await.unwrap();
    }
    broker.broker.settled().await;
    (bus, seen.all())
}

fn shipped(envelopes: &[Arc<Envelope>]) -> Vec<u64> {
    let shipped = envelopes.iter().filter_map(|one| one.event::<OrderShipped>().ok());
    let mut numbers: Vec<_> = shipped.map(|shipped| shipped.number).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_returns_is_published_with_the_settlement_of_its_event_and_knows_its_cause() {
    let broker = Together::new(Answers::Both);
    let (_bus, envelopes) = ship(&broker, 2).await;
    assert_eq!(shipped(&envelopes), [0, 1, 100, 101]);
    assert_eq!(broker.asked(), (2, 2), "orders were published by themselves, and nothing else was");
    let order = envelopes.iter().find(|one| one.topic().as_str() == "order.placed").unwrap();
    let caused: Vec<_> =
        envelopes.iter().filter(|one| one.causation_id() == Some(order.id())).map(|one| &**one).collect();
    assert_eq!(caused.len(), 2);
    assert!(caused.iter().all(|one| one.causation_depth() == 1 && one.correlation_id() == order.id()));
    assert!(!caused[0].source().is_empty());
}

#[tokio::test(start_paused = true)]
async fn where_an_event_cannot_be_published_the_attempt_has_failed_and_nothing_is_settled_with_it() {
    let broker = Together::new(Answers::Refused(1));
    let (bus, envelopes) = ship(&broker, 3).await;
    assert_eq!(shipped(&envelopes), [0, 2, 100, 102]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let [(_, letter)] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.attempts, letter.envelope.event::<OrderPlaced>().unwrap().customer), (2, 1));
    assert!(letter.reason.contains("the topic is full"), "{}", letter.reason);
    assert_eq!(broker.asked(), (3, 4));
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_published_keeps_the_others_of_its_event_back() {
    #[derive(Event, Clone, Serialize, Deserialize)]
    #[event(topic = "unfit.made")]
    struct Unfit(std::collections::BTreeMap<Vec<u8>, u8>);
    let broker = Together::new(Answers::Both);
    let bus = Bus::builder().only([] as [&str; 0]).causation_limit(0).broker(broker.clone()).await.unwrap();
    let answer =
        |ping: Arc<Ping>| async move { Outcome::publish(ping).and_publish(Unfit([(vec![1], 1)].into())) };
    bus.on(answer).group("answer").await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert!(letters[0].1.reason.contains("causation_limit"), "{letters:?}");
    assert_eq!(broker.asked(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_somebody_else_has_is_neither_a_failure_nor_given_back() {
    let broker = Together::new(Answers::Lost);
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    let called = Seen::new();
    let calls = called.clone();
    let answer = move |ping: Arc<Ping>| {
        calls.push(ping.number);
        async move { Outcome::publish(OrderShipped { number: ping.number }) }
    };
    bus.on(answer).group("answer").await.unwrap();
    bus.start().unwrap();
    for number in 0..2 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    while broker.asked() != (2, 2) {
        tokio::task::yield_now().await;
    }
    assert_eq!(called.all(), [0, 1], "the next one of the lane is handled");
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn where_the_broker_declines_they_are_published_before_the_event_is_settled() {
    let broker = Together::new(Answers::Declines);
    let (_bus, envelopes) = ship(&broker, 2).await;
    assert_eq!(shipped(&envelopes), [0, 1, 100, 101]);
    assert_eq!(broker.asked(), (6, 0));
}
