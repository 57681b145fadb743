//! Several processes with one group.

use crate::conformance::case::{Case, number, number_of, numbered, publish, publish_envelopes};
use crate::conformance::process::{Orders, Process, Step};
use crate::conformance::seen::Seen;
use eventbus_core::broker::{
    Attempts, Broker, DeadLetter, DeadLetterQuery, FailureKind, Standing, SubscribeRequest,
};
use eventbus_core::{Backoff, Bus, Delivery, Error, Pattern, Topic};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a process lives on, so that a broker may save what it saves a moment later: acks that are too early, or notes that
/// it does not declare. Too short a time finds less, and never fails by mistake.
const SAVED: Duration = Duration::from_millis(500);

/// What one process publishes is delivered in another. A broker for one process says so.
pub(super) async fn what_one_process_publishes_is_delivered_in_another(case: Arc<Case>) {
    let topic = case.topic("order.placed");
    let here = case.bus().await;
    let seen = case.notes(&here, &topic, "mail").await;
    if !case.features().multi_process {
        return assert_one_process_only(&case, &topic).await;
    }
    let there = case.bus().await;
    here.start_quietly().unwrap();
    publish(&there, &topic, 0..20).await;
    publish(&here, &topic, 20..40).await;
    publish(&there, &topic, 40..60).await;
    seen.reach(60).await;
    case.quiet(&here).await;
    assert_eq!(seen.sorted(), (0..60).collect::<Vec<_>>());
}

/// Where the group `mail` is open in this process: no other can have it. Nothing is shared in memory, so there what the
/// broker declares has to say it; a durable broker refuses.
async fn assert_one_process_only(case: &Case, topic: &Topic) {
    let features = case.features();
    assert!(
        !features.competing && !features.shared_by_key,
        "nobody shares a group of one process: {features:?}"
    );
    if features.durable {
        let broker = case.broker().await;
        let request = SubscribeRequest::new(case.group("mail"), Pattern::new(topic).unwrap());
        let refused = broker.subscribe(request).await.err();
        let said = refused.expect("a second process is refused").to_string();
        assert!(said.contains(&case.group("mail")), "the error names the group: {said}");
    }
}

/// The processes that have a group which competes share its events, each of which is handled once. Where one process at a
/// time handles every group, the other one stands by, and the broker says so.
pub(super) async fn processes_that_compete_share_a_group_and_handle_each_event_once(case: Arc<Case>) {
    let topic = case.topic("order.placed");
    let (broker, seen) = (case.broker().await, case.seen::<(usize, u64)>());
    let handling = |process: usize| {
        let seen = seen.clone();
        move |delivery: Delivery| {
            let seen = seen.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                seen.push((process, number(&delivery)));
            }
        }
    };
    let first = case.bus_on(&broker).await;
    first.on_topic(&topic, handling(0)).group(case.group("mail")).competing(true).await.unwrap();
    if !case.features().multi_process {
        return assert_one_process_only(&case, &topic).await;
    }
    first.start_quietly().unwrap();
    let other = case.broker().await;
    let second = case.bus_on(&other).await;
    second.on_topic(&topic, handling(1)).group(case.group("mail")).competing(true).await.unwrap();
    second.start_quietly().unwrap();
    let mut published = 0;
    let by = |process| seen.all().iter().filter(|(by, _)| *by == process).count();
    let shared = case.features().competing || case.features().shared_by_key;
    let since = Instant::now();
    while published < 200 || shared && (by(0) == 0 || by(1) == 0) {
        assert!(since.elapsed() < case.patience(), "all of {published} events are handled by one process");
        publish(&first, &topic, published..published + 100).await;
        published += 100;
        seen.reach(published as usize).await;
    }
    if !shared {
        assert_stands_by(&case, &*other, &topic).await;
        assert_eq!(by(1), 0, "one process at a time");
    }
    case.quiet(&first).await;
    let mut numbers: Vec<_> = seen.all().into_iter().map(|(_, number)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..published).collect::<Vec<_>>());
}

async fn assert_stands_by(case: &Case, broker: &dyn Broker, topic: &Topic) {
    let request = SubscribeRequest::new(case.group("mail"), Pattern::new(topic).unwrap());
    case.until("the second process says that it stands by", async || {
        broker.standing(&request) == Standing::StandingBy
    })
    .await;
}

/// Where order by key asks for it, one process at a time handles a group, and another takes over once that one leaves, in
/// the order of the keys; or each key is handled by one of them at a time. A broker without order refuses the group.
pub(super) async fn order_by_key_holds_while_a_group_passes_from_one_process_to_the_next(case: Arc<Case>) {
    const KEYS: u64 = 4;
    const EVENTS: u64 = 50;
    let topic = case.topic("order.placed");
    let (broker, seen) = (case.broker().await, case.seen::<(u64, u64)>());
    let first = case.bus_on(&broker).await;
    if !case.features().key_order {
        let ordered = first.on_topic(&topic, |_| async {}).group(case.group("mail")).competing(false).await;
        return case.assert_refused(ordered, &["order", "`competing`"]);
    }
    let noting = |seen: &Seen<(u64, u64)>| {
        let seen = seen.clone();
        move |delivery: Delivery| {
            let seen = seen.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let key = delivery.envelope().key().and_then(|key| key.parse().ok());
                seen.push((key.expect("its key arrives"), number(&delivery)));
            }
        }
    };
    first.on_topic(&topic, noting(&seen)).group(case.group("mail")).await.unwrap();
    if !case.features().multi_process {
        return assert_one_process_only(&case, &topic).await;
    }
    first.start_quietly().unwrap();
    let other = case.broker().await;
    let second = case.bus_on(&other).await;
    second.on_topic(&topic, noting(&seen)).group(case.group("mail")).await.unwrap();
    second.start_quietly().unwrap();
    let all = (KEYS * EVENTS) as usize;
    let publishing = publish_envelopes(
        &second,
        (0..EVENTS)
            .flat_map(|number| (0..KEYS).map(move |key| (key, number)))
            .map(|(key, number)| numbered(&topic, number).with_key(key)),
    );
    let leaving = async {
        seen.reach(all / 4).await;
        if !case.features().shared_by_key {
            assert_stands_by(&case, &*other, &topic).await;
        }
        first.shutdown().await.unwrap();
    };
    tokio::join!(publishing, leaving);
    seen.reach(all).await;
    case.quiet(&second).await;
    for key in 0..KEYS {
        let of_key = seen.all().into_iter().filter(|(of, _)| *of == key).map(|(_, number)| number);
        assert_eq!(of_key.collect::<Vec<_>>(), (0..EVENTS).collect::<Vec<_>>(), "of the key {key}");
    }
}

/// A process that is killed has handled some events of a key and hangs in one: whoever has the group next begins with that
/// one at the latest, and goes on in order. What the broker knows of attempts is as it says.
pub(super) async fn after_a_process_is_killed_another_takes_over_in_order(case: Arc<Case>) {
    const HANGS: u64 = 20;
    const EVENTS: u64 = 40;
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    if !case.features().durable {
        return assert_memory_says_so(&case, &bus, &topic).await;
    }
    if !case.features().key_order {
        let ordered = bus.on_topic(&topic, |_| async {}).group(case.group("mail")).competing(false).await;
        return case.assert_refused(ordered, &["order", "`competing`"]);
    }
    let mut orders = Orders::new(&case, &topic, "mail");
    orders.hangs_from = HANGS;
    let mut process = Process::begin(&case, &orders).await;
    let seen = case.seen();
    let subscribe = bus.on_topic(&topic, seen.noting(|delivery| (number(delivery), delivery.attempt())));
    let subscribe = subscribe.group(case.group("mail"));
    if case.features().multi_process && !case.features().shared_by_key {
        // It stands by from the beginning. Where processes share by key, it could be given the key at once.
        subscribe.await.unwrap();
        bus.start_quietly().unwrap();
        publish_envelopes(&bus, (0..EVENTS).map(|number| numbered(&topic, number).with_key("door"))).await;
        process.steps.find("it hangs", |step| matches!(step, Step::Begun(HANGS, _))).await;
        tokio::time::sleep(SAVED).await;
        process.kill();
    } else {
        publish_envelopes(&bus, (0..EVENTS).map(|number| numbered(&topic, number).with_key("door"))).await;
        process.steps.find("it hangs", |step| matches!(step, Step::Begun(HANGS, _))).await;
        tokio::time::sleep(SAVED).await;
        process.kill();
        subscribe.await.unwrap();
        bus.start_quietly().unwrap();
    }
    seen.find("the last one is handled", |(number, _)| *number == EVENTS - 1).await;
    let handled: Vec<_> = seen.all().into_iter().map(|(number, _)| number).collect();
    let first = handled[0];
    assert!(first <= HANGS, "{HANGS} was not settled, and the next one is {first}");
    assert_eq!(handled, (first..EVENTS).collect::<Vec<_>>(), "in order, and nothing twice");
    assert!(process.handled().into_iter().eq(0..HANGS), "{:?}", process.handled());
    let attempt = seen.find("the one that hung is handled", |(number, _)| *number == HANGS).await.1;
    match case.features().attempts {
        Attempts::Lost => assert_eq!(attempt, 1, "nothing is known of it"),
        Attempts::Counted => assert_eq!(attempt, 2, "it was delivered once before"),
        // Nothing was noted yet; a broker may know of the process that has ended.
        _ => assert!(attempt <= 2, "{attempt}"),
    }
}

/// What is in memory ends with the program; the end of a bus says how much that is.
async fn assert_memory_says_so(case: &Case, bus: &Bus, topic: &Topic) {
    let seen = case.notes(bus, topic, "mail").await;
    publish(bus, topic, 0..7).await;
    let ended = bus.shutdown().await;
    assert!(matches!(ended, Err(Error::Drain { lost: 7, .. })), "7 events are lost: {ended:?}");
    assert_eq!(seen.len(), 0);
}

/// Events without order, held by several handlers when their process is killed, are delivered again, and nothing is lost.
pub(super) async fn what_a_killed_process_had_in_its_hands_is_delivered_again(case: Arc<Case>) {
    const HANGS: u64 = 30;
    const EVENTS: u64 = 50;
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    if !case.features().durable {
        return assert_memory_says_so(&case, &bus, &topic).await;
    }
    let mut orders = Orders::new(&case, &topic, "mail");
    (orders.hangs_from, orders.competing) = (HANGS, true);
    let mut process = Process::begin(&case, &orders).await;
    publish(&bus, &topic, 0..HANGS).await;
    // Without order, what hangs could come before these.
    case.until("it has handled what it can", async || process.handled().len() as u64 == HANGS).await;
    publish(&bus, &topic, HANGS..EVENTS).await;
    case.until("all of its handlers hang", async || {
        let hangs = |step: &&Step| matches!(step, Step::Begun(number, _) if *number >= HANGS);
        process.steps.all().iter().filter(hangs).count() == 4 && process.handled().len() as u64 == HANGS
    })
    .await;
    tokio::time::sleep(SAVED).await;
    process.kill();
    let seen = case.seen();
    bus.on_topic(&topic, seen.noting(number)).group(case.group("mail")).competing(true).await.unwrap();
    bus.start_quietly().unwrap();
    case.until("what it had is handled", async || {
        let handled = seen.all();
        (HANGS..EVENTS).all(|number| handled.contains(&number))
    })
    .await;
}

/// The count of attempts, and the time of the next one, are what `Features` says after the process is killed that waits
/// with a retry: as they were noted, the broker's own count of deliveries, or anew.
pub(super) async fn attempts_after_a_crash_are_as_the_broker_declares(case: Arc<Case>) {
    const DELAY: Duration = Duration::from_secs(4);
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    if !case.features().durable {
        assert_eq!(case.features().attempts, Attempts::Lost, "they end with the program");
        return assert_memory_says_so(&case, &bus, &topic).await;
    }
    let mut orders = Orders::new(&case, &topic, "mail");
    (orders.fails, orders.competing) = (Some((0, DELAY)), !case.features().key_order);
    let mut process = Process::begin(&case, &orders).await;
    publish(&bus, &topic, 0..1).await;
    process.steps.find("it has failed twice", |step| *step == Step::Failed(0, 2)).await;
    let failed = Instant::now();
    if case.features().attempts == Attempts::Noted {
        noted(&case, &*broker).await;
    }
    // What is noted of the first failure looks the same.
    tokio::time::sleep(SAVED).await;
    process.kill();
    let (seen, times) = (case.seen(), case.seen());
    let (attempts, began) = (seen.clone(), times.clone());
    let handle = move |delivery: Delivery| {
        attempts.push(delivery.attempt());
        began.push(Instant::now());
        async {}
    };
    let subscribe = bus.on_topic(&topic, handle).group(case.group("mail"));
    subscribe.backoff(Backoff::new(Duration::ZERO, Duration::ZERO)).await.unwrap();
    bus.start_quietly().unwrap();
    seen.reach(1).await;
    case.quiet(&bus).await;
    let attempts = seen.all();
    match case.features().attempts {
        Attempts::Lost => assert_eq!(attempts, [1]),
        Attempts::Counted => assert_eq!(attempts, [2], "one process had it before"),
        _ => {
            assert_eq!(attempts, [3]);
            // A little earlier it has failed than that was seen.
            let waited = times.all()[0] - failed + Duration::from_secs(1);
            assert!(waited >= DELAY, "it comes when it is due, not {waited:?} after it has failed");
        }
    }
}

/// An event whose handler ends the process each time becomes a dead letter that says so, after the attempts that it has, and
/// nothing else does: what was handled beside it is handled in the end. A broker that does not count the ends of processes
/// delivers the event again each time, and gives up nothing.
pub(super) async fn an_event_that_ends_the_process_again_and_again_is_given_up_and_no_other_is(
    case: Arc<Case>,
) {
    const CULPRIT: u64 = 7;
    const EVENTS: u64 = 20;
    const RETRIES: u32 = 2;
    /// Each takes one attempt, and one finds the suspects; some may be killed by others than the culprit's first handler.
    const STARTS: usize = 12;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    if !case.features().durable {
        assert!(!case.features().counts_crashes, "what it had ends with the process");
        return assert_memory_says_so(&case, &bus, &topic).await;
    }
    let mut orders = Orders::new(&case, &topic, "mail");
    (orders.aborts, orders.retries, orders.competing) = (Some(CULPRIT), RETRIES, !case.features().key_order);
    let mut handled = BTreeSet::new();
    let mut process = Process::begin(&case, &orders).await;
    publish(&bus, &topic, 0..EVENTS).await;
    if !case.features().counts_crashes {
        for _ in 0..2 {
            case.until("the event ends the process", async || process.has_ended()).await;
            process = Process::begin(&case, &orders).await;
        }
        case.until("it is delivered again each time", async || process.has_ended()).await;
        let seen = case.seen();
        let subscribe = bus.on_topic(&topic, seen.noting(number)).group(case.group("mail"));
        subscribe.competing(orders.competing).await.unwrap();
        bus.start_quietly().unwrap();
        seen.find("it is handled by a process that it does not end", |number| *number == CULPRIT).await;
        return assert!(
            given_up(&case, &*broker).await.is_empty(),
            "the broker declares that it counts none"
        );
    }
    let mut starts = 1;
    loop {
        let mut is_given_up = false;
        case.until("the process ends, or gives the event up", async || {
            is_given_up = !given_up(&case, &*broker).await.is_empty();
            is_given_up || process.has_ended()
        })
        .await;
        if is_given_up {
            break;
        }
        handled.extend(process.handled());
        assert!(starts < STARTS, "the event has ended {starts} processes, and is not given up");
        process = Process::begin(&case, &orders).await;
        starts += 1;
    }
    case.until("the others are handled", async || {
        handled.extend(process.handled());
        handled.len() as u64 == EVENTS - 1
    })
    .await;
    let letters = given_up(&case, &*broker).await;
    let [letter] = letters.as_slice() else { panic!("one event is given up: {letters:?}") };
    assert_eq!((number_of(&letter.envelope), letter.kind), (CULPRIT, FailureKind::Crashed));
    assert!(letter.attempts > RETRIES && starts > RETRIES as usize, "{letter:?} after {starts} starts");
}

/// Processes that are killed while all of their handlers are busy, as by deployments that have no patience, take from no
/// event what it may be tried: none is given up, and each is handled in the end.
pub(super) async fn what_processes_were_killed_with_is_not_given_up(case: Arc<Case>) {
    const EVENTS: u64 = 8;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.bus_on(&broker).await;
    if !case.features().durable {
        return assert_memory_says_so(&case, &bus, &topic).await;
    }
    let mut orders = Orders::new(&case, &topic, "mail");
    (orders.hangs_from, orders.retries, orders.competing) = (0, 1, !case.features().key_order);
    for kill in 0..3 {
        let mut process = Process::begin(&case, &orders).await;
        if kill == 0 {
            publish(&bus, &topic, 0..EVENTS).await;
        }
        process.steps.find("a handler is busy", |step| matches!(step, Step::Begun(..))).await;
        tokio::time::sleep(SAVED).await;
        process.kill();
    }
    let seen = case.seen();
    let subscribe = bus.on_topic(&topic, seen.noting(number)).group(case.group("mail")).retries(1);
    subscribe.competing(orders.competing).await.unwrap();
    bus.start_quietly().unwrap();
    case.until("each is handled", async || {
        let handled = seen.all();
        (0..EVENTS).all(|number| handled.contains(&number))
    })
    .await;
    assert!(given_up(&case, &*broker).await.is_empty());
}

/// The dead letters of the group; none, where the broker keeps none.
async fn given_up(case: &Case, broker: &dyn Broker) -> Vec<Arc<DeadLetter>> {
    let Some(letters) = broker.dead_letters() else { return Vec::new() };
    let mut query = DeadLetterQuery::default();
    query.group = Some(case.group("mail"));
    letters.find(query).await.unwrap().into_iter().map(|(_, letter)| letter).collect()
}

/// Waits until the retry of the group is written down.
async fn noted(case: &Case, broker: &dyn Broker) {
    let Some(groups) = broker.groups() else {
        return tokio::time::sleep(Duration::from_secs(1)).await;
    };
    case.until("the retry is written down", async || {
        let states = groups.list().await.unwrap();
        states.iter().any(|state| state.group == case.group("mail") && state.parked == 1)
    })
    .await;
}

/// A handler that takes longer than the broker waits for a process that does not answer keeps its event, though another
/// process would like to have it, and is not called twice.
pub(super) async fn a_handler_may_take_longer_than_a_process_may_be_silent(case: Arc<Case>) {
    let topic = case.topic("order.placed");
    let (begun, ended) = (case.seen(), case.seen());
    let processes = if case.features().multi_process { 2 } else { 1 };
    let mut buses = Vec::new();
    for _ in 0..processes {
        let bus = case.bus().await;
        let (begun, ended, time) = (begun.clone(), ended.clone(), case.lease * 2 + Duration::from_secs(1));
        let handle = move |delivery: Delivery| {
            let (begun, ended) = (begun.clone(), ended.clone());
            async move {
                begun.push(number(&delivery));
                tokio::time::sleep(time).await;
                ended.push(number(&delivery));
            }
        };
        bus.on_topic(&topic, handle).group(case.group("mail")).competing(true).await.unwrap();
        bus.start_quietly().unwrap();
        buses.push(bus);
    }
    publish(&buses[0], &topic, 0..3).await;
    ended.reach(3).await;
    case.quiet(&buses[0]).await;
    assert_eq!((begun.sorted(), ended.sorted()), (vec![0, 1, 2], vec![0, 1, 2]));
}
