//! What is handed out, settled and given up, in numbers and sizes that the log has to bear.

mod support;

use eventbus::broker::{
    Broker, DeadLetter, FailureKind, Received, ReplayFrom, ReplayRequest, ReplayUntil, SubscribeRequest,
};
use eventbus::{Envelope, Outcome, Topic};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{Log, OrderPlaced, PATIENCE, Ping, Seen, publish_pings, settled, until};

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
        from: ReplayFrom::Earliest,
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
        from: ReplayFrom::Earliest,
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
