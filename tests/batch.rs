//! Batches: size, age, and an outcome for each member.

mod support;

use eventbus::memory::MemoryBroker;
use eventbus::middleware::{Next, from_fn};
use eventbus::{Batch, Bus, BusBuilder, Delivery, Outcome, State, subscribe};
use std::time::Duration;
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

async fn run(builder: BusBuilder, subscriber: &eventbus::Subscriber) -> (Bus, MemoryBroker, Batches) {
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
async fn a_batch_has_at_most_one_event_of_each_key_so_that_their_order_holds() {
    let (bus, broker, batches) = run(Bus::builder(), keyed::SUBSCRIBER).await;
    bus.start().unwrap();
    for number in 0..6 {
        bus.publish(&OrderPlaced { customer: number % 3, number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(
        batches.all().into_iter().map(|(numbers, _)| numbers).collect::<Vec<_>>(),
        [[0, 1, 2], [3, 4, 5]]
    );
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
