//! What is asked of the server for a subscription: committing, and what was committed. A thread of its own waits for the
//! answers, since the client waits for a server as long as that is away, while the thread that reads has to go on.

use crate::commit::{commit, elements};
use crate::connection::{explain, tell};
use crate::held::Partition;
use crate::rebalance::SessionContext;
use crate::subscribe::is_of_others;
use crate::transaction::{Transacted, Transaction, Transactor};
use eventbus_core::foreign;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
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
    /// To commit what says nothing: the server refuses that of a process that it has given up. With the number of the doubt
    /// that it is asked for, where there is one.
    Mark(Option<u64>, TopicPartitionList),
    /// What was committed of partitions.
    Saved(u64, TopicPartitionList),
    /// To commit what handlers have returned together with what that settles.
    Transact(Box<Transaction>),
}

/// What the server has said.
pub(crate) enum Answer {
    Commit(Committed),
    /// What became of a mark.
    Mark(Option<u64>, KafkaResult<()>),
    Saved(u64, KafkaResult<TopicPartitionList>),
    Transacted(Transacted),
    /// Nothing: the client has panicked.
    Panicked(String),
}

/// What has become of a commit.
pub(crate) struct Committed {
    /// The partitions that were not taken.
    pub(crate) refused: HashSet<Partition>,
    /// The length of a text that the server finds too long.
    pub(crate) too_long: Option<usize>,
    /// Why, as far as it was said last.
    pub(crate) result: KafkaResult<()>,
}

/// Runs errands until there are none any more.
pub(crate) fn run(consumer: &BaseConsumer<SessionContext>, errands: &mpsc::Receiver<Errand>) {
    let subscription = &consumer.context().subscription;
    let mut transactor = Transactor::new(&subscription.link, &subscription.id);
    while let Ok(errand) = errands.recv() {
        let answer = foreign::call("the Kafka client", || answer(consumer, &mut transactor, errand));
        let answer = answer.unwrap_or_else(|panicked| Answer::Panicked(panicked.to_string()));
        let context = consumer.context();
        context.events.lock().answers.push_back(answer);
        context.subscription.bell.ring();
    }
}

fn answer(consumer: &BaseConsumer<SessionContext>, transactor: &mut Transactor, errand: Errand) -> Answer {
    match errand {
        Errand::Commit(lists) => Answer::Commit(commit_all(consumer, &lists)),
        Errand::Mark(number, list) => Answer::Mark(number, commit(consumer, &list)),
        Errand::Transact(transaction) => Answer::Transacted(transactor.run(&transaction)),
        Errand::Saved(number, list) => Answer::Saved(number, consumer.committed_offsets(list, SAVED)),
    }
}

/// Commits lists one after the other.
fn commit_all(consumer: &BaseConsumer<SessionContext>, lists: &[TopicPartitionList]) -> Committed {
    let (mut refused, mut too_long, mut result) = (HashSet::new(), None, Ok(()));
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
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) {
                let texts = list.elements();
                let longest = texts.iter().map(|element| element.metadata().len()).max();
                too_long = longest.into_iter().chain(too_long).min();
            }
            refused.extend(elements(list));
            result = Err(error);
        }
    }
    Committed { refused, too_long, result }
}
