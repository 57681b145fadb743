//! Groups, as Kafka knows them: one consumer group for each group and pattern.

use crate::commit::{add, all_known, commit, text_of};
use crate::committed;
use crate::connection::{CALL, Context, Link, blocking, cannot, patience};
use crate::dead_letters::KafkaDeadLetters;
use crate::held::Partition;
use crate::place::Place;
use crate::publish::Outlet;
use crate::records::{record, time_of};
use crate::scan::{Range, Scan, Tails};
use crate::subscribe::{group_id, group_of, is_of_others, partitions_of, patiently};
use crate::topology::Topics;
use crate::wire;
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset as CoreOffset};
use eventbus_core::{BrokerError, Pattern};
use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::HashMap;
use std::sync::Arc;

/// The cursors of groups.
#[derive(Clone)]
pub(crate) struct KafkaGroups {
    pub(crate) link: Arc<Link>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) dead_letters: KafkaDeadLetters,
    pub(crate) tails: Arc<Tails>,
}

/// A group on a pattern.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    /// What the server says of its members, where it says something.
    active: Option<bool>,
}

/// What a group has committed.
type Committed = HashMap<Partition, (i64, String)>;

/// The groups that there are.
fn known(link: &Link) -> Result<Vec<Known>, BrokerError> {
    let list = patiently(|| link.client.fetch_group_list(None, CALL));
    let list = list.map_err(|error| cannot("look which groups there are", &error))?;
    let groups = list.groups().iter().filter_map(|info| {
        let (group, pattern) = group_of(link, info.name())?;
        let active = match info.state() {
            "Empty" => Some(false),
            // Of groups of the new protocol this says nothing.
            "Dead" | "" => None,
            _ => Some(true),
        };
        let (group, pattern) = (group.to_owned(), Pattern::new(pattern).ok()?);
        Some(Known { id: info.name().to_owned(), group, pattern, active })
    });
    Ok(groups.collect())
}

/// Whether a group listens on a topic, so that what is published again for it reaches somebody.
pub(crate) async fn listens(link: &Arc<Link>, group: &str, topic: &str) -> Result<(), BrokerError> {
    let (asked, name) = (Arc::clone(link), group.to_owned());
    let known = blocking(move || known(&asked)).await?;
    if known.iter().any(|known| known.group == name && known.pattern.matches(topic)) {
        return Ok(());
    }
    Err(BrokerError::new(format!(
        "the group `{group}` does not listen on \"{topic}\" any more, so nobody would get the event; subscribe the group \
         again, or purge the dead letter"
    )))
}

fn in_use(group: &str) -> BrokerError {
    BrokerError::new(format!(
        "some process handles the group `{group}`; end it first (or wait a moment, where it has just ended)"
    ))
}

impl KafkaGroups {
    async fn look(&self) -> Result<(), BrokerError> {
        let look = self.link.look_for_topics(&self.topics).await;
        look.map_err(|error| cannot("look which topics there are", &error))
    }

    async fn list(&self) -> Result<Vec<GroupState>, BrokerError> {
        self.look().await?;
        let (link, topics, tails) =
            (Arc::clone(&self.link), Arc::clone(&self.topics), Arc::clone(&self.tails));
        let mut states = blocking(move || states(&link, &topics, &tails)).await?;
        states.sort_by(|one, other| (&one.group, &one.pattern).cmp(&(&other.group, &other.pattern)));
        let mut counts = HashMap::new();
        for state in &mut states {
            let count = match counts.get(&state.group) {
                Some(count) => *count,
                None => self.dead_letters.count(&state.group).await?,
            };
            counts.insert(state.group.clone(), count);
            state.dead_letters = count;
        }
        Ok(states)
    }

    /// The parts of a group, on one of its patterns or on all, none of which any process handles.
    async fn idle(&self, group: &str, pattern: Option<&str>) -> Result<Vec<Known>, BrokerError> {
        self.look().await?;
        let (link, topics) = (Arc::clone(&self.link), Arc::clone(&self.topics));
        let (group, pattern) = (group.to_owned(), pattern.map(str::to_owned));
        blocking(move || {
            let mut parts = known(&link)?;
            parts.retain(|known| {
                known.group == group
                    && pattern.as_deref().is_none_or(|pattern| known.pattern.as_str() == pattern)
            });
            for part in &parts {
                if is_active(&link, &topics, part)? {
                    return Err(in_use(&group));
                }
            }
            Ok(parts)
        })
        .await
    }

    async fn seek(
        &self,
        group: &str,
        pattern: Option<&str>,
        offset: Option<CoreOffset>,
    ) -> Result<bool, BrokerError> {
        let parts = self.idle(group, pattern).await?;
        let (link, topics) = (Arc::clone(&self.link), Arc::clone(&self.topics));
        blocking(move || {
            for part in &parts {
                move_to(&link, &topics, part, offset)?;
            }
            Ok(!parts.is_empty())
        })
        .await
    }

    async fn remove(&self, group: &str, pattern: Option<&str>) -> Result<bool, BrokerError> {
        let parts = self.idle(group, pattern).await?;
        self.delete(&parts).await?;
        Ok(!parts.is_empty())
    }

    async fn delete(&self, parts: &[Known]) -> Result<(), BrokerError> {
        if parts.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = parts.iter().map(|part| part.id.as_str()).collect();
        let answer = self.link.admin.delete_groups(&names, &patience()).await;
        let results = answer.map_err(|error| cannot("forget the group", &error))?;
        for (result, part) in results.into_iter().zip(parts) {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => {}
                Err((_, RDKafkaErrorCode::NonEmptyGroup)) => return Err(in_use(&part.group)),
                Err((_, code)) => {
                    return Err(BrokerError::new(format!(
                        "cannot forget the group `{}`: {code}",
                        part.group
                    )));
                }
            }
        }
        Ok(())
    }

    async fn rename(&self, from: &str, pattern: Option<&str>, to: &str) -> Result<bool, BrokerError> {
        if to.is_empty() || to == from {
            return Err(BrokerError::new(format!("`{to}` is no other name for the group `{from}`")));
        }
        let parts = self.idle(from, pattern).await?;
        if parts.is_empty() {
            return Ok(false);
        }
        let replaced = self.idle(to, pattern).await?;
        self.delete(&replaced).await?;
        // What waits to be handled again goes first: done twice, it is delivered twice, and cut off, it is not lost.
        let again = self.copy_again(from, to).await?;
        let (link, topics, name) = (Arc::clone(&self.link), Arc::clone(&self.topics), to.to_owned());
        let (copied, source) = (parts.clone(), self.link.again_topic(from));
        blocking(move || {
            copied.iter().try_for_each(|part| {
                let target = group_id(&link, &name, part.pattern.as_str());
                copy(&link, &topics, part, &target, (&source, &link.again_topic(&name), &again))
            })
        })
        .await?;
        if pattern.is_none() {
            self.dead_letters.rename(from, to).await?;
        }
        self.delete(&parts).await?;
        Ok(true)
    }

    /// Copies what was published again for a group. Where each copy is, by where it came from.
    async fn copy_again(&self, from: &str, to: &str) -> Result<Vec<(i64, i64)>, BrokerError> {
        let source = self.link.again_topic(from);
        let Some(partitions) = self.topics.partitions(&source) else { return Ok(Vec::new()) };
        let link = Arc::clone(&self.link);
        let ranges = partitions_of(&[(source.as_str().into(), partitions)]);
        let records = blocking(move || {
            let mut scan = Scan::committed(&link, &link.everything(&ranges)?)?;
            let mut records = Vec::new();
            while let Some(message) = scan.next()? {
                if let Some((envelope, origin, mended)) =
                    wire::read_again(record(&message), time_of(&message))
                {
                    records.push((message.offset(), envelope, origin, mended));
                }
            }
            Ok::<_, BrokerError>(records)
        })
        .await?;
        let mut copies = Vec::with_capacity(records.len());
        if records.is_empty() {
            return Ok(copies);
        }
        self.link.has_again(&self.topics, to).await?;
        let target = self.link.again_topic(to);
        let explain = |error: KafkaError| cannot("move what was published again", &error);
        for (offset, envelope, origin, mended) in records {
            let written = wire::write_again(&envelope, &origin, mended);
            let written =
                written.map_err(|error| BrokerError::new("cannot write the event").with_cause(error))?;
            let sent = self.outlet.send(&target, &written).await.map_err(explain)?;
            copies.push((offset, self.outlet.stored(sent).await.map_err(explain)?.offset));
        }
        Ok(copies)
    }
}

/// Everything that a group on a pattern reads: its topics, and what is published again for it.
fn read_by(link: &Link, topics: &Topics, part: &Known) -> Vec<Partition> {
    let mut partitions = partitions_of(&link.covered(topics, &part.pattern));
    let again = link.again_topic(&part.group);
    if let Some(count) = topics.partitions(&again) {
        partitions.extend(partitions_of(&[(again.into(), count)]));
    }
    partitions
}

fn committed(
    link: &Link,
    member: &BaseConsumer<Context>,
    partitions: &[Partition],
) -> Result<Committed, BrokerError> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&link.groups_topic(), 0);
    for (topic, partition) in partitions {
        asked.add_partition(topic, *partition);
    }
    let answer = patiently(|| member.committed_offsets(asked.clone(), CALL)).and_then(all_known);
    let answer = answer.map_err(|error| cannot("look how far a group has come", &error))?;
    let elements = answer.elements();
    let found = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => {
            Some(((element.topic().into(), element.partition()), (offset, text_of(element))))
        }
        _ => None,
    });
    Ok(found.collect())
}

/// Whether some process handles a group.
fn is_active(link: &Link, topics: &Topics, part: &Known) -> Result<bool, BrokerError> {
    if let Some(active) = part.active {
        return Ok(active);
    }
    let _ = topics;
    // Nobody may commit for a group that has members; its mark says nothing else.
    let member = link.member(&part.id)?;
    let mut mark = TopicPartitionList::new();
    add(&mut mark, &(link.groups_topic().into(), 0), 0, "");
    match patiently(|| commit(&member, &mark)) {
        Ok(()) => Ok(false),
        Err(error) if is_of_others(&error) => Ok(true),
        Err(error) => Err(cannot(format_args!("look who handles the group `{}`", part.group), &error)),
    }
}

fn states(link: &Link, topics: &Topics, tails: &Tails) -> Result<Vec<GroupState>, BrokerError> {
    let mut parts = Vec::new();
    for part in known(link)? {
        let partitions = read_by(link, topics, &part);
        let member = link.member(&part.id)?;
        let committed = committed(link, &member, &partitions)?;
        // Another program's group may have such a name.
        if !committed.is_empty() {
            parts.push((part, partitions, committed));
        }
    }
    let mut all: Vec<Partition> = parts.iter().flat_map(|(_, partitions, _)| partitions.clone()).collect();
    all.sort();
    all.dedup();
    let ranges = link.everything(&all)?;
    let ranges: HashMap<_, _> = ranges.into_iter().map(|range| (range.partition.clone(), range)).collect();
    let mut states = Vec::new();
    for (part, partitions, committed) in parts {
        let mut state = GroupState::new(&part.group, part.pattern.as_str());
        state.active = is_active(link, topics, &part)?;
        let (mut unread, mut open, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for partition in partitions {
            let Some(range) = ranges.get(&partition) else { continue };
            let mut rest = range.clone();
            if let Some((offset, text)) = committed.get(&partition) {
                let saved = committed::read(CoreOffset::new(u128::from(offset.unsigned_abs())), text);
                let at = |offset: CoreOffset| i64::try_from(offset.get()).unwrap_or(i64::MAX);
                state.backlog += saved.notes.len() as u64;
                state.parked += saved.notes.values().filter(|note| note.parked.is_some()).count() as u64;
                rest.from = rest.from.max(at(saved.reached));
                if let Some(first) = saved.notes.keys().next() {
                    let from = range.from.max(at(*first));
                    open.push(Range { partition, from, to: rest.from });
                }
            }
            unread.push(rest);
            all.push(range.clone());
        }
        let mut left = link.firsts(&tails.unread, unread)?;
        for (range, _) in &left {
            state.backlog += u64::try_from(range.to - range.from).unwrap_or_default();
        }
        left.extend(link.firsts(&tails.open, open)?);
        // Where one is not known, it may be the first of all.
        let firsts: Option<Vec<_>> = left.iter().map(|(_, first)| *first).collect();
        let oldest = firsts.and_then(|firsts| firsts.iter().map(|first| first.time).min());
        state.oldest = oldest.and_then(|time| Timestamp::from_millisecond(i64::try_from(time).ok()?).ok());
        // What is published again for the group is of no place of its own.
        let again: Arc<str> = link.again_topic(&part.group).into();
        left.retain(|(range, _)| range.partition.0 != again);
        all.retain(|range| range.partition.0 != again);
        state.cursor = cursor(link, tails, &left, &all)?.map(CoreOffset::from);
        states.push(state);
    }
    Ok(states)
}

/// Where a group stands among all partitions: everything up to there is settled, and in some of them more. None, where
/// nothing is, or it is not known.
fn cursor(
    link: &Link,
    tails: &Tails,
    left: &[(Range, Option<Place>)],
    all: &[Range],
) -> Result<Option<Place>, BrokerError> {
    if left.is_empty() {
        return link.last(&tails.lasts, all);
    }
    let begins = |range: &Range| {
        let mut of_it = left.iter().filter(|(left, _)| left.partition == range.partition);
        range.is_empty() || of_it.any(|(left, _)| left.from <= range.from)
    };
    if all.iter().all(begins) {
        return Ok(None);
    }
    let firsts: Option<Vec<_>> = left.iter().map(|(_, first)| *first).collect();
    Ok(firsts.and_then(|firsts| firsts.into_iter().min()).map(Place::before))
}

/// Moves a group that nobody handles.
fn move_to(
    link: &Link,
    topics: &Topics,
    part: &Known,
    offset: Option<CoreOffset>,
) -> Result<(), BrokerError> {
    let partitions = partitions_of(&link.covered(topics, &part.pattern));
    let ranges = link.everything(&partitions)?;
    let first = match offset {
        Some(offset) => link.first_at(&ranges, Place::from(offset), true)?,
        None => ranges.iter().map(|range| range.from).collect(),
    };
    let mut commits = TopicPartitionList::new();
    add(&mut commits, &(link.groups_topic().into(), 0), 0, "");
    for (range, first) in ranges.iter().zip(first) {
        add(&mut commits, &range.partition, first, "");
    }
    // What was to be handled again counts as settled.
    let again = link.again_topic(&part.group);
    if let Some(count) = topics.partitions(&again) {
        for Range { partition, to, .. } in link.everything(&partitions_of(&[(again.into(), count)]))? {
            add(&mut commits, &partition, to, "");
        }
    }
    commit_for(link, &part.id, &part.group, &commits)
}

fn commit_for(link: &Link, id: &str, group: &str, commits: &TopicPartitionList) -> Result<(), BrokerError> {
    let member = link.member(id)?;
    match patiently(|| commit(&member, commits)) {
        Ok(()) => Ok(()),
        Err(error) if is_of_others(&error) => Err(in_use(group)),
        Err(error) => Err(cannot(format_args!("move the group `{group}`"), &error)),
    }
}

/// Gives another name what a group has committed.
fn copy(
    link: &Link,
    topics: &Topics,
    part: &Known,
    target: &str,
    (source, copy, again): (&str, &str, &[(i64, i64)]),
) -> Result<(), BrokerError> {
    let member = link.patient_member(&part.id)?;
    let committed = committed(link, &member, &read_by(link, topics, part))?;
    let mut commits = TopicPartitionList::new();
    add(&mut commits, &(link.groups_topic().into(), 0), 0, "");
    for (partition, (offset, text)) in &committed {
        if *partition.0 != *source && *partition.0 != *link.groups_topic() {
            add(&mut commits, partition, *offset, text);
        }
    }
    if let Some((_, last)) = again.last() {
        let cursor = committed.get(&(source.into(), 0)).map_or(0, |(offset, _)| *offset);
        // The first copy of what is not finished; what is finished behind it is handled again.
        let open = again.iter().find(|(offset, _)| *offset >= cursor).map_or(last + 1, |(_, copy)| *copy);
        add(&mut commits, &(copy.into(), 0), open, "");
    }
    commit_for(link, target, &part.group, &commits)
}

impl Groups for KafkaGroups {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let this = self.clone();
        BrokerFuture::new(async move { KafkaGroups::list(&this).await })
    }

    fn seek(&self, group: &str, offset: Option<CoreOffset>) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, group) = (self.clone(), group.to_owned());
        BrokerFuture::new(async move { KafkaGroups::seek(&this, &group, None, offset).await })
    }

    fn seek_on(
        &self,
        group: &str,
        pattern: &str,
        offset: Option<CoreOffset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, group, pattern) = (self.clone(), group.to_owned(), pattern.to_owned());
        BrokerFuture::new(async move { KafkaGroups::seek(&this, &group, Some(&pattern), offset).await })
    }

    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        BrokerFuture::new(async move { KafkaGroups::rename(&this, &from, None, &to).await })
    }

    fn rename_on(&self, from: &str, pattern: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, from, pattern, to) = (self.clone(), from.to_owned(), pattern.to_owned(), to.to_owned());
        BrokerFuture::new(async move { KafkaGroups::rename(&this, &from, Some(&pattern), &to).await })
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, group) = (self.clone(), group.to_owned());
        BrokerFuture::new(async move { KafkaGroups::remove(&this, &group, None).await })
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, group, pattern) = (self.clone(), group.to_owned(), pattern.to_owned());
        BrokerFuture::new(async move { KafkaGroups::remove(&this, &group, Some(&pattern)).await })
    }
}
