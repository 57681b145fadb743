//! What this broker alone does.

mod support;

use eventbus::PublishError;
use eventbus::broker::{
    Broker, DeadLetter, DeadLetterId, DeadLetterQuery, Deliveries, FailureKind, Parked, Receipt, Received,
};
use eventbus::{Envelope, Topic};
use eventbus_core::jiff::{SignedDuration, Timestamp};
use eventbus_rabbitmq::QueueType;
use eventbus_rabbitmq::lapin::ExchangeKind;
use eventbus_rabbitmq::lapin::options::{
    BasicGetOptions, BasicRejectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use eventbus_rabbitmq::lapin::types::FieldTable;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{
    ack, behind_proxy, builder, connect, event, exchange, number, receive, remove, request, server, until,
    url_at,
};

#[tokio::test]
async fn an_event_that_no_group_listens_on_is_an_error_where_one_is_asked_for() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let strict = builder(&exchange).mandatory(true).connect().await.unwrap();
    let refused = strict.publish(event("a.b", "k", 2)).await;
    assert!(matches!(&refused, Err(PublishError::Broker { .. })), "{refused:?}");
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("no group listens") && said.contains("`mandatory`"), "{said}");
    let mut deliveries = strict.subscribe(request("mail", "a.*")).await.unwrap();
    let mixed =
        strict.publish_all(vec![event("a.b", "k", 3), event("b.c", "k", 4), event("a.c", "k", 5)]).await;
    assert!(mixed[0].is_ok() && mixed[1].is_err() && mixed[2].is_ok(), "{mixed:?}");
    let received = receive(&mut deliveries, 2).await;
    assert_eq!(received.iter().map(number).collect::<Vec<_>>(), [3, 5]);
    for one in received {
        ack(one).await;
    }
    broker.close().await.unwrap();
    strict.close().await.unwrap();
    remove(&exchange).await;
}

/// The server returns each message before it confirms it, but confirms several at once: which of them was returned is told
/// by what it is.
#[tokio::test]
async fn each_of_many_publishes_is_told_whether_a_group_listens_on_it() {
    let exchange = exchange();
    let broker = builder(&exchange).mandatory(true).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "heard.*")).await.unwrap();
    let topic = |number: u64| if number.is_multiple_of(3) { "unheard.a" } else { "heard.a" };
    for round in 0..20 {
        let events = (0..50).map(|number| event(topic(number), "k", 50 * round + number)).collect();
        let results = broker.publish_all(events).await;
        let is_wrong = |number: &usize| results[*number].is_ok() == number.is_multiple_of(3);
        let wrong: Vec<_> = (0..50).filter(is_wrong).collect();
        assert!(wrong.is_empty(), "round {round}: {wrong:?}");
        for one in receive(&mut deliveries, 33).await {
            ack(one).await;
        }
    }
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// Parks a delivery, as a bus does whose handler has failed.
async fn park(received: &Received, attempt: u32, delay: Duration) {
    let now = Timestamp::now();
    let due = now + SignedDuration::try_from(delay).unwrap();
    let mut receipt = received.receipt.clone();
    receipt.attempt = attempt;
    received.settler.park(&receipt, Parked { first_failed_at: now, last_failed_at: now, due }).await.unwrap();
}

#[tokio::test]
async fn a_retry_that_is_far_off_waits_in_the_server_with_its_attempt_and_its_time() {
    const DELAY: Duration = Duration::from_secs(3);
    let exchange = exchange();
    let broker = builder(&exchange).consumer_timeout(Duration::from_secs(60)).connect().await.unwrap();
    // With as much, more than a second is far off.
    let mut long = request("mail", "a.b");
    long.timeout = Duration::from_secs(29);
    let mut deliveries = broker.subscribe(long.clone()).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    let near = Duration::from_millis(100);
    park(&received, 2, near).await;
    assert!(received.settler.holds(&received.receipt), "near by it is held");
    let parked = Instant::now();
    park(&received, 3, DELAY).await;
    assert!(!received.settler.holds(&received.receipt), "the server has it");
    // The process ends meanwhile.
    drop((received, deliveries));
    broker.close().await.unwrap();
    let broker = builder(&exchange).consumer_timeout(Duration::from_secs(60)).connect().await.unwrap();
    let mut deliveries = broker.subscribe(long).await.unwrap();
    let again = receive(&mut deliveries, 1).await.remove(0);
    assert!(parked.elapsed() >= DELAY, "it came after {:?}", parked.elapsed());
    assert_eq!((number(&again), again.receipt.attempt), (1, 3));
    assert_eq!((again.receipt.envelope.topic().as_str(), again.receipt.envelope.key()), ("a.b", Some("k")));
    ack(again).await;
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_retry_that_is_further_off_than_the_server_counts_waits_in_one_queue_after_the_other() {
    // Thirty days, rounded up: half of what the server counts, and a bit more.
    const STEP: u64 = 2_621_440;
    for queue_type in [QueueType::Quorum, QueueType::Classic] {
        let exchange = exchange();
        let broker = builder(&exchange).queue_type(queue_type).connect().await.unwrap();
        let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
        // A classic queue would be unused for longer than the server counts.
        for (number, days, queues) in [(1, 30, 1), (2, 60, 2)] {
            broker.publish(event("a.b", "k", number)).await.unwrap();
            let received = receive(&mut deliveries, 1).await.remove(0);
            park(&received, 3, Duration::from_secs(days * 86_400)).await;
            assert!(!received.settler.holds(&received.receipt), "the server has it");
            let word = |name: &str| name.replace('%', "%25").replace(':', "%3A");
            let delay = |queue: &str| format!("{exchange}:delay:{STEP}s:{}", word(queue));
            let mut names = vec![format!("{exchange}:group:mail:a.b")];
            (0..queues).for_each(|_| names.push(delay(names.last().unwrap())));
            let channel = broker.channel().await.unwrap();
            for name in names[1..].iter().rev() {
                // What is rejected goes on as what has waited.
                until("it waits there", async || {
                    let got = channel.basic_get(name.as_str().into(), BasicGetOptions::default()).await;
                    let Some(got) = got.unwrap() else { return false };
                    got.delivery.reject(BasicRejectOptions { requeue: false }).await.unwrap()
                })
                .await;
            }
            let again = receive(&mut deliveries, 1).await.remove(0);
            assert_eq!(self::number(&again), number);
            // The server counts the deliveries in between.
            assert!(again.receipt.attempt >= 3, "{}", again.receipt.attempt);
            ack(again).await;
            for name in &names[1..] {
                channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
            }
        }
        broker.close().await.unwrap();
        remove(&exchange).await;
    }
}

#[tokio::test]
async fn what_the_server_gives_up_by_itself_is_a_dead_letter_that_says_so_and_goes_again() {
    let exchange = exchange();
    let limited = || builder(&exchange).delivery_limit(1);
    let mut once = request("mail", "a.b");
    once.retries = 0;
    let first = limited().connect().await.unwrap();
    drop(first.subscribe(once.clone()).await.unwrap());
    first.publish(event("a.b", "k", 7)).await.unwrap();
    first.close().await.unwrap();
    // Two processes end with it in their hands.
    for attempt in 1..=2 {
        let broker = limited().connect().await.unwrap();
        let mut deliveries = broker.subscribe(once.clone()).await.unwrap();
        let received = receive(&mut deliveries, 1).await.remove(0);
        assert_eq!(received.receipt.attempt, attempt);
        drop((broker, deliveries, received));
    }
    let broker = limited().connect().await.unwrap();
    let letters = broker.dead_letters().unwrap();
    let mut query = DeadLetterQuery::default();
    query.group = Some("mail".to_owned());
    until("it is a dead letter", async || letters.find(query.clone()).await.unwrap().len() == 1).await;
    let found = letters.list().await.unwrap();
    let (id, letter) = &found[0];
    assert_eq!(letters.find(query.clone()).await.unwrap()[0].0, *id, "its name stays");
    assert_eq!((letter.kind, letter.envelope.topic().as_str()), (FailureKind::Crashed, "a.b"));
    assert!(letter.reason.contains("delivery_limit"), "{}", letter.reason);
    assert_eq!(letter.envelope.payload().unwrap(), "7");
    let mut deliveries = broker.subscribe(once).await.unwrap();
    assert!(letters.republish(id, None).await.unwrap() && !letters.republish(id, None).await.unwrap());
    let again = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!((number(&again), again.receipt.attempt), (7, 1));
    ack(again).await;
    assert!(letters.list().await.unwrap().is_empty());
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn another_process_finds_the_dead_letters_of_every_group() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let topic = Topic::new("a.b").unwrap();
    let mut buses = Vec::new();
    for group in ["mail", "billing"] {
        let bus = eventbus::Bus::builder().without_subscriptions().broker(broker.clone()).await.unwrap();
        let failing = bus.on_topic(&topic, |_| async { eventbus::Outcome::Reject("never".into()) });
        failing.group(group).await.unwrap();
        bus.start_quietly().unwrap();
        buses.push(bus);
    }
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let other = builder(&exchange).connect().await.unwrap();
    let letters = other.dead_letters().unwrap();
    until("all are kept", async || letters.list().await.unwrap().len() == 6).await;
    // Two that look at the same moment see all.
    let third = builder(&exchange).connect().await.unwrap();
    let others = third.dead_letters().unwrap();
    let (one, another) = tokio::join!(letters.list(), others.list());
    assert_eq!((one.unwrap().len(), another.unwrap().len()), (6, 6));
    let states = other.groups().unwrap().list().await.unwrap();
    assert!(states.iter().all(|state| state.dead_letters == 3 && state.active), "{states:?}");
    other.close().await.unwrap();
    third.close().await.unwrap();
    drop(buses);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_queue_that_somebody_removed_is_made_again() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let channel = broker.channel().await.unwrap();
    let queue = format!("{exchange}:group:mail:a.b");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let strict = builder(&exchange).mandatory(true).connect().await.unwrap();
    until("it is bound again", async || strict.publish(event("a.b", "k", 2)).await.is_ok()).await;
    let received = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&received), 2);
    ack(received).await;
    strict.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn what_is_in_hand_as_its_queue_is_removed_is_not_taken_for_what_comes_later() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let held = receive(&mut deliveries, 1).await.remove(0);
    let channel = broker.channel().await.unwrap();
    let queue = format!("{exchange}:group:mail:a.b");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    until("it is known to be gone", async || !held.settler.holds(&held.receipt)).await;
    let strict = builder(&exchange).mandatory(true).connect().await.unwrap();
    until("it is bound again", async || strict.publish(event("a.b", "k", 2)).await.is_ok()).await;
    let received = receive(&mut deliveries, 1).await.remove(0);
    let refused = held.settler.ack(held.receipt).await.unwrap_err().to_string();
    assert!(refused.contains("`mail`"), "{refused}");
    assert!(received.settler.holds(&received.receipt) && number(&received) == 2);
    ack(received).await;
    broker.settled().unwrap().await;
    strict.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn an_exchange_that_somebody_removed_is_made_again_with_the_bindings_of_all_groups() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut mail = broker.subscribe(request("mail", "a.*")).await.unwrap();
    let mut billing = broker.subscribe(request("billing", "a.b")).await.unwrap();
    let publisher = builder(&exchange).connect().await.unwrap();
    publisher.publish(event("a.b", "k", 1)).await.unwrap();
    let channel = broker.channel().await.unwrap();
    for (number, another) in [(2, false), (3, true)] {
        channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        // Whoever publishes finds it gone, or somebody else has made it by then.
        let another = if another { Some(builder(&exchange).connect().await.unwrap()) } else { None };
        until("it is taken", async || publisher.publish(event("a.b", "k", number)).await.is_ok()).await;
        if let Some(another) = another {
            another.close().await.unwrap();
        }
    }
    for deliveries in [&mut mail, &mut billing] {
        for (received, expected) in receive(deliveries, 3).await.into_iter().zip(1..) {
            assert_eq!(number(&received), expected);
            ack(received).await;
        }
    }
    publisher.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// Another process has made the exchange again, and is about to bind the queues of all groups to it.
#[tokio::test]
async fn who_found_the_exchange_missing_publishes_to_every_group_whoever_has_made_it_again() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    let (proxy, url) = behind_proxy(&server()).await;
    let publisher = connect(&format!("{}&heartbeat=60s", url_at(&url, &exchange))).await;
    publisher.publish(event("a.b", "k", 1)).await.unwrap();
    let channel = broker.channel().await.unwrap();
    channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    proxy.mute(true);
    let refused = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish(event("a.b", "k", 2)).await }
    });
    until("the server has said that there is none", async || proxy.has_kept()).await;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let (name, arguments) = (exchange.as_str().into(), FieldTable::default());
    channel.exchange_declare(name, ExchangeKind::Topic, durable, arguments).await.unwrap();
    proxy.mute(false);
    let refused = refused.await.unwrap().unwrap_err();
    assert!(matches!(refused, PublishError::Broker { .. }), "{refused:?}");
    publisher.publish(event("a.b", "k", 3)).await.unwrap();
    for (received, expected) in receive(&mut deliveries, 2).await.into_iter().zip([1, 3]) {
        assert_eq!(number(&received), expected);
        ack(received).await;
    }
    publisher.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// What a bus makes of a delivery that it gives up.
fn letter(receipt: &Receipt) -> DeadLetter {
    DeadLetter {
        envelope: Arc::clone(&receipt.envelope),
        group: "mail".to_owned(),
        handler: "tests".to_owned(),
        attempts: 1,
        kind: FailureKind::Rejected,
        reason: "never".to_owned(),
        first_failed_at: Timestamp::now(),
        last_failed_at: Timestamp::now(),
        offset: receipt.offset,
    }
}

#[tokio::test]
async fn a_queue_of_dead_letters_that_somebody_removed_is_made_again() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let Received { receipt, settler, .. } = receive(&mut deliveries, 1).await.remove(0);
    let channel = broker.channel().await.unwrap();
    let queue = format!("{exchange}:dead-letters:mail");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let letter = letter(&receipt);
    settler.reject(receipt, letter).await.unwrap();
    assert_eq!(broker.dead_letters().unwrap().list().await.unwrap().len(), 1);
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// The server for tests has a policy for what begins so: two deliveries after the first, and no more.
#[tokio::test]
async fn looks_at_dead_letters_drop_none_where_a_policy_limits_deliveries() {
    let exchange = format!("limited{}", exchange());
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    for Received { receipt, settler, .. } in receive(&mut deliveries, 3).await {
        let letter = letter(&receipt);
        settler.reject(receipt, letter).await.unwrap();
    }
    let letters = broker.dead_letters().unwrap();
    let first = letters.list().await.unwrap();
    let names = |found: &[(DeadLetterId, Arc<DeadLetter>)]| {
        found.iter().map(|(id, letter)| (id.clone(), letter.reason.clone())).collect::<Vec<_>>()
    };
    for look in 1..12 {
        let found = letters.list().await.unwrap();
        assert_eq!(names(&found), names(&first), "look {look}");
    }
    assert!(letters.purge(&first[0].0).await.unwrap());
    assert!(letters.republish(&first[1].0, None).await.unwrap());
    let again = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!(number(&again), 1);
    ack(again).await;
    assert_eq!(names(&letters.list().await.unwrap()), names(&first[2..]));
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_look_at_dead_letters_that_is_given_up_keeps_no_other_process_out() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let Received { receipt, settler, .. } = receive(&mut deliveries, 1).await.remove(0);
    let letter = letter(&receipt);
    settler.reject(receipt, letter).await.unwrap();
    let other = builder(&exchange).connect().await.unwrap();
    let (letters, others) = (broker.dead_letters().unwrap(), other.dead_letters().unwrap());
    for millis in (0..120).step_by(3) {
        let _ = tokio::time::timeout(Duration::from_millis(millis), letters.list()).await;
        // Not at the end alone: the next look of the first process ends the one before.
        let seen = others.list().await.expect("it is soon its turn");
        assert_eq!(seen.len(), 1, "cut off after {millis} ms");
    }
    other.close().await.unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

/// Takes all that comes within a while, without waiting for more.
async fn at_hand(deliveries: &mut Box<dyn Deliveries>, time: Duration) -> Vec<u64> {
    let mut received = Vec::new();
    let receiving = async {
        loop {
            let one = receive(deliveries, 1).await.remove(0);
            received.push(number(&one));
            ack(one).await;
        }
    };
    let _: Result<(), _> = tokio::time::timeout(time, receiving).await;
    received
}

#[tokio::test]
async fn what_was_settled_here_and_comes_again_for_want_of_its_ack_is_only_acked() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let broker = connect(&url_at(&url, &exchange)).await;
    let mut deliveries = broker.subscribe(request("mail", "a.b")).await.unwrap();
    for number in 0..3 {
        broker.publish(event("a.b", "k", number)).await.unwrap();
    }
    let received = receive(&mut deliveries, 3).await;
    proxy.swallow(true);
    let mut held = received.into_iter();
    for one in held.by_ref().take(2) {
        ack(one).await;
    }
    let last = held.next().unwrap();
    // The acks are sent by now, and are nowhere.
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.cut();
    proxy.swallow(false);
    let again = receive(&mut deliveries, 1).await.remove(0);
    assert_eq!((number(&again), again.receipt.attempt), (2, 2), "the first two were settled");
    let refused = last.settler.ack(last.receipt).await.unwrap_err().to_string();
    assert!(refused.contains("`mail`") && refused.contains("delivered again"), "{refused}");
    ack(again).await;
    assert!(at_hand(&mut deliveries, Duration::from_millis(500)).await.is_empty());
    broker.settled().unwrap().await;
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn what_was_sent_and_not_confirmed_is_said_to_be_so_and_what_was_not_sent_is_refused() {
    let exchange = exchange();
    let (proxy, url) = behind_proxy(&server()).await;
    let broker = connect(&format!("{}&publish_timeout=2s&heartbeat=30s", url_at(&url, &exchange))).await;
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    proxy.swallow(true);
    let begun = Instant::now();
    let unconfirmed = broker.publish(event("a.b", "k", 2)).await;
    assert!(matches!(&unconfirmed, Err(PublishError::Unconfirmed { .. })), "{unconfirmed:?}");
    assert!(unconfirmed.unwrap_err().to_string().contains("`publish_timeout`"));
    assert!(begun.elapsed() >= Duration::from_secs(2) && begun.elapsed() < Duration::from_secs(20));
    proxy.refuse(true);
    proxy.cut();
    proxy.swallow(false);
    until("the loss is known", async || broker.connection() != eventbus::broker::Connection::Up).await;
    let refused = broker.publish(event("a.b", "k", 3)).await;
    assert!(matches!(&refused, Err(PublishError::Broker { .. })), "it was not sent: {refused:?}");
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(event("a.b", "k", 4)).await }
    });
    proxy.refuse(false);
    waiting.await.unwrap().unwrap();
    broker.close().await.unwrap();
    remove(&exchange).await;
}

#[tokio::test]
async fn a_dead_letter_of_a_group_that_is_gone_stays() {
    let exchange = exchange();
    let broker = builder(&exchange).connect().await.unwrap();
    let bus = eventbus::Bus::builder().without_subscriptions().broker(broker.clone()).await.unwrap();
    let topic = Topic::new("a.b").unwrap();
    let failing = bus.on_topic(&topic, |_| async { eventbus::Outcome::Reject("never".into()) });
    failing.group("mail").await.unwrap();
    bus.start_quietly().unwrap();
    bus.publish_envelope(Envelope::from_json(topic.clone(), &7).unwrap()).await.unwrap();
    let letters = broker.dead_letters().unwrap();
    until("it is kept", async || letters.list().await.unwrap().len() == 1).await;
    bus.shutdown().await.unwrap();
    let broker = builder(&exchange).connect().await.unwrap();
    let (letters, groups) = (broker.dead_letters().unwrap(), broker.groups().unwrap());
    until("nobody handles it", async || groups.remove("mail").await.is_ok_and(|removed| removed)).await;
    assert!(groups.list().await.unwrap().is_empty());
    let found = letters.list().await.unwrap();
    assert_eq!(found.len(), 1, "dead letters stay");
    let error = letters.republish(&found[0].0, None).await.unwrap_err().to_string();
    assert!(error.contains("`mail`") && error.contains("\"a.b\""), "{error}");
    assert_eq!(letters.list().await.unwrap().len(), 1);
    assert!(letters.purge(&found[0].0).await.unwrap());
    broker.close().await.unwrap();
    remove(&exchange).await;
}
