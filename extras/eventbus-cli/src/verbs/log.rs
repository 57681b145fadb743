//! `log`: asks what was published, and what caused what.

use super::publish;
use crate::event;
use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::{DIM, Output, paint};
use crate::session::Session;
use crate::table::Table;
use crate::when;
use eventbus_core::broker::{AuditLog, AuditQuery, CauseTree, Offset, Recorded};
use eventbus_core::printable::printable;
use eventbus_core::{EventId, Pattern};
use jiff::Timestamp;

/// How many are asked for at once: a list of any length takes the memory of so many, and each may have megabytes.
pub(super) const PAGE: usize = 128;

/// How many are shown where nothing is said. Whoever reads JSON may be a program, which would take the first ones for
/// all there are.
pub(super) fn limit(out: &Output) -> usize {
    if out.json { usize::MAX } else { 100 }
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Log {
    #[command(subcommand)]
    one: Option<One>,
    #[command(flatten)]
    filter: Filter,
    /// Only events behind this offset, or with `--newest` before it: the next page
    #[arg(long, value_name = "OFFSET", value_parser = when::offset, allow_hyphen_values = true)]
    after: Option<Offset>,
    /// At most so many events; for people 100 where nothing is said, with `--json` all of them
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true)]
    limit: Option<usize>,
    /// The latest events first
    #[arg(long)]
    newest: bool,
}

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
struct Filter {
    /// Only events on these topics: `order.placed`, `order.*`, `order.>`
    pattern: Option<Pattern>,
    /// Only events with this key
    #[arg(long, allow_negative_numbers = true)]
    key: Option<String>,
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only events of the chain that began with this id
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Only events from this time on: RFC 3339, a day, or how long ago (`2h`)
    #[arg(long, value_name = "TIME", value_parser = when::time, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    /// Only events before this time
    #[arg(long, value_name = "TIME", value_parser = when::time, visible_alias = "before", allow_hyphen_values = true)]
    until: Option<Timestamp>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum One {
    /// Show one event in full, and what it was mended to
    Show {
        /// Its id or its offset
        event: String,
    },
    /// Draw the tree of events that caused each other, of which an event is a part
    Causes {
        /// Its id or its offset
        event: String,
    },
}

impl Log {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        // What clap knows as a conflict would also be one with `--json`.
        if self.one.is_some() && self.filter != Filter::default() {
            return Err(Failure::Usage(
                "`log show` and `log causes` take one event, and no filter".to_owned(),
            ));
        }
        let bus = session.look().await?;
        let log = bus.audit_log()?;
        match &self.one {
            Some(One::Show { event }) => {
                let Recorded { offset, envelope } = find(&*log, event).await?;
                let mended = log.mended(offset).await?;
                if session.out.json {
                    let object = event::object(Some(offset), &envelope)?;
                    session.out.object(event::with_mended(object, &envelope, &mended))?;
                } else {
                    event::show(&mut session.out, Some(offset), &envelope)?;
                    event::show_mended(&mut session.out, &mended)?;
                }
            }
            Some(One::Causes { event }) => {
                let id = match find(&*log, event).await {
                    // What it caused may be kept longer than the event.
                    Err(Failure::NotFound(_)) => EventId::new(event),
                    found => found?.envelope.id().clone(),
                };
                let trees = bus.causes(&id).await?;
                if trees.is_empty() {
                    return Err(missing(event));
                }
                for tree in &trees {
                    if session.out.json {
                        session.out.object(tree_object(tree)?)?;
                    } else {
                        draw(session, tree, &id, "", "")?;
                    }
                }
            }
            None => self.list(session, &*log).await?,
        }
        Ok(bus.shutdown().await?)
    }

    async fn list(self, session: &mut Session, log: &dyn AuditLog) -> Result {
        let mut query = AuditQuery::default();
        let Filter { pattern, key, event_type, correlation, since, until } = self.filter;
        (query.pattern, query.key, query.event_type) = (pattern.clone(), key, event_type);
        query.correlation_id = correlation.map(EventId::new);
        (query.since, query.before, query.after) = (since, until, self.after);
        query.newest_first = self.newest;
        let out = &mut session.out;
        let limit = self.limit.unwrap_or_else(|| limit(out));
        let mut table = Table::new(event::COLUMNS);
        let (mut seen, mut last) = (0, None);
        let more = loop {
            let page = PAGE.min(limit - seen);
            // One more tells whether there are more.
            query.limit = page + 1;
            let mut events = log.query(query.clone()).await?;
            let more = events.len() > page;
            events.truncate(page);
            for event in &events {
                if out.json {
                    out.object(event::object(Some(event.offset), &event.envelope)?)?;
                } else {
                    table.push(event::row(event, out.time(event.envelope.time()))?);
                }
            }
            (seen, last) = (seen + events.len(), events.last().map(|event| event.offset).or(last));
            if !more || seen == limit {
                break more;
            }
            query.after = last;
        };
        if let Some(doubt) = pattern.filter(|_| seen == 0).as_ref().and_then(publish::doubt) {
            return Err(Failure::not_found(doubt));
        }
        if !out.json {
            out.table(&table, "no event meets all of that")?;
        }
        if let Some(last) = last.filter(|_| more) {
            out.flush()?;
            out.remark(&format!("there are more: --after {last}, or a higher --limit"));
        }
        Ok(())
    }
}

/// The event with an id, or at an offset.
async fn find(log: &dyn AuditLog, event: &str) -> Result<Recorded> {
    let mut by_id = AuditQuery::default();
    (by_id.id, by_id.limit) = (Some(EventId::new(event)), 1);
    if let Some(found) = log.query(by_id).await?.pop() {
        return Ok(found);
    }
    if let Ok(offset) = when::offset(event) {
        let mut at = AuditQuery::default();
        at.offset = Some(offset);
        if let Some(found) = log.query(at).await?.pop() {
            return Ok(found);
        }
    }
    Err(missing(event))
}

fn missing(event: &str) -> Failure {
    Failure::not_found(format!("there is no event with the id or the offset `{}`", printable(event)))
}

/// Draws a tree; `first` stands before its event, and `rest` before everything below.
fn draw(session: &mut Session, tree: &CauseTree, asked: &EventId, first: &str, rest: &str) -> Result {
    let asked_for = tree.event.envelope.id() == asked;
    let event = event::brief(&session.out, &tree.event, asked_for, first.chars().count());
    session.out.line(format_args!("{}{event}", paint(DIM, first)))?;
    for (place, effect) in tree.effects.iter().enumerate() {
        let last = place + 1 == tree.effects.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(session, effect, asked, &format!("{rest}{branch}"), &format!("{rest}{below}"))?;
    }
    Ok(())
}

/// An event with its effects as members of `effects`.
fn tree_object(tree: &CauseTree) -> Result<Object> {
    let effects: Vec<_> =
        tree.effects.iter().map(|tree| Ok(tree_object(tree)?.finish())).collect::<Result<_>>()?;
    let event = event::object(Some(tree.event.offset), &tree.event.envelope)?;
    Ok(Object::new().object("event", event).list("effects", effects))
}
