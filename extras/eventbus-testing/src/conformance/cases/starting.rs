//! Where groups begin.

use crate::conformance::case::{Case, number, publish};
use crate::conformance::seen::Seen;
use eventbus_core::{Error, Start};
use std::sync::Arc;

/// From the moment that a subscription is open its group misses nothing, whether its bus runs or not, and gets each event
/// once while nothing fails.
pub(super) async fn a_group_gets_all_that_is_published_after_it_subscribed(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let seen = case.notes(&bus, &topic, "mail").await;
    publish(&bus, &topic, 0..50).await;
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 50..100).await;
    seen.reach(100).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), (0..100).collect::<Vec<_>>());
}

/// A new group with `start = "earliest"` gets what is kept and what comes. A broker that keeps nothing refuses such a
/// group, whether the subscription asks for it or the bus.
pub(super) async fn a_group_that_begins_at_the_earliest_event_gets_what_was_published_before(
    case: Arc<Case>,
) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let seen = case.seen();
    let noting = |seen: &Seen<u64>| seen.noting(number);
    publish(&bus, &topic, 0..20).await;
    let early = bus.on_topic(&topic, noting(&seen)).group(case.group("early")).start(Start::Earliest).await;
    if !case.features().start_earliest {
        case.assert_refused(early, &["`start = \"earliest\"`"]);
        let early = case.connect(case.builder(&*broker).start(Start::Earliest), &broker).await;
        let subscribed = early.on_topic(&topic, noting(&seen)).group(case.group("early")).await;
        return case.assert_refused(subscribed, &["`start = \"earliest\"`"]);
    }
    early.expect("the broker keeps earlier events");
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 20..40).await;
    seen.reach(40).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), (0..40).collect::<Vec<_>>());
}

/// A new group begins with what is published after its subscription is open, and with nothing from before.
pub(super) async fn a_group_that_begins_at_the_latest_event_gets_nothing_from_before(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let other = case.notes(&bus, &topic, "other").await;
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..20).await;
    other.reach(20).await;
    let seen = case.notes(&bus, &topic, "late").await;
    publish(&bus, &topic, 20..40).await;
    seen.reach(20).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), (20..40).collect::<Vec<_>>());
}

/// What is published while nobody has a known group is delivered to whoever has it next, and what it has settled is not. A
/// broker that is not durable says at the end how many events are lost with it.
pub(super) async fn a_known_group_goes_on_where_it_was(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let first = case.notes(&bus, &topic, "mail").await;
    if !case.features().durable {
        publish(&bus, &topic, 0..3).await;
        let ended = bus.shutdown().await;
        assert!(
            matches!(ended, Err(Error::Drain { lost: 3, .. })),
            "3 events are lost with the program, and the end of the bus says: {ended:?}"
        );
        return;
    }
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..20).await;
    first.reach(20).await;
    bus.shutdown().await.unwrap();
    let bus = case.bus().await;
    publish(&bus, &topic, 20..40).await;
    let second = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 40..60).await;
    second.reach(40).await;
    case.quiet(&bus).await;
    assert_eq!(first.sorted(), (0..20).collect::<Vec<_>>());
    assert_eq!(second.sorted(), (20..60).collect::<Vec<_>>());
}
