//! `groups`: the cursors that a broker keeps.

use super::subscriptions::{progress, with_progress};
use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::TOPIC;
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use crate::when::{self, Cursor};
use eventbus_core::Bus;
use eventbus_core::printable::printable;

const COLUMNS: &[Column] = &[
    Column::name("GROUP"),
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
    /// Let a group go on at another place
    Seek {
        /// The group
        group: String,
        /// Behind this offset, at the `beginning` or at the `end`
        #[arg(value_name = "OFFSET", value_parser = when::cursor)]
        cursor: Cursor,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Give the cursor, the backlog and the dead letters of a group to another one
    Move {
        /// The group, as it was called
        old: String,
        /// The group, as it is called now; its own cursor is replaced
        new: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Forget a group: its cursor and its backlog
    Drop {
        /// The group
        group: String,
        /// Forget only what it has on this pattern, most likely one that it listened on once
        #[arg(long)]
        pattern: Option<String>,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

impl Groups {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let bus = session.look().await?;
        match self {
            Self::List => list(session, &bus).await?,
            change => change.apply(session, &bus).await?,
        }
        Ok(bus.shutdown().await?)
    }

    async fn apply(self, session: &mut Session, bus: &Bus) -> Result {
        let groups = bus.groups()?;
        let (name, question, yes, done) = match &self {
            Self::List => return Ok(()),
            Self::Seek { group, yes, cursor } => {
                let place = match cursor {
                    Cursor::Beginning => "at the beginning".to_owned(),
                    Cursor::Behind(offset) => format!("behind offset {offset}"),
                    Cursor::End => "at the end".to_owned(),
                };
                (group, format!("let `{group}` go on {place}?"), *yes, format!("`{group}` goes on {place}"))
            }
            Self::Move { old, new, yes } => {
                let question = format!("give what `{old}` has to `{new}`, in place of its own?");
                (old, question, *yes, format!("`{new}` goes on where `{old}` was"))
            }
            Self::Drop { group, pattern, yes } => {
                let on = pattern.as_ref().map_or_else(String::new, |pattern| format!(" on \"{pattern}\""));
                let question = format!("forget the cursor and the backlog of `{group}`{on}?");
                (group, question, *yes, format!("`{group}`{on} is forgotten"))
            }
        };
        if !session.out.confirm(&question, yes)? {
            return Ok(());
        }
        let found = match &self {
            Self::List => true,
            Self::Seek { group, cursor, .. } => {
                let offset = match cursor {
                    Cursor::Beginning => None,
                    Cursor::Behind(offset) => Some(*offset),
                    Cursor::End => bus.audit_log()?.latest().await?,
                };
                groups.seek(group, offset).await?
            }
            Self::Move { old, new, .. } => groups.rename(old, new).await?,
            Self::Drop { group, pattern: Some(pattern), .. } => groups.remove_on(group, pattern).await?,
            Self::Drop { group, .. } => groups.remove(group).await?,
        };
        if !found {
            let name = printable(name);
            return Err(Failure::not_found(format!(
                "there is no group `{name}`; `groups list` shows those there are"
            )));
        }
        if session.out.json {
            return session.out.object(Object::new().text("group", name).text("done", done));
        }
        session.out.line(printable(&done))
    }
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
        row.extend(progress(Some(state)));
        table.push(row);
    }
    out.table(&table, "the broker knows no groups")
}
