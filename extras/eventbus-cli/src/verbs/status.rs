//! `status`: whether the broker answers, and whether each group gets on.

use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::{BAD, CARE, DIM, GOOD, TOPIC, now, paint};
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use crate::text::count;
use eventbus_core::broker::{Connection, GroupState};
use eventbus_core::printable::printable;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

const COLUMNS: &[Column] = &[
    Column::copied("GROUP"),
    Column::name("PATTERN"),
    Column::whole("STATE"),
    Column::number("BACKLOG"),
    Column::number("PARKED").goes(1),
    Column::whole("OLDEST"),
    Column::number("DEAD"),
];

/// How long it is looked whether a group that has something to do moves.
const LOOK: Duration = Duration::from_secs(1);
/// How old the oldest unfinished event of a group that does not move may be, before the group counts as stalled.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Whether a group gets on, as far as the broker shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has nothing to do.
    Idle,
    /// It has something to do, and does it.
    Progressing,
    /// A process has it, and it does not move.
    Stalled,
    /// No process has it, and events wait.
    Unattended,
}

impl State {
    /// The state of a group that was seen `before` and `after` a while.
    fn of(before: Option<&GroupState>, after: &GroupState, now: Timestamp) -> Self {
        if after.backlog <= after.parked {
            return Self::Idle;
        }
        if !after.active {
            return Self::Unattended;
        }
        let is_old = after.oldest.is_none_or(|oldest| now.duration_since(oldest) > GRACE);
        let moved = before.is_none_or(|before| {
            (before.cursor, before.oldest, before.parked, before.dead_letters)
                != (after.cursor, after.oldest, after.parked, after.dead_letters)
                || after.backlog < before.backlog
        });
        if moved || !is_old { Self::Progressing } else { Self::Stalled }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Progressing => "progressing",
            Self::Stalled => "stalled",
            Self::Unattended => "unattended",
        }
    }
}

pub(super) async fn execute(session: &mut Session) -> Result {
    let bus = session.look().await?;
    let health = bus.health().await;
    if let Connection::Lost { since, error } = &health.connection {
        let text = format!("the {} broker cannot be reached since {since}: {error}", health.broker);
        return Err(Failure::new(printable(text).to_string()));
    }
    if let Connection::Slowed { since, error } = &health.connection {
        session.out.remark(&format!(
            "the {} broker takes less than it is asked for since {since}: {}",
            health.broker,
            printable(error)
        ));
    }
    let groups = bus.groups()?;
    let mut before = Vec::new();
    let mut states = groups.list().await?;
    if states.iter().any(|state| State::of(Some(state), state, now()) == State::Stalled) {
        tokio::time::sleep(LOOK).await;
        before = std::mem::replace(&mut states, groups.list().await?);
    }
    bus.shutdown().await?;
    let now = now();
    let seen: Vec<_> = states
        .iter()
        .map(|after| {
            let same = |one: &&GroupState| one.group == after.group && one.pattern == after.pattern;
            (after, State::of(before.iter().find(same), after, now))
        })
        .collect();
    show(session, &health.broker, &seen)?;
    if seen.iter().any(|(_, state)| *state == State::Stalled) { Err(Failure::Told) } else { Ok(()) }
}

fn show(session: &mut Session, broker: &str, seen: &[(&GroupState, State)]) -> Result {
    let out = &mut session.out;
    if out.json {
        for (group, state) in seen {
            out.object(object(group, *state))?;
        }
        return Ok(());
    }
    out.line(format_args!("{} the {} broker answers", paint(GOOD, "✓"), printable(broker)))?;
    let mut table = Table::new(COLUMNS);
    for (group, state) in seen {
        let style = match state {
            State::Idle => DIM,
            State::Progressing => GOOD,
            State::Stalled => BAD,
            State::Unattended => CARE,
        };
        let oldest = group.oldest.map_or_else(|| "-".to_owned(), |oldest| out.time(oldest));
        table.push(vec![
            cell(&group.group),
            styled(TOPIC, &group.pattern),
            styled(style, state.as_str()),
            cell(count(group.backlog)),
            cell(count(group.parked)),
            styled(DIM, oldest),
            cell(count(group.dead_letters)),
        ]);
    }
    out.table(&table, "the broker knows no groups yet")
}

fn object(group: &GroupState, state: State) -> Object {
    Object::new()
        .text("group", &group.group)
        .text("pattern", &group.pattern)
        .text("state", state.as_str())
        .number("backlog", group.backlog)
        .number("parked", group.parked)
        .optional("oldest", group.oldest.map(|oldest| oldest.to_string()))
        .number("dead_letters", group.dead_letters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::broker::Offset;

    fn group(backlog: u64, cursor: u64, age: i64) -> GroupState {
        let mut group = GroupState::new("mail", "order.placed");
        (group.backlog, group.active) = (backlog, true);
        group.cursor = Some(Offset::new(cursor.into()));
        group.oldest = Some(Timestamp::from_second(1_000 - age).unwrap());
        group
    }

    #[test]
    fn a_group_is_stalled_where_a_process_has_it_and_an_old_event_does_not_move() {
        let now = Timestamp::from_second(1_000).unwrap();
        let state = |before: &GroupState, after: &GroupState| State::of(Some(before), after, now);
        assert_eq!(state(&group(5, 1, 60), &group(5, 1, 60)), State::Stalled);
        assert_eq!(state(&group(5, 1, 60), &group(5, 2, 60)), State::Progressing);
        assert_eq!(state(&group(5, 1, 60), &group(4, 1, 60)), State::Progressing);
        assert_eq!(state(&group(5, 1, 5), &group(6, 1, 5)), State::Progressing, "it has only just come");
        let mut parked = group(1, 1, 60);
        parked.parked = 1;
        assert_eq!(state(&parked, &parked), State::Idle, "retries wait until they are due");
        let mut alone = group(1, 1, 60);
        alone.active = false;
        assert_eq!(state(&alone, &alone), State::Unattended);
    }
}
