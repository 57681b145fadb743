//! Mistakes and bad input: each is a clear error, an event, or a dead letter.

mod support;

use eventbus::broker::{Broker, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus::{Bus, Delivery, Envelope, PublishError, Topic};
use eventbus_redis::RedisBroker;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::several::Node;
use support::{Place, event, publish, receive_all, setting, subscribe, until};

/// The address of the server with TLS.
fn secure() -> String {
    setting("EVENTBUS_TEST_REDIS_TLS_URL").unwrap_or_else(|| {
        panic!("there is no server with TLS for tests; run `cargo xtask brokers up redis`")
    })
}

fn ca() -> String {
    setting("EVENTBUS_TEST_CA").expect("`cargo xtask brokers up redis` leaves it")
}

/// Why a broker cannot be opened.
async fn refusal(url: &str) -> String {
    match RedisBroker::open(url).await {
        Ok(_) => panic!("`{url}` was opened"),
        Err(error) => format!("{error} {error:?}"),
    }
}

#[tokio::test]
async fn a_server_with_tls_and_a_user_is_reached_and_mistakes_about_it_are_named() {
    let (url, ca) = (secure(), ca());
    let host = url.rsplit('@').next().unwrap().to_owned();
    let broker = RedisBroker::builder(&format!("{url}?ca={ca}"))
        .unwrap()
        .prefix(support::prefix())
        .open()
        .await
        .unwrap();
    publish(&broker, event("order.placed", 1)).await;
    assert!(!format!("{broker:?} {:?}", broker.client()).contains("secret"));
    let own: redis::Client = broker.client().unwrap();
    let mut connection = own.get_multiplexed_async_connection().await.unwrap();
    let pong: String = redis::cmd("PING").query_async(&mut connection).await.unwrap();
    assert_eq!(pong, "PONG");

    let wrong = refusal(&format!("rediss://app:hunter2@{host}?ca={ca}")).await;
    assert!(wrong.contains("correct the user and the password") && !wrong.contains("hunter2"), "{wrong}");
    let unknown = refusal(&url).await;
    assert!(
        unknown.contains("certificate is not trusted: name the file of its authority (`?ca=ca.pem`)"),
        "{unknown}"
    );
    let plain = refusal(&format!("redis://app:secret@{host}?connect_timeout=1s")).await;
    assert!(plain.contains("write `rediss://…`") && !plain.contains("secret"), "{plain}");
    let missing = refusal(&format!("{url}?ca=/nowhere/ca.pem")).await;
    assert!(missing.contains("cannot read the file of `ca`, `/nowhere/ca.pem`"), "{missing}");
    let none = refusal(&format!("{url}?ca={}/Cargo.toml", env!("CARGO_MANIFEST_DIR"))).await;
    assert!(none.contains("holds no certificate in PEM"), "{none}");
}

#[tokio::test]
async fn tls_against_a_plain_port_is_named() {
    let url = support::server("REDIS").replace("redis://", "rediss://");
    let refused = refusal(&format!("{url}?ca={}&connect_timeout=2s", ca())).await;
    assert!(refused.contains("that is no TLS port, write `redis://…`"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_down_is_waited_for_and_given_up_after_a_while() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begun = Instant::now();
    let opened = RedisBroker::open(&format!("redis://127.0.0.1:{port}?connect_timeout=1s")).await;
    let error = opened.expect_err("nobody listens there").to_string();
    assert!(error.contains("did not answer within 1s (`connect_timeout`)"), "{error}");
    assert_eq!(error.matches("start the server").count(), 1, "advice is given once: {error}");
    assert!(begun.elapsed() >= Duration::from_millis(500) && begun.elapsed() < Duration::from_secs(10));
}

/// A server that says this to whoever connects.
async fn greets_with(greeting: &'static [u8]) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all(greeting).await;
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_answers_something_else_is_no_redis_and_that_is_said_in_one_line() {
    for greeting in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"INFO {\"server_id\":\"NDC\",\"version\":\"2.11.0\",\"max_payload\":1048576} \r\n",
        b"AMQP\0\0\x09\x01",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ] {
        let address = greets_with(greeting).await;
        let Err(error) = RedisBroker::open(&format!("redis://{address}?connect_timeout=20s")).await else {
            panic!("it is no Redis")
        };
        let error = error.to_string();
        assert!(
            error.contains(&format!("cannot connect to {address}: what answers there is no Redis")),
            "{error}"
        );
        assert!(error.ends_with("; correct host and port") && error.lines().count() == 1, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_password_is_not_connected_to_without_one() {
    let node = Node::store("");
    node.ask::<()>(&["CONFIG", "SET", "requirepass", "hunter2"]);
    let begun = Instant::now();
    let error = refusal(&format!("redis://127.0.0.1:{}?connect_timeout=20s", node.port)).await;
    assert!(error.contains("NOAUTH") && error.contains("write `redis://:password@host`"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "it stays so, and is not waited for");
    let wrong = refusal(&format!("redis://:wrong@127.0.0.1:{}", node.port)).await;
    assert!(wrong.contains("correct the user and the password"), "{wrong}");
    RedisBroker::open(&format!("redis://:hunter2@127.0.0.1:{}", node.port)).await.unwrap();
}

#[tokio::test]
async fn a_user_who_may_do_too_little_is_told_what_a_broker_needs() {
    let place = Place::new();
    let name = place.prefix.clone();
    let rules = ["on", ">secret", &format!("~{name}:*"), "&*", "+@all", "-xadd"];
    place.command::<()>(redis::cmd("ACL").arg("SETUSER").arg(&name).arg(&rules));
    let url = place.url.replace("redis://", &format!("redis://{name}:secret@"));
    let broker = RedisBroker::builder(&url).unwrap().prefix(&name).open().await.unwrap();
    let error = broker.publish(Arc::new(event("order.placed", 1))).await.unwrap_err().to_string();
    place.command::<()>(redis::cmd("ACL").arg("DELUSER").arg(&name));
    assert!(error.contains("give the user what a broker needs: `ACL SETUSER"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_key_of_another_type_is_named_and_other_topics_go_on() {
    let place = Place::new();
    let broker = place.broker().await;
    place.command::<()>(redis::cmd("SET").arg(place.key("topic:order.placed")).arg("a text"));
    let error = broker.publish(Arc::new(event("order.placed", 1))).await.unwrap_err();
    assert!(matches!(error, PublishError::Broker { .. }), "{error}");
    assert!(error.to_string().contains("a key of this bus holds something else"), "{error}");
    let exact = SubscribeRequest::new("group", Pattern::new("order.placed").unwrap());
    let Err(error) = broker.subscribe(exact).await else { panic!("it cannot be read") };
    assert!(error.to_string().contains("cannot subscribe to \"order.placed\""), "{error}");
    let mut deliveries = subscribe(&broker, "others", "order.*").await;
    publish(&broker, event("order.paid", 2)).await;
    assert_eq!(support::number(&receive_all(&mut deliveries, 1).await[0]), 2);
    // Once the key is gone, the event can be stored: its id was not kept.
    place.command::<()>(redis::cmd("DEL").arg(place.key("topic:order.placed")));
    publish(&broker, event("order.placed", 1)).await;
    assert_eq!(support::number(&receive_all(&mut deliveries, 1).await[0]), 1);
}

#[tokio::test]
async fn a_payload_above_the_limit_and_too_many_headers_are_refused_and_large_ones_are_carried() {
    let place = Place::new();
    let broker = place.builder().max_payload(1 << 20).open().await.unwrap();
    let bytes = |size| Envelope::from_bytes(Topic::from_static("a.b"), "text/plain", vec![b'x'; size].into());
    let error = broker.publish(Arc::new(bytes((1 << 20) + 1))).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { .. }), "{error}");
    let many = (0..4_000).fold(bytes(1), |envelope, n| envelope.with_header(format!("h{n}"), "v"));
    let error = broker.publish(Arc::new(many)).await.unwrap_err().to_string();
    assert!(error.contains("more than 3,000 headers"), "{error}");
    let mut deliveries = subscribe(&broker, "group", "a.b").await;
    let strange = "é日本🦀\r\n\0 ".repeat(3_000);
    publish(&broker, bytes(1 << 20).with_header("strange", &strange).with_key("\n")).await;
    let received = receive_all(&mut deliveries, 1).await;
    let envelope = &received[0].receipt.envelope;
    assert_eq!(envelope.headers().get("strange"), Some(strange.as_str()));
    assert_eq!((envelope.payload().unwrap().len(), envelope.key()), (1 << 20, Some("\n")));
}

#[tokio::test]
async fn foreign_and_structured_entries_are_events_and_garbage_is_a_dead_letter_with_its_bytes() {
    let place = Place::new();
    let bus = Bus::builder().without_subscriptions().broker(place.broker().await).await.unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let numbers = Arc::clone(&seen);
    let handle = move |delivery: Delivery| {
        let numbers = Arc::clone(&numbers);
        async move {
            let payload = delivery.envelope().payload().map_err(|error| error.to_string())?;
            let number: u64 = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
            numbers.lock().unwrap().push((number, delivery.envelope().event_type().to_owned()));
            Ok::<(), String>(())
        }
    };
    bus.on_topic("order.placed", handle).group("group").retries(0).await.unwrap();
    bus.start().unwrap();
    let stream = place.key("topic:order.placed");
    let add = |fields: &[(&str, &[u8])]| {
        let mut command = redis::cmd("XADD");
        command.arg(&stream).arg("*");
        fields.iter().for_each(|(name, value)| _ = command.arg(*name).arg(*value));
        place.command::<String>(&command);
    };
    add(&[("data", b"1")]);
    add(&[("content-type", b"application/json"), ("data", b"2"), ("tenant", b"acme")]);
    let structured = br#"{"specversion":"1.0","id":"x","source":"/a","type":"order.moved","data":3}"#;
    add(&[("content-type", b"application/cloudevents+json"), ("data", structured)]);
    add(&[("data", b"\xff\xfe\0garbage")]);
    add(&[("ce-time", b"yesterday"), ("ce-eventversion", b"two"), ("\u{1b}[2J", b"\xff"), ("data", b"4")]);
    until("all were handled", async || seen.lock().unwrap().len() == 4).await;
    let letters = bus.dead_letters().unwrap();
    until("garbage is kept", async || letters.list().await.unwrap().len() == 1).await;
    let letter = letters.list().await.unwrap().remove(0).1;
    assert_eq!(&letter.envelope.payload().unwrap()[..], b"\xff\xfe\0garbage");
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    let types: Vec<_> = seen.iter().map(|(_, event_type)| event_type.as_str()).collect();
    assert_eq!(types, ["order.placed", "order.placed", "order.moved", "order.placed"]);
    bus.shutdown().await.unwrap();
}
