//! Replay: a part of the stream once more, with a consumer that is thrown away.

use crate::broker::Shared;
use crate::scan::{Part, Scan};
use crate::topology::consumer_name;
use crate::wire::{self, AGAIN, MENDED};
use async_nats::jetstream::consumer::DeliverPolicy;
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Replay, ReplayFrom, ReplayRequest,
    ReplayUntil, Replayable, Settler,
};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, foreign};
use jiff::{SignedDuration, Timestamp};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::mpsc::{self, Receiver, Sender};

/// How far the time of an event may be behind the time at which it was stored, so that it is found by its time: clocks
/// differ.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// How many events wait for the reader.
const AHEAD: usize = 128;

/// The history of a stream.
pub(crate) struct NatsHistory(pub(crate) Arc<Shared>);

impl Replayable for NatsHistory {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move { shared.replay(request).await })
    }
}

/// An event on its way to the reader.
type Read = Result<(u64, Arc<Envelope>), BrokerError>;

impl Shared {
    /// The events on these subjects from a place on.
    pub(crate) async fn scan(&self, filter: String, from: DeliverPolicy) -> Result<Scan, BrokerError> {
        Scan::open(
            &self.link,
            Part { stream: self.link.settings.stream.clone(), filters: vec![filter], from },
        )
        .await
    }

    async fn replay(self: Arc<Self>, request: ReplayRequest) -> Result<Replay, BrokerError> {
        let latest = self.link.ends().await?.map(|(_, last)| last);
        let filter = self.link.settings.subject(request.pattern.as_str());
        let scan = self.scan(filter.clone(), first(request.from)).await?;
        let behind = match request.until {
            ReplayUntil::Offset(offset) => Some(from_sequence(offset.get().saturating_add(1))),
            ReplayUntil::Time(time) => Some(from_time(time)),
            _ => None,
        };
        let mut events = scan.count;
        if let Some(behind) = behind {
            events = events.saturating_sub(self.scan(filter, behind).await?.count);
        }
        let mended = self.mended(&request).await?;
        let (sender, receiver) = mpsc::channel(AHEAD);
        let left = if request.until == ReplayUntil::Live { u64::MAX } else { scan.count };
        let reading = Reading { shared: Arc::clone(&self), mended, request, left };
        self.tasks.spawn(reading.run(scan, sender));
        let returned = Arc::new(Returned(Lock::new(Rank::BROKER_LAST, Back::default())));
        let deliveries = Box::new(ReplayDeliveries { receiver, returned });
        Ok(Replay { deliveries, events, latest: latest.map(|latest| Offset::new(latest.into())) })
    }

    /// The payloads that were mended for a group, by the places of their events.
    async fn mended(&self, request: &ReplayRequest) -> Result<HashMap<u64, Bytes>, BrokerError> {
        let consumer = consumer_name(&request.group, request.pattern.as_str());
        let mut scan = self.scan(self.link.settings.again(&consumer, ">"), DeliverPolicy::All).await?;
        let (mut mended, mut left) = (HashMap::new(), scan.count);
        while left > 0 {
            let (place, message) = scan.next().await?;
            left = place.behind.min(left - 1);
            let Some(headers) = message.headers.filter(|headers| headers.get(MENDED).is_some()) else {
                continue;
            };
            if let Some(at) = headers.get(AGAIN).and_then(|at| at.as_str().parse().ok()) {
                mended.insert(at, message.payload);
            }
        }
        Ok(mended)
    }
}

/// Where the server begins.
fn first(from: ReplayFrom) -> DeliverPolicy {
    match from {
        ReplayFrom::Offset(offset) => from_sequence(offset.get()),
        ReplayFrom::After(offset) => from_sequence(offset.get().saturating_add(1)),
        ReplayFrom::Time(time) => from_time(time),
        _ => DeliverPolicy::All,
    }
}

fn from_sequence(sequence: u128) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence { start_sequence: u64::try_from(sequence).unwrap_or(u64::MAX).max(1) }
}

/// Events are stored after they happened, and clocks differ.
pub(crate) fn from_time(time: Timestamp) -> DeliverPolicy {
    let time = time.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH);
    match async_nats::datetime::from_nanos(time.as_nanosecond()) {
        Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
        Err(_) => DeliverPolicy::All,
    }
}

/// What reads for a replay.
struct Reading {
    shared: Arc<Shared>,
    mended: HashMap<u64, Bytes>,
    request: ReplayRequest,
    /// How many there are.
    left: u64,
}

impl Reading {
    async fn run(mut self, mut scan: Scan, sender: Sender<Read>) {
        let mut begun = !matches!(self.request.from, ReplayFrom::Time(_));
        while self.left > 0 {
            let next = tokio::select! {
                biased;
                () = sender.closed() => return,
                next = scan.next() => next,
            };
            let (place, message) = match next {
                Ok(next) => next,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            if self.left != u64::MAX {
                self.left = place.behind.min(self.left - 1);
            }
            let settings = &self.shared.link.settings;
            let topic = settings.topic_of(&message.subject);
            let payload = self.mended.get(&place.sequence).cloned();
            let mut event = wire::read(
                &settings.stream,
                topic,
                place.sequence,
                place.time,
                message.headers.as_ref(),
                message.payload,
            );
            begun |= matches!(self.request.from, ReplayFrom::Time(from) if event.time() >= from);
            if !begun {
                continue;
            }
            let ends = match self.request.until {
                ReplayUntil::Offset(last) => u128::from(place.sequence) > last.get(),
                ReplayUntil::Time(until) => event.time() >= until,
                _ => false,
            };
            if ends {
                return;
            }
            if let Some(payload) = payload {
                event = event.with_payload(payload);
            }
            let sent = async { sender.send(Ok((place.sequence, Arc::new(event)))).await };
            if sent.await.is_err() {
                return;
            }
        }
    }
}

/// The reader's end of a replay.
struct ReplayDeliveries {
    receiver: Receiver<Read>,
    returned: Arc<Returned>,
}

/// What the reader gave back, in the order of the stream.
#[derive(Debug)]
struct Returned(Lock<Back>);

#[derive(Debug, Default)]
struct Back {
    receipts: VecDeque<Receipt>,
    waker: Option<Waker>,
}

impl ReplayDeliveries {
    fn received(&self, receipt: Receipt) -> Received {
        let settler = Arc::clone(&self.returned) as Arc<dyn Settler>;
        Received { receipt, replayed: true, parked: None, alone: false, settler }
    }
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
            let mut back = self.returned.0.lock();
            let count = limit.min(back.receipts.len());
            let returned: Vec<_> = back.receipts.drain(..count).collect();
            (returned, back.waker.replace(waker))
        };
        drop(former);
        if !returned.is_empty() {
            into.extend(returned.into_iter().map(|receipt| self.received(receipt)));
            return Poll::Ready(Ok(()));
        }
        let before = into.len();
        while into.len() - before < limit {
            match self.receiver.poll_recv(context) {
                Poll::Ready(Some(Ok((sequence, envelope)))) => {
                    let offset = Offset::new(sequence.into());
                    into.push(self.received(Receipt { envelope, offset, attempt: 1, token: 0 }));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if into.len() > before => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Settler for Returned {
    fn ack(&self, _receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, _receipt: Receipt, _letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    fn release(&self, receipt: Receipt) {
        let waker = {
            let mut back = self.0.lock();
            let place = back.receipts.partition_point(|other| other.offset < receipt.offset);
            back.receipts.insert(place, receipt);
            back.waker.take()
        };
        if let Some(waker) = waker {
            foreign::tell("a waker", || waker.wake());
        }
    }
}
