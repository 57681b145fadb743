//! Events are kept in a stream, where the address says so: for replays and the audit log.

mod support;

use eventbus::broker::{
    AuditQuery, Broker, DeadLetter, Deliveries, FailureKind, Offset, Received, Replay, ReplayFrom,
    ReplayRequest, ReplayUntil, Topology,
};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, Topic};
use eventbus_core::jiff::Timestamp;
use eventbus_rabbitmq::RabbitMqBroker;
use eventbus_rabbitmq::lapin::BasicProperties;
use eventbus_rabbitmq::lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use eventbus_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::between::Between;
use support::{
    ack, behind_proxy, builder, connect, event, exchange, number, receive, remove, request, server, url_at,
};

fn again(group: &str, pattern: &str, from: ReplayFrom, until: ReplayUntil) -> ReplayRequest {
    ReplayRequest { group: group.to_owned(), pattern: Pattern::new(pattern).unwrap(), from, until }
}

async fn replay(broker: &RabbitMqBroker, request: ReplayRequest) -> Replay {
    broker.replayable().expect("it keeps events").replay(request).await.unwrap()
}

/// All that a replay delivers.
async fn all(mut deliveries: Box<dyn Deliveries>) -> Vec<Received> {
    let mut received = Vec::new();
    loop {
        let before = received.len();
        let receiving = std::future::poll_fn(|context| deliveries.poll_receive(context, &mut received, 100));
        tokio::time::timeout(support::PATIENCE, receiving).await.expect("it ends").unwrap();
        if received.len() == before {
            return received;
        }
        for one in &received[before..] {
            one.settler.ack(one.receipt.clone()).await.unwrap();
        }
    }
}

async fn history(broker: &RabbitMqBroker, newest_first: bool) -> Vec<Arc<Envelope>> {
    let mut query = AuditQuery::default();
    query.newest_first = newest_first;
    let found = broker.audit_log().unwrap().query(query).await.unwrap();
    found.into_iter().map(|event| event.envelope).collect()
}

#[tokio::test]
async fn without_a_stream_it_is_said_how_there_is_a_history() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let bus = eventbus::Bus::builder().without_subscriptions().broker(broker.clone()).await.unwrap();
    let error = bus.audit_log().err().expect("there is none").to_string();
    assert!(error.contains("RabbitMQ") && error.contains("`?streams=true`"), "{error}");
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn what_was_never_published_is_an_empty_history() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let audit = broker.audit_log().unwrap();
    assert!(history(&broker, false).await.is_empty() && history(&broker, true).await.is_empty());
    assert_eq!(audit.latest().await.unwrap(), None);
    let opened = replay(&broker, again("mail", ">", ReplayFrom::Earliest, ReplayUntil::Now)).await;
    assert_eq!((opened.events, opened.latest), (0, None));
    assert!(all(opened.deliveries).await.is_empty());
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn an_event_is_kept_as_it_was_published() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let mut sent = Envelope::from_json(Topic::new("a.b").unwrap(), &7).unwrap().with_key("größer\n");
    let long = "n".repeat(300);
    let headers = [
        ("CC", "c.d"),
        ("tenant", "acmé \r\n 日本"),
        ("tenant", "twice"),
        ("", "empty"),
        (&long, "long"),
        ("x-request-id", "7"),
        ("x-exchange", "other"),
        ("x-basic-type", "other"),
        ("x-opt-deaths", "other"),
        ("timestamp_in_ms", "soon"),
    ];
    for (name, value) in headers {
        sent.headers_mut().append(name, value);
    }
    sent.headers_mut().append("large", "x".repeat(40 << 10));
    let strange = Envelope::from_json(Topic::new("a.c").unwrap(), &8).unwrap().with_type("amqp-1.0");
    broker.publish(Arc::new(sent.clone())).await.unwrap();
    broker.publish(Arc::new(strange.clone())).await.unwrap();
    let kept = history(&broker, false).await;
    for (sent, kept) in [sent, strange].iter().zip(&kept) {
        let sorted = |envelope: &Envelope| {
            let headers = envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
            let mut headers: Vec<_> = headers.collect();
            headers.sort_by(|one, other| one.0.cmp(&other.0));
            headers
        };
        assert_eq!(sorted(sent), sorted(kept));
        let attributes = |envelope: &Envelope| {
            let all = envelope.attributes().map(|(name, value)| (name.to_owned(), value.into_owned()));
            all.collect::<Vec<_>>()
        };
        assert_eq!((sent.topic(), attributes(sent)), (kept.topic(), attributes(kept)));
        assert_eq!(sent.payload().unwrap(), kept.payload().unwrap());
    }
    assert_eq!(kept.len(), 2);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_replay_has_the_payload_that_was_mended_for_its_group() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let Received { receipt, settler, .. } = receive(&mut deliveries, 1).await.remove(0);
    let now = Timestamp::now();
    let letter = DeadLetter {
        envelope: Arc::clone(&receipt.envelope),
        group: "mail".to_owned(),
        handler: "mail".to_owned(),
        kind: FailureKind::Failed,
        reason: "no".to_owned(),
        attempts: 1,
        first_failed_at: now,
        last_failed_at: now,
        offset: receipt.offset,
    };
    settler.reject(receipt, letter).await.unwrap();
    let letters = broker.dead_letters().unwrap();
    let id = letters.list().await.unwrap().remove(0).0;
    assert!(letters.republish(&id, Some("2".into())).await.unwrap());
    let received = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&received), 2);
    ack(received).await;
    for (group, expected) in [("mail", 2), ("other", 1)] {
        let opened = replay(&broker, again(group, ">", ReplayFrom::Earliest, ReplayUntil::Now)).await;
        assert_eq!(
            all(opened.deliveries).await.iter().map(number).collect::<Vec<_>>(),
            [expected],
            "{group}"
        );
    }
    let audit = broker.audit_log().unwrap();
    let found = audit.query(AuditQuery::default()).await.unwrap();
    assert_eq!(found.len(), 1, "it is there once, as it was published");
    let mended = audit.mended(found[0].offset).await.unwrap();
    assert_eq!(mended, [("mail".to_owned(), "2".into())]);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_place_beyond_the_end_is_waited_for_and_one_of_a_queue_is_refused() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let beyond = ReplayFrom::Offset(Offset::new(1_000));
    let opened = replay(&broker, again("mail", ">", beyond, ReplayUntil::Now)).await;
    assert_eq!(opened.events, 0);
    assert!(all(opened.deliveries).await.is_empty());
    let queue = ReplayFrom::Offset(Offset::new(1 << 64));
    let refused = broker.replayable().unwrap().replay(again("mail", ">", queue, ReplayUntil::Now)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no place") && refused.contains("audit log"), "{refused}");
    // Nothing was stored as late as that.
    let late = Timestamp::now() + Duration::from_secs(86_400);
    let opened = replay(&broker, again("mail", ">", ReplayFrom::Time(late), ReplayUntil::Now)).await;
    assert_eq!(opened.events, 0);
    assert!(all(opened.deliveries).await.is_empty());
    let mut query = AuditQuery::default();
    query.since = Some(late);
    assert!(broker.audit_log().unwrap().query(query.clone()).await.unwrap().is_empty());
    query.newest_first = true;
    assert!(broker.audit_log().unwrap().query(query).await.unwrap().is_empty());
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_stream_that_is_another_one_is_an_error_that_says_what_to_do() {
    let exchange = exchange();
    let keeping = |seconds| builder(&exchange).streams(true).retention_age(Duration::from_secs(seconds));
    let error = builder(&exchange).connect().await.unwrap();
    drop(error);
    let missing = builder(&exchange).streams(true).topology(Topology::Check).connect().await;
    let missing = missing.expect_err("there is none").to_string();
    assert!(missing.contains(":events") && missing.contains("topology=check"), "{missing}");
    let broker = keeping(3_600).connect().await.unwrap();
    drop(keeping(3_600).topology(Topology::Check).connect().await.unwrap());
    let other = keeping(7_200).connect().await.expect_err("it keeps them for an hour").to_string();
    for named in ["7200s", "3600s", "`retention_age`"] {
        assert!(other.contains(named), "{other}");
    }
    let channel = broker.channel().await.unwrap();
    let events = format!("{exchange}:events");
    channel.queue_delete(events.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let gone = broker.audit_log().unwrap().query(AuditQuery::default()).await.unwrap_err().to_string();
    assert!(gone.contains("somebody has removed it"), "{gone}");
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(events.as_str().into(), options, FieldTable::default()).await.unwrap();
    let queue = builder(&exchange).streams(true).connect().await.expect_err("it is a queue").to_string();
    assert!(queue.contains("is not the stream") && queue.contains("`exchange`"), "{queue}");
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_server_without_streams_is_told_with_what_to_do_and_serves_groups_all_the_same() {
    let exchange = exchange();
    let between = Between::to(&server()).await;
    between.forget_streams();
    let url = url_at(&between.url, &exchange);
    let error = RabbitMqBroker::builder(&format!("{url}&streams=true")).unwrap().connect().await;
    let error = error.expect_err("it has no streams").to_string();
    assert!(error.contains("has no streams") && error.contains("leave `streams` out"), "{error}");
    let broker = connect(&url).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    ack(receive(&mut deliveries, 1).await.remove(0)).await;
    // They are noted in a stream.
    let error = eventbus_core::chain(&broker.groups().unwrap().list().await.unwrap_err());
    assert!(error.contains("take RabbitMQ 4"), "{error}");
    broker.close().await.unwrap();
    // What is removed is noted.
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// The server for tests has a policy for streams of what begins so: what is old is removed soon.
#[tokio::test]
async fn a_place_that_is_not_kept_any_more_stands_for_the_oldest_event_that_is() {
    let exchange = format!("retained{}", exchange());
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let audit = broker.audit_log().unwrap();
    let find = async |offset| {
        let mut query = AuditQuery::default();
        (query.offset, query.limit) = (offset, 100_000);
        audit.query(query).await.unwrap()
    };
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    let first = find(None).await[0].offset;
    let mut published = 1;
    support::until("the first is removed", async || {
        let events = (published..published + 100).map(|number| event("a.b", "k", number)).collect();
        assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
        published += 100;
        find(Some(first)).await.is_empty()
    })
    .await;
    let kept = find(None).await;
    let oldest = kept[0].offset;
    assert!(oldest > first && (1..published).contains(&(kept.len() as u64)), "{oldest}");
    let expected: Vec<_> = (published - kept.len() as u64..published).collect();
    for from in [ReplayFrom::Earliest, ReplayFrom::Offset(first), ReplayFrom::After(first)] {
        let opened = replay(&broker, again("mail", ">", from, ReplayUntil::Now)).await;
        assert_eq!(opened.events, kept.len() as u64, "{from:?}");
        let received = all(opened.deliveries).await;
        assert_eq!(received[0].receipt.offset, oldest);
        assert_eq!(received.iter().map(number).collect::<Vec<_>>(), expected, "{from:?}");
    }
    // All that was asked for is gone.
    let gone = again("mail", ">", ReplayFrom::Offset(first), ReplayUntil::Offset(first));
    let opened = replay(&broker, gone).await;
    assert_eq!(opened.events, 0);
    assert!(all(opened.deliveries).await.is_empty());
    let mut query = AuditQuery::default();
    (query.after, query.limit) = (Some(first), 1);
    assert_eq!(audit.query(query).await.unwrap()[0].offset, oldest);
    assert!(audit.mended(first).await.unwrap().is_empty());
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_found_while_others_publish_as_fast_as_it_is_read() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishing = Vec::new();
    for _ in 0..2 {
        let (one, stop) = (builder(&exchange).streams(true).connect().await.unwrap(), Arc::clone(&stop));
        publishing.push(tokio::spawn(async move {
            let mut confirmed = 0;
            while !stop.load(Ordering::Relaxed) {
                let events: Vec<_> = (0..2_000).map(|number| event("a.b", "k", number)).collect();
                assert!(one.publish_all(events).await.iter().all(Result::is_ok));
                confirmed += 2_000;
            }
            one.close().await.unwrap();
            confirmed
        }));
    }
    let latest = async || {
        let audit = broker.audit_log().unwrap();
        tokio::time::timeout(support::PATIENCE, audit.latest()).await.expect("the end is found").unwrap()
    };
    support::until("events are there", async || latest().await.is_some()).await;
    for _ in 0..5 {
        latest().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut confirmed = 0;
    for one in publishing {
        confirmed += one.await.unwrap();
    }
    // With nobody who publishes, the end is behind all that is confirmed.
    let opened = replay(&broker, again("mail", ">", ReplayFrom::Earliest, ReplayUntil::Now)).await;
    assert_eq!(opened.events, confirmed);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn messages_of_other_programs_are_events_of_the_history() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let channel = broker.channel().await.unwrap();
    let events = format!("{exchange}:events");
    let mut headers = FieldTable::default();
    headers.insert("eventbus-note".into(), AMQPValue::LongString("mail".into()));
    let sent: [(&str, &str, &[u8], BasicProperties); 3] = [
        (&exchange, "order.bare", b"\xff\0garbage", BasicProperties::default()),
        ("", &events, b"", BasicProperties::default()),
        (&exchange, "order.note", b"1", BasicProperties::default().with_headers(headers)),
    ];
    for (exchange, key, body, properties) in sent {
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        sent.await.unwrap().await.unwrap();
    }
    broker.publish(event("order.placed", "k", 1)).await.unwrap();
    support::until("all are there", async || history(&broker, false).await.len() == 4).await;
    let kept = history(&broker, false).await;
    let topics: Vec<_> = kept.iter().map(|event| event.topic().as_str()).collect();
    assert_eq!(topics, ["order.bare", "unknown", "order.note", "order.placed"]);
    assert_eq!(&kept[0].payload().unwrap()[..], b"\xff\0garbage");
    // It is called the same whenever it is read.
    let mut query = AuditQuery::default();
    query.id = Some(kept[0].id().clone());
    assert_eq!(broker.audit_log().unwrap().query(query).await.unwrap().len(), 1);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_on_behind_its_last_event_after_a_connection_was_cut() {
    const EVENTS: u64 = 2_000;
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let url = format!("{}&streams=true", url_at(&url, &exchange));
    let broker = connect(&url).await;
    let events = (0..EVENTS).map(|number| event("a.b", "k", number)).collect();
    assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
    let mut opened = replay(&broker, again("mail", ">", ReplayFrom::Earliest, ReplayUntil::Now)).await;
    assert_eq!(opened.events, EVENTS);
    let mut numbers = Vec::new();
    for part in 1..=4 {
        for one in receive(&mut opened.deliveries, EVENTS as usize / 4).await {
            numbers.push(number(&one));
            ack(one).await;
        }
        if part < 4 {
            proxy.cut();
        }
    }
    assert_eq!(numbers, (0..EVENTS).collect::<Vec<_>>());
    assert!(all(opened.deliveries).await.is_empty());
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_removed_under_a_replay_is_said_before_its_end() {
    let exchange = exchange();
    let broker = builder(&exchange).streams(true).connect().await.unwrap();
    let events = (0..2_000).map(|number| event("a.b", "k", number)).collect();
    assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
    let mut opened = replay(&broker, again("mail", ">", ReplayFrom::Earliest, ReplayUntil::Now)).await;
    for one in receive(&mut opened.deliveries, 1).await {
        ack(one).await;
    }
    let channel = broker.channel().await.unwrap();
    let stream = format!("{exchange}:events");
    channel.queue_delete(stream.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let mut received = Vec::new();
    let error = loop {
        let receiving =
            std::future::poll_fn(|context| opened.deliveries.poll_receive(context, &mut received, 100));
        match tokio::time::timeout(support::PATIENCE, receiving).await.expect("it is said") {
            Ok(()) => assert!(received.len() < 1_999, "it was read before it was removed"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("somebody has removed it"), "{error}");
    for one in received {
        ack(one).await;
    }
    assert!(all(opened.deliveries).await.is_empty(), "it ends, with nothing in between");
    broker.close().await.unwrap();
    remove(&exchange).await;
}
