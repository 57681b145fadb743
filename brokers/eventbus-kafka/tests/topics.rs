//! Topics that are new, and topics that other programs change while a group reads them.

mod support;

use eventbus::broker::{Broker, Topology};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::time::Duration;
use support::PATIENCE;
use support::rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use support::rdkafka::client::DefaultClientContext;
use support::rdkafka::consumer::{BaseConsumer, Consumer};
use support::rdkafka::producer::{FutureProducer, FutureRecord};
use support::{ack, number, receive, until};

type Admin = AdminClient<DefaultClientContext>;

async fn made(admin: &Admin, name: &str) -> bool {
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].is_ok()
}

/// What another program writes.
async fn write(producer: &FutureProducer, topic: &str, partition: i32, number: u64) {
    let payload = number.to_string();
    // A topic that was just changed is not known everywhere.
    until("it is stored", async || {
        let record = FutureRecord::to(topic).partition(partition).key("k").payload(&payload);
        producer.send(record, Duration::from_secs(30)).await.is_ok()
    })
    .await;
}

/// The numbers of the next deliveries, which are acked.
async fn handled(deliveries: &mut Box<dyn eventbus::broker::Deliveries>, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    for received in receive(deliveries, count).await {
        numbers.push(number(&received));
        ack(received).await;
    }
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_and_made_anew_is_read_from_its_beginning() {
    let prefix = support::prefix();
    let admin: Admin = support::client().create().unwrap();
    let topic = format!("{prefix}order.placed");
    assert!(made(&admin, &topic).await);
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let producer: FutureProducer = support::client().create().unwrap();
    for number in 0..5 {
        write(&producer, &topic, 0, number).await;
    }
    assert_eq!(handled(&mut deliveries, 5).await, [0, 1, 2, 3, 4]);
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    until("the topic is made anew", async || made(&admin, &topic).await).await;
    let producer: FutureProducer = support::client().create().unwrap();
    for number in 10..13 {
        write(&producer, &topic, 0, number).await;
    }
    assert_eq!(handled(&mut deliveries, 3).await, [10, 11, 12]);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_anew_while_an_old_event_is_handled_is_read_from_its_beginning() {
    let prefix = support::prefix();
    let admin: Admin = support::client().create().unwrap();
    let topic = format!("{prefix}order.placed");
    assert!(made(&admin, &topic).await);
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let producer: FutureProducer = support::client().create().unwrap();
    for number in 0..5 {
        write(&producer, &topic, 0, number).await;
    }
    let mut received = receive(&mut deliveries, 5).await;
    let last = received.pop().unwrap();
    for one in received {
        ack(one).await;
    }
    assert!(last.settler.begin(&last.receipt).is_none());
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    until("the group has noticed", async || !last.settler.holds(&last.receipt)).await;
    until("the topic is made anew", async || made(&admin, &topic).await).await;
    let producer: FutureProducer = support::client().create().unwrap();
    for number in 10..20 {
        write(&producer, &topic, 0, number).await;
    }
    // Whatever that says, it is of no offset of the new topic.
    drop(last.settler.ack(last.receipt).await);
    assert_eq!(handled(&mut deliveries, 10).await, (10..20).collect::<Vec<_>>());
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_a_topic_gets_later_are_read_within_seconds() {
    let prefix = support::prefix();
    let admin: Admin = support::client().create().unwrap();
    let topic = format!("{prefix}order.placed");
    assert!(made(&admin, &topic).await);
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let producer: FutureProducer = support::client().create().unwrap();
    write(&producer, &topic, 0, 1).await;
    assert_eq!(handled(&mut deliveries, 1).await, [1]);
    let more = NewPartitions::new(&topic, 4);
    admin.create_partitions([&more], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let producer: FutureProducer = support::client().create().unwrap();
    write(&producer, &topic, 3, 2).await;
    assert_eq!(handled(&mut deliveries, 1).await, [2]);
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

/// The client keeps the pause of a partition that goes to another process and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_was_paused_goes_on_when_it_comes_back() {
    const EVENTS: u64 = 8_000;
    let prefix = support::prefix();
    let here = support::builder(&prefix).partitions(4).connect().await.unwrap();
    let there = support::builder(&prefix).partitions(4).connect().await.unwrap();
    let mut deliveries = here.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let events = (0..EVENTS).map(|number| support::event("order.placed", &number.to_string(), number));
    for stored in here.publish_all(events.collect()).await {
        stored.unwrap();
    }
    // Who reads slowly is full, and has paused both of its partitions by the time that it gives one away.
    let mut others = there.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let theirs = tokio::spawn(async move { (handled(&mut others, 10).await, others) });
    let mut seen = BTreeSet::new();
    while !theirs.is_finished() {
        seen.extend(handled(&mut deliveries, 1).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (numbers, others) = theirs.await.unwrap();
    seen.extend(numbers);
    // It goes on with the other one, and is full no more, before it gets this one back.
    while tokio::time::timeout(Duration::from_secs(2), async {
        seen.extend(handled(&mut deliveries, 1).await)
    })
    .await
    .is_ok()
    {}
    drop(others);
    there.close().await.unwrap();
    while (seen.len() as u64) < EVENTS {
        seen.extend(handled(&mut deliveries, 1).await);
    }
    here.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_programs_have_compressed_is_read() {
    let prefix = support::prefix();
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    for (number, codec) in (0..).zip(["none", "gzip", "snappy", "lz4", "zstd"]) {
        let mut config = support::client();
        let producer: FutureProducer = config.set("compression.codec", codec).create().unwrap();
        write(&producer, &format!("{prefix}order.placed"), 0, number).await;
        assert_eq!(handled(&mut deliveries, 1).await, [number], "{codec}");
    }
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

/// A partition whose leader is about to begin refuses the first record, and takes the second one: no first sequence is
/// wrong to it. The client counts what is before a record that was taken as taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_that_is_confirmed_on_a_new_topic_is_stored() {
    const TOPICS: usize = 40;
    const EVENTS: u64 = 24;
    let prefix = support::prefix();
    let broker = support::builder(&prefix).partitions(4).connect().await.unwrap();
    let consumer: BaseConsumer = support::client().create().unwrap();
    for topic in (0..TOPICS).map(|number| format!("order.placed-{number}")) {
        let publish = |number: u64| {
            let (broker, event) = (broker.clone(), support::event(&topic, &number.to_string(), number));
            tokio::spawn(async move { broker.publish(event).await })
        };
        let publishing: Vec<_> = (0..EVENTS).map(publish).collect();
        for published in publishing {
            published.await.unwrap().unwrap();
        }
        let name = format!("{prefix}{topic}");
        let ends = (0..4).map(|partition| consumer.fetch_watermarks(&name, partition, PATIENCE).unwrap().1);
        assert_eq!(ends.sum::<i64>(), EVENTS as i64, "{name}");
    }
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_keeps_its_events_for_ever_or_as_long_as_the_address_says() {
    const DAY: Duration = Duration::from_secs(86_400);
    let admin: Admin = support::client().create().unwrap();
    for (age, kept) in [(None, "-1"), (Some(DAY), "86400000")] {
        let prefix = support::prefix();
        let builder = support::builder(&prefix);
        let builder = age.map_or(builder.clone(), |age| builder.retention_age(age));
        let broker = builder.connect().await.unwrap();
        broker.publish(support::event("order.placed", "k", 1)).await.unwrap();
        let name = format!("{prefix}order.placed");
        let asked = [ResourceSpecifier::Topic(&name)];
        let told = admin.describe_configs(&asked, &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        assert_eq!(told.get("retention.ms").unwrap().value.as_deref(), Some(kept));
        broker.close().await.unwrap();
        support::remove(&prefix).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_without_which_no_group_commits_is_made_again() {
    let prefix = support::prefix();
    let admin: Admin = support::client().create().unwrap();
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    broker.publish(support::event("order.placed", "k", 1)).await.unwrap();
    assert_eq!(handled(&mut deliveries, 1).await, [1]);
    let marks = format!("{prefix}__groups");
    let there = || {
        let looking: BaseConsumer = support::client().create().unwrap();
        let all = looking.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        all.topics().iter().any(|topic| topic.name() == marks)
    };
    assert!(there());
    admin.delete_topics(&[&marks], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    until("it is gone", async || !there()).await;
    broker.publish(support::event("order.placed", "k", 2)).await.unwrap();
    assert_eq!(handled(&mut deliveries, 1).await, [2]);
    until("it is made again", async || there()).await;
    drop(deliveries);
    broker.close().await.unwrap();
    let broker = support::builder(&prefix).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    broker.publish(support::event("order.placed", "k", 3)).await.unwrap();
    assert_eq!(handled(&mut deliveries, 1).await, [3], "all before it is committed");
    broker.close().await.unwrap();
    support::remove(&prefix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_the_server_goes_on_to_refuse_is_told() {
    let prefix = support::prefix();
    let admin: Admin = support::client().create().unwrap();
    // It makes the topics, and the other one makes none.
    drop(
        support::builder(&prefix)
            .connect()
            .await
            .unwrap()
            .subscribe(support::request("mail", "order.placed"))
            .await,
    );
    let broker = support::builder(&prefix).topology(Topology::Check).connect().await.unwrap();
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let marks = format!("{prefix}__groups");
    admin.delete_topics(&[&marks], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let mut number = 0;
    let mut received = Vec::new();
    let told = loop {
        broker.publish(support::event("order.placed", "k", number)).await.unwrap();
        number += 1;
        let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1));
        match tokio::time::timeout(PATIENCE, receiving).await.expect("something comes") {
            Ok(()) => ack(received.remove(0)).await,
            Err(error) => break error.to_string(),
        }
    };
    assert!(told.contains("cannot commit for the group `mail`"), "{told}");
    support::remove(&prefix).await;
}
