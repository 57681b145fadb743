//! The audit log: the stream of events, searched by subject, place and time.

use crate::broker::Shared;
use crate::replay::{SKEW, from_time};
use crate::wire;
use async_nats::jetstream::consumer::DeliverPolicy;
use eventbus_core::BrokerError;
use eventbus_core::broker::{AuditLog, AuditQuery, BrokerFuture, Offset, Recorded};
use std::sync::Arc;

/// How many places are looked at first where the latest events are asked for; then twice as many, and so on.
const WINDOW: u64 = 1_000;

/// The stream, to be asked what was published.
pub(crate) struct NatsAuditLog(pub(crate) Arc<Shared>);

impl AuditLog for NatsAuditLog {
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move { shared.query(query).await })
    }

    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let from = after(offset);
            let filter = shared.link.settings.subject(">");
            let mut scan =
                shared.scan(filter, DeliverPolicy::ByStartSequence { start_sequence: from }).await?;
            scan.next().await?;
            Ok(())
        })
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let shared = Arc::clone(&self.0);
        BrokerFuture::new(
            async move { Ok(shared.link.ends().await?.map(|(_, last)| Offset::new(last.into()))) },
        )
    }
}

/// The first place behind an offset.
fn after(offset: Option<Offset>) -> u64 {
    offset.map_or(1, |offset| u64::try_from(offset.get()).unwrap_or(u64::MAX).saturating_add(1))
}

impl Shared {
    async fn query(&self, query: AuditQuery) -> Result<Vec<Recorded>, BrokerError> {
        let Some((first, last)) = self.link.ends().await? else { return Ok(Vec::new()) };
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let pattern = query.pattern.as_ref().map_or(">", |pattern| pattern.as_str());
        let filter = self.link.settings.subject(pattern);
        if let Some(offset) = query.offset {
            let Ok(place) = u64::try_from(offset.get()) else { return Ok(Vec::new()) };
            return self.look(&query, &filter, [place.max(1), place], 1).await;
        }
        if !query.newest_first {
            return self.look(&query, &filter, [first.max(after(query.after)), last], query.limit).await;
        }
        let mut end = match query.after {
            Some(offset) => last.min(u64::try_from(offset.get()).unwrap_or(u64::MAX).saturating_sub(1)),
            None => last,
        };
        let (mut found, mut window): (Vec<Recorded>, u64) = (Vec::new(), WINDOW);
        while end >= first && found.len() < query.limit {
            let begin = end.saturating_sub(window - 1).max(first);
            let mut part = self.look(&query, &filter, [begin, end], usize::MAX).await?;
            part.reverse();
            found.extend(part);
            if self.is_before(&query, begin).await? {
                break;
            }
            end = begin - 1;
            window = window.saturating_mul(2);
        }
        found.truncate(query.limit);
        Ok(found)
    }

    /// Whether what was stored before a place cannot have happened as late as it is asked for.
    async fn is_before(&self, query: &AuditQuery, place: u64) -> Result<bool, BrokerError> {
        let Some(since) = query.since else { return Ok(false) };
        let message = self.message(&self.link.settings.stream, place).await?;
        let limit = since.checked_sub(SKEW).unwrap_or(since);
        Ok(message.is_some_and(|message| message.time < limit))
    }

    /// Events between two places, both included, that are asked for.
    async fn look(
        &self,
        query: &AuditQuery,
        filter: &str,
        [begin, end]: [u64; 2],
        limit: usize,
    ) -> Result<Vec<Recorded>, BrokerError> {
        let settings = &self.link.settings;
        let from = match query.since {
            // The place is what is asked for, or the time leads farther.
            Some(since) if !query.newest_first && query.after.is_none() && query.offset.is_none() => {
                from_time(since)
            }
            _ => DeliverPolicy::ByStartSequence { start_sequence: begin },
        };
        let mut found = Vec::new();
        if begin > end {
            return Ok(found);
        }
        let mut scan = self.scan(filter.to_owned(), from).await?;
        let mut left = scan.count;
        while left > 0 && found.len() < limit {
            let (place, message) = scan.next().await?;
            left = place.behind.min(left - 1);
            if place.sequence > end {
                break;
            }
            let topic = settings.topic_of(&message.subject);
            let headers = message.headers.as_ref();
            let event =
                wire::read(&settings.stream, topic, place.sequence, place.time, headers, message.payload);
            if query.matches(&event) {
                found
                    .push(Recorded { offset: Offset::new(place.sequence.into()), envelope: Arc::new(event) });
            }
        }
        Ok(found)
    }
}
