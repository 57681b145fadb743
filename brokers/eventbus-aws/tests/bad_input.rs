//! What is wrong in settings, servers and messages, and what comes of it. Names are promises.

mod support;

use eventbus::broker::Broker;
use eventbus::{Envelope, PublishError, Topic};
use eventbus_aws::AwsBroker;
use eventbus_aws::aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use std::sync::Arc;
use std::time::Instant;
use support::{ack, connect, event, failure, number, prefix, receive, request, setting, url, url_at};

/// The error of a connection to this address, which nobody lets in.
async fn refused(url: &str) -> String {
    AwsBroker::builder(url).unwrap().connect().await.unwrap_err().to_string()
}

/// The error of a subscription on an address.
async fn not_opened(url: &str, request: eventbus::broker::SubscribeRequest) -> String {
    match connect(url).await.subscribe(request).await {
        Ok(_) => panic!("it is opened"),
        Err(error) => chain(&error),
    }
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        said = format!("{said}: {cause}");
        next = cause.source();
    }
    said
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_and_then_named() {
    let begun = Instant::now();
    let error = refused(&format!("{}&connect_timeout=1s", url_at("http://127.0.0.1:1", "p", false))).await;
    assert!(error.contains("`http://127.0.0.1:1` did not answer within 1s (`connect_timeout`)"), "{error}");
    assert!((400..5_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_is_reached_over_tls_where_its_authority_is_trusted_and_not_otherwise() {
    let secure =
        setting("EVENTBUS_TEST_AWS_TLS_URL").expect("a server with TLS; run `cargo xtask brokers up aws`");
    let ca = setting("EVENTBUS_TEST_CA").unwrap();
    let at = |server: &str| format!("{}&connect_timeout=2s", url_at(server, "p", false));
    connect(&format!("{}&ca={ca}", at(&secure))).await;
    let error = refused(&at(&secure)).await;
    assert!(error.contains("certificate"), "{error}");
    let error = refused(&format!("{}&ca=/no/such.pem", at(&secure))).await;
    assert!(error.contains("cannot read the authorities `/no/such.pem` (`ca`)"), "{error}");
    let error =
        refused(&format!("{}&ca={}", at(&secure), file!().replace("brokers/eventbus-aws/", ""))).await;
    assert!(error.contains("is no PEM file with certificates"), "{error}");
    let error = refused(&at(&support::server().replace("http:", "https:"))).await;
    assert!(error.contains("did not answer within 2s"), "{error}");
}

#[tokio::test]
async fn what_is_missing_is_named_where_it_is_only_checked() {
    let prefix = prefix();
    let (makes, checks) = (url(&prefix, false), format!("{}&topology=check", url(&prefix, false)));
    let error = not_opened(&checks, request("mail", "order.placed")).await;
    assert!(error.contains(&format!("there is no queue `{prefix}-dead-mail-")), "{error}");
    let looked = connect(&checks).await.check(request("mail", "order.placed")).await.unwrap_err();
    assert_eq!(looked.to_string(), error, "a look says what a start says");
    let error = connect(&checks).await.publish(event("order.placed", "k", 1)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("there is no topic `{prefix}-order-placed`")), "{error}");

    let broker = connect(&makes).await;
    drop(broker.subscribe(request("mail", "order.placed")).await.unwrap());
    let checking = connect(&checks).await;
    checking.check(request("mail", "order.placed")).await.unwrap();
    let mut deliveries = checking.subscribe(request("mail", "order.placed")).await.unwrap();
    checking.publish(event("order.placed", "k", 7)).await.unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 7);

    // Another group has its queues, and nobody has subscribed them.
    drop(broker.subscribe(request("stock", "order.placed")).await.unwrap());
    let topic = topic_of(&broker, &format!("{prefix}-order-placed")).await;
    let joined = broker.sns().list_subscriptions_by_topic().topic_arn(topic).send().await.unwrap();
    for one in joined.subscriptions() {
        broker.sns().unsubscribe().subscription_arn(one.subscription_arn().unwrap()).send().await.unwrap();
    }
    let error = not_opened(&checks, request("stock", "order.placed")).await;
    assert!(error.contains("is not subscribed to") && error.contains("topology=create"), "{error}");
}

#[tokio::test]
async fn a_queue_with_other_settings_is_an_error_that_names_both_values() {
    let prefix = prefix();
    let broker = connect(&url(&prefix, false)).await;
    drop(broker.subscribe(request("mail", "a.b")).await.unwrap());
    let error =
        not_opened(&format!("{}&retention_age=1h", url(&prefix, false)), request("mail", "a.b")).await;
    assert!(error.contains("keeps messages for 1209600s, and `retention_age` is 3600s"), "{error}");

    let queue = queue_of(&broker, &format!("{prefix}-group-mail-")).await;
    let dead = queue_of(&broker, &format!("{prefix}-dead-mail-")).await;
    let arn =
        broker.sqs().get_queue_attributes().queue_url(dead).attribute_names(QueueAttributeName::QueueArn);
    let arn = arn.send().await.unwrap().attributes.unwrap().remove(&QueueAttributeName::QueueArn).unwrap();
    let policy = |most: u32| format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":"{most}"}}"#);
    for (most, opens) in [(5, false), (6, true)] {
        let set = broker.sqs().set_queue_attributes().queue_url(&queue);
        set.attributes(QueueAttributeName::RedrivePolicy, policy(most)).send().await.unwrap();
        match broker.subscribe(request("mail", "a.b")).await {
            Ok(_) => assert!(opens, "it gives up after {most} deliveries"),
            Err(error) => {
                assert!(!opens && error.to_string().contains("set `maxReceiveCount` above 5"), "{error}");
            }
        }
    }
}

/// What Amazon calls a topic that is there: to make it again changes nothing.
async fn topic_of(broker: &AwsBroker, name: &str) -> String {
    broker.sns().create_topic().name(name).send().await.unwrap().topic_arn.unwrap()
}

async fn queue_of(broker: &AwsBroker, begin: &str) -> String {
    let queues = broker.sqs().list_queues().queue_name_prefix(begin).send().await.unwrap();
    queues.queue_urls()[0].clone()
}

#[tokio::test]
async fn a_group_that_needs_order_is_told_of_fifo() {
    let mut ordered = request("mail", "a.b");
    ordered.competing = false;
    let error = not_opened(&url(&prefix(), false), ordered).await;
    assert!(error.contains("`?fifo=true`") && error.contains("`competing`"), "{error}");
}

#[tokio::test]
async fn credentials_of_another_account_are_named() {
    let url = format!("{}&account=999999999999", url(&prefix(), false));
    let error = connect(&url).await.publish(event("a.b", "k", 1)).await.unwrap_err().to_string();
    assert!(error.contains("are of the account 000000000000, and `account` is 999999999999"), "{error}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_says_what_is() {
    let broker = connect(&url(&prefix(), false)).await;
    let of = |size: usize, header: usize| {
        let payload = vec![b'x'; size].into();
        let envelope = Envelope::from_bytes(Topic::from_static("a.b"), "text/plain", payload);
        Arc::new(envelope.with_header("note", "ü".repeat(header / 2)))
    };
    for (size, header, fits) in
        [(184_320, 0, true), (184_321, 0, false), (1, 64 << 10, true), (180_000, 64 << 10, false)]
    {
        match broker.publish(of(size, header)).await {
            Ok(()) => assert!(fits, "{size} bytes and a header of {header}"),
            Err(error) => assert!(!fits && matches!(error, PublishError::TooLarge { .. }), "{error}"),
        }
    }
    let long = Topic::new(["segment-of-a-topic"; 12].join(".")).unwrap();
    let error =
        broker.publish(Arc::new(Envelope::from_json(long, &1).unwrap())).await.unwrap_err().to_string();
    assert!(error.contains("has no name of at most 256 letters in SNS; shorten it"), "{error}");
}

#[tokio::test]
async fn messages_of_other_programs_are_events() {
    let prefix = prefix();
    let broker = connect(&url(&prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "order.>")).await.unwrap();
    let queue = queue_of(&broker, &format!("{prefix}-any-mail-")).await;
    let text =
        |text: &str| MessageAttributeValue::builder().data_type("String").string_value(text).build().unwrap();
    let send = |body: &str| broker.sqs().send_message().queue_url(&queue).message_body(body);
    send("hello").send().await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    let event = &received.receipt.envelope;
    assert_eq!((event.topic().as_str(), &event.payload().unwrap()[..]), ("order.unknown", &b"hello"[..]));
    ack(received).await;

    let document = r#"{"specversion":"1.0","id":"7","source":"/x","type":"order.paid","data":{"n":1}}"#;
    let structured = text("application/cloudevents+json; charset=utf-8");
    send(document).message_attributes("content-type", structured.clone()).send().await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    let event = &received.receipt.envelope;
    assert_eq!((event.id().to_string().as_str(), event.source()), ("7", "/x"));
    assert_eq!(&event.payload().unwrap()[..], br#"{"n":1}"#);
    ack(received).await;

    // What says that it is such a document and is none keeps its bytes.
    send("{garbage").message_attributes("content-type", structured).send().await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(&received.receipt.envelope.payload().unwrap()[..], b"{garbage");
    ack(received).await;

    let damaged = text("topic=nowhere&body=base64&=&x");
    send("no base64!").message_attributes("eventbus", damaged).send().await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(&received.receipt.envelope.payload().unwrap()[..], b"no base64!");
    ack(received).await;
}

#[tokio::test]
async fn the_message_group_of_another_program_is_the_key_of_its_events() {
    let prefix = prefix();
    let broker = connect(&url(&prefix, true)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let queue = queue_of(&broker, &format!("{prefix}-group-mail-")).await;
    for (number, group) in [(1, "x"), (2, "y"), (3, "x")] {
        let send = broker.sqs().send_message().queue_url(&queue).message_body(number.to_string());
        let send = send.message_group_id(group).message_deduplication_id(number.to_string());
        send.send().await.unwrap();
    }
    let mut keys = Vec::new();
    for _ in 0..3 {
        let received = receive(&mut deliveries, 1).await.remove(0);
        keys.push((number(&received), received.receipt.envelope.key().map(str::to_owned)));
        ack(received).await;
    }
    keys.sort();
    assert_eq!(keys, [(1, "x"), (2, "y"), (3, "x")].map(|(number, key)| (number, Some(key.to_owned()))));
}

#[tokio::test]
async fn a_queue_that_somebody_removes_is_an_error_and_is_made_again() {
    let prefix = prefix();
    let broker = connect(&url(&prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let queue = queue_of(&broker, &format!("{prefix}-group-mail-")).await;
    broker.sqs().delete_queue().queue_url(queue).send().await.unwrap();
    let said = failure(&mut deliveries).await;
    assert!(
        said.contains("the queue of the group `mail`") && said.contains("open the subscription anew"),
        "{said}"
    );
    drop(deliveries);
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 3);
}

#[tokio::test]
async fn a_topic_that_somebody_removes_is_made_again_with_its_queues() {
    for pattern in ["a.b", "a.>"] {
        let prefix = prefix();
        let broker = connect(&url(&prefix, false)).await;
        let mut deliveries = broker.subscribe(request("mail", pattern)).await.unwrap();
        broker.publish(event("a.b", "k", 1)).await.unwrap();
        ack(receive(&mut deliveries, 1).await.remove(0)).await;
        let topic = topic_of(&broker, &format!("{prefix}-a-b")).await;
        broker.sns().delete_topic().topic_arn(topic).send().await.unwrap();
        broker.publish(event("a.b", "k", 2)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2, "{pattern}");
    }
}
