//! The audit log: questions about what was published, answered by reading the history.

use crate::broker::Store;
use crate::place::Place;
use crate::wire;
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

    fn latest(&self) -> BrokerFuture<Result<Option<Offset>, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            let latest = store.latest().await?;
            Ok((latest > Place::START).then(|| Offset::from(latest)))
        })
    }
}
