//! Topics that are new, and topics that other programs change while a group reads them.

mod support;

use eventbus::broker::Broker;
use std::time::Duration;
use support::PATIENCE;
use support::rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
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
