//! Subscribing: what a group is called, where it begins, and how its questions are asked.

use crate::commit::{add, commit};
use crate::connection::{CALL, Link, blocking, cannot, is_passing, is_settling};
use crate::delivery::KafkaDeliveries;
use crate::held::Partition;
use crate::keeper::keep;
use crate::publish::Outlet;
use crate::session::Session;
use crate::subscription::Subscription;
use crate::topology::Topics;
use eventbus_core::BrokerError;
use eventbus_core::broker::{SKIPPED, Start, SubscribeRequest, skipped};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much is read ahead of the reader.
pub(crate) const AHEAD: Ahead = Ahead { count: 512, bytes: 4 << 20 };
/// How long a topic may take until all servers know it.
const SETTLING: Duration = Duration::from_secs(3);

/// A bound of what is read ahead.
pub(crate) struct Ahead {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

impl Ahead {
    pub(crate) const fn is_reached(&self, count: usize, bytes: usize) -> bool {
        count >= self.count || bytes >= self.bytes
    }
}

/// What Kafka calls a group on a pattern.
pub(crate) fn group_id(link: &Link, group: &str, pattern: &str) -> String {
    let prefix = &link.settings.prefix;
    format!("{prefix}{group}@{pattern}")
}

/// The group and the pattern of a name in Kafka; none, where it is no group of this bus.
pub(crate) fn group_of<'a>(link: &Link, id: &'a str) -> Option<(&'a str, &'a str)> {
    // A pattern has no `@`.
    id.strip_prefix(&link.settings.prefix)?.rsplit_once('@')
}

/// Opens a subscription; once it resolves, the group misses nothing.
pub(crate) async fn open(
    link: &Arc<Link>,
    topics: &Arc<Topics>,
    outlet: &Arc<Outlet>,
    request: SubscribeRequest,
) -> Result<(Arc<Subscription>, KafkaDeliveries), BrokerError> {
    let SubscribeRequest { group, pattern, start, timeout, .. } = request;
    link.has_for(topics, &pattern).await?;
    let id = group_id(link, &group, pattern.as_str());
    let subscription =
        Arc::new(Subscription::new(Arc::clone(link), Arc::clone(topics), (group, pattern, id), timeout));
    let mut deliveries = KafkaDeliveries::new(Arc::clone(&subscription), Arc::clone(outlet));
    let begun = Arc::clone(&subscription);
    let skips = blocking(move || begun.begin_group(start)).await?;
    if let Some(skips) = skips {
        let address = link.settings.pasted();
        let Subscription { group, pattern, .. } = &*subscription;
        deliveries.warnings.extend(skipped(group, pattern, skips, address.as_deref()));
    }
    let listener = Arc::downgrade(&subscription);
    topics.listen(listener);
    let session = Session::new(&subscription)?;
    let thread = std::thread::Builder::new().name("eventbus-kafka".to_owned());
    let kept = Arc::clone(&subscription);
    thread.spawn(move || keep(&kept, session)).map_err(|error| {
        BrokerError::new("cannot begin a thread that reads for the group").with_cause(error)
    })?;
    // A process that has just died keeps its place for a while. The group misses nothing either way: where it begins is
    // committed.
    let patience = link.settings.session_timeout + CALL;
    let joined = subscription.state.until(|state| {
        if state.joined || state.is_finished() { Some(None) } else { state.take_failure().map(Some) }
    });
    match tokio::time::timeout(patience, joined).await {
        Ok(Some(failed)) => Err(failed),
        _ => Ok((subscription, deliveries)),
    }
}

impl Subscription {
    /// Commits where a new group begins. How many events it skips; none, where it is known.
    fn begin_group(&self, start: Start) -> Result<Option<usize>, BrokerError> {
        let link = &self.link;
        let what = format!("begin the group `{}`", self.group);
        let explain = |error: KafkaError| cannot(&what, &error);
        let member = link.member(&self.id)?;
        let mark = link.groups_topic();
        let partitions = partitions_of(&link.covered(&self.topics, &self.pattern));
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&mark, 0);
        for (topic, partition) in &partitions {
            asked.add_partition(topic, *partition);
        }
        let known = patiently(|| member.committed_offsets(asked.clone(), CALL)).map_err(explain)?;
        if known.elements().iter().any(|element| matches!(element.offset(), Offset::Offset(_))) {
            return Ok(None);
        }
        let mut commits = TopicPartitionList::new();
        add(&mut commits, &(mark.as_str().into(), 0), 0, "");
        // What was published again before is nobody's by now.
        let again = link.again_topic(&self.group);
        if let Some(count) = self.topics.partitions(&again) {
            let again = partitions_of(&[(again.into(), count)]);
            for (partition, end) in patiently(|| ends(&link.client, &again, Offset::End)).map_err(explain)? {
                add(&mut commits, &partition, end, "");
            }
        }
        let mut skips = 0_i64;
        if start == Start::Latest && !partitions.is_empty() {
            let lasts = patiently(|| ends(&link.client, &partitions, Offset::End)).map_err(explain)?;
            let begins = patiently(|| ends(&link.client, &partitions, Offset::Beginning)).map_err(explain)?;
            for ((partition, end), (_, begin)) in lasts.iter().zip(begins) {
                add(&mut commits, partition, *end, "");
                skips = skips.saturating_add((end - begin).max(0));
            }
        }
        match patiently(|| commit(&member, &commits)) {
            Ok(()) => {}
            // Another process was faster, and has the group: it begins where that one has begun.
            Err(error) if is_of_others(&error) => return Ok(None),
            Err(error) => return Err(explain(error)),
        }
        Ok(Some(usize::try_from(skips).unwrap_or_default().min(SKIPPED + 1)))
    }
}

/// Whether somebody has the group, so that nobody else may change its offsets.
pub(crate) fn is_of_others(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress
                | RDKafkaErrorCode::StaleMemberEpoch
        )
    )
}

/// Asks again while the answer is that it may be otherwise soon.
pub(crate) fn patiently<T>(mut ask: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let begun = Instant::now();
    loop {
        let limit = |error: &KafkaError| match (is_passing(error), is_settling(error)) {
            (true, _) => CALL,
            (_, true) => SETTLING,
            _ => Duration::ZERO,
        };
        match ask() {
            Err(error) if begun.elapsed() < limit(&error) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            answer => return answer,
        }
    }
}

/// All partitions of topics.
pub(crate) fn partitions_of(topics: &[(Arc<str>, i32)]) -> Vec<Partition> {
    let partitions = |(topic, count): &(Arc<str>, i32)| {
        let topic = Arc::clone(topic);
        (0..*count).map(move |partition| (Arc::clone(&topic), partition))
    };
    topics.iter().flat_map(partitions).collect()
}

/// Where partitions begin or end.
pub(crate) fn ends<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: &[Partition],
    which: Offset,
) -> KafkaResult<Vec<(Partition, i64)>> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        // In place of a time these two ask for the ends.
        list.add_partition_offset(topic, *partition, which)?;
    }
    let answer = client.offsets_for_times(list, CALL)?;
    let mut found = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let element = answer.find_partition(&partition.0, partition.1);
        let element = element.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
        element.error()?;
        match element.offset() {
            Offset::Offset(offset) => found.push((partition.clone(), offset)),
            _ => return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::LeaderNotAvailable)),
        }
    }
    Ok(found)
}
