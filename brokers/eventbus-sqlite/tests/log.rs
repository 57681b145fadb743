//! What the log promises beyond the suite for every broker. Names are promises.

mod support;

use eventbus::broker::{
    AuditQuery, Broker, DeadLetter, FailureKind, Groups, Received, ReplayFrom, ReplayRequest, ReplayUntil,
    SubscribeRequest,
};
use eventbus::{Backoff, Bus, Delivery, Envelope, EventId, Outcome, PublishError, State, Topic, subscribe};
use eventbus_sqlite::{SqliteBroker, SqliteBrokerBuilder};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{Log, OrderPlaced, PATIENCE, Ping, Seen, pings, publish_pings, settled, until};
use tokio::sync::{Notify, Semaphore};

#[subscribe(start = "earliest", group = "early")]
async fn early(ping: Ping, seen: State<Seen<u64>>) {
    seen.push(ping.number);
}

#[tokio::test]
async fn what_is_published_after_and_before_a_group_begins_is_delivered_as_its_start_says() {
    let log = Log::new();
    let bus = log.bus().await;
    publish_pings(&bus, 0..3).await;
    let late = pings(&bus, "late").await;
    bus.start().unwrap();
    let seen = Seen::<u64>::new();
    let builder = Bus::builder().state(seen.clone()).only([early::SUBSCRIBER]);
    let other = builder.broker(log.broker().await).await.unwrap();
    other.start().unwrap();
    publish_pings(&bus, 3..6).await;
    bus.settled().await.unwrap();
    while seen.len() < 6 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((late.sorted(), seen.sorted()), (vec![3, 4, 5], vec![0, 1, 2, 3, 4, 5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_publishers_and_fifty_subscribers_miss_nothing() {
    let log = Log::new();
    let bus = log.bus().await;
    let mut groups = Vec::new();
    for group in 0..50 {
        groups.push(pings(&bus, &format!("group-{group}")).await);
    }
    bus.start().unwrap();
    let publishers = (0..50u64).map(|publisher| {
        let bus = bus.clone();
        tokio::spawn(async move {
            for number in 0..20 {
                bus.publish(Ping { number: publisher * 20 + number }).await.unwrap();
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    bus.settled().await.unwrap();
    let all: Vec<u64> = (0..1_000).collect();
    assert!(groups.iter().all(|seen| seen.sorted() == all));
}

#[tokio::test]
async fn topics_do_not_leak_and_patterns_cover_what_they_say() {
    let log = Log::new();
    let bus = log.bus().await;
    let subscribe = async |pattern: &str| {
        let seen = Seen::new();
        let topics = seen.clone();
        let note = move |delivery: Delivery| {
            let topics = topics.clone();
            async move { topics.push(delivery.envelope().topic().to_string()) }
        };
        bus.on_topic(pattern, note).group(pattern.replace('*', "one").replace('>', "more")).await.unwrap();
        seen
    };
    let (exact, one, more, all) =
        (subscribe("a.b").await, subscribe("a.*").await, subscribe("a.>").await, subscribe(">").await);
    bus.start().unwrap();
    for topic in ["a", "a.b", "a.c", "a.b.c", "b.a"] {
        bus.publish_to(topic, &1).await.unwrap();
    }
    bus.settled().await.unwrap();
    assert_eq!(exact.sorted(), ["a.b"]);
    assert_eq!(one.sorted(), ["a.b", "a.c"]);
    assert_eq!(more.sorted(), ["a.b", "a.b.c", "a.c"]);
    assert_eq!(all.sorted(), ["a", "a.b", "a.b.c", "a.c", "b.a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_their_order_under_concurrency_and_failures() {
    let log = Log::new();
    let bus = log.bus().await;
    let mut groups = Vec::new();
    for group in 0..10 {
        let seen: Seen<(u64, u64)> = Seen::new();
        let orders = seen.clone();
        let handle = move |delivery: Delivery| {
            let orders = orders.clone();
            async move {
                let order = delivery.event::<OrderPlaced>().unwrap();
                tokio::task::yield_now().await;
                if order.number % 7 == 3 && delivery.attempt() < 3 {
                    return Err("not yet");
                }
                orders.push((order.customer, order.number));
                Ok(())
            }
        };
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(4));
        bus.on_topic("order.placed", handle)
            .group(format!("g{group}"))
            .backoff(backoff)
            .concurrency(8)
            .await
            .unwrap();
        groups.push(seen);
    }
    bus.start().unwrap();
    for number in 0..20 {
        for customer in 0..16 {
            bus.publish(OrderPlaced { customer, number }).await.unwrap();
        }
    }
    bus.settled().await.unwrap();
    for seen in groups {
        let mut by_customer: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (customer, number) in seen.all() {
            by_customer.entry(customer).or_default().push(number);
        }
        assert_eq!(by_customer.len(), 16);
        assert!(
            by_customer.values().all(|numbers| *numbers == (0..20).collect::<Vec<_>>()),
            "{by_customer:?}"
        );
    }
}

#[tokio::test]
async fn a_group_that_fails_changes_nothing_for_another() {
    let log = Log::new();
    let bus = log.bus().await;
    let good = pings(&bus, "good").await;
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("never") }).group("bad").retries(0).await.unwrap();
    bus.on(|_: Arc<Ping>| async { assert_eq!(1, 2, "never") }).group("worse").retries(0).await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..100).await;
    bus.settled().await.unwrap();
    assert_eq!(good.sorted(), (0..100).collect::<Vec<_>>());
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters.len(), 200);
    let kinds: HashMap<_, usize> = letters.iter().fold(HashMap::new(), |mut kinds, (_, letter)| {
        *kinds.entry((letter.group.clone(), letter.kind.as_str())).or_default() += 1;
        kinds
    });
    assert_eq!(kinds[&("bad".to_owned(), "failed")], 100);
    assert_eq!(kinds[&("worse".to_owned(), "panicked")], 100);
}

#[tokio::test]
async fn a_dead_letter_says_everything_and_goes_again_to_the_group_that_failed_and_to_no_other() {
    let log = Log::new();
    let bus = log.bus().await;
    let other = pings(&bus, "other").await;
    let (mended, seen) = (Arc::new(AtomicUsize::new(0)), Seen::new());
    let (switch, numbers) = (Arc::clone(&mended), seen.clone());
    let handle = move |ping: Arc<Ping>| {
        let (switch, numbers) = (Arc::clone(&switch), numbers.clone());
        async move {
            if switch.load(Ordering::SeqCst) == 0 {
                return Outcome::Reject("out of stock".into());
            }
            numbers.push(ping.number);
            Outcome::Ack
        }
    };
    bus.on(handle).group("failing").await.unwrap();
    bus.start().unwrap();
    bus.publish(Ping { number: 7 }).header("tenant", "acmé").await.unwrap();
    bus.publish(Ping { number: 8 }).await.unwrap();
    bus.settled().await.unwrap();
    let dead_letters = bus.dead_letters().unwrap();
    let letters = dead_letters.list().await.unwrap();
    let (first, letter) = &letters[0];
    let headers = letter.headers();
    let said =
        |name: &str| headers.get(&format!("eventbus-dead-letter-{name}")).unwrap_or_default().to_owned();
    assert_eq!(
        (said("reason"), said("kind"), said("group")),
        ("out of stock".into(), "rejected".into(), "failing".into())
    );
    assert_eq!(
        (said("topic"), said("attempts"), said("offset")),
        ("ping.sent".into(), "1".into(), "1".into())
    );
    assert!(said("handler").contains("log.rs"), "{headers:?}");
    assert_eq!(letter.envelope.headers().get("tenant"), Some("acmé"));

    mended.store(1, Ordering::SeqCst);
    assert!(dead_letters.republish(first, None).await.unwrap());
    assert!(!dead_letters.republish(first, None).await.unwrap(), "a second time there is nothing to do");
    let payload = serde_json::to_vec(&Ping { number: 9 }).unwrap();
    assert!(dead_letters.republish(&letters[1].0, Some(payload.into())).await.unwrap());
    bus.settled().await.unwrap();
    assert_eq!((seen.sorted(), other.sorted()), (vec![7, 9], vec![7, 8]));
    assert!(dead_letters.list().await.unwrap().is_empty());
    assert!(!dead_letters.purge(first).await.unwrap());
}

#[tokio::test]
async fn bytes_that_do_not_decode_become_a_dead_letter_and_the_next_event_is_handled() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    let poison =
        Envelope::from_bytes(Topic::from_static("ping.sent"), "application/json", "{\"number\": no".into());
    bus.publish_envelope(poison).await.unwrap();
    publish_pings(&bus, 1..2).await;
    bus.settled().await.unwrap();
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters[0].1.kind.as_str(), seen.all()), ("undecodable", vec![1]));
    assert_eq!(letters[0].1.envelope.payload().unwrap(), "{\"number\": no");
    assert!(letters[0].1.reason.contains("column"), "{}", letters[0].1.reason);
}

#[tokio::test]
async fn a_retry_comes_not_before_it_is_due_and_not_much_later() {
    let log = Log::new();
    let bus = log.bus().await;
    let times: Seen<Instant> = Seen::new();
    let noted = times.clone();
    let handle = move |delivery: Delivery| {
        let noted = noted.clone();
        async move {
            noted.push(Instant::now());
            if delivery.attempt() == 1 {
                Outcome::RetryAfter(Duration::from_millis(300))
            } else {
                Outcome::Ack
            }
        }
    };
    bus.on_topic("ping.sent", handle).group("pings").await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..1).await;
    bus.settled().await.unwrap();
    let times = times.all();
    let waited = times[1] - times[0];
    assert!(waited >= Duration::from_millis(300) && waited < Duration::from_secs(3), "{waited:?}");
}

#[tokio::test]
async fn an_event_is_stored_once_however_often_it_is_published() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    for number in [1, 1, 2] {
        bus.publish(Ping { number }).id(EventId::new(format!("ping-{number}"))).await.unwrap();
    }
    bus.settled().await.unwrap();
    assert_eq!(seen.sorted(), [1, 2]);
    assert_eq!(bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_event_with_the_id_of_another_one_is_refused_and_others_in_its_batch_are_not() {
    let log = Log::new();
    let bus = log.bus().await;
    let id = EventId::new("order-7");
    bus.publish_to("order.placed", &1).id(id.clone()).await.unwrap();
    let error = bus.publish_to("order.paid", &1).id(id.clone()).await.unwrap_err().to_string();
    assert!(error.contains("`order-7`") && error.contains("on \"order.placed\""), "{error}");
    let paid = |id| Envelope::from_json(Topic::new("order.paid").unwrap(), &1).unwrap().with_id(id);
    let both = bus.publish_envelopes([paid(id.clone()), paid(EventId::new("order-8"))]).await;
    assert_eq!(both.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    bus.publish_to("order.placed", &1).id(id).await.expect("it is there");
    assert_eq!(bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_event_above_the_limit_is_refused_and_others_in_its_batch_are_not() {
    let log = Log::new();
    let broker = log.broker_with(|settings| settings.max_payload(100)).await;
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let error = bus.publish_to("a.b", &"x".repeat(99)).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { size: 101, limit: 100, .. }), "{error}");
    assert!(error.to_string().contains("max_payload"), "{error}");
    bus.publish_to("a.b", &"x".repeat(98)).await.unwrap();
    let envelope = || Envelope::from_json(Topic::from_static("a.b"), &1).unwrap();
    let error =
        bus.publish_envelope(envelope().with_key("k".repeat(64 << 10))).await.unwrap_err().to_string();
    for part in ["key and the other attributes have", "65,536 are allowed", "max_payload"] {
        assert!(error.contains(part), "{error}");
    }
    let large = |count: usize| envelope().with_header("name", "v".repeat(count));
    let results = bus.publish_envelopes([large(70_000), large(60_000)]).await;
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_two_brokers_share_handles_each_event_once_and_passes_on_when_one_leaves() {
    let log = Log::new();
    let (first, second) = (log.bus().await, log.bus().await);
    let (here, there) = (pings(&first, "shared").await, pings(&second, "shared").await);
    first.start().unwrap();
    second.start().unwrap();
    publish_pings(&second, 0..500).await;
    while here.len() < 500 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.shutdown().await.unwrap();
    publish_pings(&second, 500..1_000).await;
    second.settled().await.unwrap();
    while here.len() + there.len() < 1_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(here.sorted(), (0..500).collect::<Vec<_>>());
    assert_eq!(there.sorted(), (500..1_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_take_longer_than_the_lease() {
    let log = Log::new();
    let broker = || log.broker_with(|settings| settings.lease(Duration::from_millis(200)));
    let first = Bus::builder().without_subscriptions().broker(broker().await).await.unwrap();
    let second = Bus::builder().without_subscriptions().broker(broker().await).await.unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    for bus in [&first, &second] {
        let handled = Arc::clone(&handled);
        bus.on(move |_: Arc<Ping>| {
            handled.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1))
        })
        .group("slow")
        .await
        .unwrap();
        bus.start().unwrap();
    }
    publish_pings(&first, 0..1).await;
    first.settled().await.unwrap();
    assert_eq!(handled.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_under_load_settles_or_delivers_again_and_loses_nothing() {
    let log = Log::new();
    let seen: Seen<u64> = Seen::new();
    let handle = |seen: &Seen<u64>| {
        let seen = seen.clone();
        move |ping: Arc<Ping>| {
            let seen = seen.clone();
            async move {
                tokio::task::yield_now().await;
                seen.push(ping.number);
            }
        }
    };
    let mut published = 0;
    for _ in 0..5 {
        let bus = log.bus().await;
        bus.on(handle(&seen)).group("pings").await.unwrap();
        bus.start().unwrap();
        publish_pings(&bus, published..published + 400).await;
        published += 400;
        bus.shutdown().await.unwrap();
    }
    let bus = log.bus().await;
    bus.on(handle(&seen)).group("pings").await.unwrap();
    bus.start().unwrap();
    bus.settled().await.unwrap();
    assert_eq!(seen.sorted(), (0..published).collect::<Vec<_>>(), "a graceful end repeats nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_under_way_stores_what_was_published_before() {
    let log = Log::new();
    let bus = log.bus().await;
    let publishing = bus.publish_all((0..10_000).map(|number| Arc::new(Ping { number })));
    let (published, closed) = tokio::join!(publishing, async {
        tokio::task::yield_now().await;
        let (first, second) = tokio::join!(bus.shutdown(), bus.shutdown());
        first.and(second)
    });
    closed.unwrap();
    let stored = published.iter().filter(|result| result.is_ok()).count();
    let bus = log.bus().await;
    let mut query = AuditQuery::default();
    query.limit = 20_000;
    assert_eq!(bus.audit_log().unwrap().query(query).await.unwrap().len(), stored);
    assert_eq!(stored, 10_000);
}

#[tokio::test]
async fn subscriptions_that_come_and_go_lose_nothing() {
    let log = Log::new();
    let bus = log.bus().await;
    bus.on(|_: Arc<OrderPlaced>| async {}).group("keeps-it-running").await.unwrap();
    bus.start().unwrap();
    let mut all = Vec::new();
    for round in 0..30u64 {
        let seen = Seen::new();
        let numbers = seen.clone();
        let note = move |ping: Arc<Ping>| {
            let numbers = numbers.clone();
            async move { numbers.push(ping.number) }
        };
        let handle = bus.on(note).group("short-lived").concurrency(1).await.unwrap();
        publish_pings(&bus, round * 10..round * 10 + 10).await;
        while round % 2 == 0 && seen.len() == 0 {
            tokio::task::yield_now().await;
        }
        handle.stop().await;
        all.extend(seen.all());
    }
    let last = pings(&bus, "short-lived").await;
    bus.settled().await.unwrap();
    all.extend(last.all());
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (0..300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lane_holds_the_next_event_while_one_is_open() {
    let log = Log::new();
    let bus = log.bus().await;
    let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let seen: Seen<u64> = Seen::new();
    let (key, bell, numbers) = (Arc::clone(&gate), Arc::clone(&entered), seen.clone());
    bus.on(move |order: Arc<OrderPlaced>| {
        let (key, bell, numbers) = (Arc::clone(&key), Arc::clone(&bell), numbers.clone());
        async move {
            numbers.push(order.number);
            bell.notify_one();
            if order.customer == 1 {
                key.acquire().await.unwrap().forget();
            }
        }
    })
    .group("orders")
    .concurrency(4)
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    entered.notified().await;
    bus.publish(OrderPlaced { customer: 1, number: 2 }).await.unwrap();
    bus.publish(OrderPlaced { customer: 2, number: 3 }).await.unwrap();
    entered.notified().await;
    assert_eq!(seen.all(), [1, 3], "another key is handled, the same key waits");
    gate.add_permits(2);
    bus.settled().await.unwrap();
    assert_eq!(seen.all(), [1, 3, 2]);
}

#[tokio::test]
async fn the_context_of_an_event_survives_the_file() {
    let log = Log::new();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sent =
        Envelope::from_bytes(Topic::from_static("scan.stored"), "image/png", vec![0, 159, 146, 150].into())
            .with_id(EventId::new("scan/1"))
            .with_type("com.example.scan")
            .with_version(3)
            .with_subject("door é")
            .with_key("door-7")
            .with_header("tracestate", "a=1")
            .with_header("traceparent", trace);
    let writer = log.bus().await;
    writer.publish_envelope(sent.clone()).await.unwrap();
    writer.shutdown().await.unwrap();
    let bus = log.bus().await;
    let found = bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    let received = &found[0].envelope;
    assert_eq!(received.payload().unwrap(), sent.payload().unwrap());
    assert_eq!(
        (received.id(), received.event_type(), received.version()),
        (sent.id(), "com.example.scan", 3)
    );
    assert_eq!((received.subject(), received.key()), (Some("door é"), Some("door-7")));
    assert_eq!((received.time(), received.content_type()), (sent.time(), "image/png"));
    assert_eq!(received.headers().get("tracestate"), Some("a=1"));
    assert!(received.headers().get("traceparent").unwrap().contains("0af7651916cd43dd8448eb211c80319c"));
}

#[tokio::test]
async fn a_replay_moves_nobody_and_ends_where_it_is_told_to() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen: Seen<(u64, bool)> = Seen::new();
    let noted = seen.clone();
    let handle = move |delivery: Delivery| {
        let noted = noted.clone();
        async move { noted.push((delivery.event::<Ping>().unwrap().number, delivery.replayed())) }
    };
    bus.on_topic("ping.sent", handle).group("pings").await.unwrap();
    let other = pings(&bus, "other").await;
    bus.start().unwrap();
    publish_pings(&bus, 0..5_000).await;
    bus.publish_to("noise.made", &1).await.unwrap();
    bus.settled().await.unwrap();
    let report = bus.replay("pings").await.unwrap();
    assert_eq!((report.events, report.acked), (5_000, 5_000));
    let offset = |number: u128| eventbus::broker::Offset::new(number);
    let part =
        bus.replay("pings").from(ReplayFrom::Offset(offset(11))).until(ReplayUntil::Offset(offset(20)));
    assert_eq!(part.await.unwrap().events, 10);
    publish_pings(&bus, 5_000..5_001).await;
    bus.settled().await.unwrap();
    let live = seen.all().iter().filter(|(_, replayed)| !replayed).count();
    let replayed = seen.all().iter().filter(|(_, replayed)| *replayed).count();
    assert_eq!((live, replayed, other.len()), (5_001, 5_010, 5_001));
}

#[tokio::test]
async fn a_live_replay_goes_on_with_what_is_published() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    publish_pings(&bus, 0..10).await;
    let replay = bus.replay("pings").until(ReplayUntil::Live);
    let replaying = tokio::spawn(replay.into_future());
    while seen.len() < 10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    publish_pings(&bus, 10..20).await;
    while seen.len() < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    replaying.abort();
    assert_eq!(seen.sorted(), (0..20).collect::<Vec<_>>());
}

/// A read model: how many pings there were.
struct Count(Arc<AtomicUsize>);

#[subscribe(group = "projection")]
async fn count(_ping: Ping, State(count): State<Count>) {
    count.0.fetch_add(1, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_is_rebuilt_beside_the_live_one_and_swapped() {
    let log = Log::new();
    let (old, new) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let builder = Bus::builder().state(Count(Arc::clone(&old))).only([count::SUBSCRIBER]);
    let bus = builder.broker(log.broker().await).await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..3_000).await;
    bus.settled().await.unwrap();
    old.store(0, Ordering::SeqCst);
    let publishing = bus.clone();
    let meanwhile = tokio::spawn(async move { publish_pings(&publishing, 3_000..4_000).await });
    let (swapped, model) = (Arc::clone(&old), Arc::clone(&new));
    let report = bus
        .rebuild(count::SUBSCRIBER)
        .state(Count(Arc::clone(&new)))
        .swap(async move || {
            swapped.store(model.load(Ordering::SeqCst), Ordering::SeqCst);
            Ok::<(), eventbus::BoxError>(())
        })
        .await
        .unwrap();
    meanwhile.await.unwrap();
    bus.settled().await.unwrap();
    assert!(report.events >= 3_000);
    assert_eq!(old.load(Ordering::SeqCst), 4_000, "each event once: in the rebuilt model, or live after it");
}

#[tokio::test]
async fn the_audit_log_answers_by_topic_time_key_type_and_chain() {
    let log = Log::new();
    let bus = log.bus().await;
    bus.on_topic("order.placed", |delivery: Delivery| async move {
        delivery.publisher().publish_to("order.paid", &1).key("k").await.map(|_| ())
    })
    .group("payments")
    .await
    .unwrap();
    bus.start().unwrap();
    let id = bus.publish(OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    let between = jiff::Timestamp::now();
    bus.publish(OrderPlaced { customer: 2, number: 2 }).await.unwrap();
    bus.settled().await.unwrap();
    let audit = bus.audit_log().unwrap();
    let find = async |change: &dyn Fn(&mut AuditQuery)| {
        let mut query = AuditQuery::default();
        change(&mut query);
        let found = audit.query(query).await.unwrap();
        found.iter().map(|event| event.envelope.topic().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(find(&|query| query.pattern = Some("order.*".parse().unwrap())).await.len(), 4);
    assert_eq!(find(&|query| query.pattern = Some("*.paid".parse().unwrap())).await.len(), 2);
    assert_eq!(find(&|query| query.pattern = Some("nothing.here".parse().unwrap())).await.len(), 0);
    assert_eq!(find(&|query| query.key = Some("2".into())).await, ["order.placed"]);
    assert_eq!(find(&|query| query.event_type = Some("order.paid".into())).await.len(), 2);
    assert_eq!(find(&|query| query.correlation_id = Some(id.clone())).await, ["order.placed", "order.paid"]);
    assert_eq!(find(&|query| query.before = Some(between)).await[0], "order.placed");
    assert!(find(&|query| query.since = Some(between)).await.len() < 4);
    let second = audit.query(AuditQuery::default()).await.unwrap()[1].offset;
    assert_eq!(find(&|query| query.offset = Some(second)).await.len(), 1);
    let behind = |query: &mut AuditQuery| (query.offset, query.after) = (Some(second), Some(second));
    assert_eq!(find(&behind).await.len(), 0);
    let newest = |query: &mut AuditQuery| (query.newest_first, query.limit) = (true, 1);
    assert_eq!(find(&newest).await.len(), 1);
    let trees = bus.causes(&id).await.unwrap();
    assert_eq!((trees.len(), trees[0].effects.len()), (1, 1));
    let latest = audit.latest().await.unwrap();
    let waiting = tokio::spawn(audit.wait(latest));
    bus.publish_to("something.else", &1).await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_log_that_another_process_writes_is_followed() {
    let log = Log::new();
    let (here, there) = (log.bus().await, log.bus().await);
    let seen = pings(&here, "pings").await;
    here.start().unwrap();
    publish_pings(&there, 0..10).await;
    publish_pings(&here, 10..20).await;
    publish_pings(&there, 20..30).await;
    while seen.len() < 30 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(seen.sorted(), (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_transaction_without_events_passes_over_none_that_another_process_has_stored() {
    let log = Log::new();
    // It looks for what others have stored in its transactions only.
    let settings = |settings: SqliteBrokerBuilder| settings.poll_interval(Duration::from_secs(60 * 60));
    let here = log.broker_with(settings).await;
    let here = Bus::builder().without_subscriptions().broker(here).await.unwrap();
    let there = log.bus().await;
    let seen = pings(&here, "pings").await;
    here.start().unwrap();
    publish_pings(&here, 0..1).await;
    settled(&here).await;
    publish_pings(&there, 1..2).await;
    here.on(|_: Arc<OrderPlaced>| async {}).group("another").await.unwrap();
    until("the ping from elsewhere is handled", async || seen.len() == 2).await;
    // So it is at the end, where the group is moved on to the end of the log.
    publish_pings(&there, 2..3).await;
    here.shutdown().await.unwrap();
    let again = log.bus().await;
    let later = pings(&again, "pings").await;
    again.start().unwrap();
    settled(&again).await;
    assert_eq!([seen.all(), later.all()].concat(), [0, 1, 2]);
}

#[tokio::test]
async fn what_is_published_while_a_process_has_no_subscription_is_delivered_to_the_next_one() {
    let log = Log::new();
    let bus = log.bus().await;
    let mut all = Vec::new();
    for round in 0..3u64 {
        let seen = Seen::new();
        let numbers = seen.clone();
        let note = move |ping: Arc<Ping>| {
            let numbers = numbers.clone();
            async move { numbers.push(ping.number) }
        };
        let handle = bus.on(note).group("pings").await.unwrap();
        if round == 0 {
            bus.start().unwrap();
        }
        settled(&bus).await;
        // One is handled at once, one is published while the group is left, and one when nobody is there.
        publish_pings(&bus, round * 3..round * 3 + 1).await;
        settled(&bus).await;
        handle.stop().await;
        for number in [round * 3 + 1, round * 3 + 2] {
            publish_pings(&bus, number..number + 1).await;
        }
        all.extend(seen.all());
    }
    let seen = pings(&bus, "pings").await;
    settled(&bus).await;
    all.extend(seen.all());
    assert_eq!(all, (0..9).collect::<Vec<_>>());
}

#[tokio::test]
async fn groups_are_listed_and_moved_only_while_nobody_handles_them() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    publish_pings(&bus, 0..4).await;
    bus.settled().await.unwrap();
    let state = &bus.groups().unwrap().list().await.unwrap()[0];
    assert_eq!((state.group.as_str(), state.backlog, state.active), ("pings", 0, true));
    assert_eq!(state.cursor.map(|cursor| cursor.get()), Some(4));
    for refused in
        [bus.groups().unwrap().seek("pings", None).await, bus.groups().unwrap().remove("pings").await]
    {
        assert!(refused.unwrap_err().to_string().contains("`pings`"));
    }
    bus.shutdown().await.unwrap();

    let broker: SqliteBroker = log.broker().await;
    let groups: Arc<dyn Groups> = broker.groups().unwrap();
    assert!(groups.seek("pings", None).await.unwrap());
    assert_eq!(groups.list().await.unwrap()[0].backlog, 4);
    assert!(groups.rename("pings", "pongs").await.unwrap());
    assert!(!groups.rename("pings", "pongs").await.unwrap());
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let again = pings(&bus, "pongs").await;
    bus.start().unwrap();
    bus.settled().await.unwrap();
    assert_eq!((seen.len(), again.sorted()), (4, vec![0, 1, 2, 3]));
    bus.shutdown().await.unwrap();
    let broker = log.broker().await;
    let groups = broker.groups().unwrap();
    assert!(groups.remove("pongs").await.unwrap() && !groups.remove("pongs").await.unwrap());
}

#[tokio::test]
async fn ten_thousand_dead_letters_go_again_once_each() {
    let log = Log::new();
    let bus = log.bus().await;
    let (mended, seen) = (Arc::new(AtomicUsize::new(0)), Seen::new());
    let (switch, numbers) = (Arc::clone(&mended), seen.clone());
    bus.on(move |ping: Arc<Ping>| {
        let (switch, numbers) = (Arc::clone(&switch), numbers.clone());
        async move {
            if switch.load(Ordering::SeqCst) == 0 {
                return Err("down");
            }
            numbers.push(ping.number);
            Ok(())
        }
    })
    .group("pings")
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..10_000).await;
    bus.settled().await.unwrap();
    mended.store(1, Ordering::SeqCst);
    let dead_letters = bus.dead_letters().unwrap();
    let letters = dead_letters.list().await.unwrap();
    assert_eq!(letters.len(), 10_000);
    for (id, _) in &letters {
        assert!(dead_letters.republish(id, None).await.unwrap());
    }
    bus.settled().await.unwrap();
    assert_eq!(seen.sorted(), (0..10_000).collect::<Vec<_>>());
    assert!(dead_letters.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn dead_letters_that_go_again_and_wait_for_long_keep_no_others_out() {
    const MANY: u64 = 1_100;
    let log = Log::new();
    let bus = log.bus().await;
    let (mended, seen) = (Arc::new(AtomicUsize::new(0)), Seen::new());
    let (switch, numbers) = (Arc::clone(&mended), seen.clone());
    bus.on(move |ping: Arc<Ping>| {
        let mended = switch.load(Ordering::SeqCst) > 0;
        if mended {
            numbers.push(ping.number);
        }
        async move {
            match mended {
                false => Outcome::Reject("down".into()),
                true if ping.number < MANY => Outcome::RetryAfter(Duration::from_secs(3_600)),
                true => Outcome::Ack,
            }
        }
    })
    .group("pings")
    .await
    .unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..MANY + 1).await;
    settled(&bus).await;
    mended.store(1, Ordering::SeqCst);
    let dead_letters = bus.dead_letters().unwrap();
    let letters = dead_letters.list().await.unwrap();
    let (last, waiting) = letters.split_last().unwrap();
    for (id, _) in waiting {
        assert!(dead_letters.republish(id, None).await.unwrap());
    }
    until("they wait", async || seen.len() as u64 == MANY).await;
    assert!(dead_letters.republish(&last.0, None).await.unwrap());
    until("another one is handled", async || seen.len() as u64 > MANY).await;
    assert_eq!(seen.all().last(), Some(&MANY));
}

#[tokio::test]
async fn a_closure_without_a_group_is_refused_since_its_source_line_moves() {
    let log = Log::new();
    let bus = log.bus().await;
    let error = bus.on_topic("order.>", |_| async {}).await.unwrap_err().to_string();
    for part in ["\"order.>\"", "tests/log.rs", "SQLite", "`.group(\"…\")`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(bus.on(|_: Arc<Ping>| async {}).await.is_err());
    assert!(bus.groups().unwrap().list().await.unwrap().is_empty(), "and leaves nothing behind");
}

#[tokio::test]
async fn a_group_whose_pattern_is_changed_goes_on_from_its_cursor() {
    let log = Log::new();
    let publisher = log.bus().await;
    let handled = async |pattern: &str| {
        let bus = log.bus().await;
        let seen = Seen::new();
        let topics = seen.clone();
        let note = move |delivery: Delivery| {
            let topics = topics.clone();
            async move { topics.push(delivery.envelope().topic().to_string()) }
        };
        bus.on_topic(pattern, note).group("orders").await.unwrap();
        bus.start().unwrap();
        bus.settled().await.unwrap();
        bus.shutdown().await.unwrap();
        seen.sorted()
    };
    assert!(handled("order.placed").await.is_empty());
    publisher.publish_to("order.placed", &1).await.unwrap();
    publisher.publish_to("order.paid", &1).await.unwrap();
    assert_eq!(handled("order.*").await, ["order.paid", "order.placed"], "nothing is missed by the change");
    publisher.publish_to("order.placed", &2).await.unwrap();
    publisher.publish_to("order.paid", &2).await.unwrap();
    assert_eq!(handled("order.paid").await, ["order.paid"]);
    let groups = publisher.groups().unwrap().list().await.unwrap();
    let groups: Vec<_> = groups.iter().map(|state| (state.pattern.as_str(), state.backlog)).collect();
    assert_eq!(groups, [("order.*", 1), ("order.paid", 0)]);
    assert_eq!(handled("order.placed").await, ["order.placed"], "what was left over");
    publisher.publish_to("order.placed", &3).await.unwrap();
    assert_eq!(handled("order.>").await, ["order.placed"], "each from where it was");
    assert_eq!(publisher.groups().unwrap().list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn large_payloads_are_handed_out_a_few_at_a_time() {
    let log = Log::new();
    let broker = log.broker().await;
    let request = SubscribeRequest::new("g", "a.b".parse().unwrap());
    let mut deliveries = broker.subscribe(request).await.unwrap();
    for _ in 0..100 {
        let payload = vec![b'x'; 1 << 20].into();
        let envelope = Envelope::from_bytes(Topic::from_static("a.b"), "text/plain", payload);
        broker.publish(Arc::new(envelope)).await.unwrap();
    }
    let (mut open, mut handled) = (Vec::new(), 0);
    while handled < 100 {
        let receive = poll_fn(|context| deliveries.poll_receive(context, &mut open, 1_000));
        if tokio::time::timeout(Duration::from_millis(200), receive).await.is_ok() {
            assert!(open.len() <= 65, "{} MiB are handed out", open.len());
        } else {
            for Received { receipt, settler, .. } in open.drain(..) {
                settler.ack(receipt).await.unwrap();
                handled += 1;
            }
        }
    }
    assert_eq!(handled, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_whose_groups_others_handle_is_settled_when_they_are_done() {
    let log = Log::new();
    let (first, second) = (log.bus().await, log.bus().await);
    let here = pings(&first, "pings").await;
    pings(&second, "pings").await;
    first.start().unwrap();
    second.start().unwrap();
    publish_pings(&second, 0..500).await;
    second.settled().await.unwrap();
    assert_eq!(here.len(), 500);
}

#[tokio::test]
async fn a_replay_reads_a_few_large_payloads_ahead() {
    let log = Log::new();
    let broker = log.broker().await;
    for _ in 0..40 {
        let payload = vec![b'x'; 1 << 20].into();
        let envelope = Envelope::from_bytes(Topic::from_static("a.b"), "text/plain", payload);
        broker.publish(Arc::new(envelope)).await.unwrap();
    }
    let request = ReplayRequest {
        group: "g".into(),
        pattern: "a.b".parse().unwrap(),
        from: ReplayFrom::Beginning,
        until: ReplayUntil::Now,
    };
    let mut deliveries = broker.replayable().unwrap().replay(request).await.unwrap().deliveries;
    let (mut received, mut most) = (Vec::new(), 0);
    loop {
        let before = received.len();
        poll_fn(|context| deliveries.poll_receive(context, &mut received, 1_000)).await.unwrap();
        if received.len() == before {
            break;
        }
        most = most.max(received.len() - before);
        // Time enough to read everything, were it not bounded.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(received.len(), 40);
    assert!(most <= 5, "{most} MiB were read ahead");
}

/// A poison event, `behind` more of its key, and one of another key: that one is handled at once, nothing of the rest
/// is settled by it, and after a restart the rest comes in order.
async fn behind_a_poison_event(behind: u64) {
    let log = Log::new();
    let done = Seen::new();
    let orders = |poison: bool| {
        let seen = done.clone();
        move |order: Arc<OrderPlaced>| {
            let seen = seen.clone();
            async move {
                if poison && order.customer == 1 {
                    return Outcome::RetryAfter(Duration::from_millis(200));
                }
                seen.push(order.number);
                Outcome::Ack
            }
        }
    };
    let bus = log.bus().await;
    bus.on(orders(true)).group("orders").retries(u32::MAX).await.unwrap();
    bus.start().unwrap();
    let all = (0..=behind).map(|number| OrderPlaced { customer: 1, number });
    let other = OrderPlaced { customer: 2, number: behind + 1 };
    for published in bus.publish_all(all.chain([other])).await {
        published.unwrap();
    }
    let began = Instant::now();
    while done.len() == 0 {
        assert!(began.elapsed() < PATIENCE, "the other key waits behind {behind} events");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let groups = bus.groups().unwrap();
    let backlog = || async { groups.list().await.unwrap()[0].backlog };
    while backlog().await != behind + 1 {
        assert!(began.elapsed() < PATIENCE, "one event is settled: {}", backlog().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bus.shutdown().await.unwrap();

    let bus = log.bus().await;
    bus.on(orders(false)).group("orders").await.unwrap();
    bus.start().unwrap();
    tokio::time::timeout(PATIENCE, bus.settled()).await.expect("the rest is handled").unwrap();
    let numbers = done.all();
    assert_eq!(numbers[0], behind + 1);
    assert!(numbers.into_iter().skip(1).eq(0..=behind), "what was behind comes in order");
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_behind_a_poison_event_keep_no_other_key_waiting_and_are_not_passed_by_the_cursor() {
    behind_a_poison_event(100).await;
    behind_a_poison_event(1_100).await;
    behind_a_poison_event(15_000).await;
}

#[tokio::test]
async fn what_a_replay_gives_back_comes_again_in_the_order_of_the_log() {
    let log = Log::new();
    let broker = log.broker().await;
    for number in 0..3 {
        let ping = Envelope::from_json(Topic::from_static("ping.sent"), &Ping { number }).unwrap();
        broker.publish(Arc::new(ping)).await.unwrap();
    }
    let request = ReplayRequest {
        group: "pings".to_owned(),
        pattern: "ping.sent".parse().unwrap(),
        from: ReplayFrom::Beginning,
        until: ReplayUntil::Now,
    };
    let mut replay = broker.replayable().unwrap().replay(request).await.unwrap();
    let mut receive = async || {
        let mut received = Vec::new();
        poll_fn(|context| replay.deliveries.poll_receive(context, &mut received, 3)).await.unwrap();
        received
    };
    let first = receive().await;
    let offsets = |received: &[Received]| received.iter().map(|one| one.receipt.offset).collect::<Vec<_>>();
    let expected = offsets(&first);
    for Received { receipt, settler, .. } in first {
        settler.release(receipt);
    }
    assert_eq!(offsets(&receive().await), expected);
}

#[tokio::test]
async fn what_is_settled_already_may_be_settled_once_more() {
    let log = Log::new();
    let broker = log.broker().await;
    let request = SubscribeRequest::new("pings", "ping.sent".parse().unwrap());
    let mut deliveries = broker.subscribe(request).await.unwrap();
    for number in 0..2 {
        let ping = Envelope::from_json(Topic::from_static("ping.sent"), &Ping { number }).unwrap();
        broker.publish(Arc::new(ping)).await.unwrap();
    }
    let mut received = Vec::new();
    while received.len() < 2 {
        poll_fn(|context| deliveries.poll_receive(context, &mut received, 2)).await.unwrap();
    }
    let Received { receipt, settler, .. } = received.pop().unwrap();
    for _ in 0..2 {
        settler.ack(receipt.clone()).await.unwrap();
    }
    let Received { receipt, settler, .. } = received.pop().unwrap();
    let letter = DeadLetter {
        envelope: Arc::clone(&receipt.envelope),
        group: "pings".to_owned(),
        handler: "pings".to_owned(),
        kind: FailureKind::Failed,
        reason: "no".to_owned(),
        attempts: 1,
        first_failed_at: jiff::Timestamp::now(),
        last_failed_at: jiff::Timestamp::now(),
        offset: receipt.offset,
    };
    // Twice before the first is saved, and once more.
    let at_once =
        [settler.reject(receipt.clone(), letter.clone()), settler.reject(receipt.clone(), letter.clone())];
    for stored in at_once {
        tokio::time::timeout(PATIENCE, stored).await.unwrap().unwrap();
    }
    settler.reject(receipt, letter).await.unwrap();
    let groups = broker.groups().unwrap();
    until("both are settled", async || groups.list().await.unwrap()[0].backlog == 0).await;
    assert_eq!(broker.dead_letters().unwrap().list().await.unwrap().len(), 1);
}
