//! What the broker promises to a bus, kept on a real server. Names are promises.

#[path = "../../eventbus-server/tests/support/lines.rs"]
mod lines;
mod support;

use eventbus::broker::{Broker, Parked};
use jiff::Timestamp;
use lines::Lines;
use std::sync::Arc;
use std::time::Duration;
use support::{Place, ack, early, event, number, receive, receive_all, request, until};

#[tokio::test]
async fn what_is_published_reaches_each_group_in_order_with_all_that_it_is() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut one = broker.subscribe(request("one", "order.>")).await.unwrap();
    let mut two = broker.subscribe(request("two", "order.placed")).await.unwrap();
    let mut other = broker.subscribe(request("other", "user.*")).await.unwrap();
    let mut sent = Vec::new();
    for number in 0..50 {
        let envelope = event("order.placed", "k", number);
        broker.publish(Arc::clone(&envelope)).await.unwrap();
        sent.push(envelope);
    }
    broker.publish(event("user.created", "k", 7)).await.unwrap();
    for deliveries in [&mut one, &mut two] {
        let received = receive_all(deliveries, 50).await;
        for (received, sent) in received.iter().zip(&sent) {
            assert_eq!((received.receipt.envelope.id(), received.receipt.attempt), (sent.id(), 1));
        }
        for received in received {
            ack(received).await;
        }
    }
    assert_eq!(number(&receive_all(&mut other, 1).await[0]), 7);
    broker.close().await.unwrap();
}

#[tokio::test]
async fn a_batch_is_stored_in_its_order_and_an_event_that_is_published_twice_once() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    let events: Vec<_> = (0..3_000).map(|number| event("a.b", "k", number)).collect();
    let answers = broker.publish_all(events.clone()).await;
    assert!(answers.iter().all(Result::is_ok));
    assert!(broker.publish_all(events[..10].to_vec()).await.iter().all(Result::is_ok));
    broker.publish(event("a.b", "k", 3_000)).await.unwrap();
    let mut numbers = Vec::new();
    while numbers.len() < 3_001 {
        for received in receive(&mut deliveries, 64).await {
            numbers.push(number(&received));
            ack(received).await;
        }
    }
    assert!(numbers.iter().copied().eq(0..=3_000));
    broker.settled().unwrap().await;
}

#[tokio::test]
async fn what_comes_first_to_a_group_that_competes_stays_with_it() {
    let place = Place::new();
    // What is dropped would come again too late.
    let broker = place.builder().ack_wait(support::PATIENCE * 2).connect().await.unwrap();
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    // Events that wait already come faster than the first look at the clock, in some of these.
    let mut groups = Vec::new();
    for group in 0..20 {
        let mut request = early(&format!("g{group}"), "a.b");
        request.competing = true;
        groups.push(broker.subscribe(request).await.unwrap());
    }
    for mut deliveries in groups {
        for received in receive_all(&mut deliveries, 3).await {
            assert!(received.settler.holds(&received.receipt), "a bus drops what is not held");
            ack(received).await;
        }
    }
    broker.close().await.unwrap();
}

#[tokio::test]
async fn what_was_settled_is_not_delivered_to_the_next_process_and_the_rest_is_at_once() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    for number in 0..10 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for received in receive_all(&mut deliveries, 10).await {
        if number(&received).is_multiple_of(2) {
            ack(received).await;
        } else {
            received.settler.release(received.receipt);
        }
    }
    drop(deliveries);
    broker.close().await.unwrap();
    let begun = std::time::Instant::now();
    let next = place.broker().await;
    let mut deliveries = next.subscribe(request("g", ">")).await.unwrap();
    let numbers: Vec<_> = receive_all(&mut deliveries, 5).await.iter().map(number).collect();
    assert_eq!(numbers, [1, 3, 5, 7, 9]);
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_given_back_goes_before_what_waits() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    for number in 0..6 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let received = receive_all(&mut deliveries, 3).await;
    for received in received.into_iter().rev() {
        received.settler.release(received.receipt);
    }
    let numbers: Vec<_> = receive_all(&mut deliveries, 6).await.iter().map(number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn attempts_and_their_time_survive_the_process() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let mut received = receive_all(&mut deliveries, 1).await.remove(0);
    let second = |second| Timestamp::from_second(second).unwrap();
    let parked = Parked { first_failed_at: second(1), last_failed_at: second(2), due: second(3) };
    received.receipt.attempt = 3;
    received.settler.park(&received.receipt, parked).await.unwrap();
    received.settler.release(received.receipt);
    drop(deliveries);
    broker.close().await.unwrap();
    let next = place.broker().await;
    let mut deliveries = next.subscribe(request("g", ">")).await.unwrap();
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!((received.receipt.attempt, received.parked), (3, Some(parked)));
    ack(received).await;
    let jetstream = async_nats::jetstream::new(next.client());
    let bucket = format!("KV_{}-PARKED", place.name);
    until("the note is removed", || async {
        jetstream.get_stream(&bucket).await.unwrap().cached_info().state.messages == 0
    })
    .await;
}

#[tokio::test]
async fn one_process_handles_a_group_and_the_next_one_takes_over_in_order_when_it_is_gone() {
    let place = Place::new();
    let first = place.broker().await;
    let mut deliveries = first.subscribe(request("g", ">")).await.unwrap();
    let second = place.broker().await;
    for number in 0..20 {
        second.publish(event("a.b", "k", number)).await.unwrap();
    }
    let held = receive_all(&mut deliveries, 20).await;
    let mut standing_by = second.subscribe(early("g", ">")).await.unwrap();
    assert!(standing_by.stands_by_for().unwrap().contains("another process"));
    let mut into = Vec::new();
    for received in held.into_iter().step_by(2) {
        ack(received).await;
    }
    second.publish(event("a.b", "k", 20)).await.unwrap();
    assert!(!support::has_some(&mut standing_by, &mut into).await);
    // It ends without a word: nothing is given back.
    until("the acks are there", || async { first.client().flush().await.is_ok() }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let jetstream = async_nats::jetstream::new(first.client());
    drop(jetstream);
    std::mem::forget(deliveries);
    drop(first);
    let numbers: Vec<_> = receive_all(&mut standing_by, 11).await.iter().map(number).collect();
    assert_eq!(numbers, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 20]);
}

#[tokio::test]
async fn processes_that_compete_share_the_events_of_a_group() {
    let place = Place::new();
    let (first, second) = (place.broker().await, place.broker().await);
    let mut competing = request("g", ">");
    competing.competing = true;
    let mut one = first.subscribe(competing.clone()).await.unwrap();
    let mut two = second.subscribe(competing).await.unwrap();
    for number in 0..2_000 {
        first.publish(event("a.b", "k", number)).await.unwrap();
    }
    let mut seen = Vec::new();
    for deliveries in [&mut one, &mut two] {
        let mut mine = 0;
        while mine < 100 {
            for received in receive(deliveries, 10).await {
                (mine, _) = (mine + 1, seen.push(number(&received)));
                ack(received).await;
            }
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() >= 200);
}

#[tokio::test]
async fn a_backlog_of_large_events_is_asked_for_a_part_at_a_time() {
    let place = Place::new();
    // Where the machine stands still for longer than the group is kept, what was open is asked for as a whole.
    let broker = place.builder().ack_wait(Duration::from_secs(60)).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    let payload = vec![7; 1 << 20];
    for number in 0..150 {
        let topic = eventbus::Topic::from_static("a.b");
        let large = eventbus::Envelope::from_bytes(topic, "x/y", payload.clone().into());
        broker.publish(Arc::new(large.with_id(support::id(&number.to_string())))).await.unwrap();
    }
    let context = async_nats::jetstream::new(broker.client());
    let stream = context.get_stream(&place.name).await.unwrap();
    let name = futures_util::StreamExt::next(&mut stream.consumer_names()).await.unwrap().unwrap();
    let open = || async { stream.consumer_info(&name).await.unwrap().num_ack_pending };
    until("a part is here", || async { open().await >= 60 }).await;
    let held = receive_all(&mut deliveries, 60).await;
    assert!(open().await <= 100, "{} MiB are here at once", open().await);
    let mut seen = held.len();
    for received in held {
        ack(received).await;
    }
    while seen < 150 {
        for received in receive(&mut deliveries, 10).await {
            assert_eq!(received.receipt.envelope.id(), &support::id(&seen.to_string()));
            seen += 1;
            ack(received).await;
        }
    }
}

#[tokio::test]
async fn a_group_whose_consumer_was_removed_goes_on_with_what_is_not_settled() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let mut received = receive_all(&mut deliveries, 3).await;
    ack(received.remove(0)).await;
    let context = async_nats::jetstream::new(broker.client());
    let stream = context.get_stream(&place.name).await.unwrap();
    let name = futures_util::StreamExt::next(&mut stream.consumer_names()).await.unwrap().unwrap();
    stream.delete_consumer(&name).await.unwrap();
    broker.publish(event("a.b", "k", 3)).await.unwrap();
    let mut next = receive_all(&mut deliveries, 1).await;
    // Whoever has made the consumer again has the group anew: what was handed out comes once more.
    while number(next.last().unwrap()) < 3 {
        next.extend(receive_all(&mut deliveries, 1).await);
    }
    assert!([&[1, 2, 3][..], &[3]].contains(&&next.iter().map(number).collect::<Vec<_>>()[..]));
}

#[tokio::test]
async fn a_process_that_has_stood_by_says_once_that_it_has_taken_over() {
    let (lines, _guard) = Lines::capture();
    let place = Place::new();
    let (first, second) = (place.broker().await, place.broker().await);
    let mut deliveries = first.subscribe(early("group", ">")).await.unwrap();
    first.publish(event("a.b", "k", 1)).await.unwrap();
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    let mut standing_by = second.subscribe(early("group", ">")).await.unwrap();
    assert!(standing_by.stands_by_for().is_some(), "whoever opens it tells that");
    drop(deliveries);
    second.publish(event("a.b", "k", 2)).await.unwrap();
    ack(receive_all(&mut standing_by, 1).await.remove(0)).await;
    until("it says so", || async { lines.with("has taken over").len() == 1 }).await;
    let line = lines.with("has taken over").remove(0);
    assert!(line.contains("INFO") && line.contains("group=group pattern=>"), "{line}");
    assert!(lines.with("stands by").is_empty(), "it was told at the opening");
}
