//! Batches: size, age, and an outcome for each member.

mod support;

use eventbus::bus::BusBuilder;
use eventbus::memory::MemoryBroker;
use eventbus::middleware::{Next, from_fn};
use eventbus::{Batch, Bus, Delivery, Event, Outcome, State, subscribe};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;
use support::around::{Around, reading};
use support::{OrderPlaced, Ping, Seen};
use tokio::time::{Instant, sleep};

/// Blocks its thread until another batch is being handled, too.
#[subscribe(batch = 2, linger = "1ms", concurrency = 2)]
async fn meet(pings: Vec<Ping>, meeting: State<std::sync::Barrier>) {
    assert!(!pings.is_empty());
    meeting.wait();
}

/// Waits until two other batches are being handled, too.
#[subscribe(batch = 2, linger = "1ms", concurrency = 3)]
async fn wait(pings: Vec<Ping>, meeting: State<tokio::sync::Barrier>) {
    assert!(!pings.is_empty());
    meeting.wait().await;
}

type Batches = Seen<(Vec<u64>, Instant)>;

#[subscribe(batch = 10, linger = "50ms", concurrency = 1)]
async fn collect(pings: Vec<Ping>, batches: State<Batches>) {
    batches.push((pings.iter().map(|ping| ping.number).collect(), Instant::now()));
}

#[subscribe(batch = 100, linger = "50ms", retries = 1)]
async fn one_bad(pings: Batch<Ping>, batches: State<Batches>) -> Vec<Result<(), String>> {
    batches.push((pings.iter().map(|(ping, _)| ping.number).collect(), Instant::now()));
    pings.iter().map(|(ping, _)| if ping.number == 41 { Err("bad".to_owned()) } else { Ok(()) }).collect()
}

#[subscribe(batch = 4, linger = "50ms", retries = 1)]
async fn all_fail(pings: Vec<Ping>) -> Result<(), String> {
    Err(format!("{} of them", pings.len()))
}

#[subscribe(batch = 10, linger = "50ms")]
async fn keyed(orders: Vec<OrderPlaced>, batches: State<Batches>) {
    batches.push((orders.iter().map(|order| order.number).collect(), Instant::now()));
}

#[subscribe(batch = 2, linger = "1ms", concurrency = 2)]
async fn slowly(orders: Vec<OrderPlaced>, batches: State<Batches>) {
    sleep(Duration::from_millis(5)).await;
    batches.push((orders.iter().map(|order| order.number).collect(), Instant::now()));
}

#[subscribe(batch = 2, linger = "1ms", concurrency = 3)]
async fn unhurried(pings: Vec<Ping>, batches: State<Batches>) {
    sleep(Duration::from_millis(5)).await;
    batches.push((pings.iter().map(|ping| ping.number).collect(), Instant::now()));
}

/// Panics where another batch with the same customer is being handled.
#[subscribe(batch = 5, linger = "1ms", retries = 0)]
async fn beside(orders: Vec<OrderPlaced>, batches: State<Batches>, running: State<Mutex<Vec<u64>>>) {
    let customers: BTreeSet<u64> = orders.iter().map(|order| order.customer).collect();
    {
        let mut running = running.lock().unwrap();
        assert!(running.iter().all(|customer| !customers.contains(customer)));
        running.extend(&customers);
    }
    sleep(Duration::from_millis(customers.first().copied().unwrap_or_default() + 1)).await;
    batches.push((orders.iter().map(|order| order.number).collect(), Instant::now()));
    running.lock().unwrap().retain(|customer| !customers.contains(customer));
}

/// Fails where an event is seen for the first time.
#[subscribe(batch = 3, linger = "1ms", concurrency = 2)]
async fn fails_together(orders: Vec<OrderPlaced>, batches: State<Batches>) -> Result<(), String> {
    let numbers: Vec<u64> = orders.iter().map(|order| order.number).collect();
    let new = numbers.iter().any(|number| is_new(*number, &batches));
    batches.push((numbers, Instant::now()));
    if new { Err("not yet".to_owned()) } else { Ok(()) }
}

/// Fails for number 0 the first time that it is seen.
#[subscribe(batch = 3, linger = "1ms", concurrency = 2)]
async fn first_fails(orders: Batch<OrderPlaced>, batches: State<Batches>) -> Vec<Result<(), String>> {
    let numbers: Vec<u64> = orders.iter().map(|(order, _)| order.number).collect();
    let fails = |number: u64| number == 0 && is_new(number, &batches);
    let answer = |number: &u64| if fails(*number) { Err("not yet".to_owned()) } else { Ok(()) };
    let answers = numbers.iter().map(answer).collect();
    batches.push((numbers, Instant::now()));
    answers
}

fn is_new(number: u64, batches: &Batches) -> bool {
    batches.all().iter().all(|(numbers, _)| !numbers.contains(&number))
}

/// An event whose first one cannot be decoded at the first try.
#[derive(Event, Clone, Debug, Serialize)]
#[serde(transparent)]
#[event(topic = "fragile.sent")]
struct Fragile {
    number: u64,
}

static TRIED: AtomicBool = AtomicBool::new(false);

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        assert!(number != 0 || TRIED.swap(true, SeqCst), "not yet");
        Ok(Self { number })
    }
}

#[subscribe(batch = 3, linger = "1ms")]
async fn fragile(sent: Vec<Fragile>, batches: State<Batches>) {
    batches.push((sent.iter().map(|sent| sent.number).collect(), Instant::now()));
}

async fn run(
    builder: BusBuilder,
    subscriber: &eventbus::subscription::Subscriber,
) -> (Bus, MemoryBroker, Batches) {
    let (broker, batches) = (MemoryBroker::new(), Seen::new());
    let bus = builder.state(batches.clone()).only([subscriber]).broker(broker.clone()).await.unwrap();
    (bus, broker, batches)
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_handled_at_once_and_a_partial_one_when_its_oldest_member_is_as_old_as_linger() {
    let (bus, broker, batches) = run(Bus::builder(), collect::SUBSCRIBER).await;
    let start = Instant::now();
    bus.start().unwrap();
    for number in 0..25 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let batches: Vec<_> =
        batches.all().into_iter().map(|(numbers, at)| (numbers.len(), (at - start).as_millis())).collect();
    assert_eq!(batches, [(10, 0), (10, 0), (5, 50)]);
}

#[tokio::test(start_paused = true)]
async fn linger_is_an_age_and_not_a_pause_between_events() {
    let (bus, broker, batches) = run(Bus::builder(), collect::SUBSCRIBER).await;
    bus.start().unwrap();
    let start = Instant::now();
    for number in 0..6 {
        bus.publish(&Ping { number }).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    broker.settled().await;
    let batches: Vec<_> =
        batches.all().into_iter().map(|(numbers, at)| (numbers, (at - start).as_millis())).collect();
    // A debounce would have waited for a gap that never came.
    assert_eq!(batches, [(vec![0, 1, 2], 50), (vec![3, 4, 5], 110)]);
}

#[tokio::test(start_paused = true)]
async fn one_bad_member_of_a_hundred_fails_alone() {
    let (bus, broker, batches) = run(Bus::builder(), one_bad::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..100 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let sizes: Vec<_> = batches.all().into_iter().map(|(numbers, _)| numbers.len()).collect();
    assert_eq!(sizes, [100, 1], "only the bad one is tried again");
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters.len(), letters[0].1.envelope.event::<Ping>().unwrap().number), (1, 41));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_decode_is_given_up_and_the_others_are_handled() {
    let (bus, broker, batches) = run(Bus::builder(), collect::SUBSCRIBER).await;
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    bus.publish_to("ping.sent", &"no ping").await.unwrap();
    bus.publish(&Ping { number: 2 }).await.unwrap();
    broker.settled().await;
    assert_eq!(batches.all().into_iter().map(|(numbers, _)| numbers).collect::<Vec<_>>(), [[1, 2]]);
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_fails_every_member() {
    let (bus, broker, _) = run(Bus::builder(), all_fail::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..4 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters.iter().filter(|(_, letter)| letter.attempts == 2).count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_what_follows_of_a_key_in_publish_order() {
    let (bus, broker, batches) = run(Bus::builder(), keyed::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..6 {
        bus.publish(&OrderPlaced { customer: number % 3, number }).await.unwrap();
    }
    broker.settled().await;
    for number in 6..1_006 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    broker.settled().await;
    let batches: Vec<_> = batches.all().into_iter().map(|(numbers, _)| numbers).collect();
    assert_eq!((&*batches[0], batches.len()), (&[0, 1, 2, 3, 4, 5][..], 101));
    assert!(batches.into_iter().flatten().eq(0..1_006));
}

#[tokio::test(start_paused = true)]
async fn batches_with_events_of_one_key_are_not_handled_beside_each_other() {
    let (bus, broker, batches) =
        run(Bus::builder().concurrency(4).state(Mutex::new(Vec::<u64>::new())), beside::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..500 {
        bus.publish(&OrderPlaced { customer: number % 7 / 2, number }).await.unwrap();
    }
    broker.settled().await;
    assert!(
        bus.dead_letters().unwrap().list().await.unwrap().is_empty(),
        "two batches had one customer at once"
    );
    for customer in 0..4 {
        let numbers = batches.all().into_iter().flat_map(|(numbers, _)| numbers);
        assert!(numbers.filter(|number| number % 7 / 2 == customer).is_sorted(), "customer {customer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_answers_for_each_member_keeps_the_order_of_a_key() {
    let (bus, broker, batches) = run(Bus::builder(), first_fails::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..7 {
        bus.publish(&OrderPlaced { customer: number / 6, number }).await.unwrap();
    }
    broker.settled().await;
    let numbers: Vec<_> = batches.all().into_iter().map(|(numbers, _)| numbers).collect();
    assert_eq!(numbers, [vec![0, 6], vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]]);
}

#[tokio::test(start_paused = true)]
async fn members_of_a_key_that_failed_together_are_tried_again_in_publish_order() {
    let (bus, broker, batches) = run(Bus::builder(), fails_together::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..12 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    broker.settled().await;
    let handled: Vec<_> = batches.all().into_iter().map(|(numbers, _)| numbers).collect();
    assert!(handled.iter().all(|numbers| numbers.is_sorted()), "{handled:?}");
    let all = handled.concat();
    let last = |number: u64| all.iter().rposition(|handled| *handled == number);
    assert!((0..12).is_sorted_by_key(last), "{handled:?}");
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_decoding_panics_holds_back_what_follows_of_its_key() {
    let (bus, broker, batches) = run(Bus::builder(), fragile::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish_to("fragile.sent", &number).key("one").await.unwrap();
    }
    broker.settled().await;
    let numbers: Vec<_> = batches.all().into_iter().flat_map(|(numbers, _)| numbers).collect();
    assert_eq!(numbers, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn each_member_passes_the_layers_by_itself() {
    let passed = Seen::new();
    let seen = passed.clone();
    let layer = from_fn(move |delivery: Delivery, next: Next| {
        let seen = seen.clone();
        async move {
            let number = delivery.event::<Ping>().map_or(0, |ping| ping.number);
            seen.push(format!("before {number}"));
            if number == 1 {
                return Outcome::Reject("not this one".into());
            }
            let outcome = next.run(delivery).await;
            seen.push(format!("after {number}"));
            outcome
        }
    });
    let (bus, broker, batches) = run(Bus::builder().layer(layer), collect::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(passed.all(), ["before 0", "before 1", "before 2", "after 0", "after 2"]);
    assert_eq!(batches.all()[0].0, [0, 2]);
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_handled_beside_each_other_up_to_the_concurrency() {
    let builder = Bus::builder().state(std::sync::Barrier::new(2)).state(tokio::sync::Barrier::new(3));
    let broker = MemoryBroker::new();
    let bus = builder.only([meet::SUBSCRIBER, wait::SUBSCRIBER]).broker(broker.clone()).await.unwrap();
    for number in 0..12 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    bus.start().unwrap();
    tokio::time::timeout(Duration::from_secs(60), broker.settled()).await.expect("batches meet");
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_next_event_of_a_key_does_not_wait_for_an_event_of_another() {
    let (bus, broker, batches) = run(Bus::builder(), slowly::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..40 {
        bus.publish(&OrderPlaced { customer: number % 2, number }).await.unwrap();
    }
    // While one worker handles a batch, the other one waits for the lanes to open.
    tokio::time::timeout(Duration::from_secs(10), broker.settled()).await.expect("everything is handled");
    let mut numbers: Vec<_> = batches.all().into_iter().flat_map(|(numbers, _)| numbers).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..40));
}

#[tokio::test(start_paused = true)]
async fn whoever_gathers_goes_on_when_there_is_room_again() {
    let (bus, broker, batches) = run(Bus::builder().in_flight(4), unhurried::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..40 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    // Two workers handle as much as may be held, while the third one has its turn to gather and finds no room.
    tokio::time::timeout(Duration::from_secs(10), broker.settled()).await.expect("everything is handled");
    let mut numbers: Vec<_> = batches.all().into_iter().flat_map(|(numbers, _)| numbers).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..40));
}

#[subscribe(batch = 2, linger = "1ms", concurrency = 1, retries = 1, backoff = "100ms..110ms")]
async fn fails_first(pings: Vec<Ping>, seen: State<Seen<u64>>) -> Result<(), String> {
    seen.push(pings[0].number);
    if seen.len() == 1 { Err("the first time".to_owned()) } else { Ok(()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_retry_that_comes_due_while_the_broker_is_asked_is_not_forgotten() {
    // The broker takes its time for the next question where it is told so, and a test may ring its bell.
    let (ponders, bell) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None::<Waker>)));
    let (pondering, ring) = (Arc::clone(&ponders), Arc::clone(&bell));
    let broker = Around::new("pondering", MemoryBroker::new()).live(move |deliveries| {
        let (ponders, bell) = (Arc::clone(&pondering), Arc::clone(&ring));
        reading(deliveries, move |inner, context, into, limit| {
            *bell.lock().unwrap() = Some(context.waker().clone());
            if ponders.swap(false, SeqCst) {
                std::thread::sleep(Duration::from_millis(500));
            }
            inner.poll_receive(context, into, limit)
        })
    });
    let seen = Seen::<u64>::new();
    let builder = Bus::builder().only([fails_first::SUBSCRIBER]).state(seen.clone());
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    until(|| seen.len() == 1).await;
    sleep(Duration::from_millis(20)).await;
    ponders.store(true, SeqCst);
    let bell = bell.lock().unwrap().take().unwrap();
    bell.wake();
    until(|| seen.len() == 2).await;
}

async fn until(reached: impl Fn() -> bool) {
    let reaching = async {
        while !reached() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reaching).await.expect("it is reached");
}
