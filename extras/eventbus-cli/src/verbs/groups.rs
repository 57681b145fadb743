//! `groups`: the groups that a broker keeps, and how far each has come.

use super::subscriptions::{progress, with_progress};
use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::TOPIC;
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use crate::text::{count, counted};
use crate::when::{self, Cursor};
use eventbus_core::broker::GroupState;
use eventbus_core::choice::choice;
use eventbus_core::printable::printable;
use eventbus_core::{Bus, census};

const COLUMNS: &[Column] = &[
    Column::copied("GROUP"),
    Column::name("PATTERN"),
    Column::number("CURSOR").goes(2),
    Column::number("BACKLOG"),
    Column::number("PARKED").goes(1),
    Column::number("DEAD"),
    Column::whole("ACTIVE"),
];

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Groups {
    /// List the groups that the broker knows, and how far each has come
    List,
    /// Let a group go on at another place; asks first, and needs --yes where nobody can answer
    Seek {
        #[command(flatten)]
        group: Group,
        /// Behind this offset, at the `earliest` event or behind the `latest`
        #[arg(value_name = "OFFSET", value_parser = when::cursor, allow_negative_numbers = true)]
        cursor: Cursor,
    },
    /// Give the cursor, the backlog and the dead letters of a group to another one; asks as `seek` does
    Move {
        #[command(flatten)]
        group: Group,
        /// The group, as it is called now; its own cursor is replaced
        new: String,
        /// Also what is live, as with `drop`, and to a group that nobody has
        #[arg(long)]
        live: bool,
    },
    /// Forget a group, its cursor and its backlog; its dead letters stay. Asks as `seek` does
    Drop {
        #[command(flatten)]
        group: Group,
        /// Everything that it has, on each of its patterns
        #[arg(long, conflicts_with = "pattern")]
        all_patterns: bool,
        /// Also what is live: what a subscription of this program listens on
        #[arg(long)]
        live: bool,
    },
}

/// Which rows of the list are meant.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Group {
    /// The group
    #[arg(value_name = "GROUP")]
    name: String,
    /// Only what it has on this pattern
    #[arg(long)]
    pattern: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Groups {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let bus = session.look().await?;
        match self {
            Self::List => list(session, &bus).await?,
            Self::Seek { group, cursor } => group.seek(session, &bus, cursor).await?,
            Self::Move { group, new, live } => group.give(session, &bus, &new, live).await?,
            Self::Drop { group, all_patterns, live } => {
                group.forget(session, &bus, all_patterns, live).await?
            }
        }
        Ok(bus.shutdown().await?)
    }
}

impl Group {
    /// What the broker has of it, on the pattern where one is named.
    async fn rows(&self, bus: &Bus) -> Result<Vec<GroupState>> {
        let mut rows = bus.groups()?.list().await?;
        if !rows.iter().any(|row| row.group == self.name) {
            let choice = choice(&self.name, rows.iter().map(|row| &*row.group));
            return Err(Failure::not_found(format!("the broker has no group `{}`; {choice}", self.name)));
        }
        rows.retain(|row| row.group == self.name);
        if let Some(pattern) = &self.pattern {
            if !rows.iter().any(|row| row.pattern == *pattern) {
                let choice = choice(pattern, rows.iter().map(|row| &*row.pattern));
                return Err(Failure::not_found(format!(
                    "the group `{}` has nothing on \"{pattern}\"; of its patterns, {choice}",
                    self.name
                )));
            }
            rows.retain(|row| row.pattern == *pattern);
        }
        Ok(rows)
    }

    async fn seek(self, session: &mut Session, bus: &Bus, cursor: Cursor) -> Result {
        let rows = self.rows(bus).await?;
        let place = match cursor {
            Cursor::Earliest => "at the earliest event".to_owned(),
            Cursor::Behind(offset) => format!("behind offset {offset}"),
            Cursor::Latest => "behind the latest event".to_owned(),
        };
        let question = format!("let `{}` go on {place}, where now it has {}?", self.name, holdings(&rows));
        // Where the broker cannot do it, it says so below, and nobody is asked before.
        let seeks = bus.features().seek;
        if seeks && !session.out.confirm(&question, self.yes)? {
            return Ok(());
        }
        let offset = match cursor {
            Cursor::Behind(offset) => Some(offset),
            Cursor::Latest if seeks => bus.audit_log()?.latest().await?,
            Cursor::Earliest | Cursor::Latest => None,
        };
        let groups = bus.groups()?;
        let found = match &self.pattern {
            Some(pattern) => groups.seek_on(&self.name, pattern, offset).await?,
            None => groups.seek(&self.name, offset).await?,
        };
        self.said(session, found, format!("`{}`{} goes on {place}", self.name, self.on()))
    }

    async fn give(self, session: &mut Session, bus: &Bus, new: &str, live: bool) -> Result {
        let rows = self.rows(bus).await?;
        let heirs = bus.groups()?.list().await?;
        if !live {
            refuse_nobody(new, &heirs)?;
        }
        for row in &rows {
            self.refuse_live(row, "moves", live)?;
        }
        let again = match again(&rows, heirs.iter().filter(|heir| heir.group == new)) {
            0 => String::new(),
            again => format!(
                "; `{new}` has been at up to {} of these already, and handles again what it has handled",
                count(again)
            ),
        };
        let question = format!(
            "give what `{}` has ({}) to `{new}`, in place of its own{again}?",
            self.name,
            holdings(&rows)
        );
        // As above.
        if bus.features().rename && !session.out.confirm(&question, self.yes)? {
            return Ok(());
        }
        let groups = bus.groups()?;
        let found = match &self.pattern {
            Some(pattern) => groups.rename_on(&self.name, pattern, new).await?,
            None => groups.rename(&self.name, new).await?,
        };
        self.said(session, found, format!("`{new}` goes on where `{}`{} was{again}", self.name, self.on()))
    }

    async fn forget(self, session: &mut Session, bus: &Bus, all_patterns: bool, live: bool) -> Result {
        let rows = self.rows(bus).await?;
        if rows.len() > 1 && !all_patterns {
            return Err(Failure::Usage(format!(
                "the group `{}` has {}; name what to forget with --pattern, or all of it with --all-patterns",
                printable(&self.name),
                printable(holdings(&rows))
            )));
        }
        for row in &rows {
            self.refuse_live(row, "forgets", live)?;
        }
        let question = format!("forget what `{}` has: {}?", self.name, holdings(&rows));
        if !session.out.confirm(&question, self.yes)? {
            return Ok(());
        }
        let groups = bus.groups()?;
        let found = match &self.pattern {
            Some(pattern) => groups.remove_on(&self.name, pattern).await?,
            None => groups.remove(&self.name).await?,
        };
        self.said(session, found, format!("`{}`{} is forgotten", self.name, self.on()))
    }

    /// Takes nothing away that somebody needs.
    fn refuse_live(&self, row: &GroupState, does: &str, live: bool) -> Result {
        let GroupState { group, pattern, .. } = row;
        if row.active {
            return Err(Failure::new(format!(
                "a process handles the group `{group}` on \"{pattern}\" now; stop it first"
            )));
        }
        let mut subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
        match subscriptions.find(|live| live.group == *group && live.pattern == *pattern) {
            Some(subscription) if !live => Err(Failure::new(format!(
                "`{}` ({}) of this program is the group `{group}` on \"{pattern}\", and would begin anew; --live \
                 {does} it all the same",
                subscription.name,
                subscription.location()
            ))),
            _ => Ok(()),
        }
    }

    /// The pattern, where one was named.
    fn on(&self) -> String {
        self.pattern.as_ref().map(|pattern| format!(" on \"{pattern}\"")).unwrap_or_default()
    }

    fn said(&self, session: &mut Session, found: bool, done: String) -> Result {
        if !found {
            // It was there a moment ago.
            return Err(Failure::not_found(format!("the group `{}` is not there any more", self.name)));
        }
        if session.out.json {
            return session.out.object(Object::new().text("group", &self.name).text("done", done));
        }
        session.out.line(printable(&done))
    }
}

/// A heir that neither a subscription of this program nor the broker knows is a slip. A program without subscriptions
/// knows too little to tell.
fn refuse_nobody(heir: &str, known: &[GroupState]) -> Result {
    let subscribers = census::subscribers();
    let ours = subscribers.iter().map(|subscriber| &*subscriber.subscription.group);
    let names: Vec<_> = ours.chain(known.iter().map(|row| &*row.group)).collect();
    if subscribers.is_empty() || names.contains(&heir) {
        return Ok(());
    }
    Err(Failure::not_found(format!(
        "no subscription of this program, and none that the broker knows, is the group `{heir}` (--live moves it all the \
         same); {}",
        choice(heir, names)
    )))
}

/// How many events of the backlog of a group its heirs have been at, at most: they are behind their cursors. Which of
/// them an heir has handled, and which came before it began, no cursor tells.
fn again<'a>(rows: &[GroupState], heirs: impl Iterator<Item = &'a GroupState> + Clone) -> u64 {
    let of_row = |row: &GroupState| {
        let mut heirs = heirs.clone().filter(|heir| heir.pattern == row.pattern && heir.cursor > row.cursor);
        heirs.next().map_or(0, |heir| row.backlog.saturating_sub(heir.backlog))
    };
    rows.iter().map(of_row).sum()
}

/// What rows hold, in words.
fn holdings(rows: &[GroupState]) -> String {
    let held = rows.iter().map(|GroupState { pattern, backlog, parked, .. }| {
        let parked = match parked {
            0 => String::new(),
            parked => format!(", {} of it parked for a retry", count(*parked)),
        };
        format!("a backlog of {} on \"{pattern}\"{parked}", counted(*backlog, "event"))
    });
    held.collect::<Vec<_>>().join("; ")
}

async fn list(session: &mut Session, bus: &Bus) -> Result {
    let groups = bus.groups()?.list().await?;
    let out = &mut session.out;
    if out.json {
        for state in &groups {
            let object = Object::new().text("group", &state.group).text("pattern", &state.pattern);
            out.object(with_progress(object, Some(state)))?;
        }
        return Ok(());
    }
    let mut table = Table::new(COLUMNS);
    for state in &groups {
        let mut row = vec![cell(&state.group), styled(TOPIC, &state.pattern)];
        row.extend(progress(out, Some(state)));
        table.push(row);
    }
    out.table(&table, "the broker knows no groups")
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::broker::Offset;

    fn row(group: &str, pattern: &str, cursor: u64, backlog: u64) -> GroupState {
        let mut row = GroupState::new(group, pattern);
        (row.cursor, row.backlog) = (Some(Offset::new(cursor.into())), backlog);
        row
    }

    #[test]
    fn what_an_heir_has_been_at_is_what_lies_between_the_cursors() {
        let old = [row("old", "a", 9, 4), row("old", "b", 3, 7)];
        let again = |heirs: &[GroupState]| again(&old, heirs.iter());
        assert_eq!(again(&[]), 0);
        assert_eq!(again(&[row("new", "a", 13, 0)]), 4);
        assert_eq!(again(&[row("new", "a", 12, 1), row("new", "b", 5, 5)]), 3 + 2);
        assert_eq!(again(&[row("new", "a", 9, 0), row("new", "c", 13, 0)]), 0, "it has not begun on these");
    }
}
