//! Saving: what is written of how far a subscription has come, and read again by whoever takes it over.
//!
//! Up to the cursor everything is settled; up to where it has reached everything is settled that has no row.

use crate::reader::Names;
use crate::subscription::{State, Subscription};
use crate::wire::{COLUMN_COUNT, COLUMNS, Stored, StoredTime, content};
use crate::writes::tell;
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::Parked;
use jiff::Timestamp;
use rusqlite::{Connection, Row};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a row of `delivery` says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) attempt: u32,
    pub(crate) parked: Option<Parked>,
    pub(crate) republished: bool,
}

impl Noted {
    pub(crate) const FIRST: Self = Self { attempt: 1, parked: None, republished: false };
}

/// What is saved of a subscription.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    pub(crate) cursor: i64,
    pub(crate) reached: i64,
    pub(crate) rows: BTreeMap<i64, Noted>,
}

/// A delivery that was unfinished when the group was taken over, or whose dead letter was published again.
pub(crate) struct Unfinished {
    pub(crate) event: Stored,
    pub(crate) noted: Noted,
    pub(crate) mended: bool,
}

/// Which rows of a subscription are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    All,
    /// At most so many of what was published again.
    Republished(usize),
    At(i64),
}

impl Unfinished {
    /// Reads rows of a subscription.
    pub(crate) fn read(
        connection: &Connection,
        names: &mut Names,
        subscription: i64,
        which: Which,
    ) -> rusqlite::Result<Vec<Self>> {
        let (condition, limit, at) = match which {
            Which::All => ("", -1, None),
            Which::Republished(limit) => ("and d.republished", i64::try_from(limit).unwrap_or(-1), None),
            Which::At(offset) => ("and d.offset = ?3", -1, Some(offset)),
        };
        let sql = format!(
            "select {COLUMNS}, d.attempt, d.first_failed, d.last_failed, d.due, d.republished, d.payload, d.intact, \
             d.content \
             from delivery d join event e on e.offset = d.offset \
             where d.subscription = ?1 {condition} order by d.offset limit ?2"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        statement.raw_bind_parameter(1, subscription)?;
        statement.raw_bind_parameter(2, limit)?;
        if let Some(offset) = at {
            statement.raw_bind_parameter(3, offset)?;
        }
        let mut rows = statement.raw_query();
        let mut unfinished = Vec::new();
        while let Some(row) = rows.next()? {
            let mut event = names.read(connection, row)?;
            let column = |index| COLUMN_COUNT + index;
            let payload: Option<Vec<u8>> = row.get(column(5))?;
            let mended = payload.is_some();
            event.intact &= row.get::<_, bool>(column(6))?
                && (!mended || row.get::<_, u32>(column(7))? == content([], payload.as_deref()));
            if let Some(payload) = payload {
                event.envelope = event.envelope.with_payload(Bytes::from(payload));
            }
            let noted = Noted {
                attempt: row.get(column(0))?,
                parked: parked(row)?,
                republished: row.get(column(4))?,
            };
            unfinished.push(Self { event, noted, mended });
        }
        Ok(unfinished)
    }
}

fn parked(row: &Row<'_>) -> rusqlite::Result<Option<Parked>> {
    let at = |index| -> rusqlite::Result<Option<Timestamp>> {
        Ok(row.get::<_, Option<StoredTime>>(COLUMN_COUNT + index)?.map(|time| time.0))
    };
    Ok(match (at(1)?, at(2)?, at(3)?) {
        (Some(first_failed_at), Some(last_failed_at), Some(due)) => {
            Some(Parked { first_failed_at, last_failed_at, due })
        }
        _ => None,
    })
}

/// One save of a subscription: the difference between what is and what was saved last.
pub(crate) struct Saving {
    pub(crate) subscription: Arc<Subscription>,
    row: i64,
    epoch: u64,
    cursor: i64,
    reached: i64,
    changed: Vec<(i64, Noted)>,
    gone: Vec<i64>,
    /// Deliveries whose dead letters are in the same transaction.
    left: Vec<i64>,
    settled: usize,
    waiting: Vec<oneshot::Sender<Result<(), BrokerError>>>,
}

impl Saving {
    /// What there is to save; none if nothing has changed.
    pub(crate) fn of(subscription: &Arc<Subscription>) -> Option<Self> {
        let mut state = subscription.lock();
        let row = state.row.filter(|_| state.active && state.dirty)?;
        state.dirty = false;
        let (cursor, reached) = state.progress();
        let noted: BTreeMap<i64, Noted> = state
            .open
            .iter()
            .filter(|(_, opened)| !opened.leaving)
            .filter(|(offset, opened)| opened.noted.republished || **offset <= reached)
            .map(|(offset, opened)| (*offset, opened.noted))
            .collect();
        let left =
            state.open.iter().filter(|(_, opened)| opened.leaving).map(|(offset, _)| *offset).collect();
        let saved = &state.saved.rows;
        let changed =
            noted.iter().filter(|(offset, noted)| saved.get(*offset) != Some(*noted)).map(|(o, n)| (*o, *n));
        let gone = saved.keys().filter(|offset| !noted.contains_key(*offset)).copied();
        let (changed, gone) = (changed.collect(), gone.collect());
        Some(Self {
            subscription: Arc::clone(subscription),
            row,
            epoch: subscription.epoch(),
            cursor,
            reached,
            changed,
            gone,
            left,
            settled: state.unsaved,
            waiting: std::mem::take(&mut state.waiting),
        })
    }

    /// Writes it. `false`: the group is somebody else's by now, and nothing was written.
    pub(crate) fn write(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let ours = connection
            .prepare_cached("update subscription set cursor = ?3, reached = ?4 where id = ?1 and owner = ?2")?
            .execute((self.row, self.subscription.owner(), self.cursor, self.reached))?;
        if ours == 0 {
            return Ok(false);
        }
        if !self.gone.is_empty() {
            let mut delete =
                connection.prepare_cached("delete from delivery where subscription = ?1 and offset = ?2")?;
            for offset in &self.gone {
                delete.execute((self.row, offset))?;
            }
        }
        if !self.changed.is_empty() {
            let mut upsert = connection.prepare_cached(
                "insert into delivery (subscription, offset, attempt, first_failed, last_failed, due, republished) \
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7) on conflict do update set \
                 attempt = ?3, first_failed = ?4, last_failed = ?5, due = ?6",
            )?;
            for (offset, Noted { attempt, parked, republished }) in &self.changed {
                let at = |time: fn(Parked) -> Timestamp| parked.map(|parked| StoredTime(time(parked)));
                upsert.execute((
                    self.row,
                    offset,
                    attempt,
                    at(|parked| parked.first_failed_at),
                    at(|parked| parked.last_failed_at),
                    at(|parked| parked.due),
                    republished,
                ))?;
            }
        }
        Ok(true)
    }

    /// The transaction is over.
    pub(crate) fn finish(self, committed: Result<(), &BrokerError>) {
        let subscription = Arc::clone(&self.subscription);
        subscription.change(|state| {
            if self.epoch != subscription.epoch() {
                return;
            }
            if committed.is_err() {
                state.dirty = true;
                state.open.values_mut().for_each(|opened| opened.leaving = false);
                return;
            }
            for offset in &self.left {
                if state.close(*offset).is_some_and(|opened| !opened.noted.republished) {
                    state.settled = state.settled.max(*offset);
                }
            }
            state.saved.cursor = self.cursor;
            state.saved.reached = self.reached;
            for offset in &self.gone {
                state.saved.rows.remove(offset);
            }
            state.saved.rows.extend(self.changed);
            state.unsaved -= self.settled;
            state.ring = true;
        });
        for waiting in self.waiting {
            let answer = committed.map_err(|error| BrokerError::new(error.to_string()));
            tell(waiting, answer);
        }
    }
}

impl State {
    /// The cursor, and how far beyond it everything is settled that has no row.
    fn progress(&self) -> (i64, i64) {
        let unfinished = self.open.iter().filter(|(_, opened)| !opened.leaving && !opened.noted.republished);
        let Some((first, _)) = unfinished.clone().next() else { return (self.handed, self.handed) };
        let cursor = (first - 1).max(self.saved.cursor);
        let mut noted =
            unfinished.filter(|(_, opened)| opened.noted != Noted::FIRST).map(|(offset, _)| *offset);
        (cursor, noted.next_back().unwrap_or(cursor).max(self.settled).max(cursor))
    }
}
