//! Processes that handle a group at once. Names are promises.

mod support;

use eventbus::Start;
use eventbus::broker::{Broker, Deliveries, Received, SubscribeRequest};
use eventbus::subscription::Pattern;
use eventbus_redis::RedisBroker;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use support::proxy::Proxy;
use support::{
    PATIENCE, Place, ack, dead_letter, event, give_back, number, publish, receive, receive_all, subscribe,
    until,
};

/// Subscribes a group that several processes handle at once.
async fn compete(broker: &RedisBroker) -> Box<dyn Deliveries> {
    let pattern = Pattern::new("order.placed").unwrap();
    let mut request = SubscribeRequest::new("group", pattern);
    (request.start, request.competing) = (Start::Earliest, true);
    broker.subscribe(request).await.unwrap()
}

/// Has a competitor claim the first events of the topic `order.placed`.
fn claim_first(place: &Place, count: usize) {
    let stream = place.key("topic:order.placed");
    type Entries = Vec<(String, Vec<redis::Value>)>;
    let first: Entries =
        place.command(redis::cmd("XRANGE").arg(&stream).arg("-").arg("+").arg("COUNT").arg(count));
    assert_eq!(first.len(), count);
    let ids: Vec<_> = first.into_iter().map(|(id, _)| id).collect();
    let mut claim = redis::cmd("XCLAIM");
    claim.arg(&stream).arg("group").arg("another").arg(0).arg(ids).arg("JUSTID");
    let claimed: Vec<String> = place.command(&claim);
    assert_eq!(claimed.len(), count);
}

#[tokio::test]
async fn what_a_competitor_has_by_now_is_not_held_any_more_and_not_settled_either() {
    let place = Place::new();
    let broker = place.builder().lease(Duration::from_secs(3)).open().await.unwrap();
    publish(&broker, event("order.placed", 1)).await;
    publish(&broker, event("order.placed", 2)).await;
    let mut deliveries = compete(&broker).await;
    let mut received = receive_all(&mut deliveries, 2).await;
    let (kept, lost) = (received.pop().unwrap(), received.pop().unwrap());
    claim_first(&place, 1);
    until("the loss is known", async || !lost.settler.holds(&lost.receipt)).await;
    assert!(lost.settler.ack(lost.receipt.clone()).await.is_err());
    assert!(lost.settler.ack(lost.receipt.clone()).await.is_err(), "nor is it the second time");
    let letter = dead_letter(&lost);
    assert!(lost.settler.reject(lost.receipt, letter).await.is_err());
    assert!(kept.settler.holds(&kept.receipt));
    ack(kept).await;
}

#[tokio::test]
async fn who_waits_for_bytes_that_are_handed_out_goes_on_when_a_competitor_has_these() {
    let place = Place::new();
    let broker = place.builder().lease(Duration::from_secs(3)).open().await.unwrap();
    for number in 0..70 {
        let large = event("order.placed", number).with_payload(vec![b' '; 1 << 20].into());
        publish(&broker, large).await;
    }
    let mut deliveries = compete(&broker).await;
    let received = receive_all(&mut deliveries, 64).await;
    // It is asked once, and again only when it is woken.
    let waiting = tokio::spawn(async move {
        let mut more = Vec::new();
        poll_fn(|context| deliveries.poll_receive(context, &mut more, 1)).await.map(|()| more.len())
    });
    tokio::task::yield_now().await;
    claim_first(&place, 64);
    let woken = tokio::time::timeout(PATIENCE, waiting).await.expect("it is woken");
    assert_eq!(woken.unwrap().unwrap(), 1);
    drop(received);
}

#[tokio::test]
async fn what_a_competing_process_leaves_undone_is_done_by_another() {
    let place = Place::new();
    let open = async || place.builder().lease(Duration::from_secs(2)).open().await.unwrap();
    let (first, second) = (open().await, open().await);
    let competing = async |broker: &RedisBroker| {
        let mut request = SubscribeRequest::new("group", Pattern::new("ping.sent").unwrap());
        request.competing = true;
        broker.subscribe(request).await.unwrap()
    };
    let (mut here, mut there) = (competing(&first).await, competing(&second).await);
    for number in 0..200 {
        publish(&first, event("ping.sent", number)).await;
    }
    let mut counts = BTreeMap::new();
    let left = receive_all(&mut here, 5).await;
    // It ends without having handled what it has: what was at hand and what was handed out.
    give_back(left);
    drop(here);
    first.close().await.unwrap();
    while counts.len() < 200 {
        for received in receive(&mut there, 50).await {
            *counts.entry(number(&received)).or_insert(0) += 1;
            ack(received).await;
        }
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    until("all is settled", async || second.groups().unwrap().list().await.unwrap()[0].backlog == 0).await;
    until("the consumer of the other one is removed", async || {
        let stream = place.key("topic:ping.sent");
        let consumers: Vec<BTreeMap<String, redis::Value>> =
            place.command(redis::cmd("XINFO").arg("CONSUMERS").arg(stream).arg("group"));
        consumers.len() == 1
    })
    .await;
}

/// How many deliveries of the topic `order.placed` are with each consumer.
fn held(place: &Place) -> BTreeMap<String, usize> {
    let mut pending = redis::cmd("XPENDING");
    pending.arg(place.key("topic:order.placed")).arg("group").arg("-").arg("+").arg(10_000);
    let pending: Vec<(String, String, u64, u64)> = place.command(&pending);
    let mut held = BTreeMap::new();
    for (_, consumer, ..) in pending {
        *held.entry(consumer).or_default() += 1;
    }
    held
}

#[tokio::test]
async fn an_ack_settles_nothing_that_a_competitor_has_claimed_a_moment_before() {
    let place = Place::new();
    // No beat comes in between.
    let broker = place.builder().lease(Duration::from_secs(3_600)).open().await.unwrap();
    for number in 1..=3 {
        publish(&broker, event("order.placed", number)).await;
    }
    let mut deliveries = compete(&broker).await;
    let mut received = receive_all(&mut deliveries, 3).await;
    let (last, second) = (received.pop().unwrap(), received.pop().unwrap());
    claim_first(&place, 2);
    // What is claimed among what is not, so that they are saved together.
    for received in received.into_iter().chain([second, last]) {
        ack(received).await;
    }
    until("the rest is saved", async || held(&place).len() == 1).await;
    assert_eq!(held(&place), BTreeMap::from([("another".to_owned(), 2)]));
}

#[tokio::test]
async fn what_is_acked_while_somebody_has_claimed_it_with_force_is_settled_or_comes_again() {
    for competing in [true, false] {
        let place = Place::new();
        let broker = place.builder().lease(Duration::from_secs(2)).open().await.unwrap();
        publish(&broker, event("order.placed", 1)).await;
        let mut deliveries = match competing {
            true => compete(&broker).await,
            false => subscribe(&broker, "group", "order.placed").await,
        };
        let received = receive_all(&mut deliveries, 1).await.remove(0);
        // An operator, who does nothing with it.
        claim_first(&place, 1);
        let acked = received.settler.ack(received.receipt).await;
        if competing && acked.is_ok() {
            // It is not settled behind the operator's back, and comes again instead of being lost.
            let again = receive_all(&mut deliveries, 1).await.remove(0);
            assert_eq!(number(&again), 1);
            ack(again).await;
        }
        // Where one process has the group, what it says of its events counts.
        assert!(competing || acked.is_ok());
        tokio::time::timeout(PATIENCE, broker.settled().unwrap()).await.unwrap();
        assert!(held(&place).is_empty(), "competing: {competing}");
    }
}

#[tokio::test]
async fn an_ack_that_comes_after_the_lease_is_what_the_server_says() {
    let lease = Duration::from_secs(1);
    for (competing, taken) in [(true, true), (true, false), (false, true), (false, false)] {
        let place = Place::new();
        let proxy = Proxy::to(&place.url).await;
        let first = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).lease(lease);
        // It stands still, and its connection is not given up.
        let first = first.response_timeout(PATIENCE).open().await.unwrap();
        let open = async |broker: &RedisBroker| match competing {
            true => compete(broker).await,
            false => subscribe(broker, "group", "order.placed").await,
        };
        let mut here = open(&first).await;
        publish(&first, event("order.placed", 1)).await;
        let received = receive_all(&mut here, 1).await.remove(0);
        proxy.swallow(true);
        let second = place.builder().lease(lease).open().await.unwrap();
        let mut others = None;
        if taken {
            let there = others.insert(open(&second).await);
            assert_eq!(number(&receive_all(there, 1).await[0]), 1);
        } else {
            until("the lease is over", async || !received.settler.holds(&received.receipt)).await;
        }
        let settling = tokio::spawn(received.settler.ack(received.receipt.clone()));
        tokio::task::yield_now().await;
        proxy.swallow(false);
        let settled = tokio::time::timeout(PATIENCE, settling).await.expect("it ends").unwrap();
        let left = held(&place).len();
        match settled {
            // It counts, and is saved.
            Ok(()) => assert!(!taken && left == 0, "{competing} {left}"),
            Err(error) => assert!(left == 1 || !taken, "{competing} {left}: {error}"),
        }
    }
}

#[tokio::test]
async fn what_a_competitor_has_claimed_is_found_among_more_than_a_thousand_that_are_held() {
    const EVENTS: u64 = 1_200;
    let place = Place::new();
    let broker = place.builder().lease(Duration::from_secs(5)).open().await.unwrap();
    let mut deliveries = compete(&broker).await;
    let events = (0..EVENTS).map(|number| Arc::new(event("order.placed", number)));
    assert!(broker.publish_all(events.collect()).await.iter().all(Result::is_ok));
    let received = receive_all(&mut deliveries, EVENTS as usize).await;
    let stream = place.key("topic:order.placed");
    let all: Vec<(String, Vec<redis::Value>)> =
        place.command(redis::cmd("XRANGE").arg(&stream).arg("-").arg("+"));
    let claimed = [0, 600, 1_199];
    let mut claim = redis::cmd("XCLAIM");
    claim.arg(&stream).arg("group").arg("another").arg(0);
    claimed.iter().for_each(|at| _ = claim.arg(&all[*at].0));
    place.command::<redis::Value>(&claim);
    let lost = |received: &&Received| !received.settler.holds(&received.receipt);
    until("they are known to be lost", async || received.iter().filter(lost).count() >= claimed.len()).await;
    let lost: Vec<_> = received.iter().filter(lost).map(number).collect();
    assert_eq!(lost, claimed.map(|at| at as u64));
}

#[tokio::test]
async fn processes_that_are_kept_from_working_for_longer_than_their_lease_do_not_take_events_from_each_other_for_ever()
 {
    let place = Place::new();
    let lease = Duration::from_millis(500);
    let mut processes = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::to(&place.url).await;
        let broker = RedisBroker::builder(&proxy.url()).unwrap().prefix(&place.prefix).lease(lease);
        processes.push((proxy, broker.response_timeout(PATIENCE).open().await.unwrap()));
    }
    let _one = compete(&processes[0].1).await;
    let members = place.key("members:group order.placed");
    let first: Vec<String> = place.command(redis::cmd("ZRANGE").arg(&members).arg(0).arg(-1));
    let _other = compete(&processes[1].1).await;
    publish(&processes[0].1, event("order.placed", 1)).await;
    until("one has it", async || held(&place).len() == 1).await;
    // Whoever has it stands still, again and again, for longer than its lease.
    let (mut takeovers, mut in_a_row) = (0, 0);
    while in_a_row < 3 {
        let before = held(&place);
        let holder = before.keys().next().expect("it is not settled");
        let (proxy, _) = &processes[usize::from(*holder != first[0])];
        proxy.swallow(true);
        tokio::time::sleep(lease * 3).await;
        proxy.swallow(false);
        match held(&place) == before {
            true => in_a_row += 1,
            false => (takeovers, in_a_row) = (takeovers + 1, 0),
        }
        assert!(takeovers < 10, "it goes to and fro");
    }
}
