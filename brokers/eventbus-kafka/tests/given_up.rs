//! Sessions in a group that are of no use any more: another one takes their place, and what they had settles nothing.

mod support;

use eventbus::broker::{Broker, Deliveries, Received, Topology};
use eventbus_kafka::KafkaBroker;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::rdkafka::consumer::{BaseConsumer, Consumer};
use support::rdkafka::mocking::MockCluster;
use support::rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use support::rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use support::{PATIENCE, ack, number, raw, receive, until};

/// The members of a group that the server knows.
fn members(group: &str) -> Vec<String> {
    let consumer: BaseConsumer = support::client().create().unwrap();
    let list = consumer.fetch_group_list(Some(group), Duration::from_secs(10)).unwrap();
    list.groups()[0].members().iter().map(|member| member.id().to_owned()).collect()
}

fn begins(received: &Received) -> bool {
    received.settler.holds(&received.receipt) && received.settler.begin(&received.receipt).is_none()
}

/// The client notices nothing of that while a rebalance is under way, and goes on with all that it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_its_group_has_lost_during_a_rebalance_begins_nothing_more() {
    let prefix = support::prefix();
    let open = async || support::builder(&prefix).partitions(2).connect().await.unwrap();
    let (here, there) = (open().await, open().await);
    let mut request = support::request("mail", "order.placed");
    request.timeout = PATIENCE * 5;
    let mut deliveries = here.subscribe(request).await.unwrap();
    let events = (0..20).map(|number| support::event("order.placed", &number.to_string(), number));
    for stored in here.publish_all(events.collect()).await {
        stored.unwrap();
    }
    let received = receive(&mut deliveries, 20).await;
    let group = format!("{prefix}mail@order.placed");
    let [member] = &members(&group)[..] else { panic!("one process has the group") };
    // Handlers have the first events of both partitions.
    let tag = |one: &Received| (one.receipt.offset.get() >> 60) & 0xff_ffff;
    let other = received.iter().position(|one| tag(one) != tag(&received[0])).expect("both have some");
    assert!(begins(&received[0]) && begins(&received[other]));
    // One of them is to go to another process, and waits for its handler.
    let mut others = there.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let holds = |one: usize| received[one].settler.holds(&received[one].receipt);
    until("a partition is given away", async || !holds(0) || !holds(other)).await;
    assert!(holds(0) || holds(other), "the other one stays");
    raw::leave(&group, member).await;
    let waits = Duration::from_secs(15);
    let noticed = async {
        while received.iter().any(|one| one.settler.holds(&one.receipt)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(waits, noticed).await.expect("it begins nothing that another process has");
    for one in received {
        let Received { receipt, settler, .. } = one;
        assert!(settler.ack(receipt).await.is_err(), "it settles nothing either");
    }
    // It is in the group again: each event comes again, here or there.
    let handled = Mutex::new(BTreeSet::new());
    let read = async |deliveries: &mut Box<dyn Deliveries>| {
        while handled.lock().unwrap().len() < 20 {
            let (one, _) = next(deliveries).await;
            if one.settler.ack(one.receipt.clone()).await.is_ok() {
                handled.lock().unwrap().insert(number(&one));
            }
        }
    };
    tokio::select! { () = read(&mut deliveries) => (), () = read(&mut others) => () }
    drop((deliveries, others));
    here.close().await.unwrap();
    there.close().await.unwrap();
    support::remove(&prefix).await;
}

/// The next delivery, and what was said before it.
async fn next(deliveries: &mut Box<dyn Deliveries>) -> (Received, Vec<String>) {
    let (mut received, mut said) = (Vec::new(), Vec::new());
    while received.is_empty() {
        let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1));
        let answer = tokio::time::timeout(PATIENCE, receiving).await.expect("something comes");
        said.extend(answer.err().map(|error| error.to_string()));
    }
    (received.remove(0), said)
}

/// A server of the client's own, which answers as it is told to.
async fn played(cluster: &MockCluster<'_, impl support::rdkafka::ClientContext>) -> KafkaBroker {
    for topic in ["__groups", "order.placed"] {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let url = format!("kafka://{}", cluster.bootstrap_servers());
    KafkaBroker::builder(&url).unwrap().topology(Topology::Check).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_failed_for_good_is_replaced() {
    let cluster = MockCluster::new(1).unwrap();
    let broker = played(&cluster).await;
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    broker.publish(support::event("order.placed", "k", 1)).await.unwrap();
    let (first, _) = next(&mut deliveries).await;
    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[fenced]);
    ack(first).await;
    // What was not committed comes again, and what is new comes.
    let (again, mut said) = next(&mut deliveries).await;
    assert_eq!(number(&again), 1);
    ack(again).await;
    broker.publish(support::event("order.placed", "k", 2)).await.unwrap();
    let (new, more) = next(&mut deliveries).await;
    assert_eq!(number(&new), 2);
    ack(new).await;
    said.extend(more);
    let [said] = &said[..] else { panic!("one error: {said:?}") };
    assert!(said.contains("failed for good") && said.contains("another one takes its place"), "{said}");
    broker.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_the_server_finds_too_long_is_committed_shorter() {
    let cluster = MockCluster::new(1).unwrap();
    let broker = played(&cluster).await;
    let mut deliveries = broker.subscribe(support::request("mail", "order.placed")).await.unwrap();
    let events = (0..400).map(|number| support::event("order.placed", "k", number));
    for stored in broker.publish_all(events.collect()).await {
        stored.unwrap();
    }
    let received = receive(&mut deliveries, 400).await;
    let consumer: BaseConsumer = {
        let mut config = support::rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        config.set("group.id", "mail@order.placed").create().unwrap()
    };
    let committed = || {
        let mut asked = TopicPartitionList::new();
        asked.add_partition("order.placed", 0);
        let answer = consumer.committed_offsets(asked, Duration::from_secs(10)).unwrap();
        let element = &answer.elements()[0];
        (element.offset(), element.metadata().to_owned())
    };
    // As a server answers whose `offset.metadata.max.bytes` is smaller.
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[refused]);
    let (odd, mut even): (Vec<_>, Vec<_>) = received.into_iter().partition(|one| number(one) % 2 == 1);
    for one in odd {
        ack(one).await;
    }
    // The commit that moves the offset says of all of them, in two bytes each.
    ack(even.remove(0)).await;
    until("the offset is committed", async || committed().0 == Offset::Offset(2)).await;
    let length = committed().1.len();
    assert!(length <= 220, "{length} bytes");
    for one in even {
        ack(one).await;
    }
    until("the offset alone says everything", async || committed().0 == Offset::Offset(400)).await;
    assert_eq!(committed().1, "");
    broker.close().await.unwrap();
}

/// A topic of the bus itself counts for nothing where partitions are shared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_have_one_of_two_partitions_each() {
    for _ in 0..3 {
        let prefix = support::prefix();
        let open = async || support::builder(&prefix).partitions(2).connect().await.unwrap();
        let (here, there) = (open().await, open().await);
        let mut ours = here.subscribe(support::request("mail", "order.placed")).await.unwrap();
        let mut theirs = there.subscribe(support::request("mail", "order.placed")).await.unwrap();
        let publishing = tokio::spawn({
            let here = here.clone();
            async move {
                for number in 0.. {
                    let key = (number % 8).to_string();
                    here.publish(support::event("order.placed", &key, number)).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        // As long as partitions are on their way, one may have both.
        let got = [AtomicU64::new(0), AtomicU64::new(0)];
        let read = async |which: usize, deliveries: &mut Box<dyn Deliveries>| {
            while got.iter().any(|got| got.load(Ordering::Relaxed) < 5) {
                let (Received { receipt, settler, .. }, _) = next(deliveries).await;
                got[which].fetch_add(1, Ordering::Relaxed);
                drop(settler.ack(receipt).await);
            }
        };
        let both = async {
            tokio::select! { () = read(0, &mut ours) => (), () = read(1, &mut theirs) => () }
        };
        tokio::time::timeout(PATIENCE / 2, both).await.expect("each has a partition with events");
        publishing.abort();
        drop((ours, theirs));
        here.close().await.unwrap();
        there.close().await.unwrap();
        support::remove(&prefix).await;
    }
}
