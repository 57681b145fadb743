//! What is asked of the server for a subscription: committing, and what was committed. A thread of its own waits for the
//! answers, since the client waits for a server as long as that is away, while the thread that reads has to go on.

use crate::commit::{commit, elements};
use crate::connection::{explain, tell};
use crate::held::Partition;
use crate::rebalance::SessionContext;
use crate::subscribe::is_of_others;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::HashSet;
use std::sync::mpsc;
use std::time::Duration;

/// How long it is waited for what was committed, before it is asked for again.
const SAVED: Duration = Duration::from_secs(2);

/// One question. They are asked in their order.
pub(crate) enum Errand {
    /// To commit these lists.
    Commit(Vec<TopicPartitionList>),
    /// To commit what says nothing: the server refuses that of a process that it has given up.
    Mark(u64, TopicPartitionList),
    /// What was committed of partitions.
    Saved(u64, TopicPartitionList),
}

/// What the server has said.
pub(crate) enum Answer {
    /// The partitions of a commit that were not taken.
    Commit(HashSet<Partition>),
    Mark(u64, bool),
    Saved(u64, KafkaResult<TopicPartitionList>),
}

/// Runs errands until there are none any more.
pub(crate) fn run(consumer: &BaseConsumer<SessionContext>, errands: &mpsc::Receiver<Errand>) {
    while let Ok(errand) = errands.recv() {
        let answer = match errand {
            Errand::Commit(lists) => Answer::Commit(commit_all(consumer, &lists)),
            Errand::Mark(number, list) => Answer::Mark(number, commit(consumer, &list).is_ok()),
            Errand::Saved(number, list) => Answer::Saved(number, consumer.committed_offsets(list, SAVED)),
        };
        let context = consumer.context();
        context.events.lock().answers.push_back(answer);
        context.subscription.bell.ring();
    }
}

/// Commits lists one after the other. The partitions that were not taken.
fn commit_all(consumer: &BaseConsumer<SessionContext>, lists: &[TopicPartitionList]) -> HashSet<Partition> {
    let mut refused = HashSet::new();
    let mut known = true;
    for list in lists {
        // Each refusal makes the client join the group anew; one is enough.
        if !known {
            refused.extend(elements(list));
            continue;
        }
        if let Err(error) = commit(consumer, list) {
            tell("COMMIT", &explain(&error));
            known = !is_of_others(&error);
            refused.extend(elements(list));
        }
    }
    refused
}
