//! Dead letters: what they say, and what can be done with them.

use super::failing::assert_dead_letters_are_refused;
use crate::conformance::case::{Case, number, numbered, publish, publish_envelopes};
use crate::conformance::seen::Seen;
use eventbus_core::broker::{DeadLetterList, DeadLetterQuery, DeadLetters};
use eventbus_core::jiff::Timestamp;
use eventbus_core::{Backoff, Bus, Delivery, Outcome, Topic};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A group whose handler fails until it is mended.
struct Failing {
    bus: Bus,
    topic: Topic,
    letters: Arc<dyn DeadLetters>,
    mended: Arc<AtomicBool>,
    /// What it has handled, once it was mended.
    handled: Seen<u64>,
    /// What another group has.
    other: Seen<u64>,
}

impl Failing {
    /// None, where the broker keeps no dead letters and says so.
    async fn begin(case: &Case) -> Option<Self> {
        let (broker, topic) = (case.broker().await, case.topic("order.placed"));
        let bus = case.bus_on(&broker).await;
        let Some(letters) = broker.dead_letters() else {
            assert_dead_letters_are_refused(case, &bus).await;
            return None;
        };
        let (mended, handled) = (Arc::new(AtomicBool::new(false)), case.seen());
        let (switch, numbers) = (Arc::clone(&mended), handled.clone());
        let handle = move |delivery: Delivery| {
            let outcome = if switch.load(Ordering::SeqCst) {
                numbers.push(number(&delivery));
                Outcome::Ack
            } else {
                Outcome::Retry("out of stock, größer als null".into())
            };
            async move { outcome }
        };
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(4));
        bus.on_topic(&topic, handle).group(case.group("failing")).retries(2).backoff(backoff).await.unwrap();
        let other = case.notes(&bus, &topic, "other").await;
        bus.start_quietly().unwrap();
        Some(Self { bus, topic, letters, mended, handled, other })
    }

    /// The dead letters of the group, once there are so many.
    async fn dead_letters(&self, case: &Case, count: usize) -> DeadLetterList {
        let mut query = DeadLetterQuery::default();
        query.group = Some(case.group("failing"));
        case.until("its dead letters are there", async || {
            self.letters.find(query.clone()).await.unwrap().len() == count
        })
        .await;
        self.letters.find(query).await.unwrap()
    }
}

/// A dead letter carries the event unchanged, and everything about the failure, under the same names on every broker.
pub(super) async fn a_dead_letter_says_what_failed_where_and_why(case: Arc<Case>) {
    let Some(failing) = Failing::begin(&case).await else { return };
    let began = Timestamp::now();
    let sent = numbered(&failing.topic, 7).with_key("door-7").with_header("tenant", "acmé");
    publish_envelopes(&failing.bus, [sent.clone()]).await;
    let letters = failing.dead_letters(&case, 1).await;
    let letter = &letters[0].1;
    let headers = letter.headers();
    let said = |name: &str| headers.get(&format!("eventbus-dead-letter-{name}")).unwrap_or_default();
    assert_eq!(said("reason"), "out of stock, größer als null");
    assert_eq!((said("kind"), said("attempts")), ("failed", "3"));
    assert_eq!((said("topic"), said("group")), (failing.topic.as_str(), &*case.group("failing")));
    assert!(said("handler").contains(file!()), "{headers:?}");
    assert!(!said("offset").is_empty());
    let time = |name: &str| said(name).parse::<Timestamp>().expect("it is a time after RFC 3339");
    let (first, last) = (time("first-failed-at"), time("last-failed-at"));
    // Brokers may cut times off at the millisecond.
    assert!(first.as_millisecond() >= began.as_millisecond() && first <= last && last <= Timestamp::now());
    let kept = &letter.envelope;
    assert_eq!(kept.payload().unwrap(), sent.payload().unwrap());
    assert_eq!((kept.id(), kept.key(), kept.topic()), (sent.id(), sent.key(), sent.topic()));
    assert_eq!(kept.headers().get("tenant"), Some("acmé"));
}

/// Published again, a dead letter reaches the group that gave it up, with its attempts counted anew, and no other; then it
/// is gone.
pub(super) async fn a_dead_letter_goes_again_to_the_group_that_failed_and_to_no_other(case: Arc<Case>) {
    let Some(failing) = Failing::begin(&case).await else { return };
    publish(&failing.bus, &failing.topic, 0..5).await;
    let letters = failing.dead_letters(&case, 5).await;
    failing.mended.store(true, Ordering::SeqCst);
    for (id, _) in &letters {
        assert!(failing.letters.republish(id, None).await.unwrap());
    }
    failing.handled.reach(5).await;
    case.quiet(&failing.bus).await;
    let all = vec![0, 1, 2, 3, 4];
    assert_eq!((failing.handled.sorted(), failing.other.sorted()), (all.clone(), all));
    assert!(failing.dead_letters(&case, 0).await.is_empty());
}

/// A dead letter can be given another payload as it is published again; one that fails again is a dead letter again.
pub(super) async fn a_dead_letter_that_was_mended_goes_again_as_it_is_now(case: Arc<Case>) {
    let Some(failing) = Failing::begin(&case).await else { return };
    publish(&failing.bus, &failing.topic, 0..1).await;
    let first = failing.dead_letters(&case, 1).await;
    assert!(failing.letters.republish(&first[0].0, Some("1".into())).await.unwrap());
    case.until("it has failed again", async || {
        let mut query = DeadLetterQuery::default();
        query.group = Some(case.group("failing"));
        let letters = failing.letters.find(query).await.unwrap();
        letters.iter().any(|(_, letter)| letter.envelope.payload().unwrap() == "1")
    })
    .await;
    let second = failing.dead_letters(&case, 1).await;
    assert_eq!(second[0].1.attempts, 3, "its attempts are counted anew");
    failing.mended.store(true, Ordering::SeqCst);
    assert!(failing.letters.republish(&second[0].0, Some("2".into())).await.unwrap());
    failing.handled.reach(1).await;
    case.quiet(&failing.bus).await;
    assert_eq!((failing.handled.all(), failing.other.all()), (vec![2], vec![0]));
    assert!(failing.dead_letters(&case, 0).await.is_empty());
}

/// A dead letter is published again, or purged, once: of two calls one answers that there was something to do.
pub(super) async fn what_is_done_to_a_dead_letter_twice_is_done_once(case: Arc<Case>) {
    let Some(failing) = Failing::begin(&case).await else { return };
    publish(&failing.bus, &failing.topic, 0..2).await;
    let letters = failing.dead_letters(&case, 2).await;
    failing.mended.store(true, Ordering::SeqCst);
    let (first, second) = (&letters[0].0, &letters[1].0);
    assert!(first < second, "the oldest comes first, and names sort so: {first}, {second}");
    let again = |id| failing.letters.republish(id, None);
    let (one, other) = tokio::join!(again(first), again(first));
    assert!(one.unwrap() ^ other.unwrap(), "one of the two has published it");
    assert!(!again(first).await.unwrap() && !failing.letters.purge(first).await.unwrap());
    assert!(failing.letters.purge(second).await.unwrap());
    assert!(!failing.letters.purge(second).await.unwrap() && !again(second).await.unwrap());
    failing.handled.reach(1).await;
    case.quiet(&failing.bus).await;
    assert_eq!(failing.handled.len(), 1);
}
