//! `tail`: follows what is published.

use super::publish;
use crate::event;
use crate::failure::Result;
use crate::session::Session;
use crate::table::Columns;
use eventbus_core::Pattern;
use eventbus_core::broker::{AuditQuery, Offset, Recorded};

/// How many events are asked for at once.
const PAGE: usize = 500;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Tail {
    /// Only events on these topics: `order.placed`, `order.*`, `order.>`
    pattern: Option<Pattern>,
    /// Begin with the latest events that there are
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    last: usize,
    /// End after so many events
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    limit: Option<usize>,
}

impl Tail {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let bus = session.look().await?;
        let log = bus.audit_log()?;
        // It may be published yet.
        if let Some(doubt) = self.pattern.as_ref().and_then(publish::doubt) {
            session.out.warn(&doubt);
        }
        let mut printer = Printer { columns: Columns::new(event::COLUMNS), left: self.limit, begun: false };
        let mut query = AuditQuery::default();
        query.pattern = self.pattern;
        if self.limit == Some(0) {
            return Ok(bus.shutdown().await?);
        }
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
            let reached = log.latest().await?;
            let events = log.query(query.clone()).await?;
            query.after = query.after.max(looked_at(&events, reached));
            if printer.print(session, &events)? {
                return Ok(bus.shutdown().await?);
            }
        }
    }
}

/// How far the log was looked at, by a page that was asked for when the log had `reached` some place. Other events may
/// stand between those that match, and must not be looked at again and again.
fn looked_at(page: &[Recorded], reached: Option<Offset>) -> Option<Offset> {
    let last = page.last().map(|event| event.offset);
    if page.len() < PAGE { reached.max(last) } else { last }
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
        let events = &events[..events.len().min(self.left.unwrap_or(usize::MAX))];
        if out.json {
            for event in events {
                out.object(event::object(Some(event.offset), &event.envelope)?)?;
            }
        } else {
            let row = |event: &Recorded| event::row(event, out.moment(event.envelope.time()));
            let rows = events.iter().map(row).collect::<Result<Vec<_>>>()?;
            rows.iter().for_each(|row| self.columns.fit(row));
            if !rows.is_empty() && !std::mem::replace(&mut self.begun, true) && out.width.is_some() {
                out.line(self.columns.header(out.width))?;
            }
            for row in &rows {
                out.line(self.columns.line(row, out.width))?;
            }
        }
        out.flush()?;
        self.left = self.left.map(|left| left.saturating_sub(events.len()));
        Ok(self.left == Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::{Envelope, Topic};
    use std::sync::Arc;

    #[test]
    fn events_that_do_not_match_are_looked_at_once_and_a_full_page_skips_none() {
        let envelope = Arc::new(Envelope::from_json(Topic::from_static("a"), &1).unwrap());
        let page = |events: u128| -> Vec<_> {
            (0..events)
                .map(|place| Recorded { offset: Offset::new(place), envelope: Arc::clone(&envelope) })
                .collect()
        };
        let reached = Some(Offset::new(9_000));
        assert_eq!(looked_at(&page(0), reached), reached);
        assert_eq!(looked_at(&page(10), reached), reached);
        assert_eq!(looked_at(&page(PAGE as u128), reached), Some(Offset::new(PAGE as u128 - 1)));
        assert_eq!(looked_at(&page(10), Some(Offset::new(3))), Some(Offset::new(9)));
    }
}
