//! `subscriptions`: who listens on what, and how far each has come.

use crate::failure::{Failure, Result};
use crate::json::Object;
use crate::output::{BAD, CARE, DIM, GOOD, NONE, Output, TOPIC};
use crate::session::Session;
use crate::table::{Cell, Column, Table, cell, styled};
use crate::text::count;
use eventbus_core::broker::GroupState;
use eventbus_core::{Subscription, census};

const COLUMNS: &[Column] = &[
    Column::copied("GROUP"),
    Column::name("PATTERN"),
    Column::number("CURSOR").goes(3),
    Column::number("BACKLOG"),
    Column::number("PARKED").goes(1),
    Column::number("DEAD"),
    Column::whole("ACTIVE"),
    Column::place("HANDLER").goes(2),
];

pub(super) async fn execute(session: &mut Session) -> Result {
    let states = match states(session).await {
        Ok(states) => states,
        Err(failure) => {
            // The program has its subscriptions all the same.
            let reason = failure.text().unwrap_or_default().to_owned();
            session.out.warn(&format!("how far they have come is not known: {reason}"));
            Vec::new()
        }
    };
    let state_of = |subscription: &Subscription| {
        let mut states = states.iter();
        states.find(|state| state.group == subscription.group && state.pattern == subscription.pattern)
    };
    let subscriptions = census::subscribers().iter().map(|subscriber| &subscriber.subscription);
    let out = &mut session.out;
    if out.json {
        for subscription in subscriptions {
            out.object(object(subscription, state_of(subscription)))?;
        }
        return Ok(());
    }
    let mut table = Table::new(COLUMNS);
    for subscription in subscriptions {
        let mut row = vec![cell(&subscription.group), styled(TOPIC, &subscription.pattern)];
        row.extend(progress(out, state_of(subscription)));
        row.push(styled(DIM, format!("{} {}", subscription.name, subscription.location())));
        table.push(row);
    }
    out.table(&table, "this program has no subscriptions")
}

async fn states(session: &mut Session) -> Result<Vec<GroupState>, Failure> {
    let bus = session.look().await?;
    let states = bus.groups()?.list().await?;
    bus.shutdown().await?;
    Ok(states)
}

/// Cursor, backlog, parked, dead letters, active.
pub(super) fn progress(out: &Output, state: Option<&GroupState>) -> Vec<Cell> {
    let Some(state) = state else { return (0..5).map(|_| styled(DIM, "-")).collect() };
    let care = |style, number: u64| styled(if number > 0 { style } else { NONE }, count(number));
    vec![
        cell(state.cursor.map_or("-".to_owned(), |cursor| cursor.to_string())),
        cell(count(state.backlog)),
        care(CARE, state.parked),
        care(BAD, state.dead_letters),
        active(out, state),
    ]
}

/// Whether some process handles a group, or when one was last seen to, where that is known.
pub(super) fn active(out: &Output, state: &GroupState) -> Cell {
    match state.last_active {
        _ if state.active => styled(GOOD, "yes"),
        Some(last) => styled(DIM, out.time(last)),
        None => styled(DIM, "no"),
    }
}

/// The same as members of an object.
pub(super) fn with_progress(object: Object, state: Option<&GroupState>) -> Object {
    let Some(state) = state else { return object };
    object
        .optional("cursor", state.cursor.map(|cursor| cursor.to_string()))
        .number("backlog", state.backlog)
        .number("parked", state.parked)
        .number("dead_letters", state.dead_letters)
        .flag("active", state.active)
        .optional("last_active", state.last_active.map(|last| last.to_string()))
}

fn object(subscription: &Subscription, state: Option<&GroupState>) -> Object {
    let object = Object::new()
        .text("group", &subscription.group)
        .text("pattern", &subscription.pattern)
        .text("handler", &subscription.name)
        .optional("event", subscription.event.map(|event| event.name))
        .optional("publishes", subscription.publishes.map(|event| event.topic))
        .text("package", subscription.package)
        .text("module", subscription.module)
        .text("file", subscription.file)
        .number("line", subscription.line)
        .text("docs", subscription.docs.trim());
    with_progress(object, state)
}
