//! The rows of a subscription: all of the SQL in which its progress is read and written.
//!
//! Up to the cursor everything is settled; up to where it has reached everything is settled that has no row.

use crate::lease::Lease;
use crate::offsets::{before, behind, offset_of, place};
use crate::reader::NamesByNumber;
use crate::wire::{COLUMN_COUNT, COLUMNS, Stored, StoredTime, content};
use eventbus_core::Pattern;
use eventbus_core::broker::{Offset, Parked, Save, Saved};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use std::collections::BTreeMap;

/// What a row of `delivery` says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) attempt: u32,
    pub(super) parked: Option<Parked>,
    /// Its payload is not that of the event: it was mended before it was published again.
    pub(super) mended: bool,
}

impl Noted {
    pub(super) const FIRST: Self = Self { attempt: 1, parked: None, mended: false };
}

/// A delivery that was unfinished when the group was taken over, or whose dead letter was published again.
pub(super) struct Unfinished {
    pub(super) event: Stored,
    pub(super) noted: Noted,
    pub(super) republished: bool,
}

/// Which rows of a subscription are read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// What is in the way of the cursor, and what came from earlier rows.
    Own,
    /// At most so many of what was published again.
    Republished(usize),
    /// What was published again there.
    At(i64),
}

impl Unfinished {
    /// Reads rows of a subscription.
    pub(super) fn read(
        connection: &Connection,
        names: &mut NamesByNumber,
        subscription: i64,
        which: Which,
    ) -> rusqlite::Result<Vec<Self>> {
        let (republished, limit, at) = match which {
            Which::Own => ("<> 1", -1, None),
            Which::Republished(limit) => ("= 1", i64::try_from(limit).unwrap_or(-1), None),
            Which::At(at) => ("= 1", -1, Some(at)),
        };
        let condition = at.map_or("", |_| "and d.offset = ?3");
        let sql = format!(
            "select {COLUMNS}, d.attempt, d.first_failed, d.last_failed, d.due, d.republished, \
             coalesce(d.payload, m.payload), d.intact and (d.payload is not null or m.intact is not 0), \
             coalesce(d.content, m.content) \
             from delivery d join event e on e.offset = d.offset join subscription s on s.id = d.subscription \
             left join mended m on m.\"group\" = s.\"group\" and m.offset = d.offset \
             where d.subscription = ?1 and d.republished {republished} {condition} order by d.offset limit ?2"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        statement.raw_bind_parameter(1, subscription)?;
        statement.raw_bind_parameter(2, limit)?;
        if let Some(at) = at {
            statement.raw_bind_parameter(3, at)?;
        }
        let mut rows = statement.raw_query();
        let mut unfinished = Vec::new();
        while let Some(row) = rows.next()? {
            let mut event = names.read(connection, row)?;
            let column = |index| COLUMN_COUNT + index;
            let payload: Option<Vec<u8>> = row.get(column(5))?;
            event.intact &= row.get::<_, bool>(column(6))?;
            if let Some(payload) = payload {
                let intact = row.get::<_, u32>(column(7))? == content([], Some(&payload));
                event.mend(payload, intact);
            }
            let noted = Noted { attempt: row.get(column(0))?, parked: parked(row)?, mended: event.mended };
            unfinished.push(Self { event, noted, republished: row.get(column(4))? });
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

/// Whether there is such a row of this group. The number of one that was removed may be another's by now.
pub(super) fn exists(
    connection: &Connection,
    row: i64,
    group: &str,
    pattern: &Pattern,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("select 1 from subscription where id = ?1 and \"group\" = ?2 and pattern = ?3")?
        .exists((row, group, pattern.as_str()))
}

/// How far a group has come, for whoever goes on from there with what is unfinished.
pub(super) fn resumed(cursor: i64, reached: i64, unfinished: &[Unfinished]) -> Saved<Noted> {
    let own = unfinished.iter().filter(|one| !one.republished);
    let notes: BTreeMap<Offset, Noted> = own.map(|one| (offset_of(one.event.offset), one.noted)).collect();
    Saved { cursor: behind(cursor), reached: behind(reached), notes }
}

/// Who owns a row, and for how long; none where nobody does.
pub(super) fn owner(connection: &Connection, row: i64) -> rusqlite::Result<Option<(String, Lease)>> {
    let owner = connection
        .prepare_cached("select owner, leased_until, lease from subscription where id = ?1")?
        .query_row([row], |row| {
            let lease = Lease { until: row.get(1)?, length: row.get(2)? };
            Ok((row.get::<_, Option<String>>(0)?, lease))
        })
        .optional()?;
    Ok(owner.and_then(|(owner, lease)| Some((owner?, lease))))
}

/// Makes `owner` the owner of a row.
pub(super) fn own(connection: &Connection, row: i64, owner: &str, lease: Lease) -> rusqlite::Result<()> {
    connection
        .prepare_cached("update subscription set owner = ?2, leased_until = ?3, lease = ?4 where id = ?1")?
        .execute((row, owner, lease.until, lease.length))?;
    Ok(())
}

/// Whether a row was taken from a process that had not left it, and was not being shut down: that is noted there, or
/// the row has a `stranger` for its owner. It is not any more.
pub(super) fn forget_crash(connection: &Connection, row: i64, stranger: bool) -> rusqlite::Result<bool> {
    let crashed = connection
        .prepare_cached("select unclean = 1 or (?2 and unclean = 0) from subscription where id = ?1")?
        .query_row((row, stranger), |row| row.get(0))
        .optional()?;
    connection
        .prepare_cached(
            "update subscription set owner = iif(?2, null, owner), unclean = 0 where id = ?1 and (unclean or ?2)",
        )?
        .execute((row, stranger))?;
    Ok(crashed.unwrap_or(false))
}

/// What `owners` own is about to be left: what is in a handler may be cut off at any time.
pub(crate) fn shut_down(connection: &Connection, owners: &[String]) -> rusqlite::Result<()> {
    let mut update = connection.prepare_cached("update subscription set unclean = 2 where owner = ?1")?;
    for owner in owners {
        update.execute([owner])?;
    }
    Ok(())
}

/// Leaves what `owner` owns to whoever comes next.
pub(super) fn disown(connection: &Connection, owner: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("update subscription set owner = null where owner = ?1")?.execute([owner])?;
    Ok(())
}

/// The rows of which dead letters were published again.
pub(crate) fn republished(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    let mut statement =
        connection.prepare_cached("select distinct subscription from delivery where republished = 1")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// Writes a save. `false`: the group is somebody else's by now, and nothing was written.
pub(super) fn write(
    connection: &Connection,
    row: i64,
    owner: &str,
    save: Option<&Save<Noted>>,
) -> rusqlite::Result<bool> {
    let Some(save) = save else {
        return connection
            .prepare_cached("select 1 from subscription where id = ?1 and owner = ?2")?
            .exists((row, owner));
    };
    let ours = connection
        .prepare_cached("update subscription set cursor = ?3, reached = ?4 where id = ?1 and owner = ?2")?
        .execute((row, owner, before(save.cursor()), before(save.reached())))?;
    if ours == 0 {
        return Ok(false);
    }
    delete(connection, row, false, save.gone().iter().map(|offset| place(*offset)))?;
    upsert(connection, row, save.changed().iter().map(|(offset, noted)| (place(*offset), *noted)))?;
    Ok(true)
}

/// Removes the rows of deliveries that are settled.
pub(super) fn delete(
    connection: &Connection,
    row: i64,
    republished: bool,
    places: impl Iterator<Item = i64>,
) -> rusqlite::Result<()> {
    let mut delete = None;
    for place in places {
        let delete = match &mut delete {
            Some(delete) => delete,
            none => none.insert(connection.prepare_cached(
                "delete from delivery where subscription = ?1 and offset = ?2 and (republished <> 0) = ?3",
            )?),
        };
        delete.execute((row, place, republished))?;
    }
    Ok(())
}

/// Writes what was noted of deliveries.
pub(super) fn upsert(
    connection: &Connection,
    row: i64,
    noted: impl Iterator<Item = (i64, Noted)>,
) -> rusqlite::Result<()> {
    let mut upsert = None;
    for (place, Noted { attempt, parked, .. }) in noted {
        let upsert = match &mut upsert {
            Some(upsert) => upsert,
            none => none.insert(connection.prepare_cached(
                "insert into delivery (subscription, offset, attempt, first_failed, last_failed, due) \
                 values (?1, ?2, ?3, ?4, ?5, ?6) on conflict do update set \
                 attempt = ?3, first_failed = ?4, last_failed = ?5, due = ?6",
            )?),
        };
        let at = |time: fn(Parked) -> Timestamp| parked.map(|parked| StoredTime(time(parked)));
        upsert.execute((
            row,
            place,
            attempt,
            at(|parked| parked.first_failed_at),
            at(|parked| parked.last_failed_at),
            at(|parked| parked.due),
        ))?;
    }
    Ok(())
}
