//! What is wrong is a clear error, an event, or a dead letter.

mod support;

use eventbus::PublishError;
use eventbus::broker::{Broker, Topology};
use eventbus::{Envelope, Topic};
use eventbus_rabbitmq::lapin::BasicProperties;
use eventbus_rabbitmq::lapin::ExchangeKind;
use eventbus_rabbitmq::lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use eventbus_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use eventbus_rabbitmq::{ContentMode, RabbitMqBroker};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{
    ack, builder, connect, event, exchange, number, receive, remove, request, secure_server, server, setting,
};

/// What a broker that cannot connect says.
async fn refusal(url: &str) -> String {
    let begun = Instant::now();
    let connected = RabbitMqBroker::builder(url).unwrap().connect().await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    connected.expect_err("it does not connect").to_string()
}

/// Host and port of an address.
fn place(url: &str) -> String {
    let rest = url.rsplit('@').next().unwrap();
    rest.split('/').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_server_that_is_down_is_waited_for_and_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = refusal(&format!("amqp://{free}?connect_timeout=1s")).await;
    assert!(error.contains(&free.to_string()) && error.contains("`connect_timeout`"), "{error}");
}

#[tokio::test]
async fn a_wrong_password_or_virtual_host_is_said_at_once() {
    let place = place(&server());
    let error = refusal(&format!("amqp://guest:hunter2@{place}")).await;
    assert!(error.contains("user and password") && !error.contains("hunter2"), "{error}");
    let error = refusal(&format!("amqp://guest:guest@{place}/nowhere")).await;
    assert!(error.contains("virtual host") && error.contains("nowhere"), "{error}");
}

#[tokio::test]
async fn tls_is_spoken_where_the_authority_is_trusted() {
    let (exchange, authority) = (exchange(), setting("EVENTBUS_TEST_CA").expect("it comes with the servers"));
    let secure = secure_server();
    let broker = connect(&format!("{secure}?ca={authority}&exchange={exchange}")).await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
    let error = refusal(&secure).await;
    assert!(error.contains("certificate") && error.contains("`?ca=…`"), "{error}");
    let error = refusal(&format!("{secure}?ca=/nowhere/ca.pem")).await;
    assert!(error.contains("/nowhere/ca.pem") && error.contains("`ca`"), "{error}");
    let error =
        refusal(&format!("{secure}?ca={}", file!().replace("tests/bad_input.rs", "Cargo.toml"))).await;
    assert!(error.contains("`ca`"), "{error}");
}

#[tokio::test]
async fn tls_on_a_port_without_it_and_the_other_way_round_are_errors() {
    let error = refusal(&format!("amqps://guest:guest@{}?connect_timeout=3s", place(&server()))).await;
    assert!(error.contains("did not answer") || error.contains("does not speak TLS"), "{error}");
    let error = refusal(&format!("amqp://guest:guest@{}?connect_timeout=3s", place(&secure_server()))).await;
    assert!(error.contains("did not answer") || error.contains("amqps://"), "{error}");
}

#[tokio::test]
async fn an_exchange_or_a_queue_with_other_settings_is_an_error_with_both_values() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let channel = broker.channel().await.unwrap();
    let other = format!("{exchange}-fanout");
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(other.as_str().into(), ExchangeKind::Fanout, options, FieldTable::default());
    declared.await.unwrap();
    let error = builder(&other).connect().await.expect_err("it is another one").to_string();
    assert!(error.contains(&other) && error.contains("topic") && error.contains("fanout"), "{error}");
    let _ = channel.exchange_delete(other.as_str().into(), Default::default()).await;

    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    let mut competing = request("mail", "a.b");
    competing.competing = true;
    let error = broker.subscribe(competing).await.err().expect("it is another queue").to_string();
    assert!(error.contains("`mail`") && error.contains("x-single-active-consumer"), "{error}");
    assert!(error.contains("true") && error.contains("none"), "{error}");
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn what_is_only_checked_is_not_made() {
    let exchange = exchange();
    let checking = || builder(&exchange).topology(Topology::Check);
    let error = checking().connect().await.expect_err("there is none").to_string();
    assert!(error.contains(&exchange), "{error}");
    let maker = builder(&exchange).connect().await.unwrap();
    let broker = checking().connect().await.unwrap();
    let error = broker.subscribe(request("mail", "a.b")).await.err().expect("there is none").to_string();
    assert!(error.contains("`mail`") && error.contains("topology=check"), "{error}");
    let looked = broker.check(request("mail", "a.b")).await.unwrap_err().to_string();
    assert!(looked.contains("`mail`") && looked.contains("topology=check"), "{looked}");
    maker.check(request("mail", "a.b")).await.expect("it would make what is missing");
    drop(maker.subscribe(request("mail", "a.b")).await.unwrap());
    broker.check(request("mail", "a.b")).await.unwrap();
    broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.close().await.unwrap();
    maker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_subscription_that_the_limits_of_the_server_leave_no_room_for_is_refused() {
    let exchange = exchange();
    let broker = builder(&exchange)
        .consumer_timeout(Duration::from_secs(60))
        .delivery_limit(5)
        .connect()
        .await
        .unwrap();
    let error = broker.subscribe(request("mail", "a.b")).await.err().expect("it takes too long").to_string();
    assert!(
        error.contains("`mail`") && error.contains("`timeout`") && error.contains("`consumer_timeout`"),
        "{error}"
    );
    let mut short = request("mail", "a.b");
    (short.timeout, short.retries) = (Duration::from_secs(1), 5);
    let error = broker.subscribe(short.clone()).await.err().expect("it tries too often").to_string();
    assert!(error.contains("6 attempts") && error.contains("5 deliveries"), "{error}");
    short.retries = 4;
    broker.subscribe(short).await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_payload_above_the_limit_is_refused_and_takes_no_other_down() {
    let exchange = exchange();
    let large = |bytes: usize| {
        Arc::new(Envelope::from_bytes(Topic::new("a.b").unwrap(), "image/png", vec![7; bytes].into()))
    };
    let broker = builder(&exchange).max_payload(1_000).connect().await.unwrap();
    let refused = broker.publish(large(1_001)).await;
    assert!(matches!(refused, Err(PublishError::TooLarge { size: 1_001, limit: 1_000, .. })), "{refused:?}");
    broker.publish(large(1_000)).await.unwrap();
    broker.close().await.unwrap();
    // Here the server has a lower limit than it was said to have.
    let broker = builder(&exchange).max_payload(64 << 20).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.c")).await.unwrap();
    let all = vec![large(17 << 20), event("a.c", "k", 1), event("a.c", "k", 2)];
    let results = broker.publish_all(all).await;
    assert!(matches!(results[0], Err(PublishError::TooLarge { limit: 16_777_216, .. })), "{results:?}");
    assert!(results[1].is_ok() && results[2].is_ok(), "{results:?}");
    for (received, expected) in receive(&mut deliveries, 2).await.into_iter().zip(1..) {
        assert_eq!(number(&received), expected);
        ack(received).await;
    }
    assert_eq!(broker.features().max_payload, Some(16_777_216), "it is known now");
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn headers_that_others_act_upon_or_that_are_long_arrive_as_they_were() {
    let exchange = exchange();
    for mode in [ContentMode::Binary, ContentMode::Structured] {
        let broker = builder(&exchange).content_mode(mode).connect().await.unwrap();
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        let mut other = broker.subscribe(request("other", "c.d")).await.unwrap();
        let mut sent = Envelope::from_json(Topic::new("a.b").unwrap(), &7).unwrap().with_key("größer\n");
        let long = "n".repeat(300);
        let headers = [
            ("CC", "c.d"),
            ("BCC", "c.d"),
            ("x-death", "no"),
            ("x-delivery-count", "7"),
            ("ce-id", "other"),
            ("eventbus-topic", "c.d"),
            ("tenant", "acmé \r\n 日本"),
            ("tenant", "twice"),
            ("", "empty"),
            (&long, "long"),
        ];
        for (name, value) in headers {
            sent.headers_mut().append(name, value);
        }
        sent.headers_mut().append("large", "x".repeat(64 << 10));
        broker.publish(Arc::new(sent.clone())).await.unwrap();
        broker.publish(event("c.d", "k", 2)).await.unwrap();
        let received = receive(&mut deliveries, 1).await.remove(0);
        let sorted = |envelope: &Envelope| {
            let headers = envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
            let mut headers: Vec<_> = headers.collect();
            headers.sort_by(|one, other| one.0.cmp(&other.0));
            headers
        };
        let read = &received.receipt.envelope;
        assert_eq!(sorted(&sent), sorted(read), "{mode:?}");
        assert_eq!((read.id(), read.key(), received.receipt.attempt), (sent.id(), sent.key(), 1));
        ack(received).await;
        let received = receive(&mut other, 1).await.remove(0);
        assert_eq!(number(&received), 2, "nothing went where it was not sent");
        ack(received).await;
        let refused = sent.with_header("larger", "x".repeat(40 << 10));
        let refused = broker.publish(Arc::new(refused)).await;
        assert!(matches!(refused, Err(PublishError::TooLarge { part: "headers", .. })), "{refused:?}");
        broker.close().await.unwrap();
    }
    remove(&exchange).await;
}

#[tokio::test]
async fn messages_of_other_programs_are_events() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "order.>")).await.unwrap();
    let channel = broker.channel().await.unwrap();
    let mut headers = FieldTable::default();
    for (name, value) in
        [("cloudEvents:id", "A-1"), ("cloudEvents:type", "com.shop"), ("cloudEvents_source", "/shop")]
    {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let structured = br#"{"specversion":"1.0","id":"A-2","source":"/shop","type":"com.shop","data":{"n":2}}"#;
    let structured_type = BasicProperties::default().with_content_type("application/cloudevents+json".into());
    let queue = format!("{exchange}:group:mail:order.>");
    let sent: [(&str, &str, &[u8], BasicProperties); 5] = [
        (&exchange, "order.placed", b"{\"n\":1}", BasicProperties::default().with_headers(headers)),
        (&exchange, "order.placed.twice", structured, structured_type.clone()),
        (&exchange, "order.broken", b"{\"n\":", structured_type),
        (&exchange, "order.bare", b"\xff\0garbage", BasicProperties::default()),
        ("", &queue, b"", BasicProperties::default()),
    ];
    for (exchange, key, body, properties) in sent {
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(exchange.into(), key.into(), options, body, properties)
            .await
            .unwrap()
            .await
            .unwrap();
    }
    // `order` alone is no topic of the pattern.
    broker.publish(event("order", "k", 0)).await.unwrap();
    let received = receive(&mut deliveries, 5).await;
    let read: Vec<_> = received.iter().map(|one| Arc::clone(&one.receipt.envelope)).collect();
    let topics: Vec<_> = read.iter().map(|event| event.topic().as_str()).collect();
    assert_eq!(topics, ["order.placed", "order.placed.twice", "order.broken", "order.bare", "order.unknown"]);
    assert_eq!(
        (read[0].id().to_string().as_str(), read[0].source(), read[0].event_type()),
        ("A-1", "/shop", "com.shop")
    );
    assert_eq!(
        (read[1].id().to_string().as_str(), &read[1].payload().unwrap()[..]),
        ("A-2", &b"{\"n\":2}"[..])
    );
    assert_eq!(&read[2].payload().unwrap()[..], b"{\"n\":");
    assert_eq!(&read[3].payload().unwrap()[..], b"\xff\0garbage");
    assert!(read[4].payload().unwrap().is_empty());
    for one in received {
        ack(one).await;
    }
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_stranger_in_the_queue_of_dead_letters_is_left_alone() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    let channel = broker.channel().await.unwrap();
    let dead = format!("{exchange}:dead-letters:mail");
    let options = BasicPublishOptions::default();
    let sent =
        channel.basic_publish("".into(), dead.as_str().into(), options, b"?", BasicProperties::default());
    sent.await.unwrap().await.unwrap();
    assert!(broker.dead_letters().unwrap().list().await.unwrap().is_empty());
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    support::until("it is there still", async || {
        let declared = channel.queue_declare(dead.as_str().into(), passive, FieldTable::default()).await;
        declared.unwrap().message_count() == 1
    })
    .await;
    broker.close().await.unwrap();
    remove(&exchange).await;
}
