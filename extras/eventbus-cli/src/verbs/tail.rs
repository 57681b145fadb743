//! `tail`: follows what is published.

use crate::event;
use crate::failure::Result;
use crate::session::Session;
use crate::table::Columns;
use eventbus_core::Pattern;
use eventbus_core::broker::{AuditQuery, Recorded};

/// How many events are asked for at once.
const PAGE: usize = 500;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Tail {
    /// Only events on these topics: `order.placed`, `order.*`, `order.>`
    pattern: Option<Pattern>,
    /// Begin with the latest events that there are
    #[arg(long, value_name = "N", default_value_t = 0)]
    last: usize,
    /// End after so many events
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Tail {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let bus = session.look().await?;
        let log = bus.audit_log()?;
        let mut printer = Printer { columns: Columns::new(event::COLUMNS), left: self.limit, begun: false };
        let mut query = AuditQuery::default();
        query.pattern = self.pattern;
        // What comes after this place is followed, so that no event is missed or shown twice.
        query.after = log.latest().await?;
        if self.last > 0 {
            let mut latest = query.clone();
            (latest.after, latest.newest_first, latest.limit) = (None, true, self.last);
            let mut events = log.query(latest).await?;
            events.reverse();
            query.after = query.after.max(events.last().map(|event| event.offset));
            if printer.print(session, &events)? {
                return Ok(bus.shutdown().await?);
            }
        }
        query.limit = PAGE;
        loop {
            log.wait(query.after).await?;
            // Other events may stand between those that match; they need not be looked at again.
            let reached = log.latest().await?;
            let events = log.query(query.clone()).await?;
            let last = events.last().map(|event| event.offset);
            let looked_at = if events.len() < PAGE { reached.max(last) } else { last };
            query.after = query.after.max(looked_at);
            if printer.print(session, &events)? {
                return Ok(bus.shutdown().await?);
            }
        }
    }
}

/// Writes events as they come, in columns that grow.
struct Printer {
    columns: Columns,
    left: Option<usize>,
    begun: bool,
}

impl Printer {
    /// Whether that was the last one.
    fn print(&mut self, session: &mut Session, events: &[Recorded]) -> Result<bool> {
        let out = &mut session.out;
        for event in events.iter().take(self.left.unwrap_or(usize::MAX)) {
            if out.json {
                out.object(event::object(Some(event.offset), &event.envelope)?)?;
                continue;
            }
            let row = event::row(event)?;
            self.columns.fit(&row);
            if !std::mem::replace(&mut self.begun, true) && out.width.is_some() {
                out.line(self.columns.header())?;
            }
            out.line(self.columns.line(&row, out.width))?;
        }
        out.flush()?;
        self.left = self.left.map(|left| left.saturating_sub(events.len()));
        Ok(self.left == Some(0))
    }
}
