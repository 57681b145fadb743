//! Replays: a part of the stream of all events once more, for one group, whose queues do not move.

use crate::stream::{Begin, Events, Kept, Scan};
use crate::wire::Note;
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Replay, ReplayFrom, ReplayRequest,
    ReplayUntil, Replayable, Settler,
};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, foreign};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// How many events wait for the reader.
const AHEAD: usize = 64;
/// When to try again what has failed.
const AGAIN: Duration = Duration::from_secs(1);

/// What is in the stream.
pub(crate) struct RabbitMqHistory(pub(crate) Arc<Events>);

impl Replayable for RabbitMqHistory {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let events = Arc::clone(&self.0);
        BrokerFuture::new(async move { open(&events, request).await })
    }
}

/// The place in the stream that is meant.
pub(crate) fn place(offset: Offset) -> Result<i64, BrokerError> {
    i64::try_from(offset.get()).map_err(|_| {
        BrokerError::new(format!(
            "{offset} is no place of the stream of events: what a live delivery has is its number in a queue, which has no \
             places; take the place from the audit log or from a replay"
        ))
    })
}

/// What a replay delivers.
struct Part {
    first: i64,
    /// The last place; none, where it goes on live.
    last: Option<i64>,
    events: u64,
    /// The payloads that were mended for the group, by source and id.
    mended: HashMap<(String, String), Bytes>,
}

async fn open(events: &Arc<Events>, request: ReplayRequest) -> Result<Replay, BrokerError> {
    let end = events.end().await.map_err(|trouble| events.explain(trouble))?;
    let part = look(events, &request, end.last).await?;
    let latest = end.event.and_then(|place| u128::try_from(place).ok()).map(Offset::new);
    let (sender, receiver) = mpsc::channel(AHEAD);
    let count = part.events;
    let reading = Reading { scan: events.scan(Begin::At(part.first)), part, request, sender };
    tokio::spawn(reading.run());
    let shared = Arc::new(Returned(Lock::new(Rank::BROKER_LAST, Back::default())));
    let deliveries = ReplayDeliveries { receiver, number: 0, failed: None, complete: false, shared };
    Ok(Replay { deliveries: Box::new(deliveries), events: count, latest })
}

/// Reads what is there once: to count what is asked for, to find it by its time, and for the payloads that were mended,
/// which stand behind their events.
async fn look(events: &Arc<Events>, request: &ReplayRequest, end: i64) -> Result<Part, BrokerError> {
    let begin = match request.from {
        ReplayFrom::Offset(offset) => Begin::At(place(offset)?),
        ReplayFrom::After(offset) => Begin::At(place(offset)?.saturating_add(1)),
        ReplayFrom::Time(time) => Begin::Time(time),
        _ => Begin::First,
    };
    let last = match request.until {
        ReplayUntil::Offset(offset) => place(offset)?.min(end),
        _ => end,
    };
    let first = match begin {
        Begin::At(place) => Some(place),
        Begin::First => Some(0),
        Begin::Time(_) => None,
    };
    let live = request.until == ReplayUntil::Live;
    let mut part = Part {
        first: first.unwrap_or(end + 1),
        last: (!live).then_some(last),
        events: 0,
        mended: HashMap::new(),
    };
    if first.is_some_and(|first| first > end) {
        return Ok(part);
    }
    let (mut scan, mut begun, mut ended) = (events.scan(begin), first.is_some(), false);
    while let Some((place, kept)) = scan.next(Some(end)).await? {
        let event = match kept {
            Kept::Event(event) => event,
            Kept::Note(Note { group, source, id, payload }) => {
                if group == request.group {
                    part.mended.insert((source, id), payload);
                }
                continue;
            }
        };
        if ended || place > last || !request.pattern.matches(event.topic().as_str()) {
            continue;
        }
        if let ReplayFrom::Time(from) = request.from
            && !begun
            && event.time() >= from
        {
            (begun, part.first) = (true, place);
        }
        if let ReplayUntil::Time(until) = request.until
            && begun
            && event.time() >= until
        {
            (ended, part.last) = (true, Some(place - 1));
            continue;
        }
        part.events += u64::from(begun);
    }
    Ok(part)
}

/// An event on its way to the reader; none, where all of them are.
type Read = Result<Option<(i64, Arc<Envelope>)>, BrokerError>;

/// What reads for a replay.
struct Reading {
    scan: Scan,
    part: Part,
    request: ReplayRequest,
    sender: Sender<Read>,
}

impl Reading {
    async fn run(mut self) {
        let sender = self.sender.clone();
        loop {
            let read = tokio::select! {
                biased;
                () = sender.closed() => return,
                read = self.next() => read,
            };
            let (failed, complete) = (read.is_err(), matches!(read, Ok(None)));
            if sender.send(read).await.is_err() || complete {
                return;
            }
            if failed {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn next(&mut self) -> Read {
        // Beyond the end there is nothing to wait for.
        if self.part.last.is_some_and(|last| last < self.part.first) || self.is_empty() {
            return Ok(None);
        }
        while let Some((place, kept)) = self.scan.next(self.part.last).await? {
            let Kept::Event(event) = kept else { continue };
            if !self.request.pattern.matches(event.topic().as_str()) {
                continue;
            }
            let named = (event.source().to_owned(), event.id().to_string());
            return Ok(Some(match self.part.mended.get(&named) {
                Some(payload) => (place, Arc::new((*event).clone().with_payload(payload.clone()))),
                None => (place, event),
            }));
        }
        Ok(None)
    }

    fn is_empty(&self) -> bool {
        self.part.last.is_some() && self.part.events == 0
    }
}

/// The reader's end of a replay.
struct ReplayDeliveries {
    receiver: Receiver<Read>,
    number: u64,
    failed: Option<BrokerError>,
    /// Everything has come.
    complete: bool,
    shared: Arc<Returned>,
}

/// What the reader gave back, in the order of the stream.
struct Returned(Lock<Back>);

#[derive(Default)]
struct Back {
    receipts: BTreeMap<u64, Receipt>,
    /// How many are handed out.
    open: usize,
    waker: Option<Waker>,
}

impl Returned {
    fn settled(&self, receipt: Option<Receipt>) {
        let waker = {
            let mut back = self.0.lock();
            back.open = back.open.saturating_sub(1);
            if let Some(receipt) = receipt {
                back.receipts.insert(receipt.token, receipt);
            }
            back.waker.take()
        };
        if let Some(waker) = waker {
            foreign::tell("a waker", || waker.wake());
        }
    }
}

impl Deliveries for ReplayDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let (waker, before) = (context.waker().clone(), into.len());
        let (mut receipts, former) = {
            let mut back = self.shared.0.lock();
            let mut receipts = Vec::new();
            while receipts.len() < limit
                && let Some((_, receipt)) = back.receipts.pop_first()
            {
                receipts.push(receipt);
            }
            (receipts, back.waker.replace(waker))
        };
        drop(former);
        while receipts.len() < limit && !self.complete && self.failed.is_none() {
            match self.receiver.poll_recv(context) {
                Poll::Ready(Some(Ok(Some((place, envelope))))) => {
                    self.number += 1;
                    let offset = Offset::new(u128::try_from(place).unwrap_or_default());
                    receipts.push(Receipt { envelope, offset, attempt: 1, token: self.number });
                }
                Poll::Ready(Some(Ok(None))) => self.complete = true,
                Poll::Ready(Some(Err(error))) => self.failed = Some(error),
                // Nobody reads any more, and the end was not reached.
                Poll::Ready(None) => {
                    let said = "the broker was closed before the end of the replay";
                    self.failed = Some(BrokerError::new(said));
                }
                Poll::Pending => break,
            }
        }
        let settler = Arc::clone(&self.shared) as Arc<dyn Settler>;
        let received = |receipt| {
            let settler = Arc::clone(&settler);
            Received { receipt, replayed: true, parked: None, alone: false, settler }
        };
        let open = {
            let mut back = self.shared.0.lock();
            back.open += receipts.len();
            back.open
        };
        into.extend(receipts.into_iter().map(received));
        if into.len() > before {
            return Poll::Ready(Ok(()));
        }
        match self.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            // What is handed out may come back.
            None if self.complete && open == 0 => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl Settler for Returned {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        drop(receipt);
        self.settled(None);
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, receipt: Receipt, _letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        self.ack(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.settled(Some(receipt));
    }
}

impl fmt::Debug for Returned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Returned").finish_non_exhaustive()
    }
}
