//! What Kafka alone asks of a broker: partitions that move, transactions, the partition of a key, both protocols of groups.

mod support;

use eventbus::broker::{Broker, Offset, Received, ReplayFrom, ReplayRequest, ReplayUntil};
use eventbus::subscription::Pattern;
use eventbus_kafka::{GroupProtocol, Isolation, KafkaBroker, partition_of};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::rdkafka::config::ClientConfig;
use support::rdkafka::producer::{FutureProducer, FutureRecord, Producer};

/// Handles what comes, slowly, and notes it.
fn handle(
    mut deliveries: Box<dyn eventbus::broker::Deliveries>,
    handled: Arc<Mutex<Vec<(String, u64)>>>,
    takes: Duration,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let [received]: [Received; 1] = support::receive(&mut deliveries, 1).await.try_into().unwrap();
            let Received { receipt, settler, .. } = &received;
            if !settler.holds(receipt) {
                continue;
            }
            if settler.begin(receipt).is_some() {
                assert!(!settler.holds(receipt), "nobody stood still");
                continue;
            }
            tokio::time::sleep(takes).await;
            let key = received.receipt.envelope.key().unwrap().to_owned();
            handled.lock().unwrap().push((key, support::number(&received)));
            support::ack(received).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_moves_while_it_is_handled_repeats_nothing_and_keeps_its_order() {
    const KEYS: u64 = 8;
    const EACH: usize = 20;
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let prefix = support::prefix();
        let open = async || {
            support::builder(&prefix).partitions(4).group_protocol(protocol).connect().await.unwrap()
        };
        let (first, second) = (open().await, open().await);
        let handled = Arc::new(Mutex::new(Vec::new()));
        let request = || support::request("mail", "order.placed");
        let one = handle(
            first.subscribe(request()).await.unwrap(),
            Arc::clone(&handled),
            Duration::from_millis(40),
        );
        let mut rounds = 0;
        let mut publish = async || {
            let events = (0..KEYS).map(|key| support::event("order.placed", &key.to_string(), rounds));
            for answer in first.publish_all(events.collect()).await {
                answer.unwrap();
            }
            rounds += 1;
        };
        for _ in 0..EACH {
            publish().await;
        }
        support::until("it handles some", async || handled.lock().unwrap().len() > 5).await;
        let by_two = Arc::new(Mutex::new(Vec::new()));
        let two = handle(
            second.subscribe(request()).await.unwrap(),
            Arc::clone(&by_two),
            Duration::from_millis(40),
        );
        // However long that takes, the first one has something in hand.
        let begun = Instant::now();
        while by_two.lock().unwrap().is_empty() {
            assert!(begun.elapsed() < support::PATIENCE, "{protocol:?}: the second one has no part");
            publish().await;
            tokio::time::sleep(KEYS as u32 * Duration::from_millis(40)).await;
        }
        for _ in 0..EACH {
            publish().await;
        }
        let all = (KEYS * rounds) as usize;
        support::until("all is handled", async || {
            handled.lock().unwrap().len() + by_two.lock().unwrap().len() >= all
        })
        .await;
        one.abort();
        two.abort();
        // What the first one had comes before what the second one has of it.
        let mut by_key: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (key, number) in handled.lock().unwrap().iter().chain(by_two.lock().unwrap().iter()) {
            by_key.entry(key.clone()).or_default().push(*number);
        }
        for (key, numbers) in by_key {
            assert_eq!(numbers, (0..rounds).collect::<Vec<_>>(), "{protocol:?}: of the key {key}");
        }
        first.close().await.unwrap();
        second.close().await.unwrap();
        support::remove(&prefix).await;
    }
}

#[tokio::test]
async fn a_key_goes_to_the_partition_that_it_has_in_java() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(7).connect().await.unwrap();
    broker.publish(support::event("order.placed", "first", 0)).await.unwrap();
    let mut config = support::client();
    config.set("partitioner", "murmur2_random");
    let other: FutureProducer = config.create().unwrap();
    let audit = broker.audit_log().unwrap();
    for number in 0..20 {
        let key = format!("größe {number}");
        broker.publish(support::event("order.placed", &key, number)).await.unwrap();
        let topic = format!("{prefix}order.placed");
        let record = FutureRecord::<str, str>::to(&topic).key(&key).payload("1");
        let there = other.send(record, Duration::from_secs(10)).await.unwrap();
        assert_eq!(Some(there.partition.unsigned_abs()), partition_of(key.as_bytes(), 7), "{key}");
    }
    // Both of a key are in one partition, one behind the other.
    let found = audit.query(eventbus::broker::AuditQuery::default()).await.unwrap();
    for number in 0..20 {
        let key = format!("größe {number}");
        let of_key = found.iter().filter(|event| event.envelope.key() == Some(&key));
        let tags: Vec<_> = of_key.map(|event| (event.offset.get() >> 60) & 0xff_ffff).collect();
        assert!(tags.len() == 2 && tags[0] == tags[1], "{key}: {tags:?}");
    }
    support::remove(&prefix).await;
}

fn transactional(id: &str) -> FutureProducer {
    let mut config: ClientConfig = support::client();
    config.set("transactional.id", id);
    let producer: FutureProducer = config.create().unwrap();
    producer.init_transactions(Duration::from_secs(30)).unwrap();
    producer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_transactions_are_not_delivered_and_their_marks_are_no_backlog() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(1).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let loose = support::builder(&prefix).isolation(Isolation::ReadUncommitted).connect().await.unwrap();
    let mut everything = loose.subscribe(support::request("all", "order.placed")).await.unwrap();
    let producer = transactional(&prefix);
    let topic = format!("{prefix}order.placed");
    for (number, commits) in [("1", false), ("2", true)] {
        producer.begin_transaction().unwrap();
        let record = FutureRecord::<str, str>::to(&topic).key("door").payload(number);
        let sent = producer.send_result(record).map_err(|(error, _)| error).unwrap();
        sent.await.unwrap().unwrap();
        if commits {
            producer.commit_transaction(Duration::from_secs(30)).unwrap();
        } else {
            producer.abort_transaction(Duration::from_secs(30)).unwrap();
        }
    }
    let received = support::receive(&mut deliveries, 1).await;
    assert_eq!(support::number(&received[0]), 2);
    for one in received {
        support::ack(one).await;
    }
    let both: Vec<_> = support::receive(&mut everything, 2).await.iter().map(support::number).collect();
    assert_eq!(both, [1, 2]);
    let groups = broker.groups().unwrap();
    support::until("nothing is left of the group", async || {
        let states = groups.list().await.unwrap();
        states.iter().any(|state| state.group == "mail" && state.backlog == 0)
    })
    .await;
    tokio::time::timeout(support::PATIENCE, broker.settled().unwrap()).await.expect("everything is settled");
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_transaction_of_any_length_is_no_backlog() {
    const ABORTED: u64 = 500;
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(1).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    broker.publish(support::event("order.placed", "door", 1)).await.unwrap();
    let producer = transactional(&prefix);
    let topic = format!("{prefix}order.placed");
    producer.begin_transaction().unwrap();
    let record = || FutureRecord::<str, str>::to(&topic).key("door").payload("2");
    let sent = (0..ABORTED).map(|_| producer.send_result(record()).map_err(|(error, _)| error).unwrap());
    for sent in sent.collect::<Vec<_>>() {
        sent.await.unwrap().unwrap();
    }
    producer.abort_transaction(Duration::from_secs(30)).unwrap();
    let received = support::receive(&mut deliveries, 1).await;
    for one in received {
        support::ack(one).await;
    }
    tokio::time::timeout(support::PATIENCE, broker.settled().unwrap()).await.expect("everything is settled");
    let states = broker.groups().unwrap().list().await.unwrap();
    assert_eq!(states.iter().map(|state| state.backlog).collect::<Vec<_>>(), [0]);
    let (group, pattern) = ("mail".to_owned(), Pattern::new("order.placed").unwrap());
    let mut request = ReplayRequest { group, pattern, from: ReplayFrom::Earliest, until: ReplayUntil::Now };
    let replays = broker.replayable().unwrap();
    let replay = replays.replay(request.clone()).await.unwrap();
    let latest = replay.latest.expect("there is an event");
    request.from = ReplayFrom::After(latest);
    assert_eq!(replays.replay(request).await.unwrap().events, 0, "behind the last event");
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_waits_does_not_stop_the_other_keys_of_its_partition() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(1).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let events = (0..600).map(|number| support::event("order.placed", &format!("{}", number % 50), number));
    for answer in broker.publish_all(events.collect()).await {
        answer.unwrap();
    }
    let mut received = support::receive(&mut deliveries, 600).await;
    let parked = received.remove(0);
    let now = eventbus::jiff::Timestamp::now();
    let due = now + Duration::from_secs(3_600);
    let wait = eventbus::broker::Parked { first_failed_at: now, last_failed_at: now, due };
    let mut receipt = parked.receipt.clone();
    receipt.attempt = 2;
    parked.settler.park(&receipt, wait).await.unwrap();
    for one in received {
        support::ack(one).await;
    }
    drop(deliveries);
    broker.close().await.unwrap();
    // The next process gets that one, with its attempt and its time, and what is new.
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    broker.publish(support::event("order.placed", "0", 600)).await.unwrap();
    let again = support::receive(&mut deliveries, 2).await;
    let numbers: Vec<_> = again.iter().map(support::number).collect();
    assert_eq!(numbers, [0, 600]);
    assert_eq!(again[0].receipt.attempt, 2);
    let noted = again[0].parked.expect("it waits");
    assert_eq!(
        noted.due.as_millisecond(),
        due.as_millisecond() + i64::from(due.subsec_nanosecond() % 1_000_000 > 0)
    );
    drop(again);
    drop(deliveries);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

/// The place of a group is one over all partitions: of what comes behind it in its order, in whichever of them, some may be
/// settled, and of what comes before it nothing is not.
#[tokio::test]
async fn a_group_says_where_it_stands_over_all_partitions_and_since_when_its_oldest_event_waits() {
    let prefix = support::prefix();
    let open = async || support::builder(&prefix).partitions(4).connect().await.unwrap();
    let (broker, request) = (open().await, || support::request("mail", "order.placed"));
    let mut deliveries = broker.subscribe(request()).await.unwrap();
    let groups = broker.groups().unwrap();
    let state = async || groups.list().await.unwrap().pop().expect("it is listed");
    assert_eq!((state().await.cursor, state().await.oldest), (None, None), "nothing was ever there");
    let began = jiff::Timestamp::now().as_second();
    // In each of the partitions one, and two more.
    let mut keys = BTreeMap::new();
    for key in 0..40 {
        keys.entry(partition_of(key.to_string().as_bytes(), 4)).or_insert(key.to_string());
    }
    assert_eq!(keys.len(), 4);
    let keys: Vec<_> = keys.into_values().chain(["5".to_owned(), "6".to_owned()]).collect();
    for (number, key) in keys.iter().enumerate() {
        broker.publish(support::event("order.placed", key, number as u64)).await.unwrap();
        // So that each has a millisecond of its own.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    support::until("all wait", async || state().await.backlog == 6).await;
    let waiting = state().await;
    assert_eq!(waiting.cursor, None, "nothing is settled");
    let oldest = waiting.oldest.expect("it waits").as_second();
    assert!((began - 60..=began + 60).contains(&oldest), "{oldest} is not about {began}");
    let mut received = support::receive(&mut deliveries, 6).await;
    received.sort_by_key(support::number);
    let offsets: Vec<_> = received.iter().map(|received| received.receipt.offset).collect();
    assert!(offsets.is_sorted());
    // It is the first one of its partition.
    let left = received.remove(1);
    for received in received.drain(..3) {
        support::ack(received).await;
    }
    support::until("three are settled", async || state().await.backlog == 3).await;
    let cursor = state().await.cursor.expect("the first is settled");
    assert!(offsets[0] <= cursor && cursor < offsets[1], "{cursor} is not right before {}", offsets[1]);
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    let time = cursor.to_string().split_once('.').map(|(time, _)| time.parse::<i64>().unwrap());
    let ahead = state().await.oldest.expect("some wait").as_millisecond() - time.expect("it has a time");
    assert!((0..=1).contains(&ahead), "{cursor} is {ahead} ms before what is not settled");
    drop((deliveries, left, received));
    broker.close().await.unwrap();
    // Who goes on there gets all that is behind it: what is not settled is among that.
    let cursor = goes_on(open().await, cursor, &[1, 2, 3, 4, 5], 3).await;
    assert!(
        cursor.is_some_and(|it| offsets[3] <= it && it < offsets[4]),
        "{cursor:?}: before {}",
        offsets[4]
    );
    let cursor = goes_on(open().await, cursor.unwrap(), &[4, 5], 2).await;
    assert_eq!(cursor, Some(offsets[5]), "the last one is settled");
    support::remove(&prefix).await;
}

/// Lets a group go on at a place, and settles the first ones of what it gets; where it stands then.
async fn goes_on(broker: KafkaBroker, at: Offset, gets: &[u64], settles: usize) -> Option<Offset> {
    let groups = broker.groups().unwrap();
    support::until("the group can be had", async || groups.seek("mail", Some(at)).await.is_ok()).await;
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let mut received = support::receive(&mut deliveries, gets.len()).await;
    received.sort_by_key(support::number);
    assert_eq!(received.iter().map(support::number).collect::<Vec<_>>(), gets);
    let left = received.split_off(settles);
    for received in received {
        support::ack(received).await;
    }
    let state = async || groups.list().await.unwrap().pop().expect("it is listed");
    support::until("they are settled", async || state().await.backlog == left.len() as u64).await;
    let state = state().await;
    assert_eq!(state.oldest.is_some(), !left.is_empty());
    drop((deliveries, left));
    broker.close().await.unwrap();
    state.cursor
}
