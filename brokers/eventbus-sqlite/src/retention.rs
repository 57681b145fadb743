//! Retention: removing the oldest events, a little at a time.

use crate::config::Retention;
use crate::inherit;
use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;

/// How many events are looked at and removed at once, so that publishers do not wait long.
const AT_ONCE: u32 = 1_000;
/// How many pages of the file are given back to the system at once.
const PAGES: u32 = 1_000;

/// Whether nothing is ever removed.
pub(crate) fn is_forever(retention: &Retention) -> bool {
    retention.age.is_none() && retention.size.is_none() && retention.count.is_none()
}

/// One way through the log, from its beginning to the first event that is to stay for its age, its number or its size.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// Everything up to here was removed, or is kept for the sake of a dead letter or an unfinished delivery.
    position: i64,
}

impl Pass {
    /// Removes some of the oldest events that are not to be kept. `true`: there may be more; `false`: the pass is over,
    /// and the next one begins at the beginning.
    pub(crate) fn go_on(&mut self, connection: &Connection, retention: &Retention) -> rusqlite::Result<bool> {
        let more = self.remove(connection, retention)?;
        let more = give_back(connection)? || more;
        if !more {
            *self = Self::default();
        }
        Ok(more)
    }

    fn remove(&mut self, connection: &Connection, retention: &Retention) -> rusqlite::Result<bool> {
        let last: i64 =
            connection.query_row("select coalesce(max(offset), 0) from event", [], |row| row.get(0))?;
        // The latest event stays, since the next offset follows from it.
        let mut end = last - 1;
        if !retention.unhandled {
            inherit::move_on(connection)?;
            let slowest: Option<i64> =
                connection.query_row("select min(cursor) from subscription", [], |row| row.get(0))?;
            end = end.min(slowest.unwrap_or(i64::MAX));
        }
        let until: Option<i64> = connection
            .prepare_cached(
                "select max(offset) from (select offset from event where offset > ?1 and offset <= ?2 \
                 order by offset limit ?3)",
            )?
            .query_row((self.position, end, AT_ONCE), |row| row.get(0))?;
        let Some(until) = until else { return Ok(false) };
        let too_old = retention.age.map(|age| too_old(connection, self.position, until, age)).transpose()?;
        let too_many =
            retention.count.map(|count| last.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX)));
        let too_large = match retention.size {
            Some(size) if used(connection)? > size => Some(until),
            _ => None,
        };
        let end = until.min([too_old, too_many, too_large].into_iter().flatten().max().unwrap_or(0));
        // Each part looks at no more than what is between the two: kept events must not make it slow.
        connection
            .prepare_cached(
                "delete from event where offset > ?1 and offset <= ?2 \
                 and offset not in (select offset from dead_letter where offset > ?1 and offset <= ?2) \
                 and offset not in (select d.offset from subscription s cross join delivery d \
                 on d.subscription = s.id and d.offset > ?1 and d.offset <= ?2)",
            )?
            .execute((self.position, end))?;
        self.position = self.position.max(end);
        Ok(end == until)
    }
}

/// Gives free pages of the file back to the system. `true`: there are more.
fn give_back(connection: &Connection) -> rusqlite::Result<bool> {
    let free: u32 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if free == 0 {
        return Ok(false);
    }
    // It frees one page at each step.
    let mut freeing = connection.prepare(&format!("pragma incremental_vacuum({PAGES})"))?;
    let mut pages = freeing.raw_query();
    while pages.next()?.is_some() {}
    Ok(free > PAGES)
}

/// The last event behind `position` and up to `until` that was stored longer than `age` ago.
fn too_old(
    connection: &Connection,
    position: i64,
    until: i64,
    age: std::time::Duration,
) -> rusqlite::Result<i64> {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    let oldest = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
    connection.query_row(
        "select coalesce(max(offset), 0) from event where offset > ?1 and offset <= ?2 and stored < ?3",
        (position, until, oldest.as_microsecond()),
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
