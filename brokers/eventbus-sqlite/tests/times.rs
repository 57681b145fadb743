//! Times that do not fit into 64 bits of nanoseconds, and times before 1970: they come back as they were sent.

mod support;

use eventbus::broker::{
    AuditQuery, Broker, DeadLetter, FailureKind, Parked, ReplayFrom, Start, SubscribeRequest,
};
use eventbus::subscription::Pattern;
use eventbus::{Delivery, Envelope, Outcome, Topic};
use jiff::Timestamp;
use rusqlite::Connection;
use std::future::poll_fn;
use std::time::Duration;
use support::{Log, Seen, until};

/// Times in order, and how people are shown them.
const TIMES: [(&str, &str); 14] = [
    ("-009999-06-01T12:00:00.000000001Z", "-009999-06-01T12:00:00.000000Z"),
    ("-000004-02-29T23:59:59.999999999Z", "-000004-02-29T23:59:59.999999Z"),
    ("-000001-12-31T23:59:59Z", "-000001-12-31T23:59:59.000000Z"),
    ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00.000000Z"),
    ("1500-01-01T00:00:00Z", "1500-01-01T00:00:00.000000Z"),
    ("1677-09-21T00:12:43.145224192Z", "1677-09-21T00:12:43.145224Z"),
    ("1677-09-21T00:12:43.145224193Z", "1677-09-21T00:12:43.145224Z"),
    ("1969-12-31T23:59:58.75Z", "1969-12-31T23:59:58.750000Z"),
    ("1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:59.999999Z"),
    ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
    ("2026-07-01T12:00:59.9999999Z", "2026-07-01T12:00:59.999999Z"),
    ("2262-04-11T23:47:16.854775807Z", "2262-04-11T23:47:16.854775Z"),
    ("2262-04-11T23:47:16.854775808Z", "2262-04-11T23:47:16.854775Z"),
    ("9999-12-30T22:00:00.999999999Z", "9999-12-30T22:00:00.999999Z"),
];

fn times() -> Vec<Timestamp> {
    TIMES.iter().map(|(time, _)| time.parse().unwrap()).chain([Timestamp::MIN]).collect()
}

fn at(time: Timestamp) -> Envelope {
    Envelope::from_json(Topic::from_static("year.noted"), &time.to_string()).unwrap().with_time(time)
}

fn ask<T: rusqlite::types::FromSql>(log: &Log, sql: &str) -> Vec<T> {
    let connection = Connection::open(log.path()).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn every_time_of_an_event_comes_back_as_it_was_sent() {
    let log = Log::new();
    let bus = log.bus().await;
    for time in times() {
        bus.publish_envelope(at(time)).await.unwrap();
    }
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    let stored = bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    let stored: Vec<_> = stored.iter().map(|recorded| recorded.envelope.time()).collect();
    assert_eq!(stored, times());
    let shown: Vec<String> = ask(&log, "select time from events order by offset limit 14");
    assert_eq!(shown, TIMES.map(|(_, shown)| shown));
    assert_eq!(log.broker().await.verify().await.unwrap(), [] as [&str; 0]);
}

#[tokio::test]
async fn queries_and_replays_find_every_time_in_its_place() {
    let log = Log::new();
    let bus = log.bus().await;
    let mut times = times();
    times.sort();
    for time in &times {
        bus.publish_envelope(at(*time)).await.unwrap();
    }
    let seen = Seen::new();
    let noted = seen.clone();
    let note = move |delivery: Delivery| {
        let noted = noted.clone();
        async move { noted.push(delivery.envelope().time()) }
    };
    bus.on_topic("year.noted", note).group("years").await.unwrap();
    bus.start().unwrap();
    for (index, time) in times.iter().enumerate() {
        let query = |since, before| {
            let mut query = AuditQuery::default();
            (query.since, query.before) = (since, before);
            bus.audit_log().unwrap().query(query)
        };
        let found = query(Some(*time), None).await.unwrap();
        assert_eq!(found.len(), times.len() - index, "since {time}");
        let found = query(None, Some(*time)).await.unwrap();
        assert_eq!(found.len(), index, "before {time}");
        let before = seen.len();
        bus.replay("years").from(ReplayFrom::Time(*time)).await.unwrap();
        assert_eq!(seen.all()[before..], times[index..], "replayed from {time}");
    }
}

/// The next delivery of a group at the broker.
async fn next(deliveries: &mut Box<dyn eventbus::broker::Deliveries>) -> eventbus::broker::Received {
    let mut received = Vec::new();
    poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await.unwrap();
    received.remove(0)
}

#[tokio::test]
async fn every_time_of_a_failure_or_of_a_retry_comes_back_as_it_was_noted() {
    let log = Log::new();
    for time in times() {
        let broker = log.broker().await;
        let request = || {
            let mut request = SubscribeRequest::new("years", Pattern::new("year.noted").unwrap());
            request.start = Start::Earliest;
            request
        };
        let mut deliveries = broker.subscribe(request()).await.unwrap();
        broker.publish(at(time).into()).await.unwrap();
        let received = next(&mut deliveries).await;
        let parked = Parked { first_failed_at: time, last_failed_at: time, due: time };
        received.settler.park(&received.receipt, parked).await.unwrap();
        drop((received, deliveries));
        broker.close().await.unwrap();
        assert_eq!(log.broker().await.verify().await.unwrap(), [] as [&str; 0]);
        let broker = log.broker().await;
        let mut deliveries = broker.subscribe(request()).await.unwrap();
        let received = next(&mut deliveries).await;
        assert_eq!(received.parked, Some(parked));
        let letter = DeadLetter {
            envelope: received.receipt.envelope.clone(),
            group: "years".to_owned(),
            handler: String::new(),
            kind: FailureKind::Failed,
            reason: time.to_string(),
            attempts: 1,
            first_failed_at: time,
            last_failed_at: time,
            offset: received.receipt.offset,
        };
        received.settler.reject(received.receipt, letter).await.unwrap();
        let (_, letter) =
            broker.dead_letters().unwrap().find(Default::default()).await.unwrap().pop().unwrap();
        assert_eq!((letter.first_failed_at, letter.last_failed_at), (time, time));
        assert_eq!(letter.kind, FailureKind::Failed);
        drop(deliveries);
        broker.close().await.unwrap();
        assert_eq!(log.broker().await.verify().await.unwrap(), [] as [&str; 0]);
    }
    let shown: Vec<String> = ask(&log, "select last_failed_at from dead_letters order by id");
    assert_eq!(shown[7..10], ["1969-12-31T23:59:58Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"]);
    assert_eq!(shown[4], "1500-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_retry_after_the_longest_delay_there_is_waits_for_the_end_of_time() {
    let log = Log::new();
    let bus = log.bus().await;
    let handler = |_: Delivery| async { Outcome::RetryAfter(Duration::MAX) };
    bus.on_topic("year.noted", handler).group("years").await.unwrap();
    bus.start().unwrap();
    bus.publish_envelope(at(Timestamp::UNIX_EPOCH)).await.unwrap();
    until("it is parked", async || ask::<i64>(&log, "select count(*) from delivery") == [1]).await;
    let due: Vec<String> = ask(&log, "select due from delivery");
    assert_eq!(due, [Timestamp::MAX.to_string()]);
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    bus.on_topic("year.noted", |_: Delivery| async {}).group("years").await.unwrap();
    bus.start().unwrap();
    let groups = bus.groups().unwrap().list().await.unwrap();
    assert_eq!((groups[0].parked, groups[0].backlog), (1, 1));
    bus.shutdown().await.unwrap();
}
