//! Which events reach whom.

use crate::conformance::case::{Case, publish, publish_envelopes};
use eventbus_core::Envelope;
use eventbus_core::bytes::Bytes;
use std::sync::Arc;

/// Each group gets each event, whoever else has it.
pub(super) async fn each_of_two_groups_gets_every_event(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let (mail, stock) = (case.notes(&bus, &topic, "mail").await, case.notes(&bus, &topic, "stock").await);
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..200).await;
    mail.reach(200).await;
    stock.reach(200).await;
    case.quiet(&bus).await;
    let all: Vec<_> = (0..200).collect();
    assert_eq!((mail.sorted(), stock.sorted()), (all.clone(), all));
}

/// A subscription to a topic gets the events of that topic, and none of topics with a similar name.
pub(super) async fn topics_do_not_leak(case: Arc<Case>) {
    let bus = case.bus().await;
    let topics = ["a", "a.b", "a.b.c", "a.bc", "ab", "A.b", "b.a"].map(|name| case.topic(name));
    let mut seen = Vec::new();
    for (place, topic) in topics.iter().enumerate() {
        seen.push(case.notes(&bus, topic, &format!("group-{place}")).await);
    }
    bus.start_quietly().unwrap();
    let numbers = |place: usize| {
        let first = place as u64 * 10;
        first..first + 10
    };
    for (place, topic) in topics.iter().enumerate() {
        publish(&bus, topic, numbers(place)).await;
    }
    for seen in &seen {
        seen.reach(10).await;
    }
    case.quiet(&bus).await;
    for (place, topic) in topics.iter().enumerate() {
        assert_eq!(seen[place].sorted(), numbers(place).collect::<Vec<_>>(), "on \"{topic}\"");
    }
}

/// `*` stands for one token, a final `>` for one or more. A broker without patterns refuses a subscription to one.
pub(super) async fn patterns_cover_what_they_say(case: Arc<Case>) {
    let bus = case.bus().await;
    let mut subscriptions = Vec::new();
    for (group, pattern, covered) in [
        ("exact", "a.b", &["a.b"] as &[_]),
        ("one", "a.*", &["a.b", "a.c"]),
        ("middle", "*.b", &["a.b"]),
        ("longer", "a.*.c", &["a.b.c"]),
        ("more", "a.>", &["a.b", "a.b.c", "a.c"]),
        ("all", ">", &["a", "a.b", "a.b.c", "a.c", "b.a"]),
    ] {
        let (seen, pattern) = (case.seen(), case.pattern(pattern));
        let noting = seen.noting(|delivery| delivery.envelope().topic().to_string());
        let subscribed = bus.on_topic(&pattern, noting).group(case.group(group)).await;
        if pattern.is_exact() || case.features().patterns {
            subscribed.expect("the broker has patterns");
            let covered: Vec<_> = covered.iter().map(|name| case.topic(name).to_string()).collect();
            subscriptions.push((pattern, seen, covered));
        } else {
            case.assert_refused(subscribed, &[pattern.as_str()]);
        }
    }
    bus.start_quietly().unwrap();
    for name in ["a", "a.b", "a.c", "a.b.c", "b.a"] {
        publish(&bus, &case.topic(name), 0..1).await;
    }
    for (_, seen, covered) in &subscriptions {
        seen.reach(covered.len()).await;
    }
    case.quiet(&bus).await;
    for (pattern, seen, covered) in subscriptions {
        assert_eq!(seen.sorted(), covered, "\"{pattern}\"");
    }
}

/// An event of a topic that no group listens on is accepted, and troubles nobody who comes later.
pub(super) async fn an_event_that_nobody_listens_on_is_accepted(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    publish(&bus, &topic, 0..1).await;
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 1..2).await;
    seen.reach(1).await;
    assert_eq!(seen.all(), [1]);
}

/// A payload above the limit that the broker declares is refused with an error, a payload of just that size is not, and
/// those beside them in a batch are stored in their order. Where no limit is declared, 2 MiB are taken.
pub(super) async fn each_event_of_a_batch_is_stored_or_refused_by_itself(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("scan.stored"));
    let seen = case.seen();
    let size = seen.noting(|delivery| delivery.envelope().payload().map(Bytes::len).unwrap_or_default());
    bus.on_topic(&topic, size).group(case.group("scans")).concurrency(1).await.unwrap();
    bus.start_quietly().unwrap();
    let of = |size: usize| {
        Envelope::from_bytes(topic.clone(), "application/octet-stream", vec![7; size].into()).with_key("door")
    };
    let Some(limit) = case.features().max_payload else {
        publish_envelopes(&bus, [of(2 << 20)]).await;
        seen.reach(1).await;
        return assert_eq!(seen.all(), [2 << 20]);
    };
    let published = bus.publish_envelopes([of(1), of(limit + 1), of(2), of(limit), of(3)]).await;
    let taken: Vec<_> = published.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, false, true, true, true], "{published:?}");
    seen.reach(4).await;
    case.quiet(&bus).await;
    let mut sizes = seen.all();
    if !case.features().key_order {
        sizes.sort_unstable();
    }
    let mut stored = vec![1, 2, limit, 3];
    if !case.features().key_order {
        stored.sort_unstable();
    }
    assert_eq!(sizes, stored);
}
