//! Events that are given up: what is kept of them, and what can be done with them.

mod support;

use bytes::Bytes;
use eventbus::broker::{Broker, BrokerFuture, DeadLetter, Deliveries, FailureKind, Receipt, Settler};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::outcome::Reason;
use eventbus::{Batch, Bus, Delivery, Envelope, State, Topic, subscribe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::around::{Around, settled_by};
use support::{OrderPlaced, Ping, Seen, bus, pings};

#[tokio::test(start_paused = true)]
async fn a_dead_letter_tells_everything_that_is_known_of_the_failure() {
    let (bus, broker) = bus().await;
    let handle =
        bus.on(|_: Arc<OrderPlaced>| async { Err::<(), _>("the stock service is down") }).group("stock");
    let handle = handle.retries(1).await.unwrap();
    let location = handle.subscription().location();
    bus.start().unwrap();
    let order = OrderPlaced { customer: 7, number: 1 };
    let id = bus.publish(&order).header("tenant", "acme").await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let letter = &letters[0].1;
    assert_eq!(letter.envelope.id(), &id);
    assert_eq!(letter.envelope.headers().get("tenant"), Some("acme"));
    assert_eq!(*letter.envelope.event::<OrderPlaced>().unwrap(), order);
    let headers = letter.headers();
    for (name, value) in [
        ("reason", "the stock service is down"),
        ("kind", "failed"),
        ("topic", "order.placed"),
        ("group", "stock"),
        ("attempts", "2"),
        ("offset", "0"),
    ] {
        assert_eq!(headers.get(&format!("eventbus-dead-letter-{name}")), Some(value), "{name}");
    }
    assert!(headers.get("eventbus-dead-letter-handler").unwrap().contains(&location));
    let time = |name: &str| headers.get(name).unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(time("eventbus-dead-letter-first-failed-at") <= time("eventbus-dead-letter-last-failed-at"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_published_again_to_the_group_that_failed_and_to_no_other() {
    let (bus, broker) = bus().await;
    let (broken, mended) = (Arc::new(AtomicBool::new(true)), Seen::new());
    let (is_broken, seen) = (Arc::clone(&broken), mended.clone());
    bus.on_topic("ping.sent", move |delivery: Delivery| {
        let (broken, seen) = (is_broken.load(Ordering::SeqCst), seen.clone());
        async move {
            if broken {
                return Err("broken");
            }
            seen.push(delivery.attempt());
            Ok(())
        }
    })
    .group("failing")
    .retries(0)
    .await
    .unwrap();
    let other = pings(&bus, "other").await;
    let mut further = Vec::new();
    for group in ["a", "b", "c", "d", "e", "f"] {
        further.push(pings(&bus, group).await);
    }
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    broken.store(false, Ordering::SeqCst);
    let dead_letters = bus.dead_letters().unwrap();
    let id = dead_letters.list().await.unwrap()[0].0.clone();
    assert!(dead_letters.republish(&id, None).await.unwrap());
    broker.settled().await;
    assert_eq!(mended.all(), [1], "attempts count from 1 again");
    assert_eq!(other.all(), [1], "the other group has seen the event once");
    assert!(further.iter().all(|group| group.all() == [1]), "and so have all further ones");
    assert!(dead_letters.list().await.unwrap().is_empty());
    assert!(!dead_letters.republish(&id, None).await.unwrap(), "to publish it twice is to publish it once");
    broker.settled().await;
    assert_eq!(mended.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_can_be_mended_before_it_is_published_again_and_can_be_purged() {
    let (bus, broker) = bus().await;
    let seen = pings(&bus, "mended").await;
    bus.start().unwrap();
    for _ in 0..2 {
        bus.publish_to("ping.sent", &serde_json::json!({ "number": "one" })).await.unwrap();
    }
    broker.settled().await;
    let dead_letters = bus.dead_letters().unwrap();
    let letters = dead_letters.list().await.unwrap();
    assert_eq!(letters.len(), 2);
    assert!(
        dead_letters.republish(&letters[0].0, Some(Bytes::from_static(b"{\"number\":1}"))).await.unwrap()
    );
    assert!(dead_letters.purge(&letters[1].0).await.unwrap());
    assert!(!dead_letters.purge(&letters[1].0).await.unwrap());
    broker.settled().await;
    assert_eq!(seen.all(), [1]);
    assert!(dead_letters.list().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_dead_letters_are_published_again_with_nothing_lost_and_none_twice() {
    let (bus, broker) = bus().await;
    let (broken, seen) = (Arc::new(AtomicBool::new(true)), Seen::new());
    let (is_broken, numbers) = (Arc::clone(&broken), seen.clone());
    bus.on(move |ping: Arc<Ping>| {
        let (broken, numbers) = (is_broken.load(Ordering::SeqCst), numbers.clone());
        async move {
            if broken {
                return Err("broken");
            }
            numbers.push(ping.number);
            Ok(())
        }
    })
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..10_000 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    broken.store(false, Ordering::SeqCst);
    let dead_letters = bus.dead_letters().unwrap();
    for (id, _) in dead_letters.list().await.unwrap() {
        // Two operators at once.
        let (first, second) =
            tokio::join!(dead_letters.republish(&id, None), dead_letters.republish(&id, None));
        assert!(first.unwrap() ^ second.unwrap());
    }
    broker.settled().await;
    let mut numbers = seen.all();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..10_000));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_decode_is_kept_with_its_bytes_and_the_place_of_the_fault() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async {}).concurrency(1).await.unwrap();
    bus.start().unwrap();
    let topic = || Topic::from_static("ping.sent");
    let payload = Bytes::from_static(b"{\"number\": tru}");
    bus.publish_envelope(Envelope::from_bytes(topic(), "application/json", payload.clone())).await.unwrap();
    let newer = Envelope::from_json(topic(), &serde_json::json!({ "number": 1 })).unwrap();
    bus.publish_envelope(newer.clone().with_version(2)).await.unwrap();
    bus.publish_envelope(newer.with_type("pong.sent")).await.unwrap();
    bus.publish_envelope(Envelope::from_bytes(topic(), "image/png", payload.clone())).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let facts: Vec<_> = letters.iter().map(|(_, letter)| (letter.kind, letter.attempts)).collect();
    let (undecodable, unknown) = ((FailureKind::Undecodable, 1), (FailureKind::UnknownType, 1));
    assert_eq!(facts, [undecodable, unknown, unknown, undecodable]);
    assert_eq!(letters[0].1.envelope.payload().unwrap(), &payload);
    for (letter, words) in
        letters.iter().zip(["line 1 column 15", "known up to v1", "pong.sent", "image/png"])
    {
        assert!(letter.1.reason.contains(words), "{}", letter.1.reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_huge_error_text_is_cut_to_its_limit() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("é".repeat(5 << 20)) }).retries(0).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let reason = &letters[0].1.reason;
    assert!(
        reason.len() <= Reason::LIMIT && reason.ends_with("(10,485,760 bytes in all)"),
        "{}",
        reason.len()
    );
}

/// The in-process broker, while the disk on which it keeps dead letters is full.
#[derive(Clone)]
struct Full {
    memory: MemoryBroker,
    full: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
}

impl Full {
    fn new() -> Self {
        let memory = MemoryBroker::builder().history(100).build();
        Self { memory, full: Arc::new(AtomicBool::new(true)), refused: Arc::default() }
    }

    async fn bus(&self) -> Bus {
        Bus::builder().without_subscriptions().broker(self.broker()).await.unwrap()
    }

    fn broker(&self) -> Around {
        let (live, replayed) = (self.clone(), self.clone());
        Around::new("full", self.memory.clone())
            .live(move |deliveries| live.read(deliveries))
            .replayed(move |deliveries| replayed.read(deliveries))
    }

    fn read(&self, deliveries: Box<dyn Deliveries>) -> Box<dyn Deliveries> {
        let full = self.clone();
        settled_by(deliveries, move |settler| FullSettler(settler, full.clone()))
    }

    /// Waits until dead letters were refused so often.
    async fn has_refused(&self, often: usize) {
        let refused = async {
            while self.refused.load(Ordering::SeqCst) < often {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), refused)
            .await
            .expect("the dead letter is tried again");
    }
}

struct FullSettler(Arc<dyn Settler>, Full);

impl std::fmt::Debug for FullSettler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Settler for FullSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        self.0.ack(receipt)
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        if self.1.full.load(Ordering::SeqCst) {
            self.1.refused.fetch_add(1, Ordering::SeqCst);
            return BrokerFuture::ready(Err(BrokerError::new("the disk is full; make room")));
        }
        self.0.reject(receipt, letter)
    }

    fn release(&self, receipt: Receipt) {
        self.0.release(receipt);
    }
}

/// Whether a handler of these tests gives an order up.
fn is_poison(order: &OrderPlaced) -> bool {
    order.number == 1
}

async fn publish_orders(bus: &Bus) {
    for (customer, number) in [(7, 1), (7, 2), (7, 3), (8, 4)] {
        bus.publish(&OrderPlaced { customer, number }).await.unwrap();
    }
}

/// The disk is full, then it is not: what is handled at last, in order, and the dead letter.
async fn gets_room(broker: &Full, handled: &Seen<u64>) {
    broker.has_refused(5).await;
    assert_eq!(
        handled.all(),
        [1, 4],
        "the key of what is given up waits, others go on, and no handler is asked again"
    );
    broker.full.store(false, Ordering::SeqCst);
}

async fn letters(broker: &Full) -> Vec<(u64, u32)> {
    let letters = broker.memory.dead_letters().unwrap().list().await.unwrap();
    let facts = letters
        .iter()
        .map(|(_, letter)| (letter.envelope.event::<OrderPlaced>().unwrap().number, letter.attempts));
    facts.collect()
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_cannot_be_stored_keeps_its_key_waiting_until_it_is() {
    let broker = Full::new();
    let bus = broker.bus().await;
    let handled = Seen::new();
    let seen = handled.clone();
    bus.on(move |order: Arc<OrderPlaced>| {
        seen.push(order.number);
        async move { if is_poison(&order) { Err("poison") } else { Ok(()) } }
    })
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    publish_orders(&bus).await;
    gets_room(&broker, &handled).await;
    broker.memory.settled().await;
    assert_eq!(handled.all(), [1, 4, 2, 3]);
    assert_eq!(letters(&broker).await, [(1, 1)]);
}

#[subscribe(group = "batched", batch = 2, retries = 0)]
async fn batched(orders: Batch<OrderPlaced>, handled: State<Seen<u64>>) -> Vec<Result<(), String>> {
    let answer = |(order, _): (&OrderPlaced, &Envelope)| {
        handled.push(order.number);
        if is_poison(order) { Err("poison".to_owned()) } else { Ok(()) }
    };
    orders.iter().map(answer).collect()
}

#[tokio::test(start_paused = true)]
async fn a_member_of_a_batch_whose_dead_letter_cannot_be_stored_keeps_its_key_waiting() {
    let broker = Full::new();
    let handled = Seen::new();
    let builder = Bus::builder().state(handled.clone()).only(["batched"]);
    let bus = builder.broker(broker.broker()).await.unwrap();
    bus.start().unwrap();
    publish_orders(&bus).await;
    gets_room(&broker, &handled).await;
    broker.memory.settled().await;
    assert_eq!(handled.all(), [1, 4, 2, 3]);
    assert_eq!(letters(&broker).await, [(1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_replay_takes_no_room_for_what_fails_in_it() {
    let broker = Full::new();
    let bus = broker.bus().await;
    let handled = Seen::new();
    let seen = handled.clone();
    bus.on_topic("order.placed", move |delivery: Delivery| {
        let order: OrderPlaced = delivery.owned_event().unwrap();
        let fails = delivery.replayed() && is_poison(&order);
        if delivery.replayed() {
            seen.push(order.number);
        }
        async move { if fails { Err("poison") } else { Ok(()) } }
    })
    .group("model")
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    publish_orders(&bus).await;
    broker.memory.settled().await;
    let replayed = bus.replay("model").skip_failures().await.unwrap();
    let mut handled = handled.all();
    handled.sort_unstable();
    assert_eq!(handled, [1, 2, 3, 4]);
    assert_eq!((replayed.acked, replayed.failed), (3, 1));
    assert_eq!(broker.refused.load(Ordering::SeqCst), 0);
    assert_eq!(letters(&broker).await, []);
}
