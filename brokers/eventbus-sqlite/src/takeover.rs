//! Taking a group over, and leaving it: which process handles its events.

use crate::inherit;
use crate::lease::Lease;
use crate::reader::{self, Names};
use crate::saving::{Saved, Saving, Unfinished, Which};
use crate::subscription::Subscription;
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
        let row = inherit::find_or_begin(connection, &self.group, &self.pattern, begin)?
            .map_err(|_| self.damaged())?;
        self.lock().row = Some(row);
        self.take_over(connection, names)
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
        let known = connection
            .prepare_cached("select 1 from subscription where id = ?1")?
            .query_row([row], |_| Ok(()))
            .optional()?;
        // Somebody has removed the group while we waited for it.
        if known.is_none() {
            return self.begin(connection, names);
        }
        let inherit::Row { cursor, reached, parts, .. } =
            inherit::inherit(connection, &self.group, &self.pattern, row)?.map_err(|_| self.damaged())?;
        let given = Lease::of(self.store.settings.lease);
        let until = self.store.clock().saturating_add(given.length.unsigned_abs());
        connection
            .prepare_cached(
                "update subscription set owner = ?2, leased_until = ?3, lease = ?4 where id = ?1",
            )?
            .execute((row, self.owner(), given.until, given.length))?;
        let unfinished = Unfinished::read(connection, names, row, Which::All)?;
        self.hold_until(until);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.refused.store(false, Ordering::Release);
        self.change(|state| {
            state.forget();
            state.active = true;
            (state.position, state.handed, state.settled) = (reached, reached, reached);
            state.parts = parts;
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

    /// Whether nobody handles the group, on this pattern or on one that overlaps with it.
    pub(crate) fn is_free(&self, connection: &Connection) -> rusqlite::Result<bool> {
        for row in inherit::ids(connection, &self.group, &self.pattern)? {
            let (owner, lease) = connection
                .prepare_cached("select owner, leased_until, lease from subscription where id = ?1")?
                .query_row([row], |row| {
                    let lease = Lease { until: row.get(1)?, length: row.get(2)? };
                    Ok((row.get::<_, Option<String>>(0)?, lease))
                })?;
            if owner.is_some_and(|owner| !self.store.is_free(&owner, lease)) {
                return Ok(false);
            }
        }
        Ok(true)
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
