//! Consumers and streams that somebody removes, empties or limits on the server while programs go on. Names are
//! promises.

mod support;

use async_nats::jetstream::consumer::Config;
use async_nats::jetstream::{self, Context};
use eventbus::PublishError;
use eventbus::broker::{Broker, Connection, DeadLetter, FailureKind, Parked, Receipt, Received, Topology};
use eventbus_nats::NatsBroker;
use futures_util::StreamExt;
use jiff::Timestamp;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::proxy::Proxy;
use support::servers::Server;
use support::{PATIENCE, Place, ack, event, number, receive_all, request, until};

fn jetstream(broker: &NatsBroker) -> Context {
    jetstream::new(broker.client())
}

async fn stream_of(broker: &NatsBroker, place: &Place) -> jetstream::stream::Stream {
    jetstream(broker).get_stream(&place.name).await.unwrap()
}

/// The name of the only consumer of a stream.
async fn consumer_of(broker: &NatsBroker, place: &Place) -> String {
    stream_of(broker, place).await.consumer_names().next().await.unwrap().unwrap()
}

async fn remove_consumer(broker: &NatsBroker, place: &Place) {
    let name = consumer_of(broker, place).await;
    stream_of(broker, place).await.delete_consumer(&name).await.unwrap();
}

/// Changes it as somebody does with the tools of NATS.
async fn change_consumer(broker: &NatsBroker, place: &Place, change: impl FnOnce(&mut Config)) {
    let name = consumer_of(broker, place).await;
    let mut config = stream_of(broker, place).await.consumer_info(&name).await.unwrap().config;
    change(&mut config);
    let request = serde_json::json!({ "stream_name": place.name, "config": config, "action": "update" });
    let subject = format!("CONSUMER.CREATE.{}.{name}", place.name);
    let answer: serde_json::Value = jetstream(broker).request(subject, &request).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

/// What a bus keeps of an event that has failed.
fn letter(receipt: &Receipt) -> DeadLetter {
    DeadLetter {
        envelope: receipt.envelope.clone(),
        group: "g".to_owned(),
        handler: "shop::fails at src/shop.rs:1".to_owned(),
        kind: FailureKind::Rejected,
        reason: "no".to_owned(),
        attempts: 1,
        first_failed_at: Timestamp::UNIX_EPOCH,
        last_failed_at: Timestamp::UNIX_EPOCH,
        offset: receipt.offset,
    }
}

#[tokio::test]
async fn a_group_whose_consumer_is_removed_before_its_first_event_misses_none() {
    let place = Place::new();
    let broker = place.broker().await;
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    remove_consumer(&broker, &place).await;
    for number in 1..=5 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let received = receive_all(&mut deliveries, 5).await;
    assert!(received.iter().map(number).eq(1..=5), "{:?}", received.iter().map(number).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_process_that_stands_by_makes_a_removed_consumer_where_the_group_was() {
    let proxy = Proxy::to(&support::server()).await;
    let place = Place::at(proxy.url());
    let first = place.broker().await;
    let mut had = first.subscribe(request("g", ">")).await.unwrap();
    let direct = place.by_way_of(support::server());
    let second = direct.broker().await;
    for number in 0..5 {
        second.publish(event("a.b", "k", number)).await.unwrap();
    }
    let mut held = receive_all(&mut had, 5).await;
    for received in held.drain(..2) {
        ack(received).await;
    }
    let mut waits = second.subscribe(request("g", ">")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    proxy.refuse(true);
    proxy.cut();
    remove_consumer(&second, &direct).await;
    second.publish(event("a.b", "k", 5)).await.unwrap();
    let received = receive_all(&mut waits, 4).await;
    assert!(received.iter().map(number).eq(2..=5), "{:?}", received.iter().map(number).collect::<Vec<_>>());
    proxy.refuse(false);
}

#[tokio::test]
async fn a_stream_that_is_made_anew_is_read_from_its_beginning() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    for number in 0..10 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for received in receive_all(&mut deliveries, 10).await {
        ack(received).await;
    }
    let config = stream_of(&broker, &place).await.cached_info().config.clone();
    jetstream(&broker).delete_stream(&place.name).await.unwrap();
    jetstream(&broker).create_stream(config).await.unwrap();
    for number in 10..15 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let received = receive_all(&mut deliveries, 5).await;
    assert!(received.iter().map(number).eq(10..15), "{:?}", received.iter().map(number).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_is_removed_is_made_again() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    jetstream(&broker).delete_stream(&place.name).await.unwrap();
    for number in 1..=5 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let received = receive_all(&mut deliveries, 5).await;
    assert!(received.iter().map(number).eq(1..=5), "{:?}", received.iter().map(number).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_is_purged_goes_on_with_what_is_published_next() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    for number in 0..10 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let held = receive_all(&mut deliveries, 10).await;
    stream_of(&broker, &place).await.purge().await.unwrap();
    for number in 10..13 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for received in held.into_iter().chain(receive_all(&mut deliveries, 3).await) {
        ack(received).await;
    }
    tokio::time::timeout(Duration::from_secs(10), broker.settled().unwrap()).await.unwrap();
}

#[tokio::test]
async fn messages_that_are_removed_while_another_process_has_them_hold_up_no_takeover() {
    let proxy = Proxy::to(&support::server()).await;
    let place = Place::at(proxy.url());
    let first = place.broker().await;
    let mut had = first.subscribe(request("g", ">")).await.unwrap();
    let direct = place.by_way_of(support::server());
    let second = direct.broker().await;
    for number in 0..5 {
        second.publish(event("a.b", "k", number)).await.unwrap();
    }
    let _held = receive_all(&mut had, 5).await;
    let mut waits = second.subscribe(request("g", ">")).await.unwrap();
    proxy.refuse(true);
    proxy.cut();
    let stream = stream_of(&second, &direct).await;
    for sequence in [1, 2, 4] {
        stream.delete_message(sequence).await.unwrap();
    }
    second.publish(event("a.b", "k", 5)).await.unwrap();
    let begun = Instant::now();
    let received = receive_all(&mut waits, 3).await;
    assert!(
        received.iter().map(number).eq([2, 4, 5]),
        "{:?}",
        received.iter().map(number).collect::<Vec<_>>()
    );
    assert!(begun.elapsed() < Duration::from_secs(12));
    proxy.refuse(false);
}

#[tokio::test]
async fn a_full_stream_that_takes_nothing_more_refuses_at_once() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut config = stream_of(&broker, &place).await.cached_info().config.clone();
    config.max_messages = 3;
    config.discard = jetstream::stream::DiscardPolicy::New;
    jetstream(&broker).update_stream(config).await.unwrap();
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let begun = Instant::now();
    let error = broker.publish(event("a.b", "k", 3)).await.unwrap_err();
    assert!(matches!(error, PublishError::Broker { .. }), "{error}");
    assert!(error.to_string().contains("maximum messages exceeded"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_consumer_that_gives_less_than_is_asked_for_is_named_with_its_limits() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    change_consumer(&broker, &place, |config| config.max_batch = 100).await;
    // What was asked for before comes still.
    for number in 0..300 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let mut received = Vec::new();
    let error = loop {
        match poll_fn(|context| deliveries.poll_receive(context, &mut received, 100)).await {
            Ok(()) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("Exceeded MaxRequestBatch of 100"), "{error}");
    let mut numbers: Vec<_> = received.iter().map(number).collect();
    for received in received {
        ack(received).await;
    }
    // Besides those acks little is said meanwhile.
    let sent = || broker.client().statistics().out_messages.load(Ordering::Relaxed);
    let before = sent();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(sent() - before < 1_000, "{} messages in 2 s", sent() - before);
    let error = place.broker().await.subscribe(request("g", ">")).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("max_batch is 100, and not 0"), "{error}");
    change_consumer(&broker, &place, |config| config.max_batch = 0).await;
    for number in 300..600 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    while numbers.len() < 600 {
        // The refusal of a moment ago may be told once more.
        let mut more = Vec::new();
        let _ = poll_fn(|context| deliveries.poll_receive(context, &mut more, 100)).await;
        numbers.extend(more.iter().map(number));
    }
    assert!(numbers.into_iter().eq(0..600));
}

#[tokio::test]
async fn a_consumer_that_the_server_would_forget_is_refused() {
    let place = Place::new();
    let broker = place.broker().await;
    drop(broker.subscribe(request("g", ">")).await.unwrap());
    change_consumer(&broker, &place, |config| config.inactive_threshold = Duration::from_secs(300)).await;
    let error = broker.subscribe(request("g", ">")).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("inactive_threshold is 300s, and not 0ns"), "{error}");
}

#[tokio::test]
async fn what_was_handed_out_of_a_stream_that_is_gone_settles_nothing_of_the_next_one() {
    for competing in [false, true] {
        let place = Place::new();
        let broker = place.broker().await;
        let mut asked = request("g", ">");
        asked.competing = competing;
        let mut deliveries = broker.subscribe(asked).await.unwrap();
        broker.publish(event("a.b", "k", 0)).await.unwrap();
        let former = receive_all(&mut deliveries, 1).await.remove(0);
        jetstream(&broker).delete_stream(&place.name).await.unwrap();
        broker.publish(event("a.b", "k", 1)).await.unwrap();
        let next = receive_all(&mut deliveries, 1).await.remove(0);
        assert_eq!((number(&next), next.receipt.offset), (1, former.receipt.offset), "it has the same place");
        assert!(former.settler.ack(former.receipt.clone()).await.is_err());
        next.settler.ack(next.receipt.clone()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), broker.settled().unwrap()).await.unwrap();
    }
}

/// Makes the stream of the events anew, as somebody does who has removed it.
async fn make_anew(broker: &NatsBroker, place: &Place) {
    let config = stream_of(broker, place).await.cached_info().config.clone();
    jetstream(broker).delete_stream(&place.name).await.unwrap();
    jetstream(broker).create_stream(config).await.unwrap();
}

/// How many deliveries are open, and how many of them were made more than once.
async fn open_at_server(broker: &NatsBroker, place: &Place) -> (usize, usize) {
    let name = consumer_of(broker, place).await;
    let info = stream_of(broker, place).await.consumer_info(&name).await.unwrap();
    (info.num_ack_pending, info.num_redelivered)
}

#[tokio::test]
async fn after_an_outage_nothing_is_said_of_a_stream_that_was_made_anew_meanwhile() {
    for (competing, leaves) in [(false, false), (true, false), (false, true), (true, true)] {
        let proxy = Proxy::to(&support::server()).await;
        let place = Place::at(proxy.url());
        let direct = place.by_way_of(support::server());
        // Nothing is delivered again because the machine stands still for a while.
        let patient = |place: &Place| place.builder().ack_wait(PATIENCE / 3);
        let (first, second) =
            (patient(&place).connect().await.unwrap(), patient(&direct).connect().await.unwrap());
        let mut asked = request("g", ">");
        asked.competing = competing;
        let mut deliveries = first.subscribe(asked.clone()).await.unwrap();
        for number in 0..4 {
            second.publish(event("a.b", "k", number)).await.unwrap();
        }
        let mut former = receive_all(&mut deliveries, 3).await;
        let kept = (!leaves).then_some(deliveries);
        proxy.refuse(true);
        proxy.cut();
        until("the outage is seen", || async { first.connection() != Connection::Up }).await;
        ack(former.remove(0)).await;
        make_anew(&second, &direct).await;
        let mut others = second.subscribe(asked).await.unwrap();
        for number in 10..14 {
            second.publish(event("a.b", "k", number)).await.unwrap();
        }
        let held = receive_all(&mut others, 4).await;
        proxy.refuse(false);
        let is_held = || former[0].settler.holds(&former[0].receipt);
        until("the first has seen that the stream is another one", || async { !is_held() }).await;
        for received in former {
            assert!(received.settler.ack(received.receipt).await.is_err());
        }
        first.client().flush().await.unwrap();
        let (open, again) = open_at_server(&second, &direct).await;
        assert_eq!((open, again), (4, 0), "competing: {competing}, leaves: {leaves}");
        for received in held {
            ack(received).await;
        }
        tokio::time::timeout(PATIENCE, second.settled().unwrap()).await.unwrap();
        drop(kept);
    }
}

#[tokio::test]
async fn after_an_outage_an_event_of_a_stream_that_was_made_anew_is_handled() {
    for competing in [false, true] {
        let proxy = Proxy::to(&support::server()).await;
        let place = Place::at(proxy.url());
        let direct = place.by_way_of(support::server());
        let (first, second) = (place.broker().await, direct.broker().await);
        let mut asked = request("g", ">");
        asked.competing = competing;
        let mut deliveries = first.subscribe(asked).await.unwrap();
        second.publish(event("a.b", "k", 0)).await.unwrap();
        let former = receive_all(&mut deliveries, 1).await.remove(0);
        proxy.refuse(true);
        proxy.cut();
        until("the outage is seen", || async { first.connection() != Connection::Up }).await;
        let name = consumer_of(&second, &direct).await;
        let config = stream_of(&second, &direct).await.consumer_info(&name).await.unwrap().config;
        make_anew(&second, &direct).await;
        let request = serde_json::json!({ "stream_name": place.name, "config": config, "action": "create" });
        let subject = format!("CONSUMER.CREATE.{}.{name}", place.name);
        let answer: serde_json::Value = jetstream(&second).request(subject, &request).await.unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        second.publish(event("a.b", "k", 1)).await.unwrap();
        proxy.refuse(false);
        let next = receive_all(&mut deliveries, 1).await.remove(0);
        assert_eq!(
            (number(&next), next.receipt.offset),
            (1, former.receipt.offset),
            "competing: {competing}"
        );
        assert!(former.settler.ack(former.receipt).await.is_err());
        ack(next).await;
        tokio::time::timeout(PATIENCE, first.settled().unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_noted_of_an_event_of_a_stream_that_is_gone_does_not_count_for_the_next_one() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    let mut former = receive_all(&mut deliveries, 1).await.remove(0);
    former.receipt.attempt = 3;
    let parked = Parked {
        first_failed_at: Timestamp::UNIX_EPOCH,
        last_failed_at: Timestamp::UNIX_EPOCH,
        due: Timestamp::UNIX_EPOCH,
    };
    former.settler.park(&former.receipt, parked).await.unwrap();
    let bucket = jetstream(&broker).get_stream(format!("KV_{}-PARKED", place.name)).await.unwrap();
    let subject = format!("$KV.{}-PARKED.{}.1", place.name, consumer_of(&broker, &place).await);
    let note = bucket.get_last_raw_message_by_subject(&subject).await.unwrap().payload;
    make_anew(&broker, &place).await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let next = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!((number(&next), next.receipt.offset), (1, former.receipt.offset), "it has the same place");
    // It was on its way for long.
    jetstream(&broker).publish(subject, note).await.unwrap().await.unwrap();
    next.settler.release(next.receipt);
    drop(deliveries);
    broker.close().await.unwrap();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    let next = receive_all(&mut deliveries, 1).await.remove(0);
    assert_eq!((number(&next), next.receipt.attempt, next.parked), (1, 1, None));
}

#[tokio::test]
async fn a_dead_letter_is_kept_of_each_stream_that_had_an_event_of_that_number() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    for times in 1..=2 {
        // Messages of other programs have no ids but the ones by their places.
        let subject = format!("{}.a.b", place.name);
        jetstream(&broker).publish(subject, times.to_string().into()).await.unwrap().await.unwrap();
        let Received { receipt, settler, .. } = receive_all(&mut deliveries, 1).await.remove(0);
        let letter = letter(&receipt);
        settler.reject(receipt, letter).await.unwrap();
        let found = broker.dead_letters().unwrap().list().await.unwrap();
        assert_eq!(found.len(), times);
        if times == 1 {
            make_anew(&broker, &place).await;
        }
    }
}

#[tokio::test]
async fn a_dead_letter_is_published_again_though_an_earlier_one_had_its_number() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    let letters = broker.dead_letters().unwrap();
    broker.publish(event("a.b", "k", 7)).await.unwrap();
    for _ in 0..2 {
        let Received { receipt, settler, .. } = receive_all(&mut deliveries, 1).await.remove(0);
        let letter = letter(&receipt);
        settler.reject(receipt, letter).await.unwrap();
        let id = letters.list().await.unwrap().remove(0).0;
        assert_eq!(id.as_str(), "1");
        assert!(letters.republish(&id, None).await.unwrap());
        jetstream(&broker).delete_stream(format!("{}-DEAD", place.name)).await.unwrap();
    }
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
}

#[tokio::test]
async fn a_dead_letter_is_kept_where_their_stream_was_removed() {
    let place = Place::new();
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    broker.publish(event("a.b", "k", 0)).await.unwrap();
    let received = receive_all(&mut deliveries, 1).await.remove(0);
    jetstream(&broker).delete_stream(format!("{}-DEAD", place.name)).await.unwrap();
    let letter = letter(&received.receipt);
    received.settler.reject(received.receipt, letter).await.unwrap();
    let found = broker.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(found.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty_is_gone_on_with() {
    let server = Server::up("nats", "nats-lost-empty");
    let place = Place::at(server.url());
    let broker = place.builder().storage(eventbus_nats::Storage::Memory).connect().await.unwrap();
    let mut one = broker.subscribe(request("one", ">")).await.unwrap();
    let mut two = broker.subscribe(request("two", "a.*")).await.unwrap();
    for number in 0..100 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for deliveries in [&mut one, &mut two] {
        for received in receive_all(deliveries, 100).await {
            ack(received).await;
        }
    }
    server.order("kill");
    server.order("restart");
    for number in 100..120 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for deliveries in [&mut one, &mut two] {
        let received = receive_all(deliveries, 20).await;
        assert!(
            received.iter().map(number).eq(100..120),
            "{:?}",
            received.iter().map(number).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn a_publish_whose_confirmation_was_lost_is_not_refused_where_nobody_takes_it_again() {
    let proxy = Proxy::to(&support::server()).await;
    let place = Place::new();
    let direct = place.broker().await;
    let through = place.by_way_of(proxy.url());
    let builder = through.builder().topology(Topology::Check).publish_timeout(Duration::from_secs(8));
    let broker = builder.connect().await.unwrap();
    proxy.mute(true);
    let publishing = tokio::spawn(async move { broker.publish(event("a.b", "k", 1)).await });
    until("it is stored", || async { stream_of(&direct, &place).await.cached_info().state.messages == 1 })
        .await;
    jetstream(&direct).delete_stream(&place.name).await.unwrap();
    proxy.cut();
    proxy.mute(false);
    let error = publishing.await.unwrap().unwrap_err();
    assert!(matches!(error, PublishError::Unconfirmed { .. }), "it was stored: {error}");
    // What was never sent to a stream is refused.
    let broker = place.builder().topology(Topology::Create).connect().await.unwrap();
    drop(broker);
    let checking = place.builder().topology(Topology::Check).connect().await.unwrap();
    jetstream(&direct).delete_stream(&place.name).await.unwrap();
    let error = checking.publish(event("a.b", "k", 2)).await.unwrap_err();
    assert!(matches!(error, PublishError::Broker { .. }), "{error}");
    assert!(error.to_string().contains("no stream takes it"), "{error}");
}
