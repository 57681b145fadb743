//! What is wrong with addresses, topics and records is an error that says what to do, an event, or a dead letter.

mod support;

use eventbus::broker::{Broker, Topology};
use eventbus::{Envelope, PublishError, Topic};
use eventbus_kafka::KafkaBroker;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use support::rdkafka::client::DefaultClientContext;
use support::rdkafka::message::{Header, OwnedHeaders};
use support::rdkafka::producer::{FutureProducer, FutureRecord};

async fn refused(url: &str) -> String {
    let connected =
        KafkaBroker::builder(url).unwrap().connect_timeout(Duration::from_secs(1)).connect().await;
    let error = connected.expect_err("it cannot connect").to_string();
    assert!(!error.contains("wrong-secret"), "{error}");
    error
}

/// A topic that another program makes.
async fn make(name: &str, partitions: i32, config: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = support::client().create().unwrap();
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (name, value) in config {
        topic = topic.set(name, value);
    }
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_waited_for_and_named() {
    let begun = Instant::now();
    let error = refused("kafka://127.0.0.1:1").await;
    assert!(error.contains("`kafka://127.0.0.1:1` did not answer within 1s (`connect_timeout`)"), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_wrong_password_and_an_untrusted_server_are_told_apart_from_one_that_is_away() {
    let sasl = support::setting("EVENTBUS_TEST_KAFKA_SASL_URL").unwrap();
    let (user, host) = sasl.split_once("://").unwrap().1.split_once('@').unwrap();
    let user = user.split(':').next().unwrap();
    let error = refused(&format!("kafka://{user}:wrong-secret@{host}")).await;
    assert!(error.contains("does not let this program in") && error.contains("`sasl`"), "{error}");
    let tls = support::setting("EVENTBUS_TEST_KAFKA_TLS_URL").unwrap();
    let error = refused(&tls).await;
    assert!(error.contains("cannot be trusted") && error.contains("`?ca=…`"), "{error}");
    assert!(error.contains("certificate verify failed"), "{error}");
    let plain = support::server().replace("kafka://", "kafkas://");
    let error = refused(&plain).await;
    assert!(error.contains("SSL") || error.contains("TLS"), "{error}");
    let host = tls.split_once('@').unwrap().1;
    let error = refused(&format!("kafka://{host}")).await;
    assert!(error.contains("it may want TLS"), "{error}");
}

#[tokio::test]
async fn user_and_password_let_a_program_in_by_each_mechanism_with_and_without_tls() {
    let ca = support::setting("EVENTBUS_TEST_CA").unwrap();
    let plain = support::setting("EVENTBUS_TEST_KAFKA_SASL_URL").unwrap();
    let tls = format!("{}?ca={ca}", support::setting("EVENTBUS_TEST_KAFKA_TLS_URL").unwrap());
    for url in [
        format!("{tls}&sasl=plain"),
        format!("{plain}?sasl=plain"),
        format!("{plain}?sasl=scram-sha-256"),
        format!("{plain}?sasl=scram-sha-512"),
        plain,
        tls,
    ] {
        let prefix = support::prefix();
        let broker = KafkaBroker::builder(&url).unwrap().prefix(&prefix).connect().await;
        let broker = broker.unwrap_or_else(|error| panic!("{url}: {error}"));
        broker.publish(support::event("order.placed", "k", 1)).await.unwrap();
        assert_eq!(broker.address(), None, "a command would need the password");
        broker.close().await.unwrap();
        support::remove(&prefix).await;
    }
}

#[tokio::test]
async fn a_topic_that_is_otherwise_or_missing_is_an_error_with_both_values() {
    let prefix = support::prefix();
    make(&format!("{prefix}order.placed"), 3, &[]).await;
    let broker = support::builder(&prefix).partitions(12).connect().await.unwrap();
    let error = broker.publish(support::event("order.placed", "k", 1)).await.unwrap_err();
    let said = eventbus_core_chain(&error);
    assert!(said.contains("has 3 partitions, and `partitions` says 12"), "{said}");
    let error = broker.subscribe(support::request("mail", "order.placed")).await.err().unwrap().to_string();
    assert!(error.contains("has 3 partitions"), "{error}");
    let strict = support::builder(&prefix).topology(Topology::Check).connect().await.unwrap();
    let error = strict.publish(support::event("order.paid", "k", 1)).await.unwrap_err();
    let said = eventbus_core_chain(&error);
    assert!(said.contains("is not there") && said.contains("`topology=check`"), "{said}");
    let error = strict.subscribe(support::request("mail", "order.paid")).await.err().unwrap().to_string();
    let looked = strict.check(support::request("mail", "order.paid")).await.unwrap_err().to_string();
    assert!(looked == error && looked.contains("is not there"), "{looked}: {error}");
    broker.check(support::request("mail", "order.paid")).await.expect("it would be made");
    for name in ["order_placed", "__order"] {
        let broker = support::builder(&prefix).connect().await.unwrap();
        let error = broker.publish(support::event(name, "k", 1)).await.unwrap_err();
        let said = eventbus_core_chain(&error);
        assert!(said.contains("names that"), "{name}: {said}");
    }
    support::remove(&prefix).await;
}

fn eventbus_core_chain(error: &PublishError) -> String {
    let mut said = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        said = format!("{said}: {error}");
        next = error.source();
    }
    said
}

#[tokio::test]
async fn a_payload_above_the_topics_limit_is_refused_and_the_next_one_is_taken() {
    let prefix = support::prefix();
    make(&format!("{prefix}order.placed"), 1, &[("max.message.bytes", "2000")]).await;
    let broker = support::builder(&prefix).connect().await.unwrap();
    let of = |size: usize| {
        let topic = Topic::new("order.placed").unwrap();
        // It does not shrink, whatever compresses it.
        let bytes: Vec<u8> = (0..size).map(|_| fastrand::u8(..)).collect();
        Arc::new(Envelope::from_bytes(topic, "application/octet-stream", bytes.into()))
    };
    let answers = broker.publish_all(vec![of(10), of(10_000), of(10)]).await;
    let said = eventbus_core_chain(answers[1].as_ref().unwrap_err());
    assert!(said.contains("raise `max.message.bytes`") && said.contains("10000 bytes"), "{said}");
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    support::remove(&prefix).await;
}

#[tokio::test]
async fn records_of_other_programs_are_events_whatever_is_in_them() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let producer: FutureProducer = support::client().create().unwrap();
    let topic = format!("{prefix}order.placed");
    let structured = br#"{"specversion":"1.0","id":"s1","source":"/x","type":"t","data":{"a":1}}"#;
    let header = |key: &str, value: Option<&[u8]>| OwnedHeaders::new().insert(Header { key, value });
    let records: [(Option<&[u8]>, Option<OwnedHeaders>); 5] = [
        (Some(b"\xff\xfe garbage"), None),
        (None, Some(header("note", Some(b"gr\xff")))),
        (Some(b""), Some(header("ce_id", None))),
        (Some(b"{"), Some(header("content-type", Some(b"application/cloudevents+json")))),
        (
            Some(structured),
            Some(header("content-type", Some(b"application/cloudevents+json; charset=utf-8"))),
        ),
    ];
    for (payload, headers) in records {
        let mut record = FutureRecord::<[u8], [u8]>::to(&topic).key(b"door\xff");
        (record.payload, record.headers) = (payload, headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }
    let received = support::receive(&mut deliveries, 5).await;
    let ids: Vec<_> = received.iter().map(|one| one.receipt.envelope.id().to_string()).collect();
    assert_eq!(ids[4], "s1", "{ids:?}");
    assert!(ids[0].starts_with("order.placed/"), "{ids:?}");
    let first = &received[0].receipt.envelope;
    assert_eq!(
        (first.key(), &first.payload().unwrap()[..]),
        (Some("door\u{fffd}"), &b"\xff\xfe garbage"[..])
    );
    for one in received {
        support::ack(one).await;
    }
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}
