//! Dead letters: rows that join the event with the reason.

use crate::broker::Store;
use crate::reader::Reader;
use crate::subscribe::offset_of;
use crate::wire::{COLUMNS, nanoseconds, timestamp};
use bytes::Bytes;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters, FailureKind,
};
use eventbus_core::{BrokerError, Pattern};
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
             (\"group\", offset, handler, kind, reason, attempts, first_failed, last_failed, payload) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) on conflict (\"group\", offset) do update set \
             handler = ?3, kind = ?4, reason = ?5, attempts = ?6, first_failed = ?7, last_failed = ?8, payload = ?9",
        )?
        .execute((
            &letter.group,
            offset,
            &letter.handler,
            letter.kind.as_str(),
            &letter.reason,
            letter.attempts,
            nanoseconds(letter.first_failed_at),
            nanoseconds(letter.last_failed_at),
            payload,
        ))?;
    Ok(())
}

fn find(reader: &mut Reader, query: &DeadLetterQuery) -> rusqlite::Result<DeadLetterList> {
    let sql = format!(
        "select {COLUMNS}, l.id, l.\"group\", l.handler, l.kind, l.reason, l.attempts, l.first_failed, l.last_failed, \
         l.payload from dead_letter l join event e on e.offset = l.offset \
         where (?1 is null or l.id = ?1) and (?2 is null or l.\"group\" = ?2) and (?3 is null or l.kind = ?3) \
         and l.id > ?4 and (?5 is null or e.topic in (select value from json_each(?5))) order by l.id limit ?6"
    );
    let topics = match &query.pattern {
        Some(pattern) => Some(serde_json::json!(reader.topics(pattern)?).to_string()),
        None => None,
    };
    let parameters = (
        query.id.map(|id| id.0),
        query.group.as_deref(),
        query.kind.map(FailureKind::as_str),
        query.after.map_or(0, |after| after.0),
        topics,
        i64::try_from(query.limit).unwrap_or(i64::MAX),
    );
    let found = reader.select(&sql, parameters, |row| {
        let kind = text(row, 19)?;
        Ok((
            DeadLetterId(row.get(16)?),
            text(row, 17)?,
            text(row, 18)?,
            FailureKind::parse(&kind).unwrap_or(FailureKind::Failed),
            text(row, 20)?,
            (row.get(21)?, timestamp(row.get(22)?), timestamp(row.get(23)?)),
            row.get::<_, Option<Vec<u8>>>(24)?,
        ))
    })?;
    Ok(found
        .into_iter()
        .map(|(event, (id, group, handler, kind, reason, times, payload))| {
            let (attempts, first_failed_at, last_failed_at) = times;
            let offset = offset_of(event.offset);
            let kind = if event.intact { kind } else { FailureKind::Damaged };
            let envelope = match payload {
                Some(payload) => event.envelope.with_payload(Bytes::from(payload)),
                None => event.envelope,
            };
            let letter = DeadLetter {
                envelope: Arc::new(envelope),
                group,
                handler,
                kind,
                reason,
                attempts,
                first_failed_at,
                last_failed_at,
                offset,
            };
            (id, Arc::new(letter))
        })
        .collect())
}

/// A text that is for people: one that is damaged must not hide the other dead letters.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes()?).into_owned())
}

/// Turns a dead letter into a delivery of its group: which subscription gets it, and where the event is.
fn republish(
    connection: &Connection,
    id: DeadLetterId,
    payload: Option<&[u8]>,
) -> rusqlite::Result<Result<Option<(i64, i64)>, BrokerError>> {
    let found = connection
        .prepare_cached(
            "select l.\"group\", l.offset, l.payload, t.name from dead_letter l \
             join event e on e.offset = l.offset join topic t on t.id = e.topic where l.id = ?1",
        )?
        .query_row([id.0], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, Option<Vec<u8>>>(2)?,
                row.get(3)?,
            ))
        })
        .optional()?;
    let Some((group, offset, mended, topic)) = found else { return Ok(Ok(None)) };
    let topic: String = topic;
    let Some(subscription) = subscription(connection, &group, &topic)? else {
        return Ok(Err(BrokerError::new(format!(
            "cannot re-publish dead letter {id}: the group `{group}` does not listen on \"{topic}\" any more; \
             start a subscription of that group first"
        ))));
    };
    connection
        .prepare_cached(
            "insert into delivery (subscription, offset, attempt, republished, payload) values (?1, ?2, 1, 1, ?3) \
             on conflict do update set attempt = 1, first_failed = null, last_failed = null, due = null, payload = ?3",
        )?
        .execute((subscription, offset, payload.or(mended.as_deref())))?;
    connection.prepare_cached("delete from dead_letter where id = ?1")?.execute([id.0])?;
    Ok(Ok(Some((subscription, offset))))
}

/// The subscription of `group` that listens on `topic`.
fn subscription(connection: &Connection, group: &str, topic: &str) -> rusqlite::Result<Option<i64>> {
    let mut statement =
        connection.prepare_cached("select id, pattern from subscription where \"group\" = ?1")?;
    let mut rows = statement.query([group])?;
    while let Some(row) = rows.next()? {
        let pattern = Pattern::new(row.get_ref(1)?.as_str()?);
        if pattern.is_ok_and(|pattern| pattern.matches(topic)) {
            return Ok(Some(row.get(0)?));
        }
    }
    Ok(None)
}

impl DeadLetters for Store {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let readers = Arc::clone(&self.readers);
        BrokerFuture::new(async move { readers.read(move |reader| find(reader, &query)).await })
    }

    fn republish(&self, id: DeadLetterId, payload: Option<Bytes>) -> BrokerFuture<Result<bool, BrokerError>> {
        let subscriptions = self.subscriptions();
        let republished = self.writes.run(move |work| {
            let result = republish(work.connection, id, payload.as_deref())?;
            if let Ok(Some((row, offset))) = result
                && let Some(subscription) = subscriptions.iter().find(|one| one.lock().row == Some(row))
            {
                subscription.take_republished(work.connection, work.names, offset)?;
            }
            Ok(result.map(|delivery| delivery.is_some()))
        });
        BrokerFuture::new(async move { republished.await.flatten() })
    }

    fn purge(&self, id: DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        self.writes.run(move |work| {
            let purged =
                work.connection.prepare_cached("delete from dead_letter where id = ?1")?.execute([id.0])?;
            Ok(purged > 0)
        })
    }
}
