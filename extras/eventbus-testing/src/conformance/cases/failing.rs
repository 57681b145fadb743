//! Handlers that fail, and what they leave untouched.

use crate::conformance::case::{Case, number, number_of, numbered, publish, publish_envelopes};
use crate::conformance::reader::Reader;
use eventbus_core::broker::{DeadLetter, DeadLetterList, DeadLetterQuery, FailureKind, Receipt, Received};
use eventbus_core::jiff::Timestamp;
use eventbus_core::{Backoff, Bus, Delivery, Envelope, Event, EventMeta, Json, Outcome, Topic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// An event whose handler fails is handled again, with its attempts counted from 1, until it succeeds; the others are
/// handled once.
pub(super) async fn an_event_that_fails_is_tried_again_until_it_succeeds(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let seen = case.seen();
    let attempts = seen.clone();
    let handle = move |delivery: Delivery| {
        attempts.push((number(&delivery), delivery.attempt()));
        let fails = number(&delivery) % 10 == 3 && delivery.attempt() < 4;
        async move { if fails { Err("not yet") } else { Ok(()) } }
    };
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(4));
    bus.on_topic(&topic, handle).group(case.group("mail")).backoff(backoff).await.unwrap();
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..30).await;
    let expected: Vec<_> = (0..30)
        .flat_map(|number| (1..=if number % 10 == 3 { 4 } else { 1 }).map(move |attempt| (number, attempt)))
        .collect();
    seen.reach(expected.len()).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), expected);
}

/// The next attempt comes when it was asked for.
pub(super) async fn a_retry_comes_no_earlier_than_asked_for_and_not_much_later(case: Arc<Case>) {
    const DELAY: Duration = Duration::from_millis(400);
    /// What a busy machine may add.
    const LATE: Duration = Duration::from_secs(5);
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let seen = case.seen::<Instant>();
    let times = seen.clone();
    let handle = move |delivery: Delivery| {
        times.push(Instant::now());
        let first = delivery.attempt() == 1;
        async move { if first { Outcome::RetryAfter(DELAY) } else { Outcome::Ack } }
    };
    bus.on_topic(&topic, handle).group(case.group("mail")).await.unwrap();
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..1).await;
    seen.reach(2).await;
    let times = seen.all();
    let waited = times[1] - times[0];
    assert!(waited >= DELAY && waited < DELAY + LATE, "it came after {waited:?}");
}

/// One that returns errors, one that panics and one that hangs have no effect on a fourth with the same events.
pub(super) async fn a_subscription_that_fails_changes_nothing_for_another(case: Arc<Case>) {
    const EVENTS: u64 = 60;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let (good, gate) = (case.notes(&bus, &topic, "good").await, Arc::new(Semaphore::new(0)));
    let failing = bus.on_topic(&topic, |_| async { Err::<(), _>("never") });
    failing.group(case.group("bad")).retries(0).await.unwrap();
    let panicking = bus.on_topic(&topic, |_| async { panics() });
    panicking.group(case.group("worse")).retries(0).await.unwrap();
    let (hangs, closed) = (case.seen(), Arc::clone(&gate));
    let noted = hangs.clone();
    let hanging = bus.on_topic(&topic, move |delivery| {
        let (noted, closed) = (noted.clone(), Arc::clone(&closed));
        async move {
            drop(closed.acquire().await);
            noted.push(number(&delivery));
        }
    });
    hanging.group(case.group("hanging")).await.unwrap();
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..EVENTS).await;
    let all: Vec<_> = (0..EVENTS).collect();
    good.reach(all.len()).await;
    if let Some(letters) = broker.dead_letters() {
        for (group, kind) in [("bad", FailureKind::Failed), ("worse", FailureKind::Panicked)] {
            let mut query = DeadLetterQuery::default();
            query.group = Some(case.group(group));
            case.until("each event is a dead letter of each group", async || {
                letters.find(query.clone()).await.unwrap().len() >= all.len()
            })
            .await;
            let found = letters.find(query).await.unwrap();
            assert!(found.iter().all(|(_, letter)| letter.kind == kind), "{found:?}");
            assert_eq!(numbers(&found), all, "of the group `{group}`");
        }
    }
    gate.add_permits(Semaphore::MAX_PERMITS);
    hangs.reach(all.len()).await;
    case.quiet(&bus).await;
    assert_eq!((good.sorted(), hangs.sorted()), (all.clone(), all));
}

/// Past the panic hook, which would write a backtrace each time.
fn panics() {
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// The numbers in dead letters, in order.
fn numbers(letters: &DeadLetterList) -> Vec<u64> {
    let mut numbers: Vec<_> = letters.iter().map(|(_, letter)| number_of(&letter.envelope)).collect();
    numbers.sort_unstable();
    numbers
}

/// What a decoder is given; a type of its own, since only events know their type and version.
#[derive(Clone, Serialize, Deserialize)]
struct Number(u64);

impl Event for Number {
    const META: &'static EventMeta = &EventMeta {
        topic: "conformance.number",
        name: "Number",
        version: 1,
        keyed: false,
        schema: 0,
        package: env!("CARGO_PKG_NAME"),
        file: file!(),
        line: line!(),
    };
    type Codec = Json;
}

/// Garbage becomes a dead letter at once, with its bytes as they came, and so does an event of an unknown type or version.
/// What follows is handled, also where it has the same key.
pub(super) async fn bytes_that_do_not_decode_become_a_dead_letter_and_the_next_event_is_handled(
    case: Arc<Case>,
) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let (bus, seen) = (case.bus_on(&broker).await, case.seen());
    let decoded = seen.clone();
    let handle = move |delivery: Delivery| {
        let outcome = match delivery.event::<Number>() {
            Ok(number) => {
                decoded.push(number.0);
                Outcome::Ack
            }
            Err(error) => error.into(),
        };
        async move { outcome }
    };
    bus.on_topic(&topic, handle).group(case.group("mail")).await.unwrap();
    bus.start_quietly().unwrap();
    let garbage: [&[u8]; 6] = [b"", b"{\"number\": no", b"\xff\xfe\x00", b"null", b"-1", &[0; 10_000]];
    let of = |payload: &[u8]| {
        Envelope::from_bytes(topic.clone(), "application/json", payload.to_vec().into())
            .with_type(Number::META.topic)
            .with_key("door")
    };
    for (number, bytes) in (0..).zip(garbage) {
        publish_envelopes(
            &bus,
            [of(bytes), numbered(&topic, number).with_type(Number::META.topic).with_key("door")],
        )
        .await;
    }
    publish_envelopes(&bus, [of(b"6").with_type("conformance.other"), of(b"6").with_version(9), of(b"6")])
        .await;
    seen.reach(7).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), [0, 1, 2, 3, 4, 5, 6]);
    let Some(letters) = broker.dead_letters() else {
        return assert_dead_letters_are_refused(&case, &bus).await;
    };
    let mut query = DeadLetterQuery::default();
    query.group = Some(case.group("mail"));
    case.until("all of it is kept", async || letters.find(query.clone()).await.unwrap().len() == 8).await;
    let mut kept: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    for (_, letter) in letters.find(query).await.unwrap() {
        assert_eq!(letter.attempts, 1, "bytes get no better");
        let payload = letter.envelope.payload().unwrap().to_vec();
        kept.entry(letter.kind.as_str()).or_default().push(payload);
    }
    let mut garbage: Vec<_> = garbage.iter().map(|bytes| bytes.to_vec()).collect();
    garbage.sort();
    kept.values_mut().for_each(|payloads| payloads.sort());
    assert_eq!(kept["undecodable"], garbage);
    assert_eq!(kept["unknown-type"], [b"6", b"6"]);
}

/// A broker that keeps no dead letters refuses a subscription that asks for them, as each does that does not say
/// otherwise, and a bus says that there are none.
pub(super) async fn assert_dead_letters_are_refused(case: &Case, bus: &Bus) {
    let topic = case.topic("order.refused");
    let subscribed = bus.on_topic(&topic, |_| async {}).group(case.group("kept")).dead_letter(true).await;
    case.assert_refused(subscribed, &["`dead_letter = false`"]);
    let error = bus.dead_letters().err().expect("the broker has none").to_string();
    assert!(error.contains("dead letters"), "{error}");
}

/// A hundred deliveries are held, and settled all at once in the opposite order, one of them as a dead letter: that one is
/// kept, and none of them comes again.
pub(super) async fn of_a_hundred_events_settled_at_once_the_bad_one_alone_is_a_dead_letter(case: Arc<Case>) {
    const BAD: u64 = 42;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let Some(letters) = broker.dead_letters() else {
        return assert_dead_letters_are_refused(&case, &bus).await;
    };
    let mut reader = case.reader(&broker, &topic, "mail").await;
    publish(&bus, &topic, 0..100).await;
    let mut held = reader.take(100).await;
    held.reverse();
    let settled: Vec<_> = held
        .into_iter()
        .map(|Received { receipt, settler, .. }| {
            if number_of(&receipt.envelope) == BAD {
                let letter = letter(&case.group("mail"), &receipt);
                settler.reject(receipt, letter)
            } else {
                settler.ack(receipt)
            }
        })
        .collect();
    for settled in settled {
        case.in_time("it is settled", settled).await.unwrap();
    }
    let mut query = DeadLetterQuery::default();
    query.group = Some(case.group("mail"));
    let kept = letters.find(query).await.unwrap();
    assert_eq!(numbers(&kept), [BAD]);
    next_is(&case, &bus, &topic, &mut reader, 100).await;
    // Nor does one come to the next subscription.
    reader.close();
    let mut reader = case.reader(&broker, &topic, "mail").await;
    next_is(&case, &bus, &topic, &mut reader, 101).await;
}

/// Publishes one more, and asserts that nothing else is delivered before it.
async fn next_is(case: &Case, bus: &Bus, topic: &Topic, reader: &mut Reader, number: u64) {
    publish(bus, topic, number..number + 1).await;
    let next = reader.next().await;
    assert_eq!(number_of(&next.receipt.envelope), number);
    case.in_time("it is settled", next.settler.ack(next.receipt)).await.unwrap();
}

/// The dead letter of a delivery that a case holds.
fn letter(group: &str, receipt: &Receipt) -> DeadLetter {
    let now = Timestamp::now();
    DeadLetter {
        envelope: Arc::clone(&receipt.envelope),
        group: group.to_owned(),
        handler: "conformance".to_owned(),
        kind: FailureKind::Rejected,
        reason: "it is the bad one".to_owned(),
        attempts: receipt.attempt,
        first_failed_at: now,
        last_failed_at: now,
        offset: receipt.offset,
    }
}
