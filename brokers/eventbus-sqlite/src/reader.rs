//! Reading: connections of their own, beside the one that writes, on threads where they may block.

use crate::cache::{Cache, Recent};
use crate::file::LogFile;
use crate::schema::{explain, open_reader, tidy_up_in_the_end};
use crate::wire::{COLUMNS, Stored, content, is_damage, read};
use crate::writes::WAKER;
use eventbus_core::{BrokerError, Pattern, Topic, foreign};
use rusqlite::{Connection, OptionalExtension, Row, Statement};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How many readers there may be at once.
const READERS: usize = 4;
/// How many events are read at once.
pub(crate) const EVENTS: usize = 1_024;
/// How many bytes of payload are read at once, give or take one event.
const BYTES: usize = 1 << 20;

/// The readers of one log.
pub(crate) struct Readers {
    path: PathBuf,
    file: Arc<LogFile>,
    idle: Mutex<Vec<Reader>>,
    permits: Semaphore,
    closed: AtomicBool,
    /// The runtime on which the log was opened.
    runtime: Handle,
}

/// Leave to read; dropped, the next one may.
struct Permit<'a>(Option<SemaphorePermit<'a>>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        foreign::tell(WAKER, || self.0 = None);
    }
}

impl Readers {
    pub(crate) fn new(path: &Path, file: &Arc<LogFile>) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            file: Arc::clone(file),
            idle: Mutex::default(),
            permits: Semaphore::new(READERS),
            closed: AtomicBool::new(false),
            runtime: Handle::current(),
        })
    }

    /// Reads on a thread that may block.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&mut Reader) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let closed = || BrokerError::new("the log is closed; open it again");
        let _permit = Permit(self.permits.acquire().await.ok());
        if self.is_closed() {
            return Err(closed());
        }
        let readers = Arc::clone(self);
        let reading = self.runtime().spawn_blocking(move || {
            readers.file.check()?;
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut reader = match idle {
                Some(reader) => reader,
                None => Reader::open(&readers.path).map_err(|error| explain(&readers.path, error))?,
            };
            // What was read of another file, or without its write-ahead log, is not what was published.
            let result = read(&mut reader)
                .map_err(|error| explain(&readers.path, error))
                .and_then(|read| readers.file.check().map(|()| read));
            if result.is_ok() && !readers.is_closed() {
                readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            }
            result
        });
        reading.await.map_err(|error| BrokerError::new("the log was not read").with_cause(error))?
    }

    /// The runtime around whoever asks, or that of the log.
    pub(crate) fn runtime(&self) -> Handle {
        Handle::try_current().unwrap_or_else(|_outside| self.runtime.clone())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Closes the connections. Whoever waits for one learns of it in turn: to close the semaphore would call all their
    /// wakers under its lock.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for reader in idle.into_iter().filter(|_| self.file.is_gone()) {
            let _ = tidy_up_in_the_end(&reader.connection, false);
        }
    }
}

/// A connection that reads, and the names behind the numbers that it has met.
pub(crate) struct Reader {
    pub(crate) connection: Connection,
    names: NamesByNumber,
}

/// The names behind the numbers of topics and sources.
#[derive(Default)]
pub(crate) struct NamesByNumber {
    topics: Recent<i64, Topic>,
    sources: Recent<i64, Arc<str>>,
}

/// Events that were read in one go.
pub(crate) struct Page {
    pub(crate) events: Vec<Stored>,
    /// Everything up to here was looked at.
    pub(crate) position: i64,
    /// Whether there was nothing more.
    pub(crate) complete: bool,
}

impl Reader {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        Ok(Self { connection: open_reader(path)?, names: NamesByNumber::default() })
    }

    /// The place of the latest event; 0 where there is none.
    pub(crate) fn head(&self) -> rusqlite::Result<i64> {
        head(&self.connection)
    }

    /// The next events on `pattern` behind `position`, at most up to `until`.
    pub(crate) fn read_after(
        &mut self,
        pattern: &Pattern,
        position: i64,
        until: Option<i64>,
    ) -> rusqlite::Result<Page> {
        // An event that is stored from now on has a higher offset, so nothing below this one is missed.
        let head = self.head()?;
        let end = until.map_or(head, |until| until.min(head));
        let Self { connection, names } = self;
        let mut page = Page { events: Vec::new(), position: end, complete: true };
        let mut bytes = 0;
        if pattern.is_exact() {
            let Some(topic) = topic_number(connection, pattern.as_str())? else { return Ok(page) };
            let sql = format!(
                "select {COLUMNS} from event e where e.topic = ?1 and e.offset > ?2 and e.offset <= ?3 order by e.offset"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query((topic, position, end))?;
            while let Some(row) = rows.next()? {
                if page.is_full(bytes) {
                    break;
                }
                page.add(names.read(connection, row)?, &mut bytes);
            }
            return Ok(page);
        }
        let mut wanted: Cache<i64, bool> = Cache::default();
        let sql =
            format!("select {COLUMNS} from event e where e.offset > ?1 and e.offset <= ?2 order by e.offset");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query((position, end))?;
        while let Some(row) = rows.next()? {
            if page.is_full(bytes) {
                break;
            }
            let topic = row.get(1)?;
            let matches = match wanted.get(&topic) {
                Some(matches) => *matches,
                None => {
                    let matches = match names.topic(connection, topic) {
                        Ok(topic) => pattern.matches(topic.as_str()),
                        // Nobody knows whose event it is.
                        Err(error) if is_damage(&error) => true,
                        Err(error) => return Err(error),
                    };
                    wanted.insert(topic, matches);
                    matches
                }
            };
            if matches {
                page.add(names.read(connection, row)?, &mut bytes);
            }
        }
        Ok(page)
    }

    /// How many events there are on `pattern` up to `until`; no more than `limit` are counted.
    pub(crate) fn count(&self, pattern: &Pattern, until: i64, limit: usize) -> rusqlite::Result<usize> {
        let mut count = 0;
        for topic in self.topics(pattern)? {
            if count >= limit {
                break;
            }
            count += self
                .connection
                .prepare_cached(
                    "select count(*) from (select 1 from event where topic = ?1 and offset <= ?2 limit ?3)",
                )?
                .query_row((topic, until, limit - count), |row| row.get::<_, usize>(0))?;
        }
        Ok(count)
    }

    /// Gives events the payloads that were mended for `group`.
    pub(crate) fn mend(&self, group: &str, events: &mut [Stored]) -> rusqlite::Result<()> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let mut statement = self.connection.prepare_cached(
            "select offset, payload, content, intact from mended where \"group\" = ?1 and offset between ?2 and ?3",
        )?;
        let mut rows = statement.query((group, first.offset, last.offset))?;
        while let Some(row) = rows.next()? {
            let offset = row.get(0)?;
            let Ok(place) = events.binary_search_by_key(&offset, |event| event.offset) else { continue };
            let payload: Vec<u8> = row.get(1)?;
            let sum = content([], Some(&payload));
            let intact = row.get::<_, i64>(2)? == i64::from(sum) && row.get::<_, bool>(3)?;
            events[place].mend(payload, intact);
        }
        Ok(())
    }

    /// Every event that `statement` finds, whose first columns are [`COLUMNS`]; `extra` reads the others.
    pub(crate) fn select<T>(
        &mut self,
        sql: &str,
        parameters: impl rusqlite::Params,
        mut extra: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<(Stored, T)>> {
        let Self { connection, names } = self;
        let mut statement: Statement<'_> = connection.prepare(sql)?;
        let mut rows = statement.query(parameters)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push((names.read(connection, row)?, extra(row)?));
        }
        Ok(found)
    }

    /// The places of events that `sql` finds and that are not what was written, at most `limit`.
    pub(crate) fn find_damaged(&mut self, sql: &str, limit: usize) -> rusqlite::Result<Vec<i64>> {
        let Self { connection, names } = self;
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut damaged = Vec::new();
        while let Some(row) = rows.next()? {
            let Stored { offset, intact, .. } = names.read(connection, row)?;
            if !intact && damaged.len() < limit {
                damaged.push(offset);
            }
        }
        Ok(damaged)
    }

    /// The numbers of the topics that `pattern` covers.
    pub(crate) fn topics(&self, pattern: &Pattern) -> rusqlite::Result<Vec<i64>> {
        topics(&self.connection, pattern)
    }
}

impl Page {
    fn add(&mut self, stored: Stored, bytes: &mut usize) {
        *bytes += stored.size;
        self.events.push(stored);
    }

    /// Whether no more fits. Then there may be more, behind the last event that was taken.
    fn is_full(&mut self, bytes: usize) -> bool {
        let full = self.events.len() >= EVENTS || bytes >= BYTES;
        if let (true, Some(last)) = (full, self.events.last()) {
            (self.position, self.complete) = (last.offset, false);
        }
        full
    }
}

impl NamesByNumber {
    /// Reads a row of [`COLUMNS`].
    pub(crate) fn read(&mut self, connection: &Connection, row: &Row<'_>) -> rusqlite::Result<Stored> {
        match self.read_whole(connection, row) {
            Err(error) if is_damage(&error) => {
                let topic = row.get(1).and_then(|topic| self.topic(connection, topic));
                Stored::unreadable(row, topic.ok())
            }
            read => read,
        }
    }

    fn read_whole(&mut self, connection: &Connection, row: &Row<'_>) -> rusqlite::Result<Stored> {
        let (topic, source) = (row.get(1)?, row.get(3)?);
        let topic = self.topic(connection, topic)?;
        let source = self.source(connection, source)?;
        read(row, topic, &source)
    }

    /// The topics of the events behind a place and up to another.
    pub(crate) fn topics_between(
        &mut self,
        connection: &Connection,
        behind: i64,
        until: i64,
    ) -> rusqlite::Result<Vec<Topic>> {
        let mut statement = connection
            .prepare_cached("select distinct topic from event where offset > ?1 and offset <= ?2")?;
        let mut rows = statement.query((behind, until))?;
        let mut topics = Vec::new();
        while let Some(row) = rows.next()? {
            topics.push(self.topic(connection, row.get(0)?)?);
        }
        Ok(topics)
    }

    fn source(&mut self, connection: &Connection, number: i64) -> rusqlite::Result<Arc<str>> {
        self.sources.get_or(&number, || Ok(name(connection, "source", number)?.into()))
    }

    fn topic(&mut self, connection: &Connection, number: i64) -> rusqlite::Result<Topic> {
        self.topics.get_or(&number, || {
            Topic::new(&name(connection, "topic", number)?).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
            })
        })
    }
}

/// The place of the latest event; 0 where there is none.
pub(crate) fn head(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("select coalesce(max(offset), 0) from event")?.query_row([], |row| row.get(0))
}

/// The place of the latest event whose payload was mended for `group`; 0 where there is none.
pub(crate) fn last_mended(connection: &Connection, group: &str) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("select coalesce(max(offset), 0) from mended where \"group\" = ?1")?
        .query_row([group], |row| row.get(0))
}

/// The numbers of the topics that `pattern` covers.
pub(crate) fn topics(connection: &Connection, pattern: &Pattern) -> rusqlite::Result<Vec<i64>> {
    if pattern.is_exact() {
        return Ok(topic_number(connection, pattern.as_str())?.into_iter().collect());
    }
    // Those that begin with what stands before the first wildcard; a `/` comes next behind a `.`.
    let fixed = pattern.as_str().split(['*', '>']).next().unwrap_or_default();
    let (first, behind) = match fixed.strip_suffix('.') {
        Some(tokens) => (fixed, format!("{tokens}/")),
        None => ("", "\u{7f}".to_owned()),
    };
    let mut statement =
        connection.prepare_cached("select id, name from topic where name >= ?1 and name < ?2")?;
    let mut rows = statement.query((first, behind))?;
    let mut numbers = Vec::new();
    while let Some(row) = rows.next()? {
        if pattern.matches(row.get_ref(1)?.as_str()?) {
            numbers.push(row.get(0)?);
        }
    }
    Ok(numbers)
}

fn topic_number(connection: &Connection, topic: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("select id from topic where name = ?1")?
        .query_row([topic], |row| row.get(0))
        .optional()
}

fn name(connection: &Connection, table: &str, number: i64) -> rusqlite::Result<String> {
    connection
        .prepare_cached(&format!("select name from {table} where id = ?1"))?
        .query_row([number], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_its_topics_and_not_their_neighbours() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("create table topic (id integer primary key, name text unique)").unwrap();
        let names =
            ["user", "user.a", "user.a.b", "user-x.a", "user_x.a", "userx.a", "User.a", "a.user", "z.z"];
        for name in names {
            connection.execute("insert into topic (name) values (?1)", [name]).unwrap();
        }
        for pattern in ["user.>", "user.*", "user.a.>", "*.a", "*.user", ">", "*.*.b", "user", "nobody.>"] {
            let pattern = Pattern::new(pattern).unwrap();
            let mut found = topics(&connection, &pattern).unwrap();
            found.sort_unstable();
            let matching =
                (1..).zip(names).filter(|(_, name)| pattern.matches(name)).map(|(number, _)| number);
            assert_eq!(found, matching.collect::<Vec<i64>>(), "{pattern:?}");
        }
    }
}
