//! Committing: what is committed of a partition, and whether it was taken.

use crate::connection::is_passing;
use crate::held::Partition;
use crate::subscribe::is_of_others;
use eventbus_core::foreign;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

/// Adds what is to be committed of a partition.
pub(crate) fn add(list: &mut TopicPartitionList, partition: &Partition, offset: i64, text: &str) {
    let mut element = list.add_partition(&partition.0, partition.1);
    element.set_offset(Offset::Offset(offset)).expect("an offset is not below zero");
    element.set_metadata(text);
}

/// Commits, and waits for the answer. Where the server refuses one partition, all count as refused: they are
/// committed again.
pub(crate) fn commit<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    list: &TopicPartitionList,
) -> KafkaResult<()> {
    client.commit(list, CommitMode::Sync)
}

/// What an answer to a commit says of whoever has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The server takes what it commits, or has not said otherwise.
    Member,
    /// The group has gone on without it, or is about to tell it of that: a rebalance is under way.
    Behind,
    /// It is no member of the group: whatever it has, another process may have by now.
    Stranger,
}

impl Standing {
    pub(crate) fn of(error: &KafkaError) -> Self {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::UnknownMemberId | Code::FencedInstanceId | Code::FencedMemberEpoch) => Self::Stranger,
            Some(Code::IllegalGeneration | Code::StaleMemberEpoch) => Self::Behind,
            _ => Self::Member,
        }
    }
}

/// Whether a refusal is about what is committed or asked, and not about how the process stands in its group or the servers are:
/// it stays so unless somebody changes something there.
pub(crate) fn is_lasting(error: &KafkaError) -> bool {
    let is_shortened = error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge);
    Standing::of(error) == Standing::Member && !is_of_others(error) && !is_passing(error) && !is_shortened
}

/// What was committed, where the server has answered for each partition: one of which it says nothing is not one of which
/// nothing was committed.
pub(crate) fn all_known(list: TopicPartitionList) -> KafkaResult<TopicPartitionList> {
    list.elements().iter().try_for_each(|element| element.error())?;
    Ok(list)
}

/// The text that is committed beside an offset. That of another program may be no text at all, at which the client panics: it
/// says nothing here.
pub(crate) fn text_of(element: &TopicPartitionListElem<'_>) -> String {
    foreign::call("the Kafka client", || element.metadata().to_owned()).unwrap_or_default()
}

/// The partitions of a list.
pub(crate) fn elements(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|element| (element.topic().into(), element.partition())).collect()
}
