//! Reading what is there, for nobody: some partitions from one offset to another, in the order of their times.

use crate::connection::{CALL, Context, Link, cannot, client, drain, is_passing, is_settling};
use crate::held::Partition;
use crate::place::{Place, tag_of};
use crate::records::time_of;
use crate::subscribe::{ends, patiently};
use crate::subscription::Bell;
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many bytes of a partition a glance fetches at once.
const GLANCE: &str = "65536";

/// A part of a partition: from an offset to before another one.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) partition: Partition,
    pub(crate) from: i64,
    pub(crate) to: i64,
}

impl Range {
    pub(crate) fn is_empty(&self) -> bool {
        self.from >= self.to
    }
}

/// Reads ranges. Everything here blocks.
pub(crate) struct Scan {
    parts: Vec<Part>,
    consumer: Arc<BaseConsumer<Context>>,
    bell: Arc<Bell>,
    turn: usize,
}

struct Part {
    queue: PartitionQueue<Context>,
    tag: u32,
    to: i64,
    /// The next record.
    head: Option<OwnedMessage>,
    /// Everything was read.
    done: bool,
}

/// Where a record stands.
pub(crate) fn place_of(message: &OwnedMessage) -> Place {
    Place {
        time: u64::try_from(time_of(message).as_millisecond()).unwrap_or_default(),
        tag: tag_of(message.topic(), message.partition()),
        offset: u64::try_from(message.offset()).unwrap_or_default(),
    }
}

impl Scan {
    /// Begins to read what subscriptions read.
    pub(crate) fn open(link: &Link, ranges: &[Range]) -> Result<Self, BrokerError> {
        Self::with(link, &link.settings.reader(), ranges, false)
    }

    /// The same, to go on behind the ranges with what comes there: [`next_live`](Self::next_live).
    pub(crate) fn live(link: &Link, ranges: &[Range]) -> Result<Self, BrokerError> {
        Self::with(link, &link.settings.reader(), ranges, true)
    }

    /// Begins to read what was committed, whatever subscriptions read.
    pub(crate) fn committed(link: &Link, ranges: &[Range]) -> Result<Self, BrokerError> {
        let mut config = link.settings.reader();
        config.set("isolation.level", "read_committed");
        Self::with(link, &config, ranges, false)
    }

    /// Begins to look whether there is anything at all.
    fn glance(link: &Link, ranges: &[Range]) -> Result<Self, BrokerError> {
        let mut config = link.settings.reader();
        config.set("fetch.message.max.bytes", GLANCE);
        Self::with(link, &config, ranges, false)
    }

    fn with(link: &Link, config: &ClientConfig, ranges: &[Range], live: bool) -> Result<Self, BrokerError> {
        let explain = |error: KafkaError| cannot("read what is stored", &error);
        let consumer: BaseConsumer<Context> = client(config, Context::new(&link.state))?;
        let consumer = Arc::new(consumer);
        let ranges: Vec<_> = ranges.iter().filter(|range| live || !range.is_empty()).collect();
        let mut list = TopicPartitionList::with_capacity(ranges.len());
        for Range { partition: (topic, partition), from, .. } in &ranges {
            list.add_partition_offset(topic, *partition, Offset::Offset(*from)).map_err(explain)?;
        }
        if !ranges.is_empty() {
            consumer.assign(&list).map_err(explain)?;
        }
        let bell = Arc::new(Bell::new());
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let (Range { partition: (topic, partition), to, .. }, done) = (range, range.is_empty());
            let queue = consumer.split_partition_queue(topic, *partition);
            let mut queue = queue.ok_or_else(|| BrokerError::new(format!("`{topic}` cannot be read")))?;
            let rung = Arc::clone(&bell);
            queue.set_nonempty_callback(move || rung.ring());
            parts.push(Part { queue, tag: tag_of(topic, *partition), to: *to, head: None, done });
        }
        Ok(Self { parts, consumer, bell, turn: 0 })
    }

    /// The next record; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<OwnedMessage>, BrokerError> {
        self.fill()?;
        let heads = self.parts.iter().enumerate();
        let heads = heads.filter_map(|(number, part)| {
            let head = part.head.as_ref().filter(|_| !part.done)?;
            Some((time_of(head), part.tag, number))
        });
        let Some((.., number)) = heads.min() else { return Ok(None) };
        Ok(self.parts[number].head.take())
    }

    /// Looks at the next record of each partition.
    fn fill(&mut self) -> Result<(), BrokerError> {
        if self.is_filled()? {
            return Ok(());
        }
        Err(BrokerError::new(format!(
            "cannot read what is stored: the servers have not answered within {CALL:?}"
        )))
    }

    /// Looks at the next record of each partition. No, where something of that is not known in time.
    fn is_filled(&mut self) -> Result<bool, BrokerError> {
        let mut until = Instant::now() + CALL;
        loop {
            let mut waits = false;
            for part in &mut self.parts {
                if part.done || part.head.is_some() {
                    continue;
                }
                if let Some(message) = part.queue.poll(Duration::ZERO) {
                    let message = message.map(|message| message.detach());
                    part.take(message).map_err(|error| cannot("read what is stored", &error))?;
                    until = Instant::now() + CALL;
                }
                waits |= !part.done && part.head.is_none();
            }
            drain(&self.consumer);
            if !waits || Instant::now() >= until {
                return Ok(!waits);
            }
            self.bell.wait(Duration::from_millis(50));
        }
    }

    /// The next record of any partition, whatever it is and however far they were to be read; none, where there is none
    /// within a while.
    pub(crate) fn next_live(&mut self, limit: Duration) -> Result<Option<OwnedMessage>, BrokerError> {
        let until = Instant::now() + limit;
        loop {
            for _ in 0..self.parts.len() {
                self.turn = (self.turn + 1) % self.parts.len();
                let part = &mut self.parts[self.turn];
                if let Some(head) = part.head.take() {
                    return Ok(Some(head));
                }
                match part.queue.poll(Duration::ZERO) {
                    Some(Ok(message)) => return Ok(Some(message.detach())),
                    Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                    Some(Err(error)) if is_passing(&error) => {}
                    Some(Err(error)) => return Err(cannot("read what is stored", &error)),
                }
            }
            drain(&self.consumer);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.bell.wait(left.min(Duration::from_millis(100)));
        }
    }
}

impl Part {
    fn take(&mut self, message: KafkaResult<OwnedMessage>) -> KafkaResult<()> {
        match message {
            Ok(message) if message.offset() >= self.to => {
                self.done = true;
                // Whoever goes on has it first.
                self.head = Some(message);
            }
            Ok(message) => self.head = Some(message),
            // Behind the last record there may be marks of transactions only.
            Err(KafkaError::PartitionEOF(_)) => self.done = true,
            Err(error) if is_passing(&error) || is_settling(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What is known of parts of partitions: offsets may be those of marks and of aborted transactions, which no consumer sees.
#[derive(Default)]
pub(crate) struct Tails {
    /// Of what groups have not read.
    pub(crate) unread: Looks,
    /// Of what they have read, and not settled.
    pub(crate) open: Looks,
    /// Where the last record of each partition is, that ends there.
    pub(crate) lasts: Lasts,
}

/// Where the first records of parts are.
pub(crate) struct Looks(Lock<HashMap<Partition, Looked>>);

/// A part that was looked at.
struct Looked {
    from: i64,
    to: i64,
    /// Where its first record is.
    first: Option<Place>,
}

/// Where the last records of partitions are, by where these end.
pub(crate) struct Lasts(Lock<HashMap<Partition, (i64, Place)>>);

impl Default for Looks {
    fn default() -> Self {
        Self(Lock::new(Rank::BROKER, HashMap::new()))
    }
}

impl Default for Lasts {
    fn default() -> Self {
        Self(Lock::new(Rank::BROKER, HashMap::new()))
    }
}

impl Looked {
    /// The first record in a range, or that there is none, where that is known.
    fn first_in(&self, range: &Range) -> Option<Option<Place>> {
        let begins = self.from <= range.from;
        let is_known = match self.first {
            Some(first) => {
                let first = i64::try_from(first.offset).unwrap_or(i64::MAX);
                begins && range.from <= first && first < range.to
            }
            None => begins && range.to <= self.to,
        };
        is_known.then_some(self.first)
    }
}

impl Link {
    /// Takes those of the ranges away in which nothing is, though their offsets differ.
    pub(crate) fn without_empty(&self, tails: &Tails, ranges: Vec<Range>) -> Result<Vec<Range>, BrokerError> {
        Ok(self.firsts(&tails.unread, ranges)?.into_iter().map(|(range, _)| range).collect())
    }

    /// The same, with where the first record of each is; none, where that is not known in time.
    pub(crate) fn firsts(
        &self,
        looks: &Looks,
        ranges: Vec<Range>,
    ) -> Result<Vec<(Range, Option<Place>)>, BrokerError> {
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        {
            let known = looks.0.lock();
            for range in ranges.into_iter().filter(|range| !range.is_empty()) {
                match known.get(&range.partition).and_then(|looked| looked.first_in(&range)) {
                    Some(Some(first)) => found.push((range, Some(first))),
                    Some(None) => {}
                    None => unknown.push(range),
                }
            }
        }
        if unknown.is_empty() {
            return Ok(found);
        }
        let mut scan = Scan::glance(self, &unknown)?;
        scan.is_filled()?;
        let mut known = looks.0.lock();
        for (part, range) in scan.parts.iter().zip(unknown) {
            let first = part.head.as_ref().filter(|_| !part.done).map(place_of);
            if part.done || first.is_some() {
                let Range { partition, from, to } = range.clone();
                known.insert(partition, Looked { from, to, first });
            }
            if !part.done {
                found.push((range, first));
            }
        }
        Ok(found)
    }

    /// Where the last record of any of these ranges is, which end where their partitions do.
    pub(crate) fn last(&self, lasts: &Lasts, ranges: &[Range]) -> Result<Option<Place>, BrokerError> {
        let (mut latest, mut open) = (None, Vec::new());
        {
            let known = lasts.0.lock();
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                match known.get(&range.partition) {
                    Some((to, place)) if *to == range.to => latest = latest.max(Some(*place)),
                    _ => open.push(range.clone()),
                }
            }
        }
        // The last records may be marks of transactions: further back, then.
        let mut back = 1;
        while !open.is_empty() {
            let last = |range: &Range| Range { from: (range.to - back).max(range.from), ..range.clone() };
            let parts: Vec<_> = open.iter().map(last).collect();
            let mut scan = Scan::open(self, &parts)?;
            let mut found = HashMap::new();
            while let Some(message) = scan.next()? {
                let partition: Partition = (message.topic().into(), message.partition());
                found.insert(partition, place_of(&message));
            }
            let mut known = lasts.0.lock();
            open.retain(|range| match found.get(&range.partition) {
                Some(place) => {
                    known.insert(range.partition.clone(), (range.to, *place));
                    false
                }
                None => range.to - back > range.from,
            });
            drop(known);
            latest = latest.max(found.into_values().max());
            back *= 16;
        }
        Ok(latest)
    }

    /// Everything that partitions have now.
    pub(crate) fn everything(&self, partitions: &[Partition]) -> Result<Vec<Range>, BrokerError> {
        let explain = |error: KafkaError| cannot("look where partitions begin and end", &error);
        let begins = patiently(|| ends(&self.client, partitions, Offset::Beginning)).map_err(explain)?;
        let ends = patiently(|| ends(&self.client, partitions, Offset::End)).map_err(explain)?;
        let ranges = begins.into_iter().zip(ends);
        Ok(ranges.map(|((partition, from), (_, to))| Range { partition, from, to }).collect())
    }

    /// Where in each range the records begin that stand at a place or behind it: `strictly` behind it.
    pub(crate) fn first_at(
        &self,
        ranges: &[Range],
        place: Place,
        strictly: bool,
    ) -> Result<Vec<i64>, BrokerError> {
        let times = ranges.iter().map(|Range { partition: (topic, partition), .. }| {
            // Those of the same millisecond are before or behind by their partitions.
            let behind = tag_of(topic, *partition) < place.tag;
            place.time + u64::from(behind)
        });
        let mut first = self.first_at_time(ranges, &times.collect::<Vec<_>>())?;
        for (range, first) in ranges.iter().zip(&mut first) {
            let (topic, partition) = &range.partition;
            if tag_of(topic, *partition) == place.tag {
                let offset = i64::try_from(place.offset).unwrap_or(i64::MAX).saturating_add(strictly.into());
                *first = offset.clamp(range.from, range.to.max(range.from));
            }
        }
        Ok(first)
    }

    /// Where in each range the records begin that were stored at a time, in milliseconds, or later.
    pub(crate) fn first_at_time(&self, ranges: &[Range], times: &[u64]) -> Result<Vec<i64>, BrokerError> {
        let explain = |error: KafkaError| cannot("look what was stored at a time", &error);
        let mut list = TopicPartitionList::with_capacity(ranges.len());
        for (Range { partition: (topic, partition), .. }, time) in ranges.iter().zip(times) {
            let time = i64::try_from(*time).unwrap_or(i64::MAX);
            list.add_partition_offset(topic, *partition, Offset::Offset(time)).map_err(explain)?;
        }
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let found = patiently(|| self.client.offsets_for_times(list.clone(), CALL)).map_err(explain)?;
        let first = |range: &Range| {
            let (topic, partition) = &range.partition;
            match found.find_partition(topic, *partition).map(|element| element.offset()) {
                Some(Offset::Offset(offset)) => offset.clamp(range.from, range.to.max(range.from)),
                // There is none so late.
                _ => range.to.max(range.from),
            }
        };
        Ok(ranges.iter().map(first).collect())
    }
}
