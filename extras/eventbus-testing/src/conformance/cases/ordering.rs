//! Order by key, within one process.

use crate::conformance::case::{Case, lock, number, number_of, numbered, publish, publish_envelopes};
use eventbus_core::broker::Attempts;
use eventbus_core::{Backoff, Bus, Delivery, Envelope, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

const KEYS: u64 = 16;
const WORKERS: usize = 10;
const EVENTS: u64 = 30;

/// With 16 keys and 10 workers, events of one key are handled one after the other, in the order in which they were
/// published. A broker without that order refuses a subscription that needs it, and says what to do.
pub(super) async fn events_of_one_key_are_handled_in_publish_order(case: Arc<Case>) {
    in_publish_order(&case, |_| false).await;
}

/// The same, while every fifth event fails twice before it succeeds.
pub(super) async fn events_of_one_key_are_handled_in_publish_order_while_some_fail(case: Arc<Case>) {
    in_publish_order(&case, |delivery| number(delivery) % 5 == 3 && delivery.attempt() < 3).await;
}

async fn in_publish_order(case: &Case, fails: fn(&Delivery) -> bool) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    if !case.features().key_order {
        return assert_order_is_refused(case, &bus, &topic).await;
    }
    let seen = case.seen::<(String, u64)>();
    let (noted, open) = (seen.clone(), Arc::new(Mutex::new(BTreeSet::new())));
    let chance = Arc::new(Mutex::new(fastrand::Rng::with_seed(case.seed)));
    let handle = move |delivery: Delivery| {
        let (noted, open) = (noted.clone(), Arc::clone(&open));
        let pause = Duration::from_micros(lock(&chance).u64(..2_000));
        async move {
            let key = delivery.envelope().key().expect("its key arrives").to_owned();
            assert!(lock(&open).insert(key.clone()), "two events of the key {key} are handled at once");
            tokio::time::sleep(pause).await;
            lock(&open).remove(&key);
            if fails(&delivery) {
                return Err("not yet");
            }
            noted.push((key, number(&delivery)));
            Ok(())
        }
    };
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(4));
    bus.on_topic(&topic, handle)
        .group(case.group("mail"))
        .backoff(backoff)
        .concurrency(WORKERS)
        .await
        .unwrap();
    bus.start_quietly().unwrap();
    publish_envelopes(&bus, by_key(&topic, 0..EVENTS / 2)).await;
    for envelope in by_key(&topic, EVENTS / 2..EVENTS) {
        bus.publish_envelope(envelope).await.unwrap();
    }
    seen.reach((KEYS * EVENTS) as usize).await;
    case.quiet(&bus).await;
    let mut by_key: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (key, number) in seen.all() {
        by_key.entry(key).or_default().push(number);
    }
    let order: Vec<_> = (0..EVENTS).collect();
    assert_eq!(by_key.len() as u64, KEYS);
    for (key, numbers) in by_key {
        assert_eq!(numbers, order, "of the key {key}");
    }
}

/// So many events of each key, those of all keys in turn.
fn by_key(topic: &Topic, numbers: std::ops::Range<u64>) -> impl Iterator<Item = Envelope> {
    numbers.flat_map(move |number| (0..KEYS).map(move |key| numbered(topic, number).with_key(key)))
}

async fn assert_order_is_refused(case: &Case, bus: &Bus, topic: &Topic) {
    let ordered = bus.on_topic(topic, |_| async {}).group(case.group("mail")).competing(false).await;
    case.assert_refused(ordered, &["order", "`competing`"]);
}

/// While an event is handled, or waits for its next attempt, none of its key is handled, and those of other keys are.
pub(super) async fn no_event_is_handled_while_one_before_it_in_its_lane_is_open(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    if !case.features().key_order {
        return assert_order_is_refused(&case, &bus, &topic).await;
    }
    let (gate, seen) = (Arc::new(Semaphore::new(0)), case.seen());
    let (closed, noted) = (Arc::clone(&gate), seen.clone());
    let handle = move |delivery: Delivery| {
        let (closed, noted) = (Arc::clone(&closed), noted.clone());
        async move {
            noted.push(number(&delivery));
            if delivery.envelope().key() == Some("open") {
                closed.acquire().await.expect("the gate stays").forget();
            }
        }
    };
    bus.on_topic(&topic, handle).group(case.group("mail")).concurrency(4).await.unwrap();
    bus.start_quietly().unwrap();
    let of = |key: &str, number| numbered(&topic, number).with_key(key);
    publish_envelopes(&bus, [of("open", 1), of("open", 2), of("free", 3), of("free", 4)]).await;
    seen.reach(3).await;
    assert_eq!(seen.sorted(), [1, 3, 4], "another key is handled, the same key waits");
    gate.add_permits(2);
    seen.reach(4).await;
    assert_eq!(seen.all().last(), Some(&2));
}

/// A delivery that is dropped unsettled is delivered again, before what waits behind it. No handler had it, so it is
/// the same attempt, where the broker does not count deliveries.
pub(super) async fn what_is_given_back_comes_again_before_what_waits(case: Arc<Case>) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let mut reader = case.reader(&broker, &topic, "mail").await;
    publish(&bus, &topic, 0..4).await;
    let first = reader.next().await;
    let second = reader.next().await;
    let given_back = [number_of(&first.receipt.envelope), number_of(&second.receipt.envelope)];
    let is_in_order = first.receipt.offset < second.receipt.offset;
    // The later one first: they come in the order of their places.
    second.settler.release(second.receipt);
    first.settler.release(first.receipt);
    let mut again = Vec::new();
    for received in reader.take(4).await {
        again.push(number_of(&received.receipt.envelope));
        if case.features().attempts != Attempts::Counted {
            assert_eq!(received.receipt.attempt, 1, "no handler had it");
        }
        received.settler.ack(received.receipt).await.unwrap();
    }
    let features = case.features();
    if features.key_order && !features.shared_by_key {
        assert_eq!((given_back, again), ([0, 1], vec![0, 1, 2, 3]));
    } else {
        // Processes that share by key may have events without one in any order.
        let [first, second] = given_back;
        let expected = if is_in_order { [first, second] } else { [second, first] };
        assert!(again.starts_with(&expected), "{expected:?} were given back, and came as {again:?}");
        again.sort_unstable();
        assert_eq!(again, [0, 1, 2, 3]);
    }
}
