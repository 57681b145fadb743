//! The audit log: what topics have, by place and time.

use crate::connection::{Link, blocking, cannot};
use crate::place::Place;
use crate::records::read_event;
use crate::replay::latest;
use crate::scan::{Range, Scan, place_of};
use crate::subscribe::partitions_of;
use crate::topology::Topics;
use eventbus_core::BrokerError;
use eventbus_core::broker::{AuditLog, AuditQuery, BrokerFuture, Offset, Recorded};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How much of a partition is looked at first where the latest events are asked for; then four times as much, and so on.
const WINDOW: i64 = 250;
/// How long an event may take from its time to its place.
const SKEW: SignedDuration = SignedDuration::from_mins(10);
/// How often it is looked for what is new.
const LOOK: Duration = Duration::from_millis(200);

/// The topics, to be asked what was published.
pub(crate) struct KafkaAuditLog {
    pub(crate) link: Arc<Link>,
    pub(crate) topics: Arc<Topics>,
}

impl AuditLog for KafkaAuditLog {
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let (link, topics) = (Arc::clone(&self.link), Arc::clone(&self.topics));
        BrokerFuture::new(async move {
            look(&link, &topics).await?;
            blocking(move || Search { link: &link, topics: &topics, query: &query }.run()).await
        })
    }

    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        let (link, topics) = (Arc::clone(&self.link), Arc::clone(&self.topics));
        BrokerFuture::new(async move {
            loop {
                look(&link, &topics).await?;
                let (link, topics) = (Arc::clone(&link), Arc::clone(&topics));
                if blocking(move || is_behind(&link, &topics, offset)).await? {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        })
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let (link, topics) = (Arc::clone(&self.link), Arc::clone(&self.topics));
        BrokerFuture::new(async move {
            look(&link, &topics).await?;
            blocking(move || Ok(latest(&link, &topics)?.map(Offset::from))).await
        })
    }
}

async fn look(link: &Arc<Link>, topics: &Topics) -> Result<(), BrokerError> {
    let look = link.look_for_topics(topics).await;
    look.map_err(|error| cannot("look which topics there are", &error))
}

/// Whether there is an event behind a place.
fn is_behind(link: &Link, topics: &Topics, offset: Option<Offset>) -> Result<bool, BrokerError> {
    let covered = topics.which(|name| link.settings.topic_of(name).is_some());
    let mut ranges = link.everything(&partitions_of(&covered))?;
    if let Some(offset) = offset {
        let first = link.first_at(&ranges, offset.into(), true)?;
        ranges.iter_mut().zip(first).for_each(|(range, first)| range.from = first);
    }
    ranges.retain(|range| !range.is_empty());
    if ranges.is_empty() {
        return Ok(false);
    }
    // It may be marks of transactions.
    Ok(Scan::open(link, &ranges)?.next()?.is_some())
}

struct Search<'a> {
    link: &'a Link,
    topics: &'a Topics,
    query: &'a AuditQuery,
}

impl Search<'_> {
    fn run(&self) -> Result<Vec<Recorded>, BrokerError> {
        let Self { link, topics, query } = *self;
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let covered = match &query.pattern {
            Some(pattern) => link.covered(topics, pattern),
            None => topics.which(|name| link.settings.topic_of(name).is_some()),
        };
        let mut ranges = link.everything(&partitions_of(&covered))?;
        if let Some(since) = query.since {
            // Records are found by when they were stored, and asked for by when they happened.
            let since = since.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH);
            let since = u64::try_from(since.as_millisecond()).unwrap_or_default();
            let first = link.first_at_time(&ranges, &vec![since; ranges.len()])?;
            ranges.iter_mut().zip(first).for_each(|(range, first)| range.from = range.from.max(first));
        }
        if let Some(offset) = query.offset {
            return self.at(ranges, offset);
        }
        if let Some(after) = query.after {
            let place = Place::from(after);
            let first = link.first_at(&ranges, place, !query.newest_first)?;
            for (range, first) in ranges.iter_mut().zip(first) {
                if query.newest_first {
                    range.to = range.to.min(first);
                } else {
                    range.from = range.from.max(first);
                }
            }
        }
        if query.newest_first { self.backwards(ranges) } else { self.read(&ranges, query.limit) }
    }

    /// The event at a place.
    fn at(&self, ranges: Vec<Range>, offset: Offset) -> Result<Vec<Recorded>, BrokerError> {
        let first = self.link.first_at(&ranges, offset.into(), false)?;
        let mut ranges = ranges;
        for (range, first) in ranges.iter_mut().zip(first) {
            (range.from, range.to) = (range.from.max(first), range.to.min(first + 1));
        }
        let mut found = self.read(&ranges, usize::MAX)?;
        found.retain(|event| event.offset == offset);
        Ok(found)
    }

    /// Events in their order, as far as they are asked for.
    fn read(&self, ranges: &[Range], limit: usize) -> Result<Vec<Recorded>, BrokerError> {
        let mut found = Vec::new();
        let mut scan = Scan::open(self.link, ranges)?;
        while found.len() < limit
            && let Some(message) = scan.next()?
        {
            if let Some((envelope, _)) = read_event(self.link, &message)
                && self.query.matches(&envelope)
            {
                let offset = Offset::from(place_of(&message));
                found.push(Recorded { offset, envelope: Arc::new(envelope) });
            }
        }
        Ok(found)
    }

    /// The latest events first. A part at the end of each partition is read, and what is behind the latest beginning of these
    /// parts is in order; then a larger part, until there are enough.
    fn backwards(&self, ranges: Vec<Range>) -> Result<Vec<Recorded>, BrokerError> {
        let limit = self.query.limit;
        let mut window = WINDOW;
        loop {
            let part = |range: &Range| Range { from: (range.to - window).max(range.from), ..range.clone() };
            let parts: Vec<_> = ranges.iter().map(part).collect();
            let mut scan = Scan::open(self.link, &parts)?;
            let mut all = Vec::new();
            let mut begins = BTreeMap::new();
            while let Some(message) = scan.next()? {
                let place = place_of(&message);
                begins
                    .entry((
                        Arc::<str>::from(rdkafka::Message::topic(&message)),
                        rdkafka::Message::partition(&message),
                    ))
                    .or_insert(place);
                if let Some((envelope, _)) = read_event(self.link, &message)
                    && self.query.matches(&envelope)
                {
                    all.push(Recorded { offset: Offset::from(place), envelope: Arc::new(envelope) });
                }
            }
            // Where more is before, nothing earlier than its first event is complete.
            let cut = parts.iter().zip(&ranges).filter(|(part, range)| part.from > range.from);
            let cut: Vec<_> = cut.collect();
            let complete = cut.iter().filter_map(|(part, _)| begins.get(&part.partition)).max().copied();
            let is_all = cut.is_empty();
            if !is_all && cut.iter().all(|(part, _)| begins.contains_key(&part.partition)) {
                let complete = complete.map(Offset::from);
                all.retain(|event| complete.is_none_or(|complete| event.offset >= complete));
            } else if !is_all {
                all.clear();
            }
            if is_all || all.len() >= limit {
                all.reverse();
                all.truncate(limit);
                return Ok(all);
            }
            window = window.saturating_mul(4);
        }
    }
}
