//! Groups: their cursors, as operators see and move them.

use crate::broker::Store;
use crate::lease::Lease;
use crate::reader::{head, topics};
use crate::subscribe::{offset_of, place};
use crate::writes::{Work, closed};
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset};
use eventbus_core::{BrokerError, Pattern};
use rusqlite::Connection;
use std::sync::Arc;

fn list(connection: &Connection, store: &Store) -> rusqlite::Result<Vec<GroupState>> {
    let mut statement = connection.prepare(
        "select s.\"group\", s.pattern, s.cursor, s.reached, s.owner, s.leased_until, s.lease, \
         (select count(*) from delivery d where d.subscription = s.id), \
         (select count(*) from delivery d where d.subscription = s.id and d.due is not null), \
         (select count(*) from dead_letter l where l.\"group\" = s.\"group\") \
         from subscription s order by s.\"group\", s.pattern",
    )?;
    let mut rows = statement.query([])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let (pattern, cursor, reached): (String, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let (owner, lease): (Option<String>, _) =
            (row.get(4)?, Lease { until: row.get(5)?, length: row.get(6)? });
        let unfinished: u64 = row.get(7)?;
        groups.push(GroupState {
            group: row.get(0)?,
            cursor: (cursor > 0).then(|| offset_of(cursor)),
            backlog: unfinished + behind(connection, &pattern, reached)?,
            parked: row.get(8)?,
            dead_letters: row.get(9)?,
            active: owner.is_some_and(|owner| !store.is_free(&owner, lease)),
            pattern,
        });
    }
    Ok(groups)
}

/// How many events on `pattern` are behind `position`.
fn behind(connection: &Connection, pattern: &str, position: i64) -> rusqlite::Result<u64> {
    let Ok(pattern) = Pattern::new(pattern) else { return Ok(0) };
    let mut count = 0;
    for topic in topics(connection, &pattern)? {
        count += connection
            .prepare_cached("select count(*) from event where topic = ?1 and offset > ?2")?
            .query_row((topic, position), |row| row.get::<_, u64>(0))?;
    }
    Ok(count)
}

/// The rows of a group; an error where some process handles it.
fn rows(work: &Work<'_>, store: &Store, group: &str) -> rusqlite::Result<Result<Vec<i64>, BrokerError>> {
    let mut statement = work
        .connection
        .prepare_cached("select id, owner, leased_until, lease from subscription where \"group\" = ?1")?;
    let mut found = statement.query([group])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let (owner, lease): (Option<String>, _) =
            (row.get(1)?, Lease { until: row.get(2)?, length: row.get(3)? });
        if owner.is_some_and(|owner| !store.is_free(&owner, lease)) {
            let message = format!("a process handles the group `{group}` now; stop it first");
            return Ok(Err(BrokerError::new(message)));
        }
        rows.push(row.get(0)?);
    }
    Ok(Ok(rows))
}

/// A job's answer, which is an error of ours or one of the file's.
type Answered<T> = rusqlite::Result<Result<T, BrokerError>>;

impl Store {
    /// Changes groups inside of a transaction.
    fn change_groups(
        &self,
        change: impl FnOnce(&Work<'_>, &Self) -> Answered<bool> + Send + 'static,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let Some(store) = self.this() else { return BrokerFuture::ready(Err(closed())) };
        let changed = self.writes.run(move |work| change(work, &store));
        BrokerFuture::new(async move { changed.await.flatten() })
    }
}

impl Groups for Store {
    fn list(&self) -> BrokerFuture<Result<Vec<GroupState>, BrokerError>> {
        let Some(store) = self.this() else { return BrokerFuture::ready(Err(closed())) };
        BrokerFuture::new(async move {
            let readers = Arc::clone(&store.readers);
            readers.read(move |reader| list(&reader.connection, &store)).await
        })
    }

    fn seek(&self, group: &str, offset: Option<Offset>) -> BrokerFuture<Result<bool, BrokerError>> {
        let (group, position) = (group.to_owned(), offset.map_or(0, place));
        self.change_groups(move |work, store| {
            let rows = match rows(work, store, &group)? {
                Ok(rows) => rows,
                Err(busy) => return Ok(Err(busy)),
            };
            // Behind the latest event there is nothing yet, and what comes is not to be skipped.
            let position = position.min(head(work.connection)?);
            for row in &rows {
                work.connection.execute("delete from delivery where subscription = ?1", [row])?;
                work.connection.execute(
                    "update subscription set cursor = ?2, reached = ?2 where id = ?1",
                    (row, position),
                )?;
            }
            Ok(Ok(!rows.is_empty()))
        })
    }

    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        if !eventbus_grammar::is_group(to) {
            return BrokerFuture::ready(Err(BrokerError::new(format!(
                "`{to}` is no name of a group; names are 1 to {} characters of [A-Za-z0-9_.-]",
                eventbus_grammar::MAX_GROUP
            ))));
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        self.change_groups(move |work, store| {
            let known = match (rows(work, store, &from)?, rows(work, store, &to)?) {
                (Ok(rows), Ok(_)) => !rows.is_empty(),
                (Err(busy), _) | (_, Err(busy)) => return Ok(Err(busy)),
            };
            if !known {
                return Ok(Ok(false));
            }
            let connection = work.connection;
            connection.execute(
                "delete from subscription where \"group\" = ?2 \
                 and pattern in (select pattern from subscription where \"group\" = ?1)",
                (&from, &to),
            )?;
            connection
                .execute("update subscription set \"group\" = ?2 where \"group\" = ?1", (&from, &to))?;
            // Where both gave an event up, one dead letter says it all.
            connection.execute(
                "update or replace dead_letter set \"group\" = ?2 where \"group\" = ?1",
                (&from, &to),
            )?;
            Ok(Ok(true))
        })
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        let group = group.to_owned();
        self.change_groups(move |work, store| {
            Ok(match rows(work, store, &group)? {
                Ok(_) => {
                    let removed =
                        work.connection.execute("delete from subscription where \"group\" = ?1", [&group])?;
                    Ok(removed > 0)
                }
                Err(busy) => Err(busy),
            })
        })
    }
}
