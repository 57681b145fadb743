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
    BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Replay, ReplayFrom, ReplayRequest,
    ReplayUntil, Replayable, Settler,
};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, foreign};
use jiff::Timestamp;
use rdkafka::message::OwnedMessage;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;

/// How many events are read ahead.
const AHEAD: usize = 64;
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
    let (sender, receiver) = mpsc::channel(AHEAD);
    let shared = Arc::new(Shared { returned: Lock::new(Rank::BROKER_INNER, Returned::default()) });
    let live = request.until == ReplayUntil::Live;
    let reader = Reader {
        link: Arc::clone(link),
        topics: Arc::clone(topics),
        request: request.clone(),
        mended,
        sender,
        settler: Arc::new(ReplaySettler(Arc::clone(&shared))),
        number: 0,
    };
    let scan = if live { Scan::live(link, &asked)? } else { Scan::open(link, &asked)? };
    let thread = std::thread::Builder::new().name("eventbus-kafka-replay".to_owned());
    let known = asked.into_iter().map(|range| range.partition).collect();
    let telling = reader.sender.clone();
    let run = move || {
        // Without a word from here, whoever waits would take it for complete.
        if let Err(panicked) = foreign::call("the Kafka client", || reader.run(scan, known, live)) {
            let said =
                format!("the replay ends before its end, since the Kafka client {panicked}; begin it again");
            drop(telling.blocking_send(Err(BrokerError::new(said))));
        }
    };
    thread.spawn(run).map_err(|error| {
        BrokerError::new("cannot begin a thread that reads the history").with_cause(error)
    })?;
    let deliveries = Box::new(ReplayDeliveries { receiver, shared });
    Ok(Replay { deliveries, events, latest: latest.map(Offset::from) })
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
    sender: mpsc::Sender<Result<Received, BrokerError>>,
    settler: Arc<dyn Settler>,
    number: u64,
}

impl Reader {
    fn run(mut self, mut scan: Scan, mut known: BTreeSet<(Arc<str>, i32)>, live: bool) {
        loop {
            match scan.next() {
                Ok(Some(message)) if self.hand(&message) => {}
                Ok(Some(_)) => return,
                Ok(None) => break,
                Err(error) => {
                    // Nobody waits for it any more.
                    let _ = self.sender.blocking_send(Err(error));
                    return;
                }
            }
        }
        if live {
            self.follow(scan, &mut known);
        }
    }

    /// Goes on with what is published meanwhile, also on topics that are made meanwhile.
    fn follow(&mut self, scan: Scan, known: &mut BTreeSet<(Arc<str>, i32)>) {
        let mut scans = vec![scan];
        while !self.sender.is_closed() {
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
                match scan.next_live(limit) {
                    Ok(Some(message)) if self.hand(&message) => {}
                    Ok(Some(_)) => return,
                    Ok(None) => {}
                    Err(error) => {
                        let _ = self.sender.blocking_send(Err(error));
                        return;
                    }
                }
            }
        }
    }

    /// Hands an event over; no, where nobody wants it any more.
    fn hand(&mut self, message: &OwnedMessage) -> bool {
        let Some((mut envelope, origin)) = read_event(&self.link, message) else { return true };
        if !self.request.pattern.matches(envelope.topic().as_str()) {
            return true;
        }
        let offset = Offset::from(origin.place());
        if let Some(payload) = self.mended.get(&(origin.topic, origin.partition, origin.offset)) {
            envelope = envelope.with_payload(payload.clone());
        }
        self.number += 1;
        let receipt = Receipt { envelope: Arc::new(envelope), offset, attempt: 1, token: self.number };
        self.sender.blocking_send(Ok(received(receipt, &self.settler))).is_ok()
    }
}

fn received(receipt: Receipt, settler: &Arc<dyn Settler>) -> Received {
    Received { receipt, replayed: true, parked: None, alone: false, settler: Arc::clone(settler) }
}

/// What was given back.
struct Shared {
    returned: Lock<Returned>,
}

#[derive(Default)]
struct Returned {
    receipts: BTreeMap<u64, Receipt>,
    /// How many are handed out.
    open: usize,
    waker: Option<Waker>,
}

impl Shared {
    fn settled(&self, receipt: Option<Receipt>) {
        let waker = {
            let mut returned = self.returned.lock();
            returned.open -= 1;
            if let Some(receipt) = receipt {
                returned.receipts.insert(receipt.token, receipt);
            }
            returned.waker.take()
        };
        if let Some(waker) = waker {
            foreign::tell("a waker", || waker.wake());
        }
    }
}

struct ReplayDeliveries {
    receiver: mpsc::Receiver<Result<Received, BrokerError>>,
    shared: Arc<Shared>,
}

impl Deliveries for ReplayDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let waker = context.waker().clone();
        let (returned, former) = {
            let mut returned = self.shared.returned.lock();
            let former = returned.waker.replace(waker);
            (returned.receipts.pop_first(), former)
        };
        drop(former);
        if let Some((_, receipt)) = returned {
            self.shared.returned.lock().open += 1;
            let settler: Arc<dyn Settler> = Arc::new(ReplaySettler(Arc::clone(&self.shared)));
            into.push(received(receipt, &settler));
            return Poll::Ready(Ok(()));
        }
        let before = into.len();
        while into.len() - before < limit {
            match self.receiver.poll_recv(context) {
                Poll::Ready(Some(Ok(received))) => {
                    self.shared.returned.lock().open += 1;
                    into.push(received);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) if into.len() > before => break,
                // What is handed out may come back.
                Poll::Ready(None) => {
                    let returned = self.shared.returned.lock();
                    let is_over = returned.open == 0 && returned.receipts.is_empty();
                    return if is_over { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
                Poll::Pending if into.len() > before => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Settles what a replay hands out: there is nothing to be noted.
struct ReplaySettler(Arc<Shared>);

impl Settler for ReplaySettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        drop(receipt);
        self.0.settled(None);
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        drop(letter);
        self.ack(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.0.settled(Some(receipt));
    }
}

impl fmt::Debug for ReplaySettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplaySettler").finish_non_exhaustive()
    }
}
