//! Causes: what an event led to, and what led to it.

use super::Bus;
use crate::broker::{AuditQuery, CauseTree};
use crate::error::Result;
use crate::id::EventId;

impl Bus {
    /// The chain of events that an event belongs to: the one that began it, with what handlers published because of
    /// it, and because of that. Usually one tree; nothing where the audit log keeps no event of the chain.
    ///
    /// ```
    /// # use eventbus::{Bus, EventId};
    /// use eventbus::broker::CauseTree;
    ///
    /// fn print(trees: &[CauseTree], depth: usize) {
    ///     for tree in trees {
    ///         println!("{:depth$}{} {}", "", tree.event.envelope.topic(), tree.event.envelope.id());
    ///         print(&tree.effects, depth + 2);
    ///     }
    /// }
    ///
    /// # async fn show(bus: Bus, id: EventId) -> eventbus::Result<()> {
    /// print(&bus.causes(&id).await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Where the broker keeps no log that can be asked, and what it reports.
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed.
    pub async fn causes(&self, event: &EventId) -> Result<Vec<CauseTree>> {
        let log = self.audit_log()?;
        let one = AuditQuery { id: Some(event.clone()), limit: 1, ..AuditQuery::default() };
        let found = log.query(one).await?;
        // An event that is no longer kept may have begun a chain whose later events are.
        let chain = found.first().map_or(event, |found| found.envelope.correlation_id());
        let mut query = AuditQuery { correlation_id: Some(chain.clone()), ..AuditQuery::default() };
        let mut events = Vec::new();
        loop {
            let page = log.query(query.clone()).await?;
            let Some(last) = page.last() else { return Ok(CauseTree::of(events)) };
            query.after = Some(last.offset);
            events.extend(page);
        }
    }
}
