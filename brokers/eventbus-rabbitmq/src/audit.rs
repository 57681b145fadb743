//! The audit log: the stream of all events, searched by place and time.

use crate::replay::place;
use crate::stream::{Begin, Events, Kept};
use crate::wire::Note;
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::{AuditLog, AuditQuery, BrokerFuture, Offset, Recorded};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many places are looked at first where the latest events are asked for; then twice as many, and so on.
const WINDOW: i64 = 1_000;

/// The stream, to be asked what was published.
pub(crate) struct RabbitMqAuditLog(pub(crate) Arc<Events>);

impl AuditLog for RabbitMqAuditLog {
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let events = Arc::clone(&self.0);
        BrokerFuture::new(async move { events.query(query).await })
    }

    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        let events = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let begin = match offset {
                Some(offset) => Begin::At(place(offset)?.saturating_add(1)),
                None => Begin::First,
            };
            let mut scan = events.scan(begin);
            while let Some((_, kept)) = scan.next(None).await? {
                if matches!(kept, Kept::Event(_)) {
                    break;
                }
            }
            Ok(())
        })
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let events = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let end = events.end().await.map_err(|trouble| events.explain(trouble))?;
            Ok(end.event.map(offset_of))
        })
    }

    fn mended(&self, offset: Offset) -> BrokerFuture<Result<Vec<(String, Bytes)>, BrokerError>> {
        let events = Arc::clone(&self.0);
        BrokerFuture::new(async move { events.mended(place(offset)?).await })
    }
}

fn offset_of(place: i64) -> Offset {
    Offset::new(u128::try_from(place).unwrap_or_default())
}

impl Events {
    async fn last(&self) -> Result<i64, BrokerError> {
        Ok(self.end().await.map_err(|trouble| self.explain(trouble))?.last)
    }

    async fn query(self: &Arc<Self>, query: AuditQuery) -> Result<Vec<Recorded>, BrokerError> {
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let last = self.last().await?;
        if let Some(offset) = query.offset {
            let at = place(offset)?;
            return self.look(&query, Begin::At(at), at.min(last), 1).await;
        }
        let after = query.after.map(place).transpose()?;
        if query.newest_first {
            return self.backwards(&query, after.map_or(last, |after| last.min(after - 1))).await;
        }
        let begin = match (after, query.since) {
            (Some(after), _) => Begin::At(after.saturating_add(1)),
            (None, Some(since)) => Begin::Time(since),
            (None, None) => Begin::First,
        };
        self.look(&query, begin, last, query.limit).await
    }

    /// The events that are asked for, from a place to another one.
    async fn look(
        self: &Arc<Self>,
        query: &AuditQuery,
        begin: Begin,
        end: i64,
        limit: usize,
    ) -> Result<Vec<Recorded>, BrokerError> {
        let mut found = Vec::new();
        if matches!(begin, Begin::At(place) if place > end) || end < 0 {
            return Ok(found);
        }
        let mut scan = self.scan(begin);
        while found.len() < limit
            && let Some((place, kept)) = scan.next(Some(end)).await?
        {
            if let Kept::Event(envelope) = kept
                && query.matches(&envelope)
            {
                found.push(Recorded { offset: offset_of(place), envelope });
            }
        }
        Ok(found)
    }

    /// The latest first: a part before the end is read, then a larger one before that, until there are enough.
    async fn backwards(
        self: &Arc<Self>,
        query: &AuditQuery,
        mut end: i64,
    ) -> Result<Vec<Recorded>, BrokerError> {
        let mut found = Vec::new();
        let Some(first) = self.first(query.since, end).await? else { return Ok(found) };
        let mut window = WINDOW;
        while end >= first && found.len() < query.limit {
            let begin = end.saturating_sub(window - 1).max(first);
            let mut part = self.look(query, Begin::At(begin), end, usize::MAX).await?;
            part.reverse();
            found.extend(part);
            end = begin - 1;
            window = window.saturating_mul(2);
        }
        found.truncate(query.limit);
        Ok(found)
    }

    /// The first place that is kept, or that was stored about as late as this. None, where there is none up to `end`.
    async fn first(self: &Arc<Self>, since: Option<Timestamp>, end: i64) -> Result<Option<i64>, BrokerError> {
        if end < 0 {
            return Ok(None);
        }
        let mut scan = self.scan(since.map_or(Begin::First, Begin::Time));
        Ok(scan.next(Some(end)).await?.map(|(place, _)| place))
    }

    /// What the event at a place was mended with. The notes of that stand behind it.
    async fn mended(self: &Arc<Self>, at: i64) -> Result<Vec<(String, Bytes)>, BrokerError> {
        let (last, mut named, mut mended) = (self.last().await?, None, BTreeMap::new());
        if at > last {
            return Ok(Vec::new());
        }
        let mut scan = self.scan(Begin::At(at));
        while let Some((place, kept)) = scan.next(Some(last)).await? {
            match kept {
                Kept::Event(event) if place == at => {
                    named = Some((event.source().to_owned(), event.id().to_string()));
                }
                Kept::Note(Note { group, source, id, payload })
                    if named == Some((source.clone(), id.clone())) =>
                {
                    mended.insert(group, payload);
                }
                _ if named.is_none() => break,
                _ => {}
            }
        }
        Ok(mended.into_iter().collect())
    }
}
