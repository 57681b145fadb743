//! Committing, and the thread of a subscription that waits for it.

use crate::connection::{explain, tell};
use crate::held::Partition;
use crate::rebalance::SessionContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::HashSet;
use std::sync::mpsc;

/// Adds what is to be committed of a partition.
pub(crate) fn add(list: &mut TopicPartitionList, partition: &Partition, offset: i64, text: &str) {
    let mut element = list.add_partition(&partition.0, partition.1);
    element.set_offset(Offset::Offset(offset)).expect("an offset is not below zero");
    element.set_metadata(text);
}

/// Commits, and waits for the answer. The client tells of an error only where all partitions have one.
pub(crate) fn commit<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    list: &TopicPartitionList,
) -> KafkaResult<()> {
    client.commit(list, CommitMode::Sync)
}

/// The partitions of a list.
pub(crate) fn elements(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|element| (element.topic().into(), element.partition())).collect()
}

/// The thread that commits, until nobody has anything to commit.
pub(crate) fn commit_each(
    consumer: &BaseConsumer<SessionContext>,
    commits: &mpsc::Receiver<Vec<TopicPartitionList>>,
) {
    while let Ok(lists) = commits.recv() {
        let mut refused = HashSet::new();
        for list in lists {
            if let Err(error) = commit(consumer, &list) {
                tell("COMMIT", &explain(&error));
                refused.extend(elements(&list));
            }
        }
        let context = consumer.context();
        context.events.lock().committed = Some(refused);
        context.subscription.bell.ring();
    }
}
