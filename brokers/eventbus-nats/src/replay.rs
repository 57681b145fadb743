//! Replay: a part of the stream once more, with a consumer that is thrown away.

use crate::broker::Shared;
use crate::scan::{Part, Scan};
use crate::topology::consumer_name;
use crate::wire::{self, AGAIN, MENDED};
use async_nats::jetstream::consumer::DeliverPolicy;
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    BrokerFuture, Offset, Replay, ReplayFrom, ReplayRequest, ReplayUntil, Replayable,
};
use eventbus_server::replays::Feed;
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;

/// How far the time of an event may be behind the time at which it was stored, so that it is found by its time: clocks
/// differ.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// The history of a stream.
pub(crate) struct NatsHistory(pub(crate) Arc<Shared>);

impl Replayable for NatsHistory {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move { shared.replay(request).await })
    }
}

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
        let (feed, deliveries) = Feed::new();
        let left = if request.until == ReplayUntil::Live { u64::MAX } else { scan.count };
        let reading = Reading { shared: Arc::clone(&self), mended, request, left };
        self.tasks.spawn(reading.run(scan, feed));
        let latest = latest.map(|latest| Offset::new(latest.into()));
        Ok(Replay { deliveries: Box::new(deliveries), events, latest })
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
    async fn run(mut self, mut scan: Scan, feed: Feed) {
        let mut begun = !matches!(self.request.from, ReplayFrom::Time(_));
        while self.left > 0 {
            let next = tokio::select! {
                biased;
                () = feed.closed() => return,
                next = scan.next() => next,
            };
            let (place, message) = match next {
                Ok(next) => next,
                Err(error) => return feed.break_off(error),
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
                break;
            }
            if let Some(payload) = payload {
                event = event.with_payload(payload);
            }
            if !feed.put(Offset::new(place.sequence.into()), Arc::new(event)).await {
                return;
            }
        }
        feed.complete();
    }
}
