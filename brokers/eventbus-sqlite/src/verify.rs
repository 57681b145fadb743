//! Verifying a log: looking for damage that nobody has come across yet.

use crate::SqliteBroker;
use crate::reader::Reader;
use crate::schema::{described, expected};
use crate::wire::{COLUMNS, content};
use eventbus_core::BrokerError;
use rusqlite::Connection;

/// How much damage of one kind is told.
const TOLD: usize = 100;

impl SqliteBroker {
    /// Looks through the whole file for damage, and tells what it found in words; an empty list is good news. It reads
    /// everything, beside whoever works with the log.
    ///
    /// It finds what contradicts SQLite's own structures and indexes, tables and views that are not as they were
    /// created, events that are missing between others, and events, groups, deliveries and dead letters whose checksum
    /// is wrong.
    ///
    /// Without it, a damaged event is noticed when it is read: groups get a [damaged] dead letter in its place, and
    /// replays and the audit log leave it out, with an error in the log of the program. A group whose progress is
    /// damaged does not start. Damage to pages that lead to events may hide some of them, and is noticed here only.
    ///
    /// [damaged]: eventbus_core::broker::FailureKind::Damaged
    ///
    /// # Errors
    /// Where the file cannot be read at all.
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed; what has begun to read goes on to its end.
    pub async fn verify(&self) -> Result<Vec<String>, BrokerError> {
        self.readers().read(verify).await
    }
}

fn verify(reader: &mut Reader) -> rusqlite::Result<Vec<String>> {
    // Everything is looked at as it is at one moment.
    reader.connection.execute_batch("begin")?;
    let found = look(reader);
    reader.connection.execute_batch("rollback")?;
    found
}

fn look(reader: &mut Reader) -> rusqlite::Result<Vec<String>> {
    let connection = &reader.connection;
    let mut found = texts(connection, "pragma integrity_check")?;
    found.retain(|line| line != "ok");
    found.extend(texts(
        connection,
        "select 'a row of ' || \"table\" || ' refers to none of ' || parent from pragma_foreign_key_check limit 100",
    )?);
    // What was kept when older events were removed stands before the first event that nothing refers to.
    found.extend(texts(
        connection,
        "with here as (select offset, lag(offset) over (order by offset) as before from event) \
         select 'events are missing between ' || before || ' and ' || offset from here \
         where offset > before + 1 and before >= (select min(offset) from event where \
         offset not in (select offset from dead_letter) and offset not in (select offset from delivery)) limit 100",
    )?);
    if described(connection)? != expected()? {
        found.push(
            "what the file says of its tables is damaged, or another program has changed them".to_owned(),
        );
    }
    found.extend(texts(
        connection,
        "select 'the progress of the group `' || \"group\" || '` is damaged' from subscription \
         where intact is not 1 or cursor > reached or reached > (select coalesce(max(offset), 0) from event) \
         union all select 'the delivery of ' || d.offset || ' to the group `' || s.\"group\" || '` is damaged' \
         from delivery d join subscription s on s.id = d.subscription where d.intact is not 1 \
         union all select 'what is known of crashes beside the event ' || offset || ' in the group `' || \"group\" \
         || '` is damaged' from suspect where intact is not 1 \
         union all select 'the mended payload of ' || offset || ' for the group `' || \"group\" || '` is damaged' \
         from mended where intact is not 1 limit 100",
    )?);
    let sql = format!("select {COLUMNS} from event e order by e.offset");
    found.extend(damaged_content(
        connection,
        "select 'the delivery of ' || d.offset || ' to the group `' || s.\"group\" || '`', d.content, d.payload \
         from delivery d join subscription s on s.id = d.subscription where d.payload is not null",
    )?);
    found.extend(damaged_content(
        connection,
        "select 'the mended payload of ' || offset || ' for the group `' || \"group\" || '`', content, payload from mended",
    )?);
    found.extend(damaged_content(
        connection,
        "select 'the dead letter ' || id || ' of the group `' || \"group\" || '`', iif(intact, content, -1), payload, \
         handler, reason from dead_letter",
    )?);
    found.extend(
        reader.find_damaged(&sql, TOLD)?.iter().map(|offset| format!("the event {offset} is damaged")),
    );
    Ok(found)
}

/// What `sql` names and whose content is not what was written: after the name come its checksum, the payload and texts.
fn damaged_content(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut damaged = Vec::new();
    while let Some(row) = rows.next()? {
        let texts = (3..columns).map(|column| row.get_ref(column)?.as_bytes().map_err(Into::into));
        let texts: Vec<&[u8]> = texts.collect::<rusqlite::Result<_>>()?;
        let sum = content(texts, row.get_ref(2)?.as_bytes_or_null()?);
        if row.get_ref(1)?.as_i64() != Ok(sum.into()) && damaged.len() < TOLD {
            let name = String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?);
            damaged.push(format!("{name} is damaged"));
        }
    }
    Ok(damaged)
}

fn texts(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement
        .query_map([], |row| Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned()))?;
    rows.collect()
}
