//! Dead letters: rows that join the event with the reason.

use crate::broker::Store;
use crate::inherit::Parts;
use crate::lease::Lease;
use crate::offsets::offset_of;
use crate::reader::Reader;
use crate::wire::{COLUMN_COUNT, COLUMNS, Stored, StoredTime, content};
use crate::writes::closed;
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters, FailureKind,
};
use eventbus_core::counted::{count, counted};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Pattern};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};
use std::sync::Arc;

/// Writes a dead letter. A group that gives an event up for the second time has one dead letter of it.
pub(crate) fn insert(
    connection: &Connection,
    offset: i64,
    letter: &DeadLetter,
    mended: bool,
) -> rusqlite::Result<()> {
    let payload =
        mended.then(|| letter.envelope.payload().map(|payload| payload.to_vec()).unwrap_or_default());
    connection
        .prepare_cached(
            "insert into dead_letter \
             (\"group\", offset, handler, kind, reason, attempts, first_failed, last_failed, payload, \
             content) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) on conflict (\"group\", offset) do update set \
             handler = ?3, kind = ?4, reason = ?5, attempts = ?6, first_failed = ?7, last_failed = ?8, \
             payload = ?9, content = ?10",
        )?
        .execute((
            &letter.group,
            offset,
            &letter.handler,
            letter.kind.as_str(),
            &letter.reason,
            letter.attempts,
            StoredTime(letter.first_failed_at),
            StoredTime(letter.last_failed_at),
            &payload,
            content([letter.handler.as_bytes(), letter.reason.as_bytes()], payload.as_deref()),
        ))?;
    Ok(())
}

/// The row that a name stands for, as [`kept`] makes it; none, where no dead letter of this log has such a name.
fn row_of(id: &DeadLetterId) -> Option<i64> {
    let row: i64 = id.as_str().parse().ok()?;
    (row > 0 && row.to_string() == id.as_str()).then_some(row)
}

fn find(reader: &mut Reader, query: &DeadLetterQuery) -> rusqlite::Result<DeadLetterList> {
    let sql = format!(
        "select {COLUMNS}, l.id, l.\"group\", l.handler, l.kind, l.reason, l.attempts, l.first_failed, l.last_failed, \
         l.payload, l.content, l.intact from dead_letter l join event e on e.offset = l.offset \
         where (?1 is null or l.id = ?1) and (?2 is null or l.\"group\" = ?2) and (?3 is null or l.kind = ?3) \
         and l.id > ?4 and (?5 is null or e.topic in (select value from json_each(?5))) order by l.id limit ?6"
    );
    let topics = match &query.pattern {
        Some(pattern) => Some(serde_json::json!(reader.topics(pattern)?).to_string()),
        None => None,
    };
    let parameters = (
        // No row has this number.
        query.id.as_ref().map(|id| row_of(id).unwrap_or(0)),
        query.group.as_deref(),
        query.kind.map(FailureKind::as_str),
        // Nothing is behind what names no row.
        query.after.as_ref().map_or(0, |after| row_of(after).unwrap_or(i64::MAX)),
        topics,
        i64::try_from(query.limit).unwrap_or(i64::MAX),
    );
    let found = reader.select(&sql, parameters, kept)?;
    Ok(found.into_iter().map(|(event, kept)| kept.joined(event)).collect())
}

/// A dead letter without its event.
struct Kept {
    id: DeadLetterId,
    group: String,
    handler: String,
    kind: FailureKind,
    reason: String,
    attempts: u32,
    first_failed_at: Timestamp,
    last_failed_at: Timestamp,
    payload: Option<Vec<u8>>,
    intact: bool,
}

fn kept(row: &Row<'_>) -> rusqlite::Result<Kept> {
    let column = |index| COLUMN_COUNT + index;
    let text = |index| text(row, column(index));
    // What is damaged must not hide the other dead letters.
    let time = |index| row.get::<_, StoredTime>(column(index)).map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let (handler, kind, reason) = (text(2)?, text(3)?, text(4)?);
    let payload: Option<Vec<u8>> = row.get(column(8)).unwrap_or_default();
    let sum = content([handler.as_bytes(), reason.as_bytes()], payload.as_deref());
    let intact = row.get(column(9)).is_ok_and(|content: u32| content == sum)
        && row.get(column(10)).is_ok_and(|intact: bool| intact);
    Ok(Kept {
        id: row.get::<_, u64>(column(0))?.into(),
        group: text(1)?,
        handler,
        kind: FailureKind::parse(&kind).unwrap_or(FailureKind::Failed),
        reason,
        attempts: row.get(column(5)).unwrap_or_default(),
        first_failed_at: time(6),
        last_failed_at: time(7),
        payload,
        intact,
    })
}

impl Kept {
    fn joined(self, mut event: Stored) -> (DeadLetterId, Arc<DeadLetter>) {
        if let Some(payload) = self.payload {
            event.mend(payload, self.intact);
        }
        let letter = DeadLetter {
            envelope: event.envelope,
            group: self.group,
            handler: self.handler,
            kind: if event.intact && self.intact { self.kind } else { FailureKind::Damaged },
            reason: self.reason,
            attempts: self.attempts,
            first_failed_at: self.first_failed_at,
            last_failed_at: self.last_failed_at,
            offset: offset_of(event.offset),
        };
        (self.id, Arc::new(letter))
    }
}

/// A text, also where it is none any more.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes()?).into_owned())
}

/// Turns a dead letter into a delivery of its group: which subscription gets it, and where the event is.
fn republish(
    connection: &Connection,
    store: &Store,
    id: &DeadLetterId,
    payload: Option<&[u8]>,
) -> rusqlite::Result<Result<Option<(i64, i64)>, BrokerError>> {
    let Some(letter) = row_of(id) else { return Ok(Ok(None)) };
    let found = connection
        .prepare_cached(
            "select l.\"group\", l.offset, l.payload, t.name, l.handler, l.reason, l.content, l.intact from dead_letter l \
             join event e on e.offset = l.offset join topic t on t.id = e.topic where l.id = ?1",
        )?
        .query_row([letter], |row| {
            let mended: Option<Vec<u8>> = row.get(2)?;
            let sum = content([row.get_ref(4)?.as_bytes()?, row.get_ref(5)?.as_bytes()?], mended.as_deref());
            let intact = row.get::<_, bool>(7)? && row.get::<_, i64>(6)? == i64::from(sum);
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, mended, row.get::<_, String>(3)?, intact))
        })
        .optional()?;
    let Some((group, offset, mended, topic, intact)) = found else { return Ok(Ok(None)) };
    if !intact {
        return Ok(Err(BrokerError::new(format!(
            "cannot re-publish dead letter {id}: it is damaged, its checksum is wrong; publish the event again, and \
             purge the dead letter"
        ))));
    }
    let payload = payload.or(mended.as_deref());
    let subscription = match listening(connection, store, &group, &topic)? {
        Listening::Now(subscription) => subscription,
        Listening::Later(subscription) => {
            log::warn!(
                target: "eventbus", group = %printable(&group), topic = %printable(&topic), id = %printable(id),
                "a dead letter was published again, and no process handles the group now: it waits for one"
            );
            subscription
        }
        Listening::NotAnyMore => {
            return Ok(Err(BrokerError::new(format!(
                "cannot re-publish dead letter {id}: the group `{group}` does not listen on \"{topic}\" any more; \
                 start a subscription of that group on it first"
            ))));
        }
    };
    let opened = connection
        .prepare_cached(
            "insert into delivery (subscription, offset, attempt, republished, payload, content) \
             values (?1, ?2, 1, 1, ?3, ?4) on conflict do nothing",
        )?
        .execute((subscription, offset, payload, payload.map(|payload| content([], Some(payload)))))?;
    if opened == 0 {
        // Whoever has it open knows nothing of another payload, and may have settled it a moment ago.
        return Ok(Err(BrokerError::new(format!(
            "cannot re-publish dead letter {id}: the group `{group}` has the event at hand already; try again once it \
             is handled"
        ))));
    }
    if let Some(payload) = payload {
        connection
            .prepare_cached(
                "insert into mended (\"group\", offset, payload, content) values (?1, ?2, ?3, ?4) \
                 on conflict do update set payload = ?3, content = ?4",
            )?
            .execute((&group, offset, payload, content([], Some(payload))))?;
    }
    // It begins anew.
    connection
        .prepare_cached("delete from suspect where \"group\" = ?1 and offset = ?2")?
        .execute((&group, offset))?;
    connection.prepare_cached("delete from dead_letter where id = ?1")?.execute([letter])?;
    Ok(Ok(Some((subscription, offset))))
}

/// Whether a group listens on a topic, and by which row.
enum Listening {
    Now(i64),
    /// No process handles the group.
    Later(i64),
    /// It listens on other topics, or nobody knows it.
    NotAnyMore,
}

fn listening(
    connection: &Connection,
    store: &Store,
    group: &str,
    topic: &str,
) -> rusqlite::Result<Listening> {
    let mut statement = connection.prepare_cached(
        "select id, pattern, reached, parts, owner, leased_until, lease from subscription where \"group\" = ?1",
    )?;
    let mut rows = statement.query([group])?;
    let (mut handled, mut idle) = (false, None);
    while let Some(row) = rows.next()? {
        let owner: Option<String> = row.get(4)?;
        let lease = Lease { until: row.get(5)?, length: row.get(6)? };
        let active = owner.is_some_and(|owner| !store.is_free(&owner, lease));
        handled |= active;
        let pattern = Pattern::new(row.get_ref(1)?.as_str()?);
        if !pattern.is_ok_and(|pattern| pattern.matches(topic)) {
            continue;
        }
        if active {
            return Ok(Listening::Now(row.get(0)?));
        }
        let parts = Parts::parse(row.get_ref(3)?.as_str_or_null()?).unwrap_or_default();
        // A row that has handed parts over is of an earlier pattern.
        if !parts.is_handed_over() {
            idle = Some(row.get(0)?);
        }
    }
    Ok(match idle {
        Some(row) if !handled => Listening::Later(row),
        _ => Listening::NotAnyMore,
    })
}

impl DeadLetters for Store {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let readers = Arc::clone(&self.readers);
        BrokerFuture::new(async move { readers.read(move |reader| find(reader, &query)).await })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let Some(store) = self.this() else { return BrokerFuture::ready(Err(closed())) };
        let (size, limit) = (payload.as_ref().map_or(0, Bytes::len), self.settings.max_payload);
        if size > limit {
            return BrokerFuture::ready(Err(BrokerError::new(format!(
                "cannot re-publish dead letter {id}: its payload has {}, and {} are allowed",
                counted(size, "byte"),
                count(limit)
            ))));
        }
        let republished = self.writes.run_then(
            {
                let (store, id) = (Arc::clone(&store), id.clone());
                move |work| republish(work.connection, &store, &id, payload.as_deref())
            },
            move |republished| {
                let delivery = republished?;
                if let Some((row, offset)) = delivery {
                    for claim in store.claims().iter() {
                        claim.expect_republished(row, offset);
                    }
                }
                Ok(delivery.is_some())
            },
        );
        BrokerFuture::new(async move { republished.await.flatten() })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let Some(letter) = row_of(id) else { return BrokerFuture::ready(Ok(false)) };
        self.writes.run(move |work| {
            let purged =
                work.connection.prepare_cached("delete from dead_letter where id = ?1")?.execute([letter])?;
            Ok(purged > 0)
        })
    }
}
