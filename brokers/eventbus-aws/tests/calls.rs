//! What calls cost, and what becomes of those that Amazon refuses, slows down or answers late. Names are promises.

mod support;

use eventbus::broker::{Broker, Connection, DeadLetter, DeadLetterQuery, FailureKind, Received};
use eventbus_aws::AwsBroker;
use std::future::{Future, poll_fn};
use std::time::{Duration, Instant};
use support::gateway::{Gateway, Verdict};
use support::proxy::Proxy;
use support::{PATIENCE, ack, connect, event, number, prefix, receive, request, server, until, url, url_at};

/// What the table of costs in the documentation says of publishes, receives and deletes.
fn documented(column: usize) -> [u64; 3] {
    let table = include_str!("../src/lib.rs");
    ["publish", "receive", "delete"].map(|row| {
        let row = table.lines().find(|line| line.starts_with(&format!("//! | {row}")));
        let cell =
            row.expect("there is such a row").split('|').nth(1 + column).expect("it has a cell").trim();
        cell.replace(',', "").parse().expect("it is a number")
    })
}

/// How many publishes, receives and deletes there were.
fn counted(gateway: &Gateway) -> [u64; 3] {
    ["PublishBatch", "ReceiveMessage", "DeleteMessageBatch"].map(|call| gateway.count(call))
}

#[tokio::test]
async fn a_thousand_events_cost_as_many_calls_as_the_documentation_says() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let broker = connect(&url_at(&gateway.url(), &prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish_all((0..1_000).map(|number| event("a.b", "k", number)).collect()).await }
    });
    for _ in 0..1_000 {
        ack(receive(&mut deliveries, 1).await.remove(0)).await;
    }
    assert!(publishing.await.unwrap().iter().all(Result::is_ok));
    drop(deliveries);
    broker.close().await.unwrap();
    let (counted, said) = (counted(&gateway), documented(1));
    // The fewest that are possible, and how much more a slow machine may need: what is there is not waited for.
    for ((counted, said), most) in counted.into_iter().zip(said).zip([1.25, 2.5, 4.0]) {
        assert!(
            counted >= 100 && counted as f64 <= said as f64 * most,
            "{counted}, and {said} are documented"
        );
    }
    assert_eq!(gateway.count("ChangeMessageVisibilityBatch"), 0, "nothing is held for long");
}

#[tokio::test]
async fn events_that_come_one_at_a_time_cost_as_many_calls_as_the_documentation_says() {
    const EVENTS: u64 = 50;
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let broker = connect(&url_at(&gateway.url(), &prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    for number in 0..EVENTS {
        broker.publish(event("a.b", "k", number)).await.unwrap();
        ack(receive(&mut deliveries, 1).await.remove(0)).await;
        until("it is deleted", async || gateway.count("DeleteMessageBatch") > number).await;
    }
    let counted = counted(&gateway);
    assert_eq!(
        [counted[0], counted[2]].map(|calls| calls * 1_000 / EVENTS),
        [documented(2)[0], documented(2)[2]]
    );
    let received = counted[1] * 1_000 / EVENTS;
    assert!(received >= 1_000 && received <= documented(2)[1] * 2, "{received}: some wait in vain");
}

/// What is at hand now, without waiting.
async fn at_hand(deliveries: &mut Box<dyn eventbus::broker::Deliveries>) -> Vec<Received> {
    let mut received = Vec::new();
    poll_fn(|context| {
        let _ = deliveries.poll_receive(context, &mut received, 100);
        std::task::Poll::Ready(())
    })
    .await;
    received
}

#[tokio::test]
async fn what_came_by_a_late_answer_is_not_handed_out_where_another_process_has_it() {
    let (proxy, prefix) = (Proxy::to(&server()).await, prefix());
    let short = |url: String| url.replace("visibility_timeout=10s", "visibility_timeout=2s");
    let late = connect(&short(url_at(&proxy.url(), &prefix, true))).await;
    let mut deliveries = late.subscribe(request("mail", "a.b")).await.unwrap();
    let other = connect(&short(url(&prefix, true))).await;
    // The one asks and has not been answered yet; what is stored now comes with an answer that does not arrive.
    until("somebody waits for events", async || at_hand(&mut deliveries).await.is_empty()).await;
    proxy.mute(true);
    for number in 1..=3 {
        other.publish(event("a.b", "k", number)).await.unwrap();
    }
    let queue = queue_of(&other, &format!("{prefix}-group-mail-")).await;
    until("its events are hidden", async || in_flight(&other, &queue).await > 0).await;
    // The other one has them, once they are not hidden any more.
    let mut others = other.subscribe(request("mail", "a.b")).await.unwrap();
    let first = receive(&mut others, 1).await.remove(0);
    assert_eq!((number(&first), first.receipt.attempt), (1, 2));
    proxy.mute(false);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let doubles = at_hand(&mut deliveries).await;
        assert!(doubles.is_empty(), "the other process has what is before it: {doubles:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(first.settler.holds(&first.receipt));
    ack(first).await;
}

async fn queue_of(broker: &AwsBroker, begin: &str) -> String {
    let found = broker.sqs().list_queues().queue_name_prefix(begin).send().await.unwrap();
    found.queue_urls()[0].clone()
}

async fn in_flight(broker: &AwsBroker, queue: &str) -> u64 {
    use eventbus_aws::aws_sdk_sqs::types::QueueAttributeName::ApproximateNumberOfMessagesNotVisible as Hidden;
    let looked = broker.sqs().get_queue_attributes().queue_url(queue).attribute_names(Hidden).send().await;
    looked.unwrap().attributes().and_then(|all| all.get(&Hidden)?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_server_that_wants_fewer_calls_is_there_and_gets_fewer() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let broker = connect(&url_at(&gateway.url(), &prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    ack(receive(&mut deliveries, 1).await.remove(0)).await;
    gateway.answer(|name| match name {
        "ReceiveMessage" => Some((400, "RequestThrottled")),
        "PublishBatch" => Some((429, "Throttling")),
        _ => None,
    });
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(event("a.b", "k", 2)).await }
    });
    until("it is known", async || matches!(broker.connection(), Connection::Slowed { .. })).await;
    let before = gateway.count("ReceiveMessage") + gateway.count("PublishBatch");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert!(!matches!(broker.connection(), Connection::Lost { .. }), "it answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let calls = gateway.count("ReceiveMessage") + gateway.count("PublishBatch") - before;
    assert!(calls <= 14, "{calls} calls in three seconds");
    assert!(!publishing.is_finished(), "it is tried again");
    gateway.answer(|_| None);
    publishing.await.unwrap().unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 2);
}

#[tokio::test]
async fn a_subscription_waits_for_a_server_that_is_not_ready_and_then_names_it() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let at = url_at(&gateway.url(), &prefix, false);
    let broker = connect(&at).await;
    for (status, code) in [(503, "ServiceUnavailable"), (400, "RequestThrottled")] {
        gateway.answer(move |name| (name == "CreateQueue").then_some((status, code)));
        let opening = tokio::spawn(broker.subscribe(request(&format!("mail{status}"), "a.b")));
        let tried = gateway.count("CreateQueue");
        until("it is tried again", async || gateway.count("CreateQueue") >= tried + 3).await;
        gateway.answer(|_| None);
        assert!(opening.await.unwrap().is_ok());
    }
    gateway.answer(|name| (name == "GetQueueUrl").then_some((503, "ServiceUnavailable")));
    let impatient = connect(&format!("{at}&connect_timeout=1s")).await;
    let Err(error) = impatient.subscribe(request("stock", "a.b")).await else { panic!("it is opened") };
    let error = error.to_string();
    assert!(error.contains("(`connect_timeout`)") && error.contains("cannot look for the queue"), "{error}");
}

#[tokio::test]
async fn a_start_is_longer_patient_with_a_server_that_wants_to_be_left_time() {
    async fn begins(call: &'static str, code: &'static str) {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let at = format!("{}&connect_timeout=10s", url_at(&gateway.url(), &prefix, false));
        gateway.answer(move |name| (name == call).then_some((400, code)));
        let opening = tokio::spawn(async move { connect(&at).await.subscribe(request("mail", "a.>")).await });
        let begun = Instant::now();
        until("it was tried for longer than that", async || {
            assert!(!opening.is_finished(), "{call}");
            begun.elapsed() > Duration::from_secs(12) && gateway.count(call) > 2
        })
        .await;
        assert!(gateway.count(call) <= 20, "{call}: {} calls", gateway.count(call));
        gateway.answer(|_| None);
        assert!(opening.await.unwrap().is_ok(), "{call}");
    }
    tokio::join!(
        begins("CreateQueue", "QueueDeletedRecently"),
        begins("ListQueues", "RequestThrottled"),
        begins("ListTopics", "Throttling"),
        begins("ListQueueTags", "RequestThrottled")
    );
}

#[tokio::test]
async fn a_queue_that_was_made_a_moment_ago_and_is_not_known_everywhere_is_not_gone() {
    for fifo in [false, true] {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let mut asked = std::collections::BTreeMap::new();
        gateway.answer(move |name| {
            let of_a_queue = ["GetQueueAttributes", "ListQueueTags", "TagQueue", "ReceiveMessage"];
            if !of_a_queue.contains(&name) {
                return None;
            }
            let times = asked.entry(name.to_owned()).or_insert(0);
            *times += 1;
            (*times <= 2).then_some((400, "QueueDoesNotExist"))
        });
        let at = format!("{}&connect_timeout=60s", url_at(&gateway.url(), &prefix, fifo));
        let broker = connect(&at).await;
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        broker.publish(event("a.b", "k", 1)).await.unwrap();
        // What is wrong would be said here.
        ack(receive(&mut deliveries, 1).await.remove(0)).await;
        assert!(gateway.count("ReceiveMessage") >= 3 && gateway.count("TagQueue") >= 3);
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_what_to_look_at() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let at = url_at(&gateway.url(), &prefix, false);
    let chain = |error: &dyn std::error::Error| {
        format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
    };
    for (code, said) in [
        ("InvalidClientTokenId", "look at the credentials and at the clock"),
        ("SignatureDoesNotMatch", "look at the credentials and at the clock"),
    ] {
        gateway.answer(move |_| Some((403, code)));
        let error = AwsBroker::builder(&at).unwrap().connect().await.unwrap_err();
        assert!(chain(&error).contains(said), "{}", chain(&error));
    }
    // Who may not list anything may be allowed all else, and nobody is let in where it counts.
    gateway.answer(|name| (name != "GetQueueUrl").then_some((403, "AccessDenied")));
    let broker = connect(&at).await;
    let begun = Instant::now();
    let Err(error) = broker.subscribe(request("mail", "a.b")).await else { panic!("it is opened") };
    assert!(chain(&error).contains("allow it in the policy of the user or role"), "{}", chain(&error));
    assert!(begun.elapsed() < Duration::from_secs(5), "it is not tried again");
    let error = broker.publish(event("a.b", "k", 1)).await.unwrap_err();
    assert!(chain(&error).contains("allow it in the policy"), "{}", chain(&error));
}

#[tokio::test]
async fn a_process_whose_clock_is_wrong_is_told_so() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let at = url_at(&gateway.url(), &prefix, true);
    let chain = |error: &dyn std::error::Error| {
        format!("{error}: {}", error.source().map(ToString::to_string).unwrap_or_default())
    };
    let broker = connect(&at).await;
    let expired = "Signature expired: 20240101T000000Z is now earlier than 20240101T005500Z";
    for (code, said, ahead, told) in [
        ("SignatureDoesNotMatch", expired, 0, "the clock of this machine is wrong; set it"),
        (
            "SignatureDoesNotMatch",
            "so it is",
            3_630,
            "the clock of this machine is 60 minutes behind the server's",
        ),
        ("InvalidSignatureException", "so it is", -3_570, "the clock of this machine is 59 minutes ahead of"),
        ("RequestTimeTooSkewed", "so it is", 0, "the clock of this machine is wrong; set it"),
        ("SignatureDoesNotMatch", "so it is", 0, "look at the credentials"),
    ] {
        gateway.judge(move |_| Verdict::Doubt { code, said, ahead });
        let error = AwsBroker::builder(&at).unwrap().connect().await.unwrap_err();
        assert!(chain(&error).contains(told), "at the start: {}", chain(&error));
        let error = broker.publish(event("a.b", "k", 1)).await.unwrap_err();
        assert!(chain(&error).contains(told), "as it publishes: {}", chain(&error));
    }
}

#[tokio::test]
async fn a_reader_and_a_publisher_end_with_the_last_handle() {
    let prefix = prefix();
    let broker = connect(&url(&prefix, false)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut received = Vec::new();
        poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await.unwrap();
        received.len()
    });
    let settled = broker.settled().unwrap();
    tokio::task::yield_now().await;
    drop(broker);
    let read = tokio::time::timeout(PATIENCE, reading).await.expect("it ends").unwrap();
    assert_eq!(read, 0);
    tokio::time::timeout(PATIENCE, settled).await.expect("nothing can be settled any more");
}

/// Gives up so many events.
async fn give_up(broker: &AwsBroker, count: u64) {
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let events = (0..count).map(|number| event("a.b", "k", number)).collect();
    assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
    for _ in 0..count {
        let Received { receipt, settler, .. } = receive(&mut deliveries, 1).await.remove(0);
        let now = "2024-01-01T00:00:00Z".parse().unwrap();
        let letter = DeadLetter {
            envelope: std::sync::Arc::clone(&receipt.envelope),
            group: "mail".to_owned(),
            handler: "mail".to_owned(),
            kind: FailureKind::Rejected,
            reason: "never".to_owned(),
            attempts: 1,
            first_failed_at: now,
            last_failed_at: now,
            offset: receipt.offset,
        };
        settler.reject(receipt, letter).await.unwrap();
    }
}

#[tokio::test]
async fn a_look_at_dead_letters_that_is_cut_gives_back_what_it_has_taken() {
    const LETTERS: u64 = 35;
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let broker = connect(&url(&prefix, false)).await;
    give_up(&broker, LETTERS).await;
    let looking = connect(&url_at(&gateway.url(), &prefix, false)).await;
    let mut look = Box::pin(looking.dead_letters().unwrap().find(DeadLetterQuery::default()));
    until("it has taken some", async || {
        poll_fn(|context| {
            assert!(look.as_mut().poll(context).is_pending(), "it is not done yet");
            std::task::Poll::Ready(())
        })
        .await;
        gateway.count("ReceiveMessage") >= 3
    })
    .await;
    drop(look);
    let begun = Instant::now();
    let store = broker.dead_letters().unwrap();
    until("all are there again", async || {
        store.find(DeadLetterQuery::default()).await.unwrap().len() as u64 == LETTERS
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}: they were hidden", begun.elapsed());
    let mut few = DeadLetterQuery::default();
    few.limit = 7;
    let all = store.find(DeadLetterQuery::default()).await.unwrap();
    let first: Vec<_> = store.find(few).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(first, all.iter().take(7).map(|(id, _)| id.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_look_at_the_dead_letters_of_many_groups_does_not_wait_for_one_after_the_other() {
    // Each queue is asked for a second whether it has something.
    const GROUPS: u64 = 16;
    let broker = connect(&url(&prefix(), false)).await;
    let mut open = Vec::new();
    for number in 0..GROUPS {
        open.push(broker.subscribe(request(&format!("group-{number}"), "a.b")).await.unwrap());
    }
    give_up(&broker, 1).await;
    let begun = Instant::now();
    let found = broker.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(GROUPS), "{:?}", begun.elapsed());
}
