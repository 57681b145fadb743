//! Dead letters, replays, the audit log and groups, on a real server. Names are promises.

mod support;

use bytes::Bytes;
use eventbus::broker::{
    AuditQuery, Broker, DeadLetter, DeadLetterQuery, Deliveries, FailureKind, Offset, Received, ReplayFrom,
    ReplayRequest, ReplayUntil,
};
use eventbus::subscription::Pattern;
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use support::{Place, ack, early, event, give_back, number, receive, receive_all, request, until};

fn letter(received: &Received, group: &str) -> DeadLetter {
    DeadLetter {
        envelope: Arc::clone(&received.receipt.envelope),
        group: group.to_owned(),
        handler: "shop::charge (src/shop.rs:7)".to_owned(),
        kind: FailureKind::TimedOut,
        reason: "no answer\nfrom the bank: größer".to_owned(),
        attempts: 5,
        first_failed_at: Timestamp::from_second(1).unwrap(),
        last_failed_at: Timestamp::from_second(2).unwrap(),
        offset: received.receipt.offset,
    }
}

async fn reject(received: Received, group: &str) {
    let letter = letter(&received, group);
    received.settler.reject(received.receipt, letter).await.unwrap();
}

async fn wait_until_idle(broker: &impl Broker) {
    let groups = broker.groups().unwrap();
    until("no process has a group", || async { groups.list().await.unwrap().iter().all(|one| !one.active) })
        .await;
}

#[tokio::test]
async fn a_dead_letter_keeps_the_event_and_the_reason_and_goes_back_to_its_group_only() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut failing = broker.subscribe(request("failing.group", ">")).await.unwrap();
    let mut other = broker.subscribe(request("other", ">")).await.unwrap();
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for received in receive_all(&mut failing, 3).await {
        reject(received, "failing.group").await;
    }
    for received in receive_all(&mut other, 3).await {
        ack(received).await;
    }
    let letters = broker.dead_letters().unwrap();
    let found = letters.list().await.unwrap();
    assert_eq!(found.len(), 3);
    let (id, first) = &found[0];
    assert_eq!(
        (first.kind, first.attempts, first.group.as_str()),
        (FailureKind::TimedOut, 5, "failing.group")
    );
    assert_eq!(first.reason, "no answer\nfrom the bank: größer");
    assert_eq!((&first.envelope.payload().unwrap()[..], first.envelope.key()), (&b"0"[..], Some("k")));
    assert!(first.envelope.headers().is_empty(), "{:?}", first.envelope.headers());
    assert_eq!(first.first_failed_at, Timestamp::from_second(1).unwrap());
    let mut query = DeadLetterQuery::default();
    query.group = Some("failing.group".to_owned());
    query.after = Some(id.clone());
    query.limit = 1;
    assert_eq!(letters.find(query.clone()).await.unwrap()[0].0, found[1].0);
    query.group = Some("failing_group".to_owned());
    assert!(letters.find(query).await.unwrap().is_empty());

    assert!(letters.republish(id, Some(Bytes::from_static(b"70"))).await.unwrap());
    assert!(!letters.republish(id, None).await.unwrap(), "it is there no more");
    let again = receive_all(&mut failing, 1).await.remove(0);
    assert_eq!((number(&again), again.receipt.attempt), (70, 1));
    assert_eq!(again.receipt.envelope.topic().as_str(), "a.b");
    assert_eq!(again.receipt.envelope.id(), first.envelope.id());
    assert!(again.receipt.envelope.headers().is_empty(), "{:?}", again.receipt.envelope.headers());
    // It fails once more, and is mended once more: it is the same event still.
    reject(again, "failing.group").await;
    let (id, _) = letters.list().await.unwrap().pop().unwrap();
    assert!(letters.republish(&id, Some(Bytes::from_static(b"700"))).await.unwrap());
    ack(receive_all(&mut failing, 1).await.remove(0)).await;
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    assert_eq!(number(&receive_all(&mut other, 1).await[0]), 3, "nothing came in between");

    assert!(letters.purge(&found[1].0).await.unwrap());
    assert!(!letters.purge(&found[1].0).await.unwrap());
    assert!(!letters.purge(&eventbus::broker::DeadLetterId::new("nothing")).await.unwrap());
    assert_eq!(letters.list().await.unwrap().len(), 1);

    let replay = broker.replayable().unwrap();
    let request = ReplayRequest {
        group: "failing.group".to_owned(),
        pattern: Pattern::new(">").unwrap(),
        from: ReplayFrom::Earliest,
        until: ReplayUntil::Now,
    };
    let replayed = numbers(replay.replay(request.clone()).await.unwrap().deliveries).await;
    assert_eq!(replayed, [700, 1, 2, 3], "the group has the mended payload");
    let others = ReplayRequest { group: "other".to_owned(), ..request };
    assert_eq!(numbers(replay.replay(others).await.unwrap().deliveries).await, [0, 1, 2, 3]);
}

/// The numbers of a replay, to its end.
async fn numbers(mut deliveries: Box<dyn Deliveries>) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let received = receive(&mut deliveries, 7).await;
        if received.is_empty() {
            return numbers;
        }
        for received in received {
            assert!(received.replayed);
            numbers.push(number(&received));
            ack(received).await;
        }
    }
}

#[tokio::test]
async fn a_replay_has_what_it_is_asked_for_and_moves_no_group() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut live = broker.subscribe(request("g", ">")).await.unwrap();
    let begin = Timestamp::from_second(1_700_000_000).unwrap();
    for number in 0..600 {
        let at = begin + SignedDuration::from_secs(i64::try_from(number).unwrap());
        let topic = if number % 2 == 0 { "a.even" } else { "a.odd" };
        let envelope = Arc::unwrap_or_clone(event(topic, "k", number)).with_time(at);
        broker.publish(Arc::new(envelope)).await.unwrap();
    }
    let history = broker.replayable().unwrap();
    let replay = async |pattern: &str, from, until| {
        let (group, pattern) = ("g".to_owned(), Pattern::new(pattern).unwrap());
        history.replay(ReplayRequest { group, pattern, from, until }).await.unwrap()
    };
    let all = replay(">", ReplayFrom::Earliest, ReplayUntil::Now).await;
    assert_eq!((all.events, all.latest), (600, Some(Offset::new(600))));
    assert!(numbers(all.deliveries).await.into_iter().eq(0..600));
    let part = replay(">", ReplayFrom::Offset(Offset::new(11)), ReplayUntil::Offset(Offset::new(20))).await;
    assert_eq!(part.events, 10);
    assert!(numbers(part.deliveries).await.into_iter().eq(10..20));
    let behind = replay("a.odd", ReplayFrom::After(Offset::new(590)), ReplayUntil::Now).await;
    assert_eq!(numbers(behind.deliveries).await, [591, 593, 595, 597, 599]);
    let second = |second| begin + SignedDuration::from_secs(second);
    // These happened long before they were stored, so the server's times lead nowhere.
    let timed = replay("a.even", ReplayFrom::Earliest, ReplayUntil::Time(second(6))).await;
    assert_eq!(numbers(timed.deliveries).await, [0, 2, 4]);
    let none = replay("b.*", ReplayFrom::Earliest, ReplayUntil::Now).await;
    assert_eq!((none.events, numbers(none.deliveries).await), (0, vec![]));

    let mut on = replay(">", ReplayFrom::After(Offset::new(599)), ReplayUntil::Live).await.deliveries;
    let received = receive_all(&mut on, 1).await.remove(0);
    received.settler.release(received.receipt);
    assert_eq!(number(&receive_all(&mut on, 1).await[0]), 599, "it was given back");
    broker.publish(event("a.b", "k", 600)).await.unwrap();
    assert_eq!(number(&receive_all(&mut on, 1).await[0]), 600);
    assert_eq!(number(&receive_all(&mut live, 1).await[0]), 0, "the live group has not moved");
}

#[tokio::test]
async fn the_log_is_asked_by_topic_key_place_and_time_from_both_ends() {
    let place = Place::new();
    let broker = place.broker().await;
    let log = broker.audit_log().unwrap();
    assert!(
        log.latest().await.unwrap().is_none() && log.query(AuditQuery::default()).await.unwrap().is_empty()
    );
    let events: Vec<_> = (0..2_500)
        .map(|number| {
            event(if number % 5 == 0 { "a.fifth" } else { "a.other" }, &(number % 3).to_string(), number)
        })
        .collect();
    assert!(broker.publish_all(events.clone()).await.iter().all(Result::is_ok));
    let found = async |set: &dyn Fn(&mut AuditQuery)| {
        let mut query = AuditQuery::default();
        set(&mut query);
        let found = log.query(query).await.unwrap();
        let number = |one: &eventbus::broker::Recorded| -> u64 {
            serde_json::from_slice(one.envelope.payload().unwrap()).unwrap()
        };
        found.iter().map(|one| (number(one), one.offset)).collect::<Vec<_>>()
    };
    let only = |found: Vec<(u64, Offset)>| found.into_iter().map(|(number, _)| number).collect::<Vec<_>>();
    assert!(only(found(&|_| {}).await).into_iter().eq(0..1_000));
    let latest = found(&|query| (query.newest_first, query.limit) = (true, 3)).await;
    assert_eq!(only(latest.clone()), [2_499, 2_498, 2_497]);
    assert_eq!(log.latest().await.unwrap(), Some(latest[0].1));
    let before = latest[2].1;
    let older =
        found(&|query| (query.newest_first, query.limit, query.after) = (true, 2, Some(before))).await;
    assert_eq!(only(older), [2_496, 2_495]);
    let fifths = found(&|query| {
        query.pattern = Some(Pattern::new("a.fifth").unwrap());
        (query.newest_first, query.key, query.limit) = (true, Some("0".to_owned()), 400);
    })
    .await;
    assert_eq!((fifths.len(), fifths[0].0, fifths[166].0), (167, 2_490, 0), "down to the first one");
    let id = events[1_234].id().clone();
    assert_eq!(only(found(&|query| query.id = Some(id.clone())).await), [1_234]);
    assert_eq!(only(found(&|query| query.offset = Some(Offset::new(7))).await), [6]);
    assert!(found(&|query| query.offset = Some(Offset::new(9_999))).await.is_empty());
    let since = events[2_400].time();
    let late = only(found(&|query| query.since = Some(since)).await);
    assert!(late.contains(&2_499) && late.iter().all(|number| events[*number as usize].time() >= since));

    let end = log.latest().await.unwrap();
    let (waits, publishes) =
        tokio::join!(log.wait(end), async { broker.publish(event("a.b", "k", 1)).await });
    assert!(waits.is_ok() && publishes.is_ok());
}

#[tokio::test]
async fn groups_are_listed_moved_renamed_and_forgotten_while_nobody_has_them() {
    let place = Place::new();
    let broker = place.broker().await;
    let groups = broker.groups().unwrap();
    let mut deliveries = broker.subscribe(request("shop.charge", "a.*")).await.unwrap();
    for number in 0..10 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let mut received = receive_all(&mut deliveries, 5).await;
    let fifth = received.pop().unwrap();
    reject(fifth, "shop.charge").await;
    for received in received {
        ack(received).await;
    }
    let state = || async { groups.list().await.unwrap().remove(0) };
    until("the acks are counted", || async { state().await.backlog == 5 }).await;
    let now = state().await;
    assert_eq!((now.group.as_str(), now.pattern.as_str()), ("shop.charge", "a.*"));
    assert!(
        now.active && now.dead_letters == 1 && now.cursor == Some(Offset::new(5)) && now.oldest.is_some()
    );
    let error = groups.seek("shop.charge", None).await.unwrap_err().to_string();
    assert!(error.contains("some process handles the group `shop.charge`"), "{error}");

    drop(deliveries);
    wait_until_idle(&broker).await;
    assert!(groups.rename("shop.charge", "shop.charge_card").await.unwrap());
    assert!(!groups.rename("shop.charge", "shop.other").await.unwrap(), "it is there no more");
    assert!(groups.rename("shop.charge_card", "no name").await.is_err());
    let now = state().await;
    assert_eq!((now.group.as_str(), now.backlog, now.dead_letters), ("shop.charge_card", 5, 1));
    let mut renamed = broker.subscribe(request("shop.charge_card", "a.*")).await.unwrap();
    let first = receive_all(&mut renamed, 1).await;
    assert_eq!(number(&first[0]), 5);
    let letters = broker.dead_letters().unwrap();
    let (id, letter) = letters.list().await.unwrap().remove(0);
    assert_eq!(letter.group, "shop.charge_card");
    assert!(letters.republish(&id, None).await.unwrap());
    let rest = receive_all(&mut renamed, 5).await;
    assert_eq!(give_back(rest), [6, 7, 8, 9, 4], "the dead letter comes last");
    give_back(first);
    drop(renamed);

    wait_until_idle(&broker).await;
    assert!(groups.seek("shop.charge_card", Some(Offset::new(8))).await.unwrap());
    assert!(!groups.seek("nobody", None).await.unwrap());
    let mut moved = broker.subscribe(request("shop.charge_card", "a.*")).await.unwrap();
    assert_eq!(give_back(receive_all(&mut moved, 2).await), [8, 9]);
    drop(moved);
    wait_until_idle(&broker).await;
    assert!(groups.remove_on("shop.charge_card", "a.*").await.unwrap());
    assert!(!groups.remove("shop.charge_card").await.unwrap() && groups.list().await.unwrap().is_empty());
    let mut anew = broker.subscribe(early("shop.charge_card", "a.*")).await.unwrap();
    assert_eq!(number(&receive_all(&mut anew, 1).await[0]), 0);
}

#[tokio::test]
async fn a_move_that_is_given_up_at_any_moment_loses_no_place() {
    let place = Place::new();
    let broker = place.broker().await;
    for number in 1..=3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let groups = broker.groups().unwrap();
    for polls in 1.. {
        let group = format!("g{polls}");
        let mut deliveries = broker.subscribe(support::early(&group, ">")).await.unwrap();
        for received in support::receive_all(&mut deliveries, 3).await {
            support::ack(received).await;
        }
        drop(deliveries);
        let idle = || async { groups.list().await.unwrap().iter().all(|group| !group.active) };
        support::until("nobody has the group", idle).await;
        let (mut moving, mut left) = (groups.seek(&group, None), polls);
        let done = std::future::poll_fn(|context| {
            left -= 1;
            match std::pin::Pin::new(&mut moving).poll(context) {
                std::task::Poll::Pending if left > 0 => std::task::Poll::Pending,
                polled => std::task::Poll::Ready(polled.is_ready()),
            }
        });
        let done = done.await;
        drop(moving);
        // What was asked of the server is done before this is.
        let _ = groups.list().await.unwrap();
        broker.publish(event("a.b", "k", 4)).await.unwrap();
        let mut deliveries = broker.subscribe(support::request(&group, ">")).await.unwrap();
        let first = support::receive_all(&mut deliveries, 1).await.remove(0);
        assert!([1, 4].contains(&support::number(&first)), "after {polls} polls");
        support::ack(first).await;
        if done {
            break;
        }
    }
}
