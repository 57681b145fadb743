//! Taking a group over, and leaving it: which process handles its events.

use crate::lease::Lease;
use crate::reader::{self, Names};
use crate::saving::{Saved, Saving, Unfinished, Which};
use crate::subscription::Subscription;
use eventbus_core::Pattern;
use eventbus_core::broker::Start;
use eventbus_core::printable::printable;
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Subscription {
    /// Makes sure that the group has its row, and takes it over if it is free.
    pub(crate) fn begin(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        let begin = match self.start {
            Start::Earliest => 0,
            _ => reader::head(connection)?,
        };
        let row = match self.find_row(connection)? {
            Some(row) => row,
            None => {
                connection
                    .prepare_cached(
                        "insert into subscription (\"group\", pattern, cursor, reached) values (?1, ?2, ?3, ?3)",
                    )?
                    .execute((&self.group, self.pattern.as_str(), begin))?;
                connection.last_insert_rowid()
            }
        };
        self.lock().row = Some(row);
        self.take_over(connection, names)
    }

    /// The row of this group and pattern; or else the one with the lowest cursor among those of the group whose
    /// patterns overlap with it. A program has no two of them, so the pattern of the subscription was changed.
    fn find_row(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        let mut statement = connection
            .prepare_cached("select id, pattern from subscription where \"group\" = ?1 order by cursor")?;
        let mut rows = statement.query([&self.group])?;
        let mut overlapping = None;
        while let Some(row) = rows.next()? {
            let pattern = row.get_ref(1)?.as_str()?;
            if pattern == self.pattern.as_str() {
                return row.get(0).map(Some);
            }
            if overlapping.is_none() && Pattern::new(pattern).is_ok_and(|other| other.overlaps(&self.pattern))
            {
                overlapping = Some(row.get(0)?);
            }
        }
        Ok(overlapping)
    }

    /// Gives the row our pattern, where it has an earlier one, and drops what is not on it, as well as rows with other
    /// earlier patterns.
    fn adopt(&self, connection: &Connection, row: i64) -> rusqlite::Result<()> {
        let adopted = connection
            .prepare_cached("update subscription set pattern = ?2 where id = ?1 and pattern <> ?2")?
            .execute((row, self.pattern.as_str()))?;
        if adopted > 0 {
            self.drop_overlapping(connection, row)?;
            let topics = serde_json::json!(reader::topics(connection, &self.pattern)?).to_string();
            connection.execute(
                "delete from delivery where subscription = ?1 and offset not in \
                 (select e.offset from event e where e.offset = delivery.offset \
                 and e.topic in (select value from json_each(?2)))",
                (row, topics),
            )?;
            tracing::info!(
                target: "eventbus", group = %printable(&self.group), pattern = %printable(&self.pattern),
                "the pattern of the group was changed; it goes on from its cursor"
            );
        }
        Ok(())
    }

    fn drop_overlapping(&self, connection: &Connection, kept: i64) -> rusqlite::Result<()> {
        let mut statement = connection
            .prepare_cached("select id, pattern from subscription where \"group\" = ?1 and id <> ?2")?;
        let mut rows = statement.query((&self.group, kept))?;
        while let Some(row) = rows.next()? {
            let pattern = Pattern::new(row.get_ref(1)?.as_str()?);
            if pattern.is_ok_and(|other| other.overlaps(&self.pattern)) {
                connection.execute("delete from subscription where id = ?1", [row.get::<_, i64>(0)?])?;
            }
        }
        Ok(())
    }

    /// Takes the group over, if nobody handles it.
    pub(crate) fn take_over(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        if self.lock().row.is_none() || !self.is_free(connection)? {
            return Ok(());
        }
        self.take(connection, names)
    }

    /// Begins again from what is saved: some deliveries were dropped while the lease was over, and nobody else has
    /// taken the group meanwhile.
    pub(crate) fn begin_again(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        // What is settled is not to be repeated.
        let Some(saving) = Saving::of(self) else { return self.take(connection, names) };
        if saving.write(connection)? { self.take(connection, names) } else { Ok(()) }
    }

    fn take(self: &Arc<Self>, connection: &Connection, names: &mut Names) -> rusqlite::Result<()> {
        let Some(row) = self.lock().row else { return Ok(()) };
        let found = connection
            .prepare_cached("select cursor, reached, intact from subscription where id = ?1")?
            .query_row([row], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, bool>(2)?))
            })
            .optional()?;
        // Somebody has removed the group while we waited for it.
        let Some((cursor, reached, intact)) = found else { return self.begin(connection, names) };
        if !intact || cursor > reached || reached > reader::head(connection)? {
            return Err(self.damaged());
        }
        let given = Lease::of(self.store.settings.lease);
        let until = self.store.clock().saturating_add(given.length.unsigned_abs());
        connection
            .prepare_cached(
                "update subscription set owner = ?2, leased_until = ?3, lease = ?4 where id = ?1",
            )?
            .execute((row, self.owner(), given.until, given.length))?;
        self.adopt(connection, row)?;
        let unfinished = Unfinished::read(connection, names, row, Which::All)?;
        self.hold_until(until);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.refused.store(false, Ordering::Release);
        self.change(|state| {
            state.forget();
            state.active = true;
            (state.position, state.handed, state.settled) = (reached, reached, reached);
            state.saved = Saved { cursor, reached, rows: BTreeMap::new() };
            state.more_republished = false;
            self.take_in_unfinished(state, unfinished);
            state.call();
        });
        Ok(())
    }

    /// The row of the group is not what was written.
    fn damaged(&self) -> rusqlite::Error {
        let message = format!(
            "in the log `{}`, how far the group `{}` has come is damaged; `seek` it to where it is to go on",
            self.store.settings.path.display(),
            self.group
        );
        tracing::error!(target: "eventbus", "{}", printable(&message));
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        rusqlite::Error::SqliteFailure(code, Some(message))
    }

    /// Whether nobody handles the group.
    pub(crate) fn is_free(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let owner = connection
            .prepare_cached("select owner, leased_until, lease from subscription where id = ?1")?
            .query_row([self.lock().row], |row| {
                let lease = Lease { until: row.get(1)?, length: row.get(2)? };
                Ok((row.get::<_, Option<String>>(0)?, lease))
            })
            .optional()?;
        Ok(match owner {
            Some((Some(owner), lease)) => self.store.is_free(&owner, lease),
            _ => true,
        })
    }

    /// The lease is somebody else's: nothing here is ours any more.
    pub(crate) fn lose(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.lock().forget();
        tracing::warn!(
            target: "eventbus", group = %printable(&self.group),
            "another process has taken the group over, since this one did not answer for longer than its lease"
        );
    }

    /// Saves what is settled, and leaves the group to whoever comes next.
    pub(crate) fn leave(self: &Arc<Self>) {
        let subscription = Arc::clone(self);
        drop(self.store.writes.run(move |work| {
            subscription.store.remove(subscription.number);
            if !subscription.is_active() {
                return Ok(());
            }
            subscription.skip_to(subscription.store.head());
            subscription.lock().dirty = true;
            if let Some(saving) = Saving::of(&subscription) {
                saving.write(work.connection)?;
            }
            work.connection
                .prepare_cached("update subscription set owner = null where owner = ?1")?
                .execute([subscription.owner()])?;
            subscription.epoch.fetch_add(1, Ordering::AcqRel);
            subscription.lock().forget();
            Ok(())
        }));
    }
}
