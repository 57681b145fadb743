//! Leases: which process handles a group.
//!
//! A process that has ended is told from one that is only slow by a lock on a file beside the log, which the system
//! releases with the process. One that has stopped still holds its lock, so it also has to say again and again that
//! it goes on. Who waits for its groups watches that on a clock that nobody sets.

use crate::file::{Identity, beside};
use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use jiff::Timestamp;
use rusqlite::Connection;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the name of a lock file has behind that of the log.
const LOCK: &str = "-process-";
/// The names under which this process has logs open.
static HERE: Lock<BTreeSet<String>> = Lock::new(Rank::LEAF, BTreeSet::new());
/// After how long a lease is forgotten that nobody asks for.
const FORGET: Duration = Duration::from_secs(60);

/// This process as the other ones see it, while it has the log open.
pub(crate) struct Process {
    name: String,
    path: PathBuf,
    /// Locked as long as it is open.
    file: Lock<File>,
}

impl Process {
    /// Enters this process beside the log at `log`.
    pub(crate) fn enter(log: &Path) -> Result<Self, BrokerError> {
        let name = format!("{:016x}", fastrand::u64(..));
        let path = lock_file(log, &name);
        let file = lock(&path).map_err(|error| {
            BrokerError::new(format!(
                "cannot lock `{}` beside the log; make the folder writable for this program",
                path.display()
            ))
            .with_cause(error)
        })?;
        HERE.lock().insert(name.clone());
        Ok(Self { name, path, file: Lock::new(Rank::LEAF, file) })
    }

    /// Locks a file anew where somebody has removed the one that is locked: a cleaner of temporary files.
    pub(crate) fn stay(&self) -> io::Result<()> {
        let mut file = self.file.lock();
        if !is_at(&self.path, &file)? {
            *file = self::lock(&self.path)?;
        }
        Ok(())
    }

    /// The name under which a subscription of this process owns its group.
    pub(crate) fn owner(&self, number: u64) -> String {
        format!("{}/{number}", self.name)
    }

    /// The number of a subscription of this process; none for an owner elsewhere.
    pub(crate) fn number(&self, owner: &str) -> Option<u64> {
        let (process, number) = owner.split_once('/')?;
        if process == self.name { number.parse().ok() } else { None }
    }

    /// Takes this process away from beside the log, once it owns no group any more. Where it has not come to that,
    /// its file is found without a lock, and removed, when the log is opened the next time.
    pub(crate) fn leave(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// What the owners of this process begin with.
    pub(crate) fn owners(&self) -> String {
        owners(&self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        HERE.lock().remove(&self.name);
    }
}

/// Creates the file at `path`, and locks it.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = private().create(true).truncate(false).open(path)?;
        file.lock()?;
        // Whoever came between the two took it for that of a process that has ended.
        if is_at(path, &file)? {
            // For people only, so that it may fail.
            let _ = file.set_len(0).and_then(|()| write!(&file, "{}", std::process::id()));
            return Ok(file);
        }
    }
}

/// The process behind `owner`, for people.
pub(crate) fn describe(log: &Path, owner: &str) -> String {
    let process = owner.split('/').next().unwrap_or_default();
    let number = fs::read_to_string(lock_file(log, process)).ok().and_then(|text| text.parse::<u32>().ok());
    match number {
        _ if HERE.lock().contains(process) => "another bus of this process".to_owned(),
        // In a container most are number 1.
        Some(number) if number == std::process::id() => format!("process {number} of another container"),
        Some(number) => format!("process {number}"),
        None => "another process".to_owned(),
    }
}

/// Whether `file` is what is at `path`.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok(Identity::of(&found) == Identity::of(&file.metadata()?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the owners of a process begin with.
fn owners(process: &str) -> String {
    format!("{process}/*")
}

/// What is seen of the process behind an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Nobody holds its lock.
    Ended,
    /// It holds its lock, at work or stopped.
    There,
    /// Its file is gone or cannot be opened.
    None,
}

/// What is seen of the process behind `owner`.
pub(crate) fn sign(log: &Path, owner: &str) -> Sign {
    let process = owner.split('/').next().unwrap_or_default();
    match File::open(lock_file(log, process)).map(|file| file.try_lock()) {
        Ok(Ok(())) => Sign::Ended,
        Ok(Err(TryLockError::WouldBlock)) => Sign::There,
        Ok(Err(TryLockError::Error(_))) | Err(_) => Sign::None,
    }
}

fn is_free(file: &File) -> bool {
    match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

/// Whether some process has the log open.
pub(crate) fn is_open_elsewhere(log: &Path) -> bool {
    processes(log).iter().any(|process| {
        File::open(lock_file(log, process))
            .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    })
}

/// Leaves the groups of the processes that have ended, and removes their files.
pub(crate) fn sweep(log: &Path, connection: &Connection) -> rusqlite::Result<()> {
    for process in processes(log) {
        let path = lock_file(log, &process);
        let Ok(file) = File::open(&path) else { continue };
        if is_free(&file) {
            connection
                .prepare_cached("update subscription set owner = null, unclean = iif(unclean = 2, 0, 1) where owner glob ?1")?
                .execute([owners(&process)])?;
            // Under its lock, so that it is not that of a process that has just come.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// The names of the processes that have a file beside the log.
fn processes(log: &Path) -> Vec<String> {
    let before = beside(log, LOCK);
    let before = before.file_name().unwrap_or_default().as_encoded_bytes();
    let files = log.parent().map(fs::read_dir).and_then(Result::ok);
    let process = |file: fs::DirEntry| {
        let name = file.file_name();
        let process = name.as_encoded_bytes().strip_prefix(before)?;
        // What else is called so is none of ours.
        let ours = process.len() == 16 && process.iter().all(u8::is_ascii_hexdigit);
        ours.then(|| String::from_utf8_lossy(process).into_owned())
    };
    files.into_iter().flatten().flatten().filter_map(process).collect()
}

/// A lease as it is written beside its owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    /// When it ends, in milliseconds since 1970.
    pub(crate) until: i64,
    /// How long it was given for, in milliseconds.
    pub(crate) length: i64,
}

impl Lease {
    /// A lease from now on.
    pub(crate) fn of(length: Duration) -> Self {
        let length = i64::try_from(length.as_millis()).unwrap_or(i64::MAX / 2);
        Self { until: now().saturating_add(length), length }
    }

    /// When it was last extended; none where there never was one.
    pub(crate) fn extended(self) -> Option<Timestamp> {
        let extended = (self.until > 0).then(|| self.until.saturating_sub(self.length))?;
        Timestamp::from_millisecond(extended).ok()
    }

    /// Whether it is over. One that reaches further than it was given for was given before the clock was set back, and
    /// tells nothing.
    pub(crate) fn is_over(self) -> bool {
        let left = self.until.saturating_sub(now());
        left <= 0 || left > self.length
    }
}

/// The leases of processes that are there, as they were seen from here. They do not go by the clock on the wall, which
/// somebody may set, and which jumps when a machine wakes: a process that goes on would be taken for a stopped one.
#[derive(Default)]
pub(crate) struct Watched {
    seen: HashMap<String, Seen>,
    /// With so many, those that nobody asks for any more are forgotten.
    many: usize,
}

struct Seen {
    until: i64,
    since: Instant,
    asked: Instant,
}

impl Watched {
    /// Whether the lease of `owner` was not extended for as long as it was given for, as far as was seen until `now`.
    pub(crate) fn is_over(&mut self, owner: &str, lease: Lease, now: Instant) -> bool {
        let length = Duration::from_millis(u64::try_from(lease.length).unwrap_or_default());
        if let Some(seen) = self.seen.get_mut(owner).filter(|seen| seen.until == lease.until) {
            seen.asked = now;
            return now.saturating_duration_since(seen.since) >= length;
        }
        if self.seen.len() >= self.many.max(1_024) {
            self.seen.retain(|_, seen| now.saturating_duration_since(seen.asked) < FORGET);
            self.many = 2 * self.seen.len();
        }
        self.seen.insert(owner.to_owned(), Seen { until: lease.until, since: now, asked: now });
        length.is_zero()
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// What creates files that nobody else reads.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn lock_file(log: &Path, process: &str) -> PathBuf {
    beside(log, &format!("{LOCK}{process}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.db");
        (folder, log)
    }

    #[test]
    fn a_process_of_another_container_is_not_taken_for_this_one_though_its_number_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.db");
        let here = Process::enter(&log).unwrap();
        assert_eq!(describe(&log, &here.owner(1)), "another bus of this process");
        let number = std::process::id();
        fs::write(lock_file(&log, "00000000000000aa"), number.to_string()).unwrap();
        assert_eq!(describe(&log, "00000000000000aa/1"), format!("process {number} of another container"));
    }

    #[test]
    fn only_a_process_whose_lock_is_free_has_ended() {
        let (_folder, log) = log();
        let process = Process::enter(&log).unwrap();
        let owner = process.owner(7);
        assert_eq!(process.number(&owner), Some(7));
        assert_eq!(sign(&log, &owner), Sign::There);
        // As after a kill: the lock is gone, and the file is there.
        File::create(lock_file(&log, "0000000000000000")).unwrap();
        assert_eq!(sign(&log, "0000000000000000/1"), Sign::Ended);
        // As after a cleaner of temporary files.
        fs::remove_file(&process.path).unwrap();
        assert_eq!(sign(&log, &owner), Sign::None, "nothing is known of it");
        process.stay().unwrap();
        assert!(process.path.exists() && sign(&log, &owner) == Sign::There);
        let path = process.path.clone();
        drop(process);
        assert!(path.exists() && sign(&log, &owner) == Sign::Ended);
    }

    #[test]
    fn the_files_of_processes_that_have_ended_are_swept_away_and_no_others() {
        let (folder, log) = log();
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "create table subscription (owner text, unclean integer not null default 0);
                 insert into subscription (owner) values ('00000000000000aa/1'), ('00000000000000ab/1');
                 insert into subscription (owner, unclean) values ('00000000000000aa/2', 2);",
            )
            .unwrap();
        let alive = Process::enter(&log).unwrap();
        for name in
            ["log.db-process-00000000000000aa", "log.db-process-notes", "other.db-process-00000000000000aa"]
        {
            File::create(folder.path().join(name)).unwrap();
        }
        sweep(&log, &connection).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        left.sort();
        let mut expected = ["log.db-process-notes", "other.db-process-00000000000000aa"]
            .map(|name| folder.path().join(name))
            .to_vec();
        expected.insert(0, alive.path.clone());
        assert_eq!(left, expected);
        let owned: i64 =
            connection.query_row("select count(owner) from subscription", [], |row| row.get(0)).unwrap();
        assert_eq!(owned, 1, "the groups of the one that has ended are left");
        let unclean: Vec<u8> = connection
            .prepare("select unclean from subscription order by rowid")
            .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
            .unwrap();
        assert_eq!(unclean, [1, 0, 0], "one of them was being shut down");
    }

    #[test]
    fn a_lease_is_over_at_its_end_and_when_the_clock_was_set_back() {
        let given = Lease::of(Duration::from_secs(10));
        assert!(!given.is_over());
        assert!(Lease { until: now() - 1, ..given }.is_over());
        assert!(Lease { until: now() + 3_600_000, ..given }.is_over());
        assert!(!Lease::of(Duration::from_secs(3_600)).is_over(), "whatever others are given");
    }

    #[test]
    fn a_lease_that_is_watched_is_over_when_it_was_not_extended_for_its_length_whatever_the_time_is() {
        let (mut watched, start) = (Watched::default(), Instant::now());
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let lease = |until| Lease { until, length: 100 };
        // As after a jump of the clock, in one or the other direction.
        for until in [now() - 3_600_000, now() + 3_600_000] {
            let over = [0, 99, 100].map(|at| watched.is_over("a/1", lease(until), after(at)));
            assert_eq!(over, [false, false, true]);
        }
        for time in 0..10 {
            let over = watched.is_over("a/1", lease(-time), after(200 + 60 * time.unsigned_abs()));
            assert!(!over, "it goes on, whichever way the clock does");
        }
        for time in 0..20_000 {
            watched.is_over(&format!("b/{time}"), lease(0), after(1_000 * time));
        }
        assert!(watched.seen.len() <= 1_024, "{} are remembered", watched.seen.len());
    }
}
