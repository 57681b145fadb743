//! Replays: a part of the stream of all events once more, for one group, whose queues do not move.

use crate::stream::{Begin, Events, Kept, Scan};
use crate::wire::Note;
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, Offset, Replay, ReplayFrom, ReplayRequest, ReplayUntil, Replayable,
};
use eventbus_core::{BrokerError, Envelope};
use eventbus_server::replays::Feed;
use eventbus_server::tasks::Tasks;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// When to try again what has failed.
const AGAIN: Duration = Duration::from_secs(1);

/// What is in the stream.
pub(crate) struct RabbitMqHistory {
    pub(crate) events: Arc<Events>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Replayable for RabbitMqHistory {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let (events, tasks) = (Arc::clone(&self.events), Arc::clone(&self.tasks));
        BrokerFuture::new(async move { open(&events, &tasks, request).await })
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

async fn open(events: &Arc<Events>, tasks: &Tasks, request: ReplayRequest) -> Result<Replay, BrokerError> {
    let end = events.end().await.map_err(|trouble| events.explain(trouble))?;
    let part = look(events, &request, end.last).await?;
    let latest = end.event.and_then(|place| u128::try_from(place).ok()).map(Offset::new);
    let (feed, deliveries) = Feed::new();
    let count = part.events;
    let reading = Reading { scan: events.scan(Begin::At(part.first)), part, request };
    tasks.spawn(reading.run(feed));
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

/// What reads for a replay.
struct Reading {
    scan: Scan,
    part: Part,
    request: ReplayRequest,
}

impl Reading {
    async fn run(mut self, feed: Feed) {
        loop {
            let read = tokio::select! {
                biased;
                () = feed.closed() => return,
                read = self.next() => read,
            };
            match read {
                Ok(Some((place, event))) => {
                    let offset = Offset::new(u128::try_from(place).unwrap_or_default());
                    if !feed.put(offset, event).await {
                        return;
                    }
                }
                Ok(None) => return feed.complete(),
                Err(error) if self.scan.is_over() => return feed.break_off(error),
                Err(error) => feed.pause(&self.request.group, &error, AGAIN).await,
            }
        }
    }

    /// The next event; none, where all of them were read.
    async fn next(&mut self) -> Result<Option<(i64, Arc<Envelope>)>, BrokerError> {
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
