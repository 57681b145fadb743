//! A process ends in order while others read the same queue: what it had, and what SQS gives to its last call, is theirs at
//! once. Names are promises.

mod support;

use eventbus::{Bus, Delivery};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{connect, event, prefix, server, until};

/// How many message groups there are.
const KEYS: u64 = 40;
/// So long an event may be on its way, by far longer than it is and by far shorter than it would be hidden.
const GAP: Duration = Duration::from_secs(15);

/// As a program has it that sets nothing, but that what is not given back is hidden for longer than anybody waits.
fn at(prefix: &str) -> String {
    format!(
        "sns://test:test@us-east-1?endpoint={}&prefix={prefix}&fifo=true&visibility_timeout=120s",
        server()
    )
}

/// What was published and handled, and when.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Times>>);

#[derive(Default)]
struct Times {
    published: BTreeMap<u64, Instant>,
    handled: Vec<(u64, Instant)>,
}

impl Seen {
    fn count(&self) -> usize {
        self.0.lock().unwrap().handled.len()
    }

    /// The longest time between a publish and the handler.
    fn longest(&self) -> Duration {
        let times = self.0.lock().unwrap();
        let waited = times.handled.iter().map(|(number, at)| at.duration_since(times.published[number]));
        waited.max().unwrap_or_default()
    }

    /// The numbers of a key, as they were handled.
    fn of_key(&self, key: u64) -> Vec<u64> {
        let handled = &self.0.lock().unwrap().handled;
        handled.iter().map(|(number, _)| *number).filter(|number| number % KEYS == key).collect()
    }

    async fn publish(&self, bus: &Bus, number: u64) {
        self.0.lock().unwrap().published.insert(number, Instant::now());
        let key = format!("k{}", number % KEYS);
        bus.publish_envelope((*event("order.placed", &key, number)).clone()).await.unwrap();
    }
}

/// A process of the group; the second number is how many it has handled.
async fn process(at: &str, seen: &Seen, takes: Duration) -> (Bus, Arc<Mutex<usize>>) {
    let bus = Bus::builder().without_subscriptions().broker(connect(at).await).await.unwrap();
    let (seen, own) = (seen.clone(), Arc::<Mutex<usize>>::default());
    let count = Arc::clone(&own);
    let handler = move |delivery: Delivery| {
        let number: u64 = serde_json::from_slice(delivery.envelope().payload().unwrap()).unwrap();
        let (seen, count) = (seen.clone(), Arc::clone(&count));
        async move {
            tokio::time::sleep(takes).await;
            *count.lock().unwrap() += 1;
            seen.0.lock().unwrap().handled.push((number, Instant::now()));
        }
    };
    bus.on_topic("order.placed", handler).group("mail").await.unwrap();
    bus.start_quietly().unwrap();
    (bus, own)
}

#[tokio::test]
async fn what_a_process_had_under_load_goes_to_the_other_at_once_as_it_ends() {
    const EVENTS: u64 = 600;
    let (at, seen) = (at(&prefix()), Seen::default());
    let takes = Duration::from_millis(20);
    let (one, of_one) = process(&at, &seen, takes).await;
    let (other, _) = process(&at, &seen, takes).await;
    let publishing = tokio::spawn({
        let (seen, other) = (seen.clone(), other.clone());
        async move {
            for number in 0..EVENTS {
                seen.publish(&other, number).await;
            }
        }
    });
    until("it has many in hand", async || *of_one.lock().unwrap() >= 20).await;
    one.shutdown().await.unwrap();
    publishing.await.unwrap();
    until("all are handled", async || seen.count() as u64 >= EVENTS).await;
    assert!(seen.longest() < GAP, "{:?}", seen.longest());
    assert_eq!(seen.count() as u64, EVENTS, "nothing twice");
    for key in 0..KEYS {
        assert!(seen.of_key(key).is_sorted(), "{:?}", seen.of_key(key));
    }
    other.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_comes_after_an_idle_process_has_ended_goes_to_the_other_at_once() {
    let (at, seen) = (at(&prefix()), Seen::default());
    let (one, _) = process(&at, &seen, Duration::ZERO).await;
    let (other, of_other) = process(&at, &seen, Duration::ZERO).await;
    // Both wait for events by now, so one of these calls is answered first.
    seen.publish(&other, 0).await;
    until("it is handled", async || seen.count() == 1).await;
    one.shutdown().await.unwrap();
    let before = *of_other.lock().unwrap() as u64;
    for number in 1..=20 {
        seen.publish(&other, number).await;
        until("the other has it", async || *of_other.lock().unwrap() as u64 >= before + number).await;
    }
    assert!(seen.longest() < GAP, "{:?}", seen.longest());
    other.shutdown().await.unwrap();
}
