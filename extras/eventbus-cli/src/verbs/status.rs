//! `status`: whether the broker answers, and whether each group gets on.

use super::subscriptions::active;
use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::{BAD, CARE, DIM, GOOD, TOPIC, now, paint};
use crate::session::Session;
use crate::table::{Column, Table, cell, styled};
use crate::text::count;
use eventbus_core::Error;
use eventbus_core::broker::{Backlog, Connection, GroupState, Groups};
use eventbus_core::printable::printable;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::timeout;

const COLUMNS: &[Column] = &[
    Column::copied("GROUP"),
    Column::name("PATTERN"),
    Column::whole("STATE"),
    Column::number("BACKLOG"),
    Column::number("PARKED").goes(1),
    Column::whole("OLDEST"),
    Column::number("DEAD").goes(2),
    Column::whole("ACTIVE"),
];

/// How long the broker may take to say which groups it has, and how far each has come.
const PATIENCE: Duration = Duration::from_secs(30);
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
    /// The broker keeps no account of what waits.
    Unknown,
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
            Self::Unknown => "unknown",
        }
    }
}

pub(super) async fn execute(session: &mut Session) -> Result {
    let bus = match session.try_look().await {
        Err(Error::Broker(error)) => {
            return Err(Failure::unknown(format_args!("whether the groups get on is not known: {error}")));
        }
        bus => bus?,
    };
    let health = bus.health().await;
    if let Connection::Lost { since, error } = &health.connection {
        let text = format!("the {} broker cannot be reached since {since}: {error}", health.broker);
        return Err(Failure::unknown(text));
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
    let counts = bus.features().backlog != Backlog::Unknown;
    let mut states = list(&*groups, &health.broker).await?;
    if counts && states.iter().any(|state| State::of(Some(state), state, now()) == State::Stalled) {
        tokio::time::sleep(LOOK).await;
        before = std::mem::replace(&mut states, list(&*groups, &health.broker).await?);
    }
    bus.shutdown().await?;
    let now = now();
    let seen: Vec<_> = states
        .iter()
        .map(|after| {
            let same = |one: &&GroupState| one.group == after.group && one.pattern == after.pattern;
            let state = if counts { State::of(before.iter().find(same), after, now) } else { State::Unknown };
            (after, state)
        })
        .collect();
    show(session, &health.broker, &seen)?;
    if !counts && !seen.is_empty() {
        return Err(Failure::unknown(format_args!(
            "the {} broker keeps no account of what waits for its groups, so whether they get on is not known; ask their \
             programs (`bus.health()`)",
            health.broker
        )));
    }
    if seen.iter().any(|(_, state)| *state == State::Stalled) { Err(Failure::Told) } else { Ok(()) }
}

/// The groups, where the broker says them in time.
async fn list(groups: &dyn Groups, broker: &str) -> Result<Vec<GroupState>> {
    let why = match timeout(PATIENCE, groups.list()).await {
        Ok(Ok(states)) => return Ok(states),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it took longer than {PATIENCE:?}"),
    };
    Err(Failure::unknown(format_args!(
        "whether the groups get on is not known: the {broker} broker can be reached, and has not said how far they have \
         come: {why}"
    )))
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
            State::Unattended | State::Unknown => CARE,
        };
        let oldest = group.oldest.map_or_else(|| "-".to_owned(), |oldest| out.time(oldest));
        table.push(vec![
            cell(&group.group),
            styled(TOPIC, &group.pattern),
            styled(style, state.as_str()),
            cell(backlog(group, *state).map_or_else(|| "-".to_owned(), count)),
            cell(count(group.parked)),
            styled(DIM, oldest),
            cell(count(group.dead_letters)),
            active(out, group),
        ]);
    }
    out.table(&table, "the broker knows no groups yet")
}

/// What it has to do, where that is known.
fn backlog(group: &GroupState, state: State) -> Option<u64> {
    (state != State::Unknown).then_some(group.backlog)
}

fn object(group: &GroupState, state: State) -> Object {
    let backlog = backlog(group, state);
    Object::new()
        .text("group", &group.group)
        .text("pattern", &group.pattern)
        .text("state", state.as_str())
        .raw("backlog", &backlog.map_or_else(|| "null".to_owned(), |backlog| backlog.to_string()))
        .number("parked", group.parked)
        .optional("oldest", group.oldest.map(|oldest| oldest.to_string()))
        .number("dead_letters", group.dead_letters)
        .flag("active", group.active)
        .optional("last_active", group.last_active.map(|last| last.to_string()))
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
