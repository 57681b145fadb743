//! Replays: what topics have, once more, for one group, with nothing committed.

use crate::connection::{Link, blocking, cannot};
use crate::place::Place;
use crate::records::{read_event, record, time_of};
use crate::scan::{Lasts, Range, Scan, Tails};
use crate::subscribe::partitions_of;
use crate::topology::Topics;
use crate::wire;
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, Offset, Replay, ReplayFrom, ReplayRequest, ReplayUntil, Replayable,
};
use eventbus_core::{BrokerError, foreign};
use eventbus_server::replays::Feed;
use jiff::Timestamp;
use rdkafka::message::OwnedMessage;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How often a live replay looks whether it is still wanted, and for new topics.
const LOOK: Duration = Duration::from_millis(250);

/// The history.
pub(crate) struct KafkaReplays {
    pub(crate) link: Arc<Link>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) tails: Arc<Tails>,
}

/// The payloads that were mended for a group, by where their events are.
type Mended = HashMap<(Arc<str>, i32, u64), Bytes>;

impl Replayable for KafkaReplays {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let (link, topics, tails) =
            (Arc::clone(&self.link), Arc::clone(&self.topics), Arc::clone(&self.tails));
        BrokerFuture::new(async move {
            let look = link.look_for_topics(&topics).await;
            look.map_err(|error| cannot("look which topics there are", &error))?;
            blocking(move || open(&link, &topics, &tails, &request)).await
        })
    }
}

fn millis(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or_default()
}

/// What is asked for of each partition.
fn ranges(link: &Link, all: Vec<Range>, request: &ReplayRequest) -> Result<Vec<Range>, BrokerError> {
    let by_time = |time: Timestamp| link.first_at_time(&all, &vec![millis(time); all.len()]);
    let from = match request.from {
        ReplayFrom::Offset(offset) => Some(link.first_at(&all, offset.into(), false)?),
        ReplayFrom::After(offset) => Some(link.first_at(&all, offset.into(), true)?),
        ReplayFrom::Time(time) => Some(by_time(time)?),
        _ => None,
    };
    let to = match request.until {
        ReplayUntil::Offset(offset) => Some(link.first_at(&all, offset.into(), true)?),
        ReplayUntil::Time(time) => Some(by_time(time)?),
        _ => None,
    };
    let mut asked = all;
    for (number, range) in asked.iter_mut().enumerate() {
        if let Some(from) = &from {
            range.from = from[number];
        }
        if let Some(to) = &to {
            range.to = to[number].min(range.to);
        }
    }
    Ok(asked)
}

fn open(
    link: &Arc<Link>,
    topics: &Arc<Topics>,
    tails: &Tails,
    request: &ReplayRequest,
) -> Result<Replay, BrokerError> {
    let mended = mended(link, topics, &request.group)?;
    let covered = link.covered(topics, &request.pattern);
    let all = link.everything(&partitions_of(&covered))?;
    let latest = latest(link, topics)?;
    let asked = ranges(link, all, request)?;
    let full = link.without_empty(tails, asked.clone())?;
    let events = full.iter().map(|range| u64::try_from(range.to - range.from).unwrap_or_default()).sum();
    let (feed, deliveries) = Feed::new();
    let live = request.until == ReplayUntil::Live;
    let mut reader =
        Reader { link: Arc::clone(link), topics: Arc::clone(topics), request: request.clone(), mended, feed };
    let scan = if live { Scan::live(link, &asked)? } else { Scan::open(link, &asked)? };
    let thread = std::thread::Builder::new().name("eventbus-kafka-replay".to_owned());
    let known = asked.into_iter().map(|range| range.partition).collect();
    let run = move || {
        let read = foreign::call("the Kafka client", || reader.read(scan, known, live));
        match read {
            Ok(Ok(true)) => reader.feed.complete(),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => reader.feed.break_off(error),
            Err(panicked) => reader.feed.break_off(BrokerError::new(format!(
                "the replay broke off before its end, since the Kafka client {panicked}; begin it again"
            ))),
        }
    };
    thread.spawn(run).map_err(|error| {
        BrokerError::new("cannot begin a thread that reads the history").with_cause(error)
    })?;
    Ok(Replay { deliveries: Box::new(deliveries), events, latest: latest.map(Offset::from) })
}

/// The payloads that were mended for a group.
fn mended(link: &Link, topics: &Topics, group: &str) -> Result<Mended, BrokerError> {
    let again = link.again_topic(group);
    let mut mended = Mended::new();
    let Some(partitions) = topics.partitions(&again) else { return Ok(mended) };
    let ranges = link.everything(&partitions_of(&[(again.as_str().into(), partitions)]))?;
    let mut scan = Scan::open(link, &ranges)?;
    while let Some(message) = scan.next()? {
        if let Some((envelope, origin, true)) = wire::read_again(record(&message), time_of(&message))
            && let Ok(payload) = envelope.payload()
        {
            mended.insert((origin.topic, origin.partition, origin.offset), payload.clone());
        }
    }
    Ok(mended)
}

/// The place of the latest event of all topics.
pub(crate) fn latest(link: &Link, topics: &Topics) -> Result<Option<Place>, BrokerError> {
    let covered = topics.which(|name| link.settings.topic_of(name).is_some());
    link.last(&Lasts::default(), &link.everything(&partitions_of(&covered))?)
}

/// The thread of a replay.
struct Reader {
    link: Arc<Link>,
    topics: Arc<Topics>,
    request: ReplayRequest,
    mended: Mended,
    feed: Feed,
}

impl Reader {
    /// Reads to the end. No, where it did not come to that, since nobody wants it any more or the broker was closed.
    fn read(
        &mut self,
        mut scan: Scan,
        mut known: BTreeSet<(Arc<str>, i32)>,
        live: bool,
    ) -> Result<bool, BrokerError> {
        while let Some(message) = scan.next()? {
            if !self.hand(&message) {
                return Ok(false);
            }
        }
        if live {
            self.follow(scan, &mut known)?;
        }
        Ok(!live)
    }

    /// Goes on with what is published meanwhile, also on topics that are made meanwhile.
    fn follow(&mut self, scan: Scan, known: &mut BTreeSet<(Arc<str>, i32)>) -> Result<(), BrokerError> {
        let mut scans = vec![scan];
        while self.is_wanted() {
            let covered = partitions_of(&self.link.covered(&self.topics, &self.request.pattern));
            let new: Vec<_> = covered.into_iter().filter(|partition| !known.contains(partition)).collect();
            if !new.is_empty() {
                let range = |partition| Range { partition, from: 0, to: i64::MAX };
                let ranges: Vec<_> = new.iter().cloned().map(range).collect();
                if let Ok(scan) = Scan::live(&self.link, &ranges) {
                    scans.push(scan);
                    known.extend(new);
                }
            }
            let limit = LOOK / u32::try_from(scans.len()).unwrap_or(u32::MAX).max(1);
            for scan in &mut scans {
                if let Some(message) = scan.next_live(limit)?
                    && !self.hand(&message)
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        !self.feed.is_closed() && !self.link.state.is_closed()
    }

    /// Hands an event over; no, where it is not wanted any more.
    fn hand(&mut self, message: &OwnedMessage) -> bool {
        let Some((mut envelope, origin)) = read_event(&self.link, message) else { return self.is_wanted() };
        if !self.request.pattern.matches(envelope.topic().as_str()) {
            return self.is_wanted();
        }
        let offset = Offset::from(origin.place());
        if let Some(payload) = self.mended.get(&(origin.topic, origin.partition, origin.offset)) {
            envelope = envelope.with_payload(payload.clone());
        }
        !self.link.state.is_closed() && self.feed.put_blocking(offset, Arc::new(envelope))
    }
}
