//! Single entries of batches that fail, each at every place, and whole calls that fail or are cut. Names are promises.

mod support;

use eventbus::broker::{Broker, Deliveries, Received};
use eventbus::{Bus, Delivery, PublishError};
use eventbus_aws::AwsBroker;
use eventbus_aws::aws_sdk_sqs::types::QueueAttributeName;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::gateway::{Gateway, Verdict};
use support::{ack, connect, event, number, prefix, receive, request, server, until, url, url_at};
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};

/// How many entries a batch has.
const TEN: usize = 10;

/// The address through a gateway, where nothing is hidden for long.
fn short(gateway: &Gateway, prefix: &str, fifo: bool, seconds: u64) -> String {
    url_at(&gateway.url(), prefix, fifo)
        .replace("visibility_timeout=10s", &format!("visibility_timeout={seconds}s"))
}

/// The first call of this name becomes that; the others pass.
fn first(gateway: &Gateway, call: &'static str, verdict: Verdict) {
    let mut is_over = false;
    gateway.judge(move |asked| {
        if asked.name != call || is_over {
            return Verdict::Pass;
        }
        is_over = true;
        verdict
    });
}

/// What there is to wait for in the queues of the group, hidden or not.
async fn left(broker: &AwsBroker, prefix: &str) -> u64 {
    let queues =
        broker.sqs().list_queues().queue_name_prefix(format!("{prefix}-group-")).send().await.unwrap();
    let look = broker.sqs().get_queue_attributes().queue_url(&queues.queue_urls()[0]);
    let look = look.attribute_names(QueueAttributeName::All).send().await.unwrap();
    let attributes = look.attributes.unwrap();
    let names = [
        QueueAttributeName::ApproximateNumberOfMessages,
        QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
    ];
    names.iter().map(|name| attributes[name].parse::<u64>().unwrap()).sum()
}

fn numbers(received: &[Received]) -> Vec<u64> {
    received.iter().map(number).collect()
}

/// Ten events, received and not settled.
async fn hold_ten(broker: &AwsBroker) -> (Box<dyn Deliveries>, Vec<Received>) {
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let events = (0..TEN as u64).map(|number| event("a.b", "k", number)).collect();
    assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
    let held = receive(&mut deliveries, TEN).await;
    (deliveries, held)
}

/// Tries something with each place of a batch and with both kinds of failure, a few at once.
async fn everywhere<F: Future<Output = ()> + 'static>(attempt: impl Fn(usize, bool) -> F) {
    let all = async {
        let mut tries = JoinSet::new();
        for place in 0..TEN {
            for sender_fault in [false, true] {
                tries.spawn_local(attempt(place, sender_fault));
                while tries.len() >= 5 {
                    tries.join_next().await.expect("there are some").unwrap();
                }
            }
        }
        while let Some(tried) = tries.join_next().await {
            tried.unwrap();
        }
    };
    LocalSet::new().run_until(all).await;
}

#[tokio::test]
async fn a_publish_that_fails_alone_is_told_alone_and_is_not_sent_behind_later_ones_of_its_key() {
    everywhere(async |place, sender_fault| {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let broker = connect(&url_at(&gateway.url(), &prefix, true)).await;
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        first(&gateway, "PublishBatch", Verdict::Fail { place, code: "InternalFailure", sender_fault });
        let events = (0..TEN as u64).map(|number| event("a.b", "k", number)).collect();
        let results = broker.publish_all(events).await;
        // The last one has none behind it, so it can be sent again.
        let again = place == TEN - 1 && !sender_fault;
        let mut stored = Vec::new();
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Ok(()) => stored.push(number as u64),
                Err(error) => {
                    assert!(number == place && !again, "{place}: {error}");
                    assert!(matches!(error, PublishError::Broker { .. }), "{error}");
                }
            }
        }
        assert_eq!(stored.len(), if again { TEN } else { TEN - 1 }, "{place}");
        let mut received = Vec::new();
        while received.len() < stored.len() {
            let next = receive(&mut deliveries, 1).await.remove(0);
            received.push(number(&next));
            ack(next).await;
        }
        assert_eq!(received, stored, "{place}");
    })
    .await;
}

#[tokio::test]
async fn a_delete_that_fails_alone_is_made_again_or_its_event_comes_again_alone() {
    everywhere(async |place, sender_fault| {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let broker = connect(&short(&gateway, &prefix, false, 2)).await;
        let (mut deliveries, held) = hold_ten(&broker).await;
        let failed = number(&held[place]);
        first(&gateway, "DeleteMessageBatch", Verdict::Fail { place, code: "InternalError", sender_fault });
        for received in held {
            ack(received).await;
        }
        if sender_fault {
            let again = receive(&mut deliveries, 1).await.remove(0);
            assert_eq!((number(&again), again.receipt.attempt), (failed, 2));
            ack(again).await;
        }
        until("all are deleted", async || left(&broker, &prefix).await == 0).await;
        drop(deliveries);
        broker.close().await.unwrap();
        assert_eq!(gateway.count("DeleteMessageBatch"), 2, "{place}");
    })
    .await;
}

#[tokio::test]
async fn an_event_that_cannot_be_hidden_longer_is_asked_for_again_or_lost_alone() {
    everywhere(async |place, sender_fault| {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let broker = connect(&short(&gateway, &prefix, false, 5)).await;
        let (mut deliveries, held) = hold_ten(&broker).await;
        let mut failed = None;
        let call = "ChangeMessageVisibilityBatch";
        first(&gateway, call, Verdict::Fail { place, code: "InternalError", sender_fault });
        if sender_fault {
            let again = receive(&mut deliveries, 1).await.remove(0);
            assert_eq!(again.receipt.attempt, 2, "{place}");
            // Which one stands at that place is known to SQS only.
            failed = Some(number(&again));
            ack(again).await;
        } else {
            // Longer than it was hidden at first.
            let begun = Instant::now();
            until("it is hidden again", async || {
                begun.elapsed() > Duration::from_secs(6) && gateway.count(call) >= 3
            })
            .await;
        }
        for received in held {
            let is_lost = failed == Some(number(&received));
            assert_eq!(received.settler.holds(&received.receipt), !is_lost, "{place}");
            if !is_lost {
                ack(received).await;
            }
        }
        until("all are deleted", async || left(&broker, &prefix).await == 0).await;
    })
    .await;
}

const BROKEN: [Verdict; 4] = [
    Verdict::Refuse(503, "ServiceUnavailable"),
    Verdict::Refuse(400, "ThrottlingException"),
    Verdict::Cut,
    Verdict::Lose,
];

#[tokio::test]
async fn a_publish_that_is_cut_before_or_after_it_was_done_is_stored_once_and_in_its_place() {
    for verdict in BROKEN {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let broker = connect(&url_at(&gateway.url(), &prefix, true)).await;
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        first(&gateway, "PublishBatch", verdict);
        let events = (0..25).map(|number| event("a.b", "k", number)).collect();
        assert!(broker.publish_all(events).await.iter().all(Result::is_ok), "{verdict:?}");
        for expected in 0..25 {
            let received = receive(&mut deliveries, 1).await.remove(0);
            assert_eq!(number(&received), expected, "{verdict:?}");
            ack(received).await;
        }
        until("nothing was stored twice", async || left(&broker, &prefix).await == 0).await;
    }
}

#[tokio::test]
async fn deletes_and_hidings_that_are_cut_before_or_after_they_were_done_are_made_again() {
    for verdict in BROKEN {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let broker = connect(&short(&gateway, &prefix, true, 3)).await;
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        let events = (0..TEN as u64).map(|number| event("a.b", &format!("k{number}"), number)).collect();
        assert!(broker.publish_all(events).await.iter().all(Result::is_ok));
        let held = receive(&mut deliveries, TEN).await;
        let (hide, delete) = ("ChangeMessageVisibilityBatch", "DeleteMessageBatch");
        first(&gateway, hide, verdict);
        let begun = Instant::now();
        until("they are held for longer than they were hidden at first", async || {
            begun.elapsed() > Duration::from_secs(4) && gateway.count(hide) >= 3
        })
        .await;
        assert!(held.iter().all(|one| one.settler.holds(&one.receipt)), "{verdict:?}");
        first(&gateway, delete, verdict);
        for received in held {
            ack(received).await;
        }
        until("all are deleted", async || left(&broker, &prefix).await == 0).await;
        broker.publish(event("a.b", "last", 99)).await.unwrap();
        let received = receive(&mut deliveries, 1).await;
        assert_eq!((numbers(&received), received[0].receipt.attempt), (vec![99], 1), "nothing came twice");
    }
}

/// The names by which calls for messages are known again.
fn names(gateway: &Gateway, lost: bool) -> Arc<Mutex<Vec<String>>> {
    let names = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&names);
    gateway.judge(move |asked| {
        if asked.name != "ReceiveMessage" {
            return Verdict::Pass;
        }
        let body: serde_json::Value = serde_json::from_str(&asked.body).unwrap();
        let mut names = noted.lock().unwrap();
        names.push(body["ReceiveRequestAttemptId"].as_str().unwrap_or("none").to_owned());
        if lost && names.len() == 1 { Verdict::Lose } else { Verdict::Pass }
    });
    names
}

#[tokio::test]
async fn a_call_for_messages_whose_answer_is_lost_is_made_again_by_its_name_on_fifo() {
    for fifo in [false, true] {
        let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
        let names = names(&gateway, true);
        let broker = connect(&url_at(&gateway.url(), &prefix, fifo)).await;
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        broker.publish(event("a.b", "k", 1)).await.unwrap();
        assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 1);
        until("it asks for more", async || names.lock().unwrap().len() >= 3).await;
        let names = names.lock().unwrap().clone();
        assert_eq!(names[0] == "none", !fifo, "{names:?}");
        assert_eq!(names[0] == names[1] && names[1] != names[2], fifo, "{names:?}");
    }
}

#[tokio::test]
async fn what_was_given_out_as_a_process_ended_is_given_back_on_fifo() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let names = names(&gateway, true);
    let broker = connect(&url_at(&gateway.url(), &prefix, true)).await;
    let deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    until("it waits for events", async || !names.lock().unwrap().is_empty()).await;
    drop(deliveries);
    broker.close().await.unwrap();
    let names = names.lock().unwrap().clone();
    assert!(names.len() == 2 && names[0] == names[1], "it fetches what it may have been given: {names:?}");
}

/// Handles events of one key, of which the first waits until it is told to go on.
async fn handling(at: &str, gate: Option<Arc<Notify>>) -> (Bus, Arc<Mutex<Vec<u64>>>) {
    let bus = Bus::builder().without_subscriptions().broker(connect(at).await).await.unwrap();
    let begun = Arc::<Mutex<Vec<u64>>>::default();
    let noted = Arc::clone(&begun);
    let handler = move |delivery: Delivery| {
        let number: u64 = serde_json::from_slice(delivery.envelope().payload().unwrap()).unwrap();
        noted.lock().unwrap().push(number);
        let gate = gate.clone().filter(|_| number == 1);
        async move {
            if let Some(gate) = gate {
                gate.notified().await;
            }
        }
    };
    bus.on_topic("a.b", handler).group("mail").timeout(Duration::from_secs(60)).await.unwrap();
    bus.start_quietly().unwrap();
    (bus, begun)
}

#[tokio::test]
async fn an_event_whose_time_runs_out_under_its_handler_goes_to_another_process_and_so_does_what_follows() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let gate = Arc::new(Notify::new());
    let (slow, of_slow) = handling(&short(&gateway, &prefix, true, 2), Some(Arc::clone(&gate))).await;
    for number in 1..=3 {
        slow.publish_envelope((*event("a.b", "k", number)).clone()).await.unwrap();
    }
    until("its handler has begun", async || !of_slow.lock().unwrap().is_empty()).await;
    gateway.answer(|name| (name == "ChangeMessageVisibilityBatch").then_some((503, "ServiceUnavailable")));
    let direct = url(&prefix, true).replace("visibility_timeout=10s", "visibility_timeout=2s");
    let (other, of_other) = handling(&direct, None).await;
    until("another process has them all", async || of_other.lock().unwrap().len() == 3).await;
    assert_eq!(*of_other.lock().unwrap(), [1, 2, 3]);
    gateway.answer(|_| None);
    gate.notify_one();
    other.shutdown().await.unwrap();
    // It goes on with what comes, and has not begun with what it has lost.
    slow.publish_envelope((*event("a.b", "k", 4)).clone()).await.unwrap();
    until("it goes on", async || of_slow.lock().unwrap().contains(&4)).await;
    assert_eq!(*of_slow.lock().unwrap(), [1, 4]);
    slow.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_taken_apart_ends_when_its_time_is_over() {
    let (gateway, prefix) = (Gateway::to(&server()).await, prefix());
    let broker = connect(&format!("{}&publish_timeout=1s", url_at(&gateway.url(), &prefix, true))).await;
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    gateway.judge(|asked| {
        if asked.name != "PublishBatch" {
            return Verdict::Pass;
        }
        if asked.body.contains("member.2.Id") {
            return Verdict::Refuse(400, "InvalidParameter");
        }
        std::thread::sleep(Duration::from_millis(400));
        Verdict::Pass
    });
    let before = gateway.count("PublishBatch");
    let events = (1..=TEN as u64).map(|number| event("a.b", "k", number)).collect();
    let answers = broker.publish_all(events).await;
    assert!(answers[0].is_ok() && answers[TEN - 1].is_err(), "{answers:?}");
    let calls = gateway.count("PublishBatch") - before;
    assert!(calls < 7, "{calls} calls of 400 ms each in the second that there was");
}
