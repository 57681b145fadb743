//! Groups: their cursors, as operators see and move them.

use crate::broker::Store;
use crate::inherit::{self, Parts, Unfinished};
use crate::lease::Lease;
use crate::offsets::{offset_of, place};
use crate::reader::head;
use crate::writes::{Work, closed};
use eventbus_core::broker::{BrokerFuture, GroupState, Groups, Offset};
use eventbus_core::{BrokerError, Pattern};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use std::sync::Arc;

fn list(connection: &Connection, store: &Store) -> rusqlite::Result<Vec<GroupState>> {
    let mut statement = connection.prepare(
        "select s.\"group\", s.pattern, s.cursor, s.reached, s.owner, s.leased_until, s.lease, \
         (select count(*) from delivery d where d.subscription = s.id and d.due is not null), \
         (select count(*) from dead_letter l where l.\"group\" = s.\"group\"), s.id, s.parts \
         from subscription s order by s.\"group\", s.pattern",
    )?;
    let mut rows = statement.query([])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let (pattern, cursor, reached): (String, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let (owner, lease): (Option<String>, _) =
            (row.get(4)?, Lease { until: row.get(5)?, length: row.get(6)? });
        let parts = Parts::parse(row.get_ref(10)?.as_str_or_null()?).unwrap_or_default();
        let unfinished = match Pattern::new(&pattern) {
            Ok(pattern) => inherit::unfinished(connection, &pattern, row.get(9)?, reached, &parts)?,
            Err(_) => Unfinished { count: 0, first: None },
        };
        let mut state = GroupState::new(row.get::<_, String>(0)?, pattern);
        state.cursor = (cursor > 0).then(|| offset_of(cursor));
        (state.backlog, state.parked, state.dead_letters) = (unfinished.count, row.get(7)?, row.get(8)?);
        state.oldest = unfinished.first.map_or(Ok(None), |first| stored_at(connection, first))?;
        state.active = owner.is_some_and(|owner| !store.is_free(&owner, lease));
        state.last_active = lease.extended();
        groups.push(state);
    }
    Ok(groups)
}

/// When the event at a place was stored.
fn stored_at(connection: &Connection, offset: i64) -> rusqlite::Result<Option<Timestamp>> {
    let stored = connection
        .prepare_cached("select stored from event where offset = ?1")?
        .query_row([offset], |row| row.get(0))
        .optional()?;
    Ok(stored.and_then(|stored| Timestamp::from_microsecond(stored).ok()))
}

/// The rows of a group, or the one on `pattern`; an error where some process handles it.
fn rows(
    work: &Work<'_>,
    store: &Store,
    group: &str,
    pattern: Option<&str>,
) -> rusqlite::Result<Result<Vec<i64>, BrokerError>> {
    let mut statement = work.connection.prepare_cached(
        "select id, owner, leased_until, lease from subscription \
         where \"group\" = ?1 and (?2 is null or pattern = ?2)",
    )?;
    let mut found = statement.query((group, pattern))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let (owner, lease): (Option<String>, _) =
            (row.get(1)?, Lease { until: row.get(2)?, length: row.get(3)? });
        if owner.is_some_and(|owner| !work.is_free(store, &owner, lease)) {
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

impl Store {
    fn forget(&self, group: &str, pattern: Option<&str>) -> BrokerFuture<Result<bool, BrokerError>> {
        let (group, pattern) = (group.to_owned(), pattern.map(str::to_owned));
        self.change_groups(move |work, store| {
            let rows = match rows(work, store, &group, pattern.as_deref())? {
                Ok(rows) => rows,
                Err(busy) => return Ok(Err(busy)),
            };
            for row in &rows {
                work.connection.execute("delete from subscription where id = ?1", [row])?;
            }
            work.connection.execute(
                "delete from suspect where \"group\" not in (select \"group\" from subscription)",
                [],
            )?;
            Ok(Ok(!rows.is_empty()))
        })
    }

    fn move_to(
        &self,
        group: &str,
        pattern: Option<&str>,
        offset: Option<Offset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (group, position) = (group.to_owned(), offset.map_or(0, place));
        let pattern = pattern.map(str::to_owned);
        self.change_groups(move |work, store| {
            let rows = match rows(work, store, &group, pattern.as_deref())? {
                Ok(rows) => rows,
                Err(busy) => return Ok(Err(busy)),
            };
            // Behind the latest event there is nothing yet, and what comes is not to be skipped.
            let position = position.min(head(work.connection)?);
            for row in &rows {
                work.connection.execute("delete from delivery where subscription = ?1", [row])?;
                inherit::seek(work.connection, *row, position)?;
            }
            Ok(Ok(!rows.is_empty()))
        })
    }

    fn give(&self, from: &str, pattern: Option<&str>, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        if !eventbus_grammar::is_group(to) {
            return BrokerFuture::ready(Err(BrokerError::new(format!(
                "`{to}` is no name of a group; names are 1 to {} characters of [A-Za-z0-9_.-]",
                eventbus_grammar::MAX_GROUP
            ))));
        }
        let (from, to, pattern) = (from.to_owned(), to.to_owned(), pattern.map(str::to_owned));
        self.change_groups(move |work, store| {
            let pattern = pattern.as_deref();
            let known = match (rows(work, store, &from, pattern)?, rows(work, store, &to, pattern)?) {
                (Ok(rows), Ok(_)) => !rows.is_empty(),
                (Err(busy), _) | (_, Err(busy)) => return Ok(Err(busy)),
            };
            if !known {
                return Ok(Ok(false));
            }
            let connection = work.connection;
            // What the other group has open and does not meet again stays open.
            connection.execute(
                "insert or ignore into delivery \
                 (subscription, offset, attempt, first_failed, last_failed, due, republished, payload, content) \
                 select old.id, d.offset, d.attempt, d.first_failed, d.last_failed, d.due, d.republished, d.payload, \
                 d.content from delivery d join subscription new on new.id = d.subscription \
                 join subscription old on old.pattern = new.pattern and old.\"group\" = ?1 \
                 where new.\"group\" = ?2 and (?3 is null or old.pattern = ?3) \
                 and (d.republished or d.offset <= old.reached)",
                (&from, &to, pattern),
            )?;
            connection.execute(
                "delete from subscription where \"group\" = ?2 \
                 and pattern in (select pattern from subscription where \"group\" = ?1) \
                 and (?3 is null or pattern = ?3)",
                (&from, &to, pattern),
            )?;
            connection.execute(
                "update subscription set \"group\" = ?2 where \"group\" = ?1 and (?3 is null or pattern = ?3)",
                (&from, &to, pattern),
            )?;
            // By its place each is of the events that move along, or of no use.
            connection.execute(
                "insert or replace into mended (\"group\", offset, payload, content) \
                 select ?2, offset, payload, content from mended where \"group\" = ?1",
                (&from, &to),
            )?;
            if pattern.is_some() {
                return Ok(Ok(true));
            }
            connection
                .execute("update or replace suspect set \"group\" = ?2 where \"group\" = ?1", (&from, &to))?;
            connection.execute("delete from mended where \"group\" = ?1", [&from])?;
            // Where both gave an event up, one dead letter says it all.
            connection.execute(
                "update or replace dead_letter set \"group\" = ?2 where \"group\" = ?1",
                (&from, &to),
            )?;
            Ok(Ok(true))
        })
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
        self.move_to(group, None, offset)
    }

    fn seek_on(
        &self,
        group: &str,
        pattern: &str,
        offset: Option<Offset>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        self.move_to(group, Some(pattern), offset)
    }

    fn rename(&self, from: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.give(from, None, to)
    }

    fn rename_on(&self, from: &str, pattern: &str, to: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.give(from, Some(pattern), to)
    }

    fn remove(&self, group: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.forget(group, None)
    }

    fn remove_on(&self, group: &str, pattern: &str) -> BrokerFuture<Result<bool, BrokerError>> {
        self.forget(group, Some(pattern))
    }
}
