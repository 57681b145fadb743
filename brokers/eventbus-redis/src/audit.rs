//! The audit log: questions about what was published, answered by reading the history.

use crate::broker::Store;
use crate::entry;
use crate::place::Place;
use crate::wire;
use bytes::Bytes;
use eventbus_core::broker::{AuditLog, AuditQuery, BrokerFuture, Offset, Recorded};
use eventbus_core::{BrokerError, Pattern};
use std::sync::Arc;

impl Store {
    async fn query(&self, query: AuditQuery) -> Result<Vec<Recorded>, BrokerError> {
        let all = Pattern::new(">").map_err(|error| BrokerError::new(error.to_string()))?;
        let pattern = query.pattern.as_ref().unwrap_or(&all);
        // What is published while it is read is not of one moment with the rest.
        let (mut from, mut to) = (Place::START, self.latest().await?);
        if let Some(offset) = query.offset.map(Place::from) {
            (from, to) = (from.max(offset), to.min(offset));
        }
        match query.after.map(Place::from) {
            Some(Place::START) if query.newest_first => return Ok(Vec::new()),
            Some(after) if query.newest_first => to = to.min(after.before()),
            Some(after) => from = from.max(after.next()),
            None => {}
        }
        let mut walk = self.walk(pattern, from, to, query.newest_first).await?;
        let mut found = Vec::new();
        while found.len() < query.limit
            && let Some((topic, entry)) = walk.next().await?
        {
            let offset = Offset::from(entry.place);
            let envelope = wire::read(topic, entry.place, entry.fields);
            if query.matches(&envelope) {
                found.push(Recorded { offset, envelope: Arc::new(envelope) });
            }
        }
        Ok(found)
    }

    /// What an event was mended with, by the groups.
    async fn mended(&self, place: Place) -> Result<Vec<(String, Bytes)>, BrokerError> {
        let what = "cannot read mended payloads";
        let mut groups: Vec<String> =
            self.link.ask(what, redis::cmd("SMEMBERS").arg(self.keys.groups())).await?;
        groups.sort();
        let all = Pattern::new(">").map_err(|error| BrokerError::new(error.to_string()))?;
        let mut walk = self.walk(&all, place, place, false).await?;
        let Some((topic, _)) = walk.next().await? else { return Ok(Vec::new()) };
        let field = format!("{topic}/{place}");
        let asked =
            groups.iter().map(|group| redis::cmd("HGET").arg(self.keys.mended(group)).arg(&field).clone());
        let payloads = self.ask_each(what, asked.collect()).await?.into_iter().map(entry::bytes);
        let mended = groups.into_iter().zip(payloads);
        Ok(mended.filter_map(|(group, payload)| Some((group, payload?.into()))).collect())
    }

    async fn wait_for(&self, offset: Option<Offset>) -> Result<(), BrokerError> {
        let place = offset.map_or(Place::START, Place::from);
        let all = Pattern::new(">").map_err(|error| BrokerError::new(error.to_string()))?;
        while self.latest().await? <= place {
            self.wait_behind(&all, place).await?;
        }
        Ok(())
    }
}

/// The audit log of a broker.
pub(crate) struct RedisAudit(pub(crate) Arc<Store>);

impl AuditLog for RedisAudit {
    fn query(&self, query: AuditQuery) -> BrokerFuture<Result<Vec<Recorded>, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move { store.query(query).await })
    }

    fn wait(&self, offset: Option<Offset>) -> BrokerFuture<Result<(), BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move { store.wait_for(offset).await })
    }

    fn mended(&self, offset: Offset) -> BrokerFuture<Result<Vec<(String, Bytes)>, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move { store.mended(Place::from(offset)).await })
    }

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let latest = store.latest().await?;
            Ok((latest > Place::START).then(|| Offset::from(latest)))
        })
    }
}
