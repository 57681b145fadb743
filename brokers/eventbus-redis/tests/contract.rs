//! What Redis promises beyond the conformance suite.

#[path = "../../eventbus-server/tests/support/lines.rs"]
mod lines;
mod support;

use eventbus::broker::{AuditQuery, Broker, Parked, Standing, SubscribeRequest, Topology};
use eventbus::jiff::Timestamp;
use eventbus::subscription::Pattern;
use eventbus_redis::{RedisBroker, Retention};
use lines::Lines;
use std::sync::Arc;
use std::time::Duration;
use support::proxy::Proxy;
use support::several::Node;
use support::{
    Place, ack, dead_letter, event, give_back, number, publish, receive, receive_all, subscribe, until,
};

#[tokio::test]
async fn a_topic_that_is_new_is_found_by_a_pattern_within_a_second_and_none_of_its_events_is_missed() {
    let place = Place::new();
    let (broker, other) = (place.broker().await, place.broker().await);
    let mut deliveries = subscribe(&broker, "group", "order.>").await;
    for topic in 0..5 {
        for count in 0..20 {
            publish(&other, event(&format!("order.{topic}"), topic * 20 + count)).await;
        }
        let received = receive_all(&mut deliveries, 20).await;
        let numbers: Vec<_> = received.iter().map(number).collect();
        assert_eq!(numbers, Vec::from_iter(topic * 20..topic * 20 + 20));
    }
}

#[tokio::test]
async fn a_topic_that_is_new_while_no_process_has_the_group_is_not_missed() {
    let place = Place::new();
    let broker = place.broker().await;
    let request = SubscribeRequest::new("group", Pattern::new("order.>").unwrap());
    drop(broker.subscribe(request).await.unwrap());
    until("the group was left", async || !broker.groups().unwrap().list().await.unwrap()[0].active).await;
    publish(&broker, event("order.paid", 1)).await;
    publish(&broker, event("order.sent", 2)).await;
    let groups = broker.groups().unwrap().list().await.unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.>").await;
    let received = receive_all(&mut deliveries, 2).await;
    assert_eq!(received.iter().map(number).collect::<Vec<_>>(), [1, 2], "{groups:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_one_key_come_in_order_over_all_topics_of_a_pattern() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    let publisher = broker.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..1_500 {
            // Several within one millisecond, on different topics.
            let topic = ["order.placed", "order.paid", "order.sent"][fastrand(number)];
            let sent = publisher.publish(Arc::new(event(topic, number).with_key("one")));
            if number % 10 == 0 {
                sent.await.unwrap();
            } else {
                tokio::spawn(sent);
            }
        }
    });
    let mut seen = Vec::new();
    while seen.len() < 1_500 {
        for received in receive(&mut deliveries, 100).await {
            seen.push(number(&received));
            ack(received).await;
        }
    }
    publishing.await.unwrap();
    assert!(seen.is_sorted(), "{seen:?}");
}

/// Which of three, without an order of its own.
fn fastrand(number: u64) -> usize {
    (number.wrapping_mul(2_654_435_761) >> 7) as usize % 3
}

#[tokio::test]
async fn what_another_program_adds_is_an_event_also_among_ours() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    publish(&broker, event("order.placed", 1)).await;
    for value in [2, 3] {
        let stream = place.key("topic:order.placed");
        let id: String = place.command(redis::cmd("XADD").arg(stream).arg("*").arg("data").arg(value));
        assert!(id.contains('-'));
    }
    // A place that the server has given, far behind the clock of the bus.
    let stream = place.key("topic:order.placed");
    let _: String = place.command(redis::cmd("XADD").arg(stream).arg("9999999999999-7").arg("data").arg(4));
    publish(&broker, event("order.placed", 5)).await;
    let received = receive_all(&mut deliveries, 5).await;
    assert_eq!(received.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(received[1].receipt.envelope.event_type(), "order.placed");
}

#[tokio::test]
async fn a_topic_of_another_program_is_found_by_a_pattern_that_has_no_pause() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "group", "order.>").await;
    let mut number = 0;
    let mut added = false;
    until("the topic of another program is found", async || {
        publish(&broker, event("order.placed", number)).await;
        number += 1;
        let received = receive(&mut deliveries, 100).await;
        let found = received.iter().any(|one| one.receipt.envelope.topic().as_str() == "order.paid");
        for one in received {
            ack(one).await;
        }
        if !added {
            added = true;
            let _: u64 = place.command(redis::cmd("SADD").arg(place.key("topics")).arg("order.paid"));
            let stream = place.key("topic:order.paid");
            let _: String = place.command(redis::cmd("XADD").arg(stream).arg("*").arg("data").arg("{}"));
        }
        found
    })
    .await;
}

#[tokio::test]
async fn a_process_that_crashed_is_taken_over_in_order_before_anything_newer_with_what_was_noted() {
    let place = Place::new();
    let lease = Duration::from_secs(2);
    // The first process is cut off, and its server hears nothing of it any more.
    let proxy = Proxy::to(&place.url).await;
    let cut_off = RedisBroker::builder(&proxy.url()).unwrap();
    let first = cut_off.prefix(&place.prefix).lease(lease).open().await.unwrap();
    let mut deliveries = subscribe(&first, "group", "order.>").await;
    for number in 0..10 {
        publish(&first, event("order.placed", number).with_key("one")).await;
    }
    let received = receive_all(&mut deliveries, 10).await;
    let due = Timestamp::now() + Duration::from_secs(60);
    let now = Timestamp::now();
    let parked = Parked { first_failed_at: now, last_failed_at: now, due };
    let mut open = Vec::new();
    for (at, mut received) in received.into_iter().enumerate() {
        match at {
            0 | 2 => ack(received).await,
            1 => {
                received.receipt.attempt = 3;
                received.settler.park(&received.receipt, parked).await.unwrap();
                open.push(received);
            }
            _ => open.push(received),
        }
    }
    until("the acks are saved", async || first.groups().unwrap().list().await.unwrap()[0].backlog == 8).await;
    let state = first.groups().unwrap().list().await.unwrap().remove(0);
    assert_eq!((state.parked, state.active), (1, true));
    let second = place.builder().lease(lease).open().await.unwrap();
    let mut taken = subscribe(&second, "group", "order.>").await;
    assert!(taken.stands_by_for().is_some());
    proxy.swallow(true);
    for number in 10..13 {
        publish(&second, event("order.paid", number).with_key("one")).await;
    }
    let received = receive_all(&mut taken, 11).await;
    let numbers: Vec<_> = received.iter().map(number).collect();
    assert_eq!(numbers, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!((received[0].receipt.attempt, received[0].parked), (3, Some(parked)));
    assert_eq!(received[1].receipt.attempt, 1);
    // It comes back: what it still has is somebody else's.
    proxy.swallow(false);
    until("the first process knows", async || {
        open.iter().all(|received| !received.settler.holds(&received.receipt))
    })
    .await;
    for received in open {
        let letter = dead_letter(&received);
        assert!(received.settler.park(&received.receipt, parked).await.is_err());
        assert!(received.settler.reject(received.receipt.clone(), letter).await.is_err());
        assert!(received.settler.ack(received.receipt).await.is_err());
    }
    assert!(second.dead_letters().unwrap().list().await.unwrap().is_empty());
    let request = SubscribeRequest::new("group", Pattern::new("order.>").unwrap());
    assert_eq!(second.standing(&request), Standing::Active);
}

#[tokio::test]
async fn what_was_read_for_a_group_by_an_answer_that_never_came_is_delivered_all_the_same() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    publish(&broker, event("order.placed", 1)).await;
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    // As a read of an earlier connection does that the server runs late.
    let stream = place.key("topic:order.placed");
    let read = ["GROUP", "group", "earlier", "BLOCK", "20000", "STREAMS", &stream, ">"];
    let url = place.url.clone();
    let mut command = redis::cmd("XREADGROUP");
    command.arg(&read);
    let reading = std::thread::spawn(move || support::command::<redis::Value>(&url, &command));
    until("it waits at the server", async || {
        place.command::<String>(redis::cmd("CLIENT").arg("LIST")).contains("cmd=xreadgroup")
    })
    .await;
    publish(&broker, event("order.placed", 2)).await;
    reading.join().unwrap();
    assert_eq!(receive_all(&mut deliveries, 1).await.iter().map(number).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_group_that_is_left_in_order_is_taken_over_at_once() {
    let place = Place::new();
    let (first, second) = (place.broker().await, place.broker().await);
    let leaving = subscribe(&first, "group", "order.placed").await;
    let mut waiting = subscribe(&second, "group", "order.placed").await;
    publish(&second, event("order.placed", 1)).await;
    let since = std::time::Instant::now();
    drop(leaving);
    assert_eq!(number(&receive(&mut waiting, 1).await[0]), 1);
    // The lease is ten seconds.
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
}

#[tokio::test]
async fn events_are_removed_behind_what_every_group_has_settled() {
    let place = Place::new();
    let mut retention = Retention::default();
    retention.count = Some(10);
    let builder = place.builder().retention(retention).retention_interval(Duration::from_millis(50));
    let broker = builder.open().await.unwrap();
    let mut fast = subscribe(&broker, "fast", "order.*").await;
    let mut slow = subscribe(&broker, "slow", "order.placed").await;
    // Nobody of this group has run since the topic is there.
    let absent = SubscribeRequest::new("absent", Pattern::new("order.>").unwrap());
    drop(broker.subscribe(absent).await.unwrap());
    for number in 0..100 {
        publish(&broker, event("order.placed", number)).await;
    }
    let length = || place.command::<usize>(redis::cmd("XLEN").arg(place.key("topic:order.placed")));
    for received in receive_all(&mut fast, 100).await {
        ack(received).await;
    }
    let mut slow_ones = receive_all(&mut slow, 100).await;
    let unsettled = slow_ones.split_off(40);
    for received in slow_ones {
        ack(received).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(length(), 100, "a group has not read the topic yet");
    broker.groups().unwrap().remove("absent").await.unwrap();
    until("what is settled is removed", async || length() == 60).await;
    for received in unsettled {
        ack(received).await;
    }
    until("as many are left as are kept", async || length() == 10).await;
    let found = broker.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    assert_eq!(found.len(), 10);
}

#[tokio::test]
async fn a_topology_that_is_checked_is_not_made() {
    let place = Place::new();
    let strict = place.builder().topology(Topology::Check).open().await.unwrap();
    let request = || SubscribeRequest::new("group", Pattern::new("order.placed").unwrap());
    let Err(error) = strict.subscribe(request()).await else { panic!("the group is not known") };
    assert!(error.to_string().contains("does not know the group `group` on \"order.placed\""), "{error}");
    assert_eq!(strict.check(request()).await.unwrap_err().to_string(), error.to_string());
    let error = strict.publish(Arc::new(event("order.placed", 1))).await.unwrap_err().to_string();
    assert!(error.contains("does not know the topic"), "{error}");
    let keys: Vec<String> = place.command(redis::cmd("KEYS").arg(place.key("*")));
    assert!(keys.is_empty(), "{keys:?}");
    drop(place.broker().await.subscribe(request()).await.unwrap());
    strict.publish(Arc::new(event("order.placed", 1))).await.unwrap();
    strict.check(request()).await.unwrap();
    strict.subscribe(request()).await.unwrap();
}

#[tokio::test]
async fn a_group_is_moved_and_renamed_with_all_that_it_has() {
    let place = Place::new();
    let broker = place.broker().await;
    let groups = broker.groups().unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    for number in 0..10 {
        publish(&broker, event(["order.placed", "order.paid"][number as usize % 2], number)).await;
    }
    let mut received = receive_all(&mut deliveries, 10).await;
    let offset = received[4].receipt.offset;
    let failed = received.remove(9);
    let letter = dead_letter(&failed);
    failed.settler.reject(failed.receipt.clone(), letter).await.unwrap();
    for received in received.drain(..3) {
        ack(received).await;
    }
    assert!(groups.seek("group", None).await.unwrap_err().to_string().contains("stop it first"));
    give_back(received);
    drop(deliveries);
    until("the group was left", async || !groups.list().await.unwrap()[0].active).await;
    assert!(groups.rename("group", "renamed").await.unwrap());
    assert!(!groups.rename("group", "renamed").await.unwrap());
    let state = groups.list().await.unwrap().remove(0);
    assert_eq!((state.group.as_str(), state.backlog, state.dead_letters), ("renamed", 6, 1));
    let mut deliveries = subscribe(&broker, "renamed", "order.*").await;
    let received = receive_all(&mut deliveries, 6).await;
    assert_eq!(received.iter().map(number).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
    give_back(received);
    drop(deliveries);
    until("the group was left", async || !groups.list().await.unwrap()[0].active).await;
    assert!(groups.seek("renamed", Some(offset)).await.unwrap());
    let mut deliveries = subscribe(&broker, "renamed", "order.*").await;
    let received = receive_all(&mut deliveries, 5).await;
    assert_eq!(received.iter().map(number).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
    give_back(received);
    drop(deliveries);
    until("the group was left", async || !groups.list().await.unwrap()[0].active).await;
    assert!(groups.remove("renamed").await.unwrap() && !groups.remove("renamed").await.unwrap());
    assert!(groups.list().await.unwrap().is_empty());
    assert_eq!(broker.dead_letters().unwrap().list().await.unwrap().len(), 1, "dead letters stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_one_topic_does_not_count_topics() {
    let node = Node::store("");
    let counted = async |pattern: &str| {
        let broker = RedisBroker::builder(&node.url()).unwrap().prefix(pattern).open().await.unwrap();
        let mut deliveries = subscribe(&broker, "group", pattern).await;
        node.ask::<()>(&["CONFIG", "RESETSTAT"]);
        for number in 0..20 {
            publish(&broker, event("order.placed", number)).await;
            ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
        }
        let said: String = node.ask(&["INFO", "commandstats"]);
        said.contains("cmdstat_scard:")
    };
    assert!(!counted("order.placed").await);
    assert!(counted("order.*").await, "a new topic may have events before those that are read");
}

#[tokio::test]
async fn the_audit_log_has_what_an_event_was_mended_with() {
    let place = Place::new();
    let broker = place.broker().await;
    let (letters, log) = (broker.dead_letters().unwrap(), broker.audit_log().unwrap());
    let mut deliveries = subscribe(&broker, "group", "order.*").await;
    let _other = subscribe(&broker, "other", "order.*").await;
    publish(&broker, event("order.placed", 1)).await;
    publish(&broker, event("order.paid", 2)).await;
    let received = receive_all(&mut deliveries, 2).await;
    let offsets: Vec<_> = received.iter().map(|received| received.receipt.offset).collect();
    for received in received {
        let letter = dead_letter(&received);
        received.settler.reject(received.receipt, letter).await.unwrap();
    }
    assert!(log.mended(offsets[0]).await.unwrap().is_empty());
    let (id, _) = letters.list().await.unwrap().remove(0);
    assert!(letters.republish(&id, Some("7".into())).await.unwrap());
    assert_eq!(log.mended(offsets[0]).await.unwrap(), [("group".to_owned(), "7".into())]);
    assert!(log.mended(offsets[1]).await.unwrap().is_empty());
    let found = log.query(AuditQuery::default()).await.unwrap();
    assert_eq!(found[0].envelope.payload().unwrap(), "1", "the event itself stays");
}

#[tokio::test]
async fn what_an_event_was_mended_with_goes_with_the_event() {
    let place = Place::new();
    let broker = place.broker().await;
    let letters = broker.dead_letters().unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    for number in 0..2 {
        publish(&broker, event("order.placed", number)).await;
        let received = receive_all(&mut deliveries, 1).await.remove(0);
        let letter = dead_letter(&received);
        received.settler.reject(received.receipt, letter).await.unwrap();
        let (id, _) = letters.list().await.unwrap().remove(0);
        assert!(letters.republish(&id, Some("7".into())).await.unwrap());
        ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    }
    let mended = || place.command::<u64>(redis::cmd("HLEN").arg(place.key("mended:group")));
    assert_eq!(mended(), 2);
    let mut retention = Retention::default();
    retention.count = Some(1);
    let trims = place.builder().retention(retention).retention_interval(Duration::from_millis(50));
    let _trims = trims.open().await.unwrap();
    until("it is gone with its event", async || mended() == 1).await;
    let found = broker.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    assert_eq!(broker.audit_log().unwrap().mended(found[0].offset).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_payload_that_is_mended_may_be_as_large_as_one_that_is_published_and_no_larger() {
    let place = Place::new();
    let broker = place.builder().max_payload(10).open().await.unwrap();
    let letters = broker.dead_letters().unwrap();
    let mut deliveries = subscribe(&broker, "group", "order.placed").await;
    publish(&broker, event("order.placed", 1)).await;
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    let letter = dead_letter(&received);
    received.settler.reject(received.receipt, letter).await.unwrap();
    let (id, _) = letters.list().await.unwrap().remove(0);
    let error = letters.republish(&id, Some("12345678901".into())).await.unwrap_err().to_string();
    assert!(error.contains("its payload has 11 bytes, and 10 are allowed"), "{error}");
    assert!(letters.republish(&id, Some("1234567890".into())).await.unwrap());
}

#[tokio::test]
async fn groups_are_listed_by_the_thousand_in_many_small_steps() {
    const GROUPS: usize = 3_000;
    let place = Place::new();
    let broker = place.broker().await;
    for number in 0..3 {
        publish(&broker, event("order.placed", number)).await;
    }
    let stream = place.key("topic:order.placed");
    for part in (0..GROUPS).collect::<Vec<_>>().chunks(500) {
        let mut commands = redis::pipe();
        for group in part {
            let name = format!("group-{group:04}");
            // Each tenth one has come to the end.
            let last = if group % 10 == 0 { "$" } else { "0" };
            commands.cmd("SADD").arg(place.key("groups")).arg(&name).ignore();
            commands.cmd("HSET").arg(place.key(&format!("group:{name}"))).arg("order.*").arg("0-0").ignore();
            commands.cmd("XGROUP").arg("CREATE").arg(&stream).arg(&name).arg(last).ignore();
        }
        place.pipeline(&commands);
    }
    let calls = || {
        let stats: String = place.command(redis::cmd("INFO").arg("commandstats"));
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_eval:calls=")).unwrap_or("0,");
        line.split(',').next().unwrap().parse::<usize>().unwrap()
    };
    let before = calls();
    let groups = broker.groups().unwrap().list().await.unwrap();
    // Twice each fifty: what they are, and where they stand.
    assert!(calls() - before >= 2 * GROUPS / 60, "{}", calls() - before);
    assert_eq!(groups.len(), GROUPS);
    for (number, state) in groups.iter().enumerate() {
        let backlog = if number % 10 == 0 { 0 } else { 3 };
        assert_eq!((state.group.as_str(), state.backlog), (format!("group-{number:04}").as_str(), backlog));
    }
}

#[tokio::test]
async fn a_process_that_has_stood_by_says_once_that_it_has_taken_over() {
    let (lines, _guard) = Lines::capture();
    let place = Place::new();
    let (first, second) = (place.broker().await, place.broker().await);
    let mut deliveries = subscribe(&first, "group", ">").await;
    publish(&first, event("a.b", 1)).await;
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    let mut standing_by = subscribe(&second, "group", ">").await;
    assert!(standing_by.stands_by_for().is_some(), "whoever opens it tells that");
    drop(deliveries);
    publish(&second, event("a.b", 2)).await;
    ack(receive_all(&mut standing_by, 1).await.remove(0)).await;
    until("it says so", async || lines.with("has taken over").len() == 1).await;
    let line = lines.with("has taken over").remove(0);
    assert!(line.contains("INFO") && line.contains("group=group pattern=>"), "{line}");
    assert!(lines.with("stands by").is_empty(), "it was told at the opening");
}
