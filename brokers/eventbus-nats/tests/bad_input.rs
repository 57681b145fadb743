//! What is wrong in settings, servers and messages, and what comes of it. Names are promises.

mod support;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use eventbus::broker::{Broker, Connection};
use eventbus::{Envelope, PublishError, Topic};
use eventbus_nats::{ContentMode, NatsBroker};
use std::sync::Arc;
use std::time::Instant;
use support::{Place, ack, event, number, receive_all, request, secure, secure_server};

/// The error of a connection to this address, which nobody lets in.
async fn refused(url: &str) -> String {
    NatsBroker::builder(url).unwrap().connect().await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_and_then_named() {
    let begun = Instant::now();
    let error = refused("nats://127.0.0.1:1?connect_timeout=1s").await;
    assert!(error.contains("`nats://127.0.0.1:1` did not answer within 1s (`connect_timeout`)"), "{error}");
    assert!((400..5_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let error = refused("nats://no-such-host.invalid?connect_timeout=1s").await;
    assert!(error.contains("did not answer within"), "{error}");
}

#[tokio::test]
async fn who_is_not_let_in_is_told_at_once_what_to_correct() {
    let (host, ca) = (secure_server(), secure("EVENTBUS_TEST_CA"));
    let at = |user: &str, options: &str| format!("tls://{user}{host}?ca={ca}{options}");
    for (url, named) in [
        (at("app:wrong@", ""), "does not let in the user `app`; correct the user or the password"),
        (at("", ""), "lets in nobody without a password; write `user:password@`"),
        (at("wrong-token@", ""), "does not let in this token"),
        (at("", "&nkey=SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"), "this NKey"),
        (at("", "&nkey=wrong"), "the seed of the NKey is none"),
        (at("", "&credentials=/no/such.creds"), "cannot read the credentials `/no/such.creds`"),
        (format!("tls://app:secret@{host}?ca=/no/such.pem"), "cannot read the file `/no/such.pem` of `ca`"),
    ] {
        let begun = Instant::now();
        let error = refused(&url).await;
        assert!(error.contains(named), "{error}");
        assert!(!error.contains("wrong-token") && !error.contains("SUACSS"), "{error}");
        assert!(begun.elapsed().as_secs() < 8, "it is not tried again");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_to_be_trusted_and_a_port_without_tls_are_named() {
    let host = secure_server();
    let error = refused(&format!("tls://app:secret@{host}")).await;
    assert!(
        error.contains("is not to be trusted; name the authority that has signed it by `?ca=…`"),
        "{error}"
    );
    let plain = support::server().replace("nats://", "tls://");
    let error = refused(&plain).await;
    assert!(error.contains("does not speak TLS here; write `nats://`"), "{error}");
}

#[tokio::test]
async fn users_with_a_password_or_a_key_are_let_in_over_tls() {
    let (host, ca, seed) = (secure_server(), secure("EVENTBUS_TEST_CA"), secure("EVENTBUS_TEST_NATS_NKEY"));
    for login in [format!("tls://app:secret@{host}?ca={ca}"), format!("tls://{host}?ca={ca}&nkey={seed}")] {
        let place = Place::at(login);
        let broker = place.broker().await;
        let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
        broker.publish(event("a.b", "k", 7)).await.unwrap();
        assert_eq!(number(&receive_all(&mut deliveries, 1).await[0]), 7);
        assert!(!format!("{broker:?}").contains("secret") && !format!("{broker:?}").contains(&seed));
    }
}

#[tokio::test]
async fn an_account_without_jetstream_and_a_user_without_permission_are_named() {
    let (host, ca) = (secure_server(), secure("EVENTBUS_TEST_CA"));
    let error = refused(&format!("tls://no-jetstream:secret@{host}?ca={ca}")).await;
    assert!(
        error.contains("JetStream is off for the account of this user") || error.contains("does not answer"),
        "{error}"
    );
    let begun = Instant::now();
    let error = refused(&format!("tls://restricted:secret@{host}?ca={ca}")).await;
    assert!(error.contains("lacks a permission; let it publish to `$JS.API.>`"), "{error}");
    assert!(begun.elapsed().as_secs() < 4, "the server says so at once");
}

#[tokio::test]
async fn a_stream_with_other_settings_is_an_error_that_names_both_values() {
    let place = Place::new();
    let client = async_nats::connect(&place.server).await.unwrap();
    let context = jetstream::new(client);
    let name = &place.name;
    let mut config = stream::Config {
        name: name.clone(),
        subjects: vec![format!("{name}.order.>"), format!("{name}-again.>")],
        ..stream::Config::default()
    };
    context.create_stream(config.clone()).await.unwrap();
    let error = refused(&place.url()).await;
    let found = format!(
        "subjects is [\"{name}.order.>\", \"{name}-again.>\"], and not [\"{name}.>\", \"{name}-again.>\"]"
    );
    assert!(error.contains(&found) && error.contains(&format!("`nats stream edit {name}`")), "{error}");
    config.subjects[0] = format!("{name}.>");
    context.update_stream(config.clone()).await.unwrap();
    let error = refused(&format!("{}&replicas=3&retention_age=1h", place.url())).await;
    assert!(
        error.contains("max_age is 0ns, and not 3600s") && error.contains("replicas is 1, and not 3"),
        "{error}"
    );
    // Whoever does not ask for it takes what there is.
    place.broker().await;

    let work = Place::new();
    let config = stream::Config {
        name: work.name.clone(),
        subjects: vec![format!("{}.>", work.name), format!("{}-again.>", work.name)],
        retention: stream::RetentionPolicy::WorkQueue,
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap();
    let error = refused(&work.url()).await;
    assert!(error.contains("retention is WorkQueue, and not Limits"), "{error}");
}

#[tokio::test]
async fn a_stream_that_has_the_subjects_of_another_one_is_named_with_what_to_do() {
    let place = Place::new();
    let context = jetstream::new(async_nats::connect(&place.server).await.unwrap());
    let other = format!("{}-OTHER", place.name);
    let config = stream::Config {
        name: other.clone(),
        subjects: vec![format!("{}.order.*", place.name)],
        ..stream::Config::default()
    };
    context.create_stream(config).await.unwrap();
    let error = refused(&place.url()).await;
    assert!(
        error.contains("another stream has some of the subjects") && error.contains("take another prefix"),
        "{error}"
    );
    context.delete_stream(other).await.unwrap();
}

#[tokio::test]
async fn what_is_only_to_be_checked_is_not_made() {
    let place = Place::new();
    let check = format!("{}&topology=check", place.url());
    let error = refused(&check).await;
    assert!(
        error.contains(&format!("there is no stream `{}`; make it with the subjects", place.name)),
        "{error}"
    );
    place.broker().await;
    let broker = NatsBroker::builder(&check).unwrap().connect().await.unwrap();
    let error = broker.subscribe(request("g", ">")).await.map(drop).unwrap_err().to_string();
    let looked = broker.check(request("g", ">")).await.unwrap_err().to_string();
    assert_eq!(looked.split('{').next(), error.split('{').next(), "a look says what a start says");
    assert!(looked.contains(&format!("\"filter_subject\":\"{}.>\"", place.name)), "{looked}");
    assert!(
        error.contains("there is no consumer `g-") && error.contains("for the group `g` on \">\""),
        "{error}"
    );
    assert!(
        error.contains(&format!("make it in the stream `{}` with the settings {{", place.name)),
        "{error}"
    );
    // Who makes it by hand with what the error says has what the program wants.
    let settings = &error[error.find('{').unwrap()..=error.rfind('}').unwrap()];
    for setting in [
        format!("\"filter_subject\":\"{}.>\"", place.name),
        "\"ack_policy\":\"explicit\"".to_owned(),
        "\"ack_wait\":2000000000".to_owned(),
        "\"deliver_policy\":\"new\"".to_owned(),
        "\"priority_policy\":\"pinned_client\"".to_owned(),
        "\"priority_groups\":[\"eventbus\"]".to_owned(),
        "\"priority_timeout\":2000000000".to_owned(),
        "\"eventbus-group\":\"g\"".to_owned(),
    ] {
        assert!(settings.contains(&setting), "{setting} is missing in {settings}");
    }
    let config = serde_json::from_str::<jetstream::consumer::Config>(settings).unwrap();
    let stream = jetstream::new(broker.client()).get_stream(&place.name).await.unwrap();
    stream.create_consumer(config).await.unwrap();
    broker.check(request("g", ">")).await.unwrap();
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    broker.publish(event("a.b", "k", 7)).await.unwrap();
    assert_eq!(number(&receive_all(&mut deliveries, 1).await[0]), 7);
}

#[tokio::test]
async fn a_consumer_with_other_settings_is_an_error_and_one_that_may_change_is_changed() {
    let place = Place::new();
    let broker = place.broker().await;
    drop(broker.subscribe(request("g", ">")).await.unwrap());
    let context = jetstream::new(broker.client());
    let found = context.get_stream(&place.name).await.unwrap();
    let name = eventbus::broker::Groups::list(&*broker.groups().unwrap()).await.unwrap().remove(0);
    assert_eq!(name.group, "g");
    let mut consumers = found.consumer_names();
    let consumer = futures_util::StreamExt::next(&mut consumers).await.unwrap().unwrap();
    let mut config = found.consumer_info(&consumer).await.unwrap().config;
    // Another lease, and processes that compete from now on.
    let other = place.builder().ack_wait(std::time::Duration::from_secs(7)).connect().await.unwrap();
    let mut competing = request("g", ">");
    competing.competing = true;
    drop(other.subscribe(competing).await.unwrap());
    let changed = found.consumer_info(&consumer).await.unwrap().config;
    assert_eq!((changed.ack_wait.as_secs(), changed.priority_groups.len()), (7, 0));
    config.filter_subject = format!("{}.order.*", place.name);
    config.max_deliver = 3;
    config.priority_groups.clear();
    found.delete_consumer(&consumer).await.unwrap();
    config.priority_policy = jetstream::consumer::PriorityPolicy::None;
    config.priority_timeout = std::time::Duration::ZERO;
    found.create_consumer(config).await.unwrap();
    let error = broker.subscribe(request("g", ">")).await.map(drop).unwrap_err().to_string();
    assert!(
        error.contains(&format!("filter_subject is [\"{0}.order.*\"], and not \"{0}.>\"", place.name)),
        "{error}"
    );
    assert!(
        error.contains("max_deliver is 3, and not -1") && error.contains("`eventbus groups drop g`"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_larger_than_the_server_takes_is_refused_here() {
    let place = Place::new();
    let broker = place.broker().await;
    let limit = broker.features().max_payload.unwrap();
    let bytes = |size| Envelope::from_bytes(Topic::from_static("a.b"), "x/y", Bytes::from(vec![7; size]));
    match broker.publish(Arc::new(bytes(limit + 1))).await {
        Err(PublishError::TooLarge { part: "payload", size, limit: largest, .. }) => {
            assert_eq!((size, largest), (limit + 1, limit));
        }
        other => panic!("{other:?}"),
    }
    broker.publish(Arc::new(bytes(limit).with_header("large", "x".repeat(60_000)))).await.unwrap();
    match broker.publish(Arc::new(bytes(1).with_header("large", "x".repeat(65_536)))).await {
        Err(PublishError::TooLarge { part: "headers", limit: 65_535, .. }) => {}
        other => panic!("{other:?}"),
    }
    broker.publish(Arc::new(bytes(1).with_header("large", "x".repeat(60_000)))).await.unwrap();
}

#[tokio::test]
async fn headers_that_nats_cannot_carry_come_as_they_were_sent() {
    let place = Place::new();
    for mode in [ContentMode::Binary, ContentMode::Structured] {
        let broker = place.builder().content_mode(mode).connect().await.unwrap();
        let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
        let headers = [
            ("plain", "größer 日本"),
            ("lines", "one\r\nPUB x 0\r\n\r\n"),
            ("spaces", "  around "),
            ("no name:", "x"),
            ("Nats-Rollup", "all"),
            ("ce-id", "mine"),
            ("empty", ""),
        ];
        let mut sent = Envelope::from_json(Topic::from_static("a.b"), &"é\n").unwrap().with_key("k\né ");
        for (name, value) in headers {
            sent = sent.with_header(name, value);
        }
        broker.publish(Arc::new(sent.clone())).await.unwrap();
        let received = receive_all(&mut deliveries, 1).await.remove(0);
        let event = &received.receipt.envelope;
        for (name, value) in headers {
            assert_eq!(event.headers().get(name), Some(value), "{name}");
        }
        assert_eq!(
            (event.key(), event.id(), event.headers().len()),
            (Some("k\né "), sent.id(), headers.len())
        );
        assert_eq!(event.payload().unwrap(), sent.payload().unwrap());
        ack(received).await;
        drop(deliveries);
        broker.close().await.unwrap();
    }
}

#[tokio::test]
async fn messages_of_other_programs_are_events_whatever_they_are() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    let client = broker.client();
    let context = jetstream::new(client);
    let subject = |rest: &str| format!("{}.{rest}", place.name);
    context.publish(subject("order.placed"), "{\"id\":7}".into()).await.unwrap().await.unwrap();
    let structured = |body: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/cloudevents+json; charset=utf-8");
        context.publish_with_headers(subject("order.placed"), headers, body.into())
    };
    structured(r#"{"specversion":"1.0","id":"A-1","source":"/x","type":"order.placed","data":{"id": 8}}"#)
        .await
        .unwrap()
        .await
        .unwrap();
    structured("{ no json").await.unwrap().await.unwrap();
    context.publish(subject("größe.a b"), Bytes::from_static(b"\xff\0\xfe")).await.map(drop).ok();
    context.publish(subject("order.größe"), Bytes::from_static(b"\xff\0\xfe")).await.unwrap().await.unwrap();
    let received = receive_all(&mut deliveries, 4).await;
    let parts: Vec<_> = received
        .iter()
        .map(|one| {
            let event = &one.receipt.envelope;
            (event.id().to_string(), event.content_type().to_owned(), event.payload().unwrap().clone())
        })
        .collect();
    assert_eq!(parts[0].0, format!("{}/1", place.name));
    assert_eq!(&parts[0].2[..], b"{\"id\":7}");
    assert_eq!((parts[1].0.as_str(), &parts[1].2[..]), ("A-1", &b"{\"id\": 8}"[..]));
    assert_eq!((parts[2].1.as_str(), &parts[2].2[..]), ("application/cloudevents+json", &b"{ no json"[..]));
    let strange = &received[3].receipt.envelope;
    assert_eq!(strange.topic().as_str(), "order.gr__e");
    assert_eq!(strange.headers().get("eventbus-subject"), Some("order.größe"));
    assert_eq!(&parts[3].2[..], b"\xff\0\xfe");
    for received in received {
        ack(received).await;
    }
    assert_eq!(broker.connection(), Connection::Up);
}
