//! Retention: removing the oldest events, a little at a time.

use crate::config::Retention;
use crate::inherit;
use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;

/// How many events are removed at once, so that publishers do not wait long.
const AT_ONCE: i64 = 1_000;
/// How many pages of the file are given back to the system at once.
const PAGES: u32 = 1_000;

/// Whether nothing is ever removed.
pub(crate) fn is_forever(retention: &Retention) -> bool {
    retention.age.is_none() && retention.size.is_none() && retention.count.is_none()
}

/// Removes the oldest events that are not to be kept. `true`: there may be more.
pub(crate) fn apply(connection: &Connection, retention: &Retention) -> rusqlite::Result<bool> {
    let (first, last): (i64, i64) = connection.query_row(
        "select coalesce(min(offset), 0), coalesce(max(offset), 0) from event",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // The latest event stays, since the next offset follows from it.
    let mut until = (first + AT_ONCE - 1).min(last - 1);
    if !retention.unhandled {
        inherit::move_on(connection)?;
        let slowest: Option<i64> =
            connection.query_row("select min(cursor) from subscription", [], |row| row.get(0))?;
        until = until.min(slowest.unwrap_or(i64::MAX));
    }
    let too_old = retention.age.map(|age| too_old(connection, until, age)).transpose()?;
    let too_many = retention.count.map(|count| last.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX)));
    let too_large = match retention.size {
        Some(size) if used(connection)? > size => Some(until),
        _ => None,
    };
    until = until.min([too_old, too_many, too_large].into_iter().flatten().max().unwrap_or(0));
    let removed = connection.execute(
        "delete from event where offset <= ?1 and offset not in (select offset from dead_letter) \
         and offset not in (select offset from delivery)",
        [until],
    )?;
    if removed > 0 {
        connection.execute_batch(&format!("pragma incremental_vacuum({PAGES})"))?;
    }
    Ok(removed > 0)
}

/// The last event up to `until` that was stored longer than `age` ago.
fn too_old(connection: &Connection, until: i64, age: std::time::Duration) -> rusqlite::Result<i64> {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    let oldest = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
    connection.query_row(
        "select coalesce(max(offset), 0) from event where offset <= ?1 and stored < ?2",
        (until, oldest.as_microsecond()),
        |row| row.get(0),
    )
}

/// How many bytes of the file are in use.
fn used(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row(
        "select (page_count - freelist_count) * page_size \
         from pragma_page_count, pragma_freelist_count, pragma_page_size",
        [],
        |row| row.get(0),
    )
}
