//! What was published before: replays, and the audit log.

use crate::conformance::case::{Case, number, number_of, numbered, publish, publish_envelopes};
use eventbus_core::broker::{AuditQuery, Offset, Received, Replay, ReplayFrom, ReplayRequest, ReplayUntil};
use eventbus_core::jiff::Timestamp;
use eventbus_core::{Bus, Delivery, Topic};
use std::collections::BTreeMap;
use std::future::{IntoFuture, poll_fn};
use std::sync::Arc;
use std::time::Duration;

/// A replay delivers a part of the history again, and says so of each delivery; the live group goes on where it was, gets
/// what comes once, and no other group sees anything. A broker without a history refuses to replay.
pub(super) async fn a_replay_delivers_again_and_moves_nobody(case: Arc<Case>) {
    const EVENTS: u64 = 200;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let seen = case.seen::<(bool, u64)>();
    let noting = seen.noting(|delivery| (delivery.replayed(), number(delivery)));
    bus.on_topic(&topic, noting).group(case.group("mail")).concurrency(1).await.unwrap();
    let other = case.notes(&bus, &topic, "other").await;
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..EVENTS / 2).await;
    publish(&bus, &case.topic("order.paid"), 0..1).await;
    seen.reach(EVENTS as usize / 2).await;
    // No two events of this run have one time, as far as brokers write it.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let middle = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(5)).await;
    publish(&bus, &topic, EVENTS / 2..EVENTS).await;
    seen.reach(EVENTS as usize).await;
    if broker.replayable().is_none() {
        return assert_no_history(&case, &bus).await;
    }
    let group = case.group("mail");
    let report = case.in_time("the replay ends", bus.replay(&group).into_future()).await.unwrap();
    assert_eq!((report.events, report.acked), (EVENTS, EVENTS));
    let part = bus.replay(&group).from(ReplayFrom::Time(middle)).into_future();
    assert_eq!(case.in_time("the replay ends", part).await.unwrap().events, EVENTS / 2);
    let part = bus.replay(&group).until(ReplayUntil::Time(middle)).into_future();
    assert_eq!(case.in_time("the replay ends", part).await.unwrap().events, EVENTS / 2);
    publish(&bus, &topic, EVENTS..EVENTS + 1).await;
    other.reach(EVENTS as usize + 1).await;
    seen.reach(3 * EVENTS as usize + 1).await;
    case.quiet(&bus).await;
    let of = |replayed| {
        let mut of: Vec<_> =
            seen.all().into_iter().filter(|(of, _)| *of == replayed).map(|(_, number)| number).collect();
        of.sort_unstable();
        of
    };
    assert_eq!(of(false), (0..=EVENTS).collect::<Vec<_>>(), "live");
    let mut twice: Vec<_> = (0..EVENTS).chain(0..EVENTS).collect();
    twice.sort_unstable();
    assert_eq!(of(true), twice, "replayed");
    assert_eq!(other.sorted(), (0..=EVENTS).collect::<Vec<_>>(), "the other group");
}

async fn assert_no_history(case: &Case, bus: &Bus) {
    let refused = bus.replay(case.group("mail")).await.unwrap_err().to_string();
    assert!(refused.contains("replay") && refused.contains(case.name()), "{refused}");
}

/// A replay begins at a place, or behind it, and ends at one: with the events there. Those of one key come in their order.
/// The places are those of live deliveries, or, where a replay refuses these, those of the audit log.
pub(super) async fn a_replay_begins_and_ends_at_the_places_it_was_told(case: Arc<Case>) {
    const EVENTS: u64 = 30;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let (live, again) = (case.seen(), case.seen::<u64>());
    let (live_ones, replayed_ones) = (live.clone(), again.clone());
    let handle = move |delivery: Delivery| {
        if delivery.replayed() {
            replayed_ones.push(number(&delivery));
        } else {
            live_ones.push((number(&delivery), delivery.offset()));
        }
        async {}
    };
    bus.on_topic(&topic, handle).group(case.group("mail")).await.unwrap();
    bus.start_quietly().unwrap();
    publish_envelopes(&bus, (0..EVENTS).map(|number| numbered(&topic, number).with_key("door"))).await;
    live.reach(EVENTS as usize).await;
    if broker.replayable().is_none() {
        return assert_no_history(&case, &bus).await;
    }
    let mut places: BTreeMap<u64, Offset> = live.all().into_iter().collect();
    let probe = bus.replay(case.group("mail")).from(ReplayFrom::Offset(places[&0]));
    let probe = probe.until(ReplayUntil::Offset(places[&0])).into_future();
    if let Err(refused) = case.in_time("the replay ends", probe).await {
        // A group that is a queue has no places, and what it counts instead is refused. The log has them.
        assert!(refused.to_string().contains("place"), "{refused}");
        let mut query = AuditQuery::default();
        query.pattern = Some(case.pattern("order.placed"));
        let kept = broker.audit_log().expect("it has the places").query(query).await.unwrap();
        places = kept.iter().map(|event| (number_of(&event.envelope), event.offset)).collect();
    }
    let at = |wanted: u64| places[&wanted];
    for (from, until, expected) in [
        (ReplayFrom::Offset(at(10)), ReplayUntil::Offset(at(19)), 10..20),
        (ReplayFrom::After(at(10)), ReplayUntil::Now, 11..EVENTS),
        (ReplayFrom::Earliest, ReplayUntil::Offset(at(0)), 0..1),
    ] {
        let before = again.len();
        let replay = bus.replay(case.group("mail")).from(from).until(until).into_future();
        let report = case.in_time("the replay ends", replay).await.unwrap();
        let expected: Vec<_> = expected.collect();
        assert_eq!(report.events, expected.len() as u64, "{from:?} {until:?}");
        let mut came = again.all().split_off(before);
        if !case.features().key_order {
            came.sort_unstable();
        }
        assert_eq!(came, expected, "{from:?} {until:?}");
    }
}

/// A live replay goes on with what is published, until it is dropped.
pub(super) async fn a_live_replay_goes_on_with_what_is_published(case: Arc<Case>) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    let seen = case.seen::<(bool, u64)>();
    let noting = seen.noting(|delivery| (delivery.replayed(), number(delivery)));
    bus.on_topic(&topic, noting).group(case.group("mail")).await.unwrap();
    if broker.replayable().is_none() {
        return assert_no_history(&case, &bus).await;
    }
    publish(&bus, &topic, 0..10).await;
    let replaying = tokio::spawn(bus.replay(case.group("mail")).until(ReplayUntil::Live).into_future());
    // The bus does not run: what comes is the replay's.
    seen.reach(10).await;
    publish(&bus, &topic, 10..20).await;
    seen.reach(20).await;
    replaying.abort();
    drop(replaying.await);
    assert_eq!(seen.sorted(), (0..20).map(|number| (true, number)).collect::<Vec<_>>());
    bus.start_quietly().unwrap();
    seen.reach(40).await;
    case.quiet(&bus).await;
    let live = (0..20).map(|number| (false, number));
    assert_eq!(seen.sorted(), live.chain((0..20).map(|number| (true, number))).collect::<Vec<_>>());
}

/// A replay whose broker is closed in the middle of it ends, and is never short without a word: it has delivered all there
/// was, or the last that it says before its end is an error. A rebuild would swap a model in that lacks the rest.
pub(super) async fn a_replay_that_its_broker_cuts_off_is_complete_or_an_error(case: Arc<Case>) {
    /// More than a broker reads ahead.
    const EVENTS: u64 = 2_000;
    const BEFORE: u64 = 10;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    case.notes(&bus, &topic, "mail").await;
    let Some(history) = broker.replayable() else {
        return assert_no_history(&case, &bus).await;
    };
    publish(&bus, &topic, 0..EVENTS).await;
    let (group, pattern) = (case.group("mail"), case.pattern("order.placed"));
    let request = ReplayRequest { group, pattern, from: ReplayFrom::Earliest, until: ReplayUntil::Now };
    let Replay { mut deliveries, events, .. } = history.replay(request).await.unwrap();
    assert_eq!(events, EVENTS);
    let (mut handled, mut failed) = (0, None);
    let read = async {
        loop {
            if handled == BEFORE {
                // What it says of its other subscriptions is not the matter here.
                drop(broker.close().await);
            }
            let mut received = Vec::new();
            match poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await {
                Ok(()) if received.is_empty() => break,
                Ok(()) => failed = None,
                Err(error) => {
                    failed = Some(error.to_string());
                    // A bus asks again a little later.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            for Received { receipt, settler, .. } in received {
                settler.ack(receipt).await.unwrap();
                handled += 1;
            }
        }
    };
    case.in_time("the replay ends", read).await;
    assert!(
        handled == EVENTS || failed.is_some(),
        "the replay has ended after {handled} of {EVENTS} events as if that were all"
    );
}

/// The audit log answers by topic, key, type, id, chain, time and place, in either order, page by page, and tells of the
/// next event. A broker without one says so.
pub(super) async fn the_audit_log_answers_what_it_is_asked(case: Arc<Case>) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let (bus, paid) = (case.bus_on(&broker).await, case.topic("order.paid"));
    let Some(audit) = broker.audit_log() else {
        let error = bus.audit_log().err().expect("there is none").to_string();
        return assert!(error.contains(case.name()) && error.contains("log"), "{error}");
    };
    let began = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(5)).await;
    pay(&case, &bus, &topic, &paid).await;
    let first = bus.publish_envelope(numbered(&topic, 1).with_key("one")).await.unwrap();
    bus.publish_envelope(numbered(&topic, 2).with_key("two").with_type("special")).await.unwrap();
    let everything = case.pattern(">");
    let find = async |change: &dyn Fn(&mut AuditQuery)| {
        let mut query = AuditQuery::default();
        // Others may use the server.
        query.pattern = Some(everything.clone());
        change(&mut query);
        audit.query(query).await.unwrap()
    };
    case.until("all four are there", async || find(&|_| {}).await.len() == 4).await;
    let numbers = async |change: &dyn Fn(&mut AuditQuery)| {
        find(change).await.iter().map(|event| number_of(&event.envelope)).collect::<Vec<_>>()
    };
    let sorted = async |change: &dyn Fn(&mut AuditQuery)| {
        let mut numbers = numbers(change).await;
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(sorted(&|_| {}).await, [1, 2, 101, 102]);
    assert_eq!(sorted(&|query| query.pattern = Some(case.pattern("order.placed"))).await, [1, 2]);
    assert_eq!(sorted(&|query| query.pattern = Some(case.pattern("*.paid"))).await, [101, 102]);
    assert!(numbers(&|query| query.pattern = Some(case.pattern("nothing.here"))).await.is_empty());
    assert_eq!(sorted(&|query| query.key = Some("two".to_owned())).await, [2, 102]);
    assert_eq!(numbers(&|query| query.event_type = Some("special".to_owned())).await, [2]);
    assert_eq!(numbers(&|query| query.id = Some(first.clone())).await, [1]);
    assert_eq!(numbers(&|query| query.correlation_id = Some(first.clone())).await, [1, 101]);
    assert_eq!(sorted(&|query| query.since = Some(began)).await, [1, 2, 101, 102]);
    assert!(numbers(&|query| query.before = Some(began)).await.is_empty());
    let all = numbers(&|_| {}).await;
    let mut backwards = numbers(&|query| query.newest_first = true).await;
    backwards.reverse();
    assert_eq!(backwards, all);
    for newest_first in [false, true] {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let page =
                find(&|query| (query.newest_first, query.limit, query.after) = (newest_first, 3, after))
                    .await;
            let Some(last) = page.last() else { break };
            after = Some(last.offset);
            pages.extend(page.iter().map(|event| number_of(&event.envelope)));
        }
        if newest_first {
            pages.reverse();
        }
        assert_eq!(pages, all, "page by page");
    }
    let at = find(&|_| {}).await[1].offset;
    assert_eq!(numbers(&|query| query.offset = Some(at)).await, all[1..2]);
    let latest = audit.latest().await.unwrap();
    let waiting = tokio::spawn(audit.wait(latest));
    publish(&bus, &case.topic("something.else"), 0..1).await;
    case.in_time("the next event is told of", waiting).await.unwrap().unwrap();
}

/// A group that publishes on `paid` what an event on `topic` causes.
async fn pay(case: &Case, bus: &Bus, topic: &Topic, paid: &Topic) {
    let paid = paid.clone();
    let paying = bus.on_topic(topic, move |delivery: Delivery| {
        let paid = paid.clone();
        async move {
            let key = delivery.envelope().key().unwrap_or_default().to_owned();
            let number = 100 + number(&delivery);
            delivery.publisher().publish_to(&paid, &number).key(key).await.map(drop)
        }
    });
    paying.group(case.group("payments")).await.unwrap();
    bus.start_quietly().unwrap();
}
