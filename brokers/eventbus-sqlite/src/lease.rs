//! Leases: which process handles a group.
//!
//! A process that has ended is told from one that is only slow by a lock on a file beside the log, which the system
//! releases with the process. One that has stopped still holds its lock, so it also has to say again and again that
//! it goes on.

use eventbus_core::BrokerError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// This process as the other ones see it, while it has the log open.
pub(crate) struct Process {
    name: String,
    path: PathBuf,
    // Locked as long as it is open.
    _file: File,
}

impl Process {
    /// Enters this process beside the log at `log`.
    pub(crate) fn enter(log: &Path) -> Result<Self, BrokerError> {
        let name = format!("{:016x}", fastrand::u64(..));
        let path = lock_file(log, &name);
        let entered = || -> std::io::Result<File> {
            let file = private().create_new(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        let file = entered().map_err(|error| {
            BrokerError::new(format!(
                "cannot lock `{}` beside the log ({error}); make the folder writable for this program",
                path.display()
            ))
            .with_source(error)
        })?;
        Ok(Self { name, path, _file: file })
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

    /// Takes this process away from beside the log.
    pub(crate) fn leave(&self) {
        // Whoever finds a file that nobody locks removes it, so nothing is lost if this fails.
        let _ = fs::remove_file(&self.path);
    }

    /// What the owners of this process begin with.
    pub(crate) fn owners(&self) -> String {
        format!("{}/*", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whether the process behind `owner` has ended.
pub(crate) fn has_ended(log: &Path, owner: &str) -> bool {
    let process = owner.split('/').next().unwrap_or_default();
    let path = lock_file(log, process);
    let Ok(file) = File::open(&path) else { return true };
    match file.try_lock() {
        Ok(()) => {
            let _ = fs::remove_file(&path);
            true
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
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

    /// Whether it is over. One that reaches further than it was given for was given before the clock was set back, and
    /// tells nothing.
    pub(crate) fn is_over(self) -> bool {
        let left = self.until.saturating_sub(now());
        left <= 0 || left > self.length
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
    let mut name = log.file_name().unwrap_or_default().to_owned();
    name.push(format!("-process-{process}"));
    log.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_noticed_and_its_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.db");
        let process = Process::enter(&log).unwrap();
        let owner = process.owner(7);
        assert_eq!(process.number(&owner), Some(7));
        assert!(!has_ended(&log, &owner));
        // As after a kill: the lock is gone, and the file is there.
        let left_behind = File::create(lock_file(&log, "dead")).unwrap();
        drop(left_behind);
        assert!(has_ended(&log, "dead/1"));
        assert!(!lock_file(&log, "dead").exists());
        drop(process);
        assert!(has_ended(&log, &owner));
    }

    #[test]
    fn a_lease_is_over_at_its_end_and_when_the_clock_was_set_back() {
        let given = Lease::of(Duration::from_secs(10));
        assert!(!given.is_over());
        assert!(Lease { until: now() - 1, ..given }.is_over());
        assert!(Lease { until: now() + 3_600_000, ..given }.is_over());
        assert!(!Lease::of(Duration::from_secs(3_600)).is_over(), "whatever others are given");
    }
}
