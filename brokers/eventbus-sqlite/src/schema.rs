//! The file: opening it, telling ours from others, and its versions.

use crate::config::Durability;
use crate::file::beside;
use crate::lease;
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What marks a file as a log of ours, in SQLite's `application_id`: "EvBs" in ASCII.
const APPLICATION: i32 = 0x4576_4273;
/// The first version, in SQLite's `user_version`, that is still read. Version 1 was in no release.
const OLDEST: usize = 2;
/// What creates a file of the oldest version, and brings one from each version to the next.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("version_3.sql")];
/// The version of the files that this program writes.
const VERSION: usize = OLDEST + MIGRATIONS.len() - 1;
/// How long to wait for another process that writes.
pub(crate) const BUSY: Duration = Duration::from_secs(30);
/// How long to wait before looking again whether it is done.
pub(crate) const BUSY_LOOK: Duration = Duration::from_millis(1);
/// The write-ahead log is copied into the file when it has so many pages.
const CHECKPOINT_PAGES: u32 = 4_000;
/// The write-ahead log is cut back to this size, in bytes, when it was copied.
const WAL_SIZE: u64 = 64 << 20;

/// Opens the file for the one connection that writes, and migrates it. Where there is none, it is created if `create`
/// says so.
pub(crate) fn open_writer(
    path: &Path,
    create: bool,
    durability: Durability,
) -> Result<Connection, BrokerError> {
    find_or_create(path, create)?;
    refuse_without_wal(path)?;
    let opened = || -> rusqlite::Result<Connection> {
        let connection = connect(path)?;
        connection.pragma_query_value(None, "schema_version", |_| Ok(()))?;
        Ok(connection)
    };
    let mut connection = opened().map_err(|error| explain(path, error))?;
    if !identify(path, &connection)? && !create {
        return Err(missing(path));
    }
    // SQLite opens such a file all the same, and would find out with the first event.
    if connection.is_readonly("main").map_err(|error| explain(path, error))? {
        return Err(explain(path, failure(rusqlite::ffi::SQLITE_READONLY)));
    }
    prepare(&mut connection, durability).map_err(|error| explain(path, error))?;
    Ok(connection)
}

/// Opens one more connection, for reading.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Waits a little for whoever holds the lock, if that has not taken too long yet.
fn wait(looks: i32) -> bool {
    std::thread::sleep(BUSY_LOOK);
    u128::try_from(looks).is_ok_and(|looks| looks < BUSY.as_millis() / BUSY_LOOK.as_millis())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // SQLite's own `busy_timeout` sleeps for up to 100 ms between its looks, in which a busy process takes the lock
    // again and again.
    connection.busy_handler(Some(wait))?;
    connection.set_prepared_statement_cache_capacity(64);
    // Otherwise statements are planned anew whenever a parameter changes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// Creates the file where there is none, readable by nobody else; SQLite gives its companions the same mode.
fn find_or_create(path: &Path, create: bool) -> Result<(), BrokerError> {
    // The system releases a process's locks on a file when any descriptor of it is closed, so nobody else here may
    // have the file open before the one that created it is closed.
    static ONE_BY_ONE: Lock<()> = Lock::new(Rank::LEAF, ());
    let _turn = ONE_BY_ONE.lock();
    if !create {
        return match path.try_exists() {
            Ok(false) => Err(missing(path)),
            Ok(true) | Err(_) => Ok(()),
        };
    }
    match lease::private().create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(BrokerError::new(format!(
            "cannot create the log `{}`; choose a folder that exists and can be written to",
            path.display()
        ))
        .with_cause(error)),
    }
}

fn missing(path: &Path) -> BrokerError {
    BrokerError::new(format!(
        "there is no log `{}`; look at the path, or start the program that publishes to it first",
        path.display()
    ))
}

/// Refuses a log whose write-ahead log was removed while another process has it open: a second one beside the first
/// would damage the file.
fn refuse_without_wal(path: &Path) -> Result<(), BrokerError> {
    let missing = || ["-wal", "-shm"].map(|end| beside(path, end)).into_iter().find(|path| !path.exists());
    match removed(missing, || lease::is_open_elsewhere(path)) {
        Some(removed) => Err(BrokerError::new(format!(
            "`{}` was removed while another program has the log `{}` open; end that program first",
            removed.display(),
            path.display()
        ))),
        None => Ok(()),
    }
}

/// What is missing of a log that others have open.
///
/// A process takes its lock once the write-ahead log is there, and takes it away before SQLite removes that. Between two
/// looks another process may do either, so what is missing has to be so twice, each time before somebody has it open.
fn removed(
    mut missing: impl FnMut() -> Option<PathBuf>,
    mut is_open: impl FnMut() -> bool,
) -> Option<PathBuf> {
    missing()?;
    if !is_open() {
        return None;
    }
    missing().filter(|_| is_open())
}

/// Refuses a file that is not ours, or newer than we are. `false`: it is empty.
fn identify(path: &Path, connection: &Connection) -> Result<bool, BrokerError> {
    let read = || -> rusqlite::Result<(i32, usize, i64)> {
        // All of one moment: another process may create the log just now.
        let moment = connection.unchecked_transaction()?;
        Ok((
            moment.pragma_query_value(None, "application_id", |row| row.get(0))?,
            moment.pragma_query_value(None, "user_version", |row| row.get(0))?,
            moment.query_row("select count(*) from sqlite_schema", [], |row| row.get(0))?,
        ))
    };
    let (application, version, entries) = read().map_err(|error| explain(path, error))?;
    if application != APPLICATION && (application != 0 || entries > 0) {
        return Err(BrokerError::new(format!(
            "`{}` is an SQLite database of another program; choose another file for the log",
            path.display()
        )));
    }
    if version > VERSION {
        return Err(BrokerError::new(format!(
            "the log `{}` has version {version}, and this program knows up to version {VERSION}; \
             use the newer eventbus that wrote it",
            path.display()
        )));
    }
    if (1..OLDEST).contains(&version) {
        return Err(BrokerError::new(format!(
            "the log `{}` has version {version}, of a time before the first release, and this program knows from \
             version {OLDEST} on; let the eventbus that wrote it finish what is in it, or choose another file",
            path.display()
        )));
    }
    Ok(version > 0)
}

/// Copies what only the write-ahead log holds into the file that was opened, wherever that is now, without waiting for
/// anybody.
pub(crate) fn save_wal(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    let saved = connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()));
    connection.busy_handler(Some(wait))?;
    saved
}

/// Whether the last connection copies the write-ahead log into the file and removes it. That goes by the names of the
/// files, so it must not happen where they are others by now.
pub(crate) fn tidy_up_in_the_end(connection: &Connection, tidy: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !tidy).map(|_| ())
}

fn prepare(connection: &mut Connection, durability: Durability) -> rusqlite::Result<()> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        // Only an empty file can be told so.
        connection.pragma_update(None, "auto_vacuum", "incremental")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", durability.synchronous())?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_SIZE)?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    // A migration may put a table in the place of one that others refer to. Within a transaction this cannot be changed.
    connection.pragma_update(None, "foreign_keys", false)?;
    migrate(connection)?;
    connection.pragma_update(None, "foreign_keys", true)
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    let version: usize = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for migration in MIGRATIONS.iter().skip((version + 1).saturating_sub(OLDEST)) {
        transaction.execute_batch(migration)?;
    }
    if version < VERSION {
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()
}

/// What a file of this version says of its tables, indexes and views.
pub(crate) fn expected() -> rusqlite::Result<Vec<String>> {
    let connection = Connection::open_in_memory()?;
    MIGRATIONS.iter().try_for_each(|migration| connection.execute_batch(migration))?;
    described(&connection)
}

/// What the file says of its tables, indexes and views.
pub(crate) fn described(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "select concat_ws(' ', type, name, tbl_name, sql) from sqlite_schema order by 1";
    let mut statement = connection.prepare(sql)?;
    let rows = statement
        .query_map([], |row| Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned()))?;
    rows.collect()
}

impl Durability {
    /// The same in SQLite's words.
    pub(crate) fn synchronous(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Normal => "normal",
            Self::Off => "off",
        }
    }
}

fn failure(code: std::ffi::c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
}

/// What an error of SQLite means for whoever runs the program.
pub(crate) fn explain(path: &Path, error: rusqlite::Error) -> BrokerError {
    let file = path.display();
    let message = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            format!("`{file}` is not an SQLite database; choose another file for the log")
        }
        Some(ErrorCode::DatabaseCorrupt) => format!(
            "the log `{file}` is damaged; restore it from a backup, or save what can be read with \
             `sqlite3 {file} .recover`"
        ),
        Some(ErrorCode::DiskFull) => format!("the disk of the log `{file}` is full; make room"),
        Some(ErrorCode::ReadOnly) => format!(
            "the log `{file}` cannot be written; make the file and its folder writable for this program"
        ),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => format!(
            "the log `{file}` cannot be opened; its folder must exist, and this program must be allowed \
             to write to both"
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!(
                "another program holds the log `{file}`, and did not let go of it in time; end the one that does"
            )
        }
        Some(ErrorCode::SystemIoFailure) => {
            format!("the log `{file}` cannot be read or written; look at its disk")
        }
        _ => format!("the log `{file}` failed"),
    };
    BrokerError::new(message).with_cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::trace::{TraceEvent, TraceEventCodes};

    #[test]
    fn a_log_that_another_process_creates_in_this_moment_is_not_of_another_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        find_or_create(&path, true).unwrap();
        let mut connection = connect(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.busy_timeout(Duration::ZERO).unwrap();
        let create = move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(_, sql) = event
                && sql.contains("sqlite_schema")
            {
                let _ = other.execute_batch(&format!(
                    "begin; create table event (offset integer); pragma application_id = {APPLICATION}; commit"
                ));
            }
        };
        connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(create)).unwrap();
        identify(&path, &connection).unwrap();
    }

    #[test]
    fn a_log_that_is_opened_or_closed_between_two_looks_has_lost_nothing() {
        let removed = |missing: [bool; 2], open: [bool; 2]| {
            let (mut missing, mut open) = (missing.into_iter(), open.into_iter());
            let file = || missing.next().unwrap().then(|| PathBuf::from("log.db-wal"));
            removed(file, || open.next().unwrap()).is_some()
        };
        assert!(removed([true; 2], [true; 2]), "it was removed");
        assert!(!removed([true, false], [true; 2]), "it was opened after the first look");
        assert!(!removed([true; 2], [true, false]), "it was opened, and closed again");
        assert!(!removed([true; 2], [false; 2]), "nobody has it");
        assert!(!removed([false; 2], [true; 2]));
    }
}
