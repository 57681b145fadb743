//! Which file the log is: found out once, when it is opened, and watched as long as it is open.
//!
//! A path says where a file is today. Links, `..`, another working directory, a `mv` or a cleaner of temporary files
//! change what it means, and SQLite goes on with the file that it has: with a write-ahead log beside another name, or
//! with a file that nobody finds any more.

use eventbus_core::BrokerError;
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long what was seen of the file holds, before it is looked at again.
const LOOK: Duration = Duration::from_millis(10);
/// How many links may follow one another.
const LINKS: usize = 40;

/// The one path of the log that is called `path`, whatever links and folders lead to it, now and later.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, BrokerError> {
    if path.as_os_str().is_empty() || path == Path::new(":memory:") {
        return Err(BrokerError::new(format!(
            "`{}` names no file, and a log is in a file; use the broker `memory:` for a bus that keeps nothing",
            path.display()
        )));
    }
    if path.as_os_str().as_encoded_bytes().starts_with(b"file:") {
        return Err(BrokerError::new(format!(
            "`{0}` looks like a URI of SQLite, which a log does not read; write the path alone, or `./{0}` for a \
             file of that name",
            path.display()
        )));
    }
    let found = find(path).map_err(|error| {
        BrokerError::new(match path.parent().filter(|folder| fs::metadata(folder).is_err()) {
            Some(folder) if !folder.as_os_str().is_empty() => no_folder(path, folder),
            _ => format!(
                "cannot find or create the log `{}`; choose a folder that exists and can be written to",
                path.display()
            ),
        })
        .with_cause(error)
    })?;
    match fs::metadata(&found) {
        Ok(file) if file.is_dir() => Err(BrokerError::new(format!(
            "`{}` is a folder; choose a file in it for the log",
            path.display()
        ))),
        Ok(file) => one_name(found, &file),
        // Whoever opens it finds out.
        Err(_) => Ok(found),
    }
}

fn no_folder(path: &Path, folder: &Path) -> String {
    let (path, name) = (path.display(), folder.display());
    let within = if folder.is_relative() { std::env::current_dir().ok() } else { None };
    let within = within.map(|within| format!(" in `{}`", within.display())).unwrap_or_default();
    format!(
        "cannot find or create the log `{path}`: there is no folder `{name}`{within}; create it (`mkdir -p '{name}'`), or \
         choose another path"
    )
}

/// The canonical path, also of a file that does not exist yet.
fn find(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::canonicalize(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return found,
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match fs::read_link(&path) {
            // A link to a file that is not there yet.
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
                return Ok(fs::canonicalize(folder)?.join(name));
            }
        }
    }
    Err(ErrorKind::NotFound.into())
}

/// The name that all programs use for a file with several (hard links): SQLite keeps the write-ahead log beside the
/// name by which it is told to open the file, and two of them would damage it.
#[cfg(unix)]
fn one_name(path: PathBuf, file: &Metadata) -> Result<PathBuf, BrokerError> {
    use std::os::unix::fs::MetadataExt;

    if file.nlink() < 2 {
        return Ok(path);
    }
    let folder = path.parent().map(fs::read_dir).and_then(Result::ok);
    let is_it =
        |entry: &fs::DirEntry| entry.metadata().is_ok_and(|other| Identity::of(&other) == Identity::of(file));
    let mut names: Vec<_> =
        folder.into_iter().flatten().flatten().filter(is_it).map(|entry| entry.path()).collect();
    names.sort();
    let all_are_here = names.len() as u64 == file.nlink();
    let in_use: Vec<_> = names.iter().filter(|name| beside(name, "-wal").exists()).collect();
    match (in_use.as_slice(), names.first()) {
        ([one], _) if all_are_here => Ok((*one).clone()),
        ([], Some(first)) if all_are_here => Ok(first.clone()),
        _ => Err(BrokerError::new(format!(
            "the log `{}` has several names (hard links), and programs that open it by different ones would damage \
             it; remove the other names, or make a copy instead of a link",
            path.display()
        ))),
    }
}

#[cfg(not(unix))]
fn one_name(path: PathBuf, _: &Metadata) -> Result<PathBuf, BrokerError> {
    Ok(path)
}

/// What SQLite or this crate keeps beside the log.
pub(crate) fn beside(log: &Path, end: &str) -> PathBuf {
    let mut name = log.file_name().map(OsString::from).unwrap_or_default();
    name.push(end);
    log.with_file_name(name)
}

/// Which file it is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(#[cfg(unix)] (u64, u64));

impl Identity {
    #[cfg(unix)]
    pub(crate) fn of(file: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self((file.dev(), file.ino()))
    }

    /// The system keeps an open file in its place.
    #[cfg(not(unix))]
    pub(crate) fn of(_: &Metadata) -> Self {
        Self()
    }
}

/// What is at a path now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    This,
    Another,
    Nothing,
}

/// A file that SQLite holds open, and where it is expected.
struct Expected {
    path: PathBuf,
    identity: Identity,
}

impl Expected {
    fn at(path: PathBuf) -> io::Result<Self> {
        Ok(Self { identity: Identity::of(&fs::metadata(&path)?), path })
    }

    fn look(&self) -> Seen {
        match fs::metadata(&self.path) {
            Ok(file) if Identity::of(&file) != self.identity => Seen::Another,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Seen::Nothing
            }
            // Where nothing can be seen, nothing is known to have changed.
            Ok(_) | Err(_) => Seen::This,
        }
    }
}

/// The file of an open log.
pub(crate) struct LogFile {
    log: Expected,
    /// The write-ahead log and its index: they stay as long as the log is open somewhere.
    wal: Expected,
    index: Expected,
    last_look: Lock<Look>,
    gone: AtomicBool,
}

/// What was seen of the file, and when.
struct Look {
    at: Instant,
    /// It is not looked at any more.
    is_last: bool,
    gone: Option<Gone>,
}

/// The log is no longer where it was opened.
#[derive(Clone, PartialEq, Eq)]
struct Gone {
    problem: String,
    /// Whether what the write-ahead log holds can be copied into the file without harm.
    can_save: bool,
}

impl LogFile {
    /// Watches the log at `path`, whose write-ahead log is open.
    pub(crate) fn watch(path: &Path) -> Result<Self, BrokerError> {
        let expected = |end| {
            let path = beside(path, end);
            Expected::at(path.clone()).map_err(|error| {
                BrokerError::new(format!(
                    "cannot find `{}`, which was there a moment ago; open the log again",
                    path.display()
                ))
                .with_cause(error)
            })
        };
        Ok(Self {
            log: expected("")?,
            wal: expected("-wal")?,
            index: expected("-shm")?,
            last_look: Lock::new(Rank::LEAF, Look { at: Instant::now(), is_last: false, gone: None }),
            gone: AtomicBool::new(false),
        })
    }

    /// Whether the log is still where it was opened, as of a few milliseconds ago.
    ///
    /// # Errors
    /// Where it is not, with what to do about it. Once it is back, this is `Ok` again.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let (gone, changed) = {
            let mut last = self.last_look.lock();
            let now = Instant::now();
            if now.saturating_duration_since(last.at) >= LOOK && !last.is_last {
                let before = std::mem::replace(&mut last.gone, self.look());
                last.at = now;
                self.gone.store(last.gone.is_some(), Ordering::Release);
                (last.gone.clone(), before != last.gone)
            } else {
                (last.gone.clone(), false)
            }
        };
        match gone {
            Some(Gone { problem, .. }) => {
                if changed {
                    log::error!(target: "eventbus", "{}", printable(&problem));
                }
                Err(BrokerError::new(problem))
            }
            None => {
                if changed {
                    log::info!(
                        target: "eventbus", "the log `{}` is back, and goes on", printable(self.log.path.display())
                    );
                }
                Ok(())
            }
        }
    }

    /// What was seen until now is the last of it: the log is about to be closed, and SQLite removes what is beside it.
    pub(crate) fn close(&self) {
        self.last_look.lock().is_last = true;
    }

    /// Whether the log was seen to be no longer where it was opened.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether what the write-ahead log holds can be copied into the file without harm, though it is gone.
    pub(crate) fn can_save(&self) -> bool {
        self.last_look.lock().gone.as_ref().is_some_and(|gone| gone.can_save)
    }

    fn look(&self) -> Option<Gone> {
        let log = self.log.path.display();
        let (problem, can_save) = match (self.log.look(), self.wal.look(), self.index.look()) {
            (Seen::This, Seen::This, Seen::This) => return None,
            (Seen::Nothing, ..) => (
                format!(
                    "the log `{log}` was deleted or moved while it was open, and takes nothing more; move it back, \
                     or start the program again to begin a new log"
                ),
                true,
            ),
            (Seen::Another, ..) => (
                format!(
                    "another file was put in the place of the log `{log}` while it was open, and the log takes \
                     nothing more; put it back, or start the program again to use the other file"
                ),
                true,
            ),
            (Seen::This, wal, index) => (
                format!(
                    "`{}` was removed while the log `{log}` was open, which takes nothing more; end every program \
                     that has the log open, start them again, and keep cleaners away from its folder",
                    if wal == Seen::This { &self.index.path } else { &self.wal.path }.display()
                ),
                // Somebody else may have opened the file anew.
                wal != Seen::Another && index != Seen::Another,
            ),
        };
        Some(Gone { problem, can_save })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_way_to_a_file_leads_to_one_path() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(folder.join("sub")).unwrap();
        symlink("sub", folder.join("way")).unwrap();
        symlink("way/log.db", folder.join("link.db")).unwrap();
        let log = folder.join("sub/log.db");
        let ways = ["sub/log.db", "way/log.db", "link.db", "sub/../sub/./log.db"].map(|way| folder.join(way));
        for exists in [false, true] {
            if exists {
                fs::write(&log, "").unwrap();
            }
            for way in &ways {
                assert_eq!(resolve(way).unwrap(), log, "{way:?}, exists: {exists}");
            }
        }
    }

    #[test]
    fn links_that_go_round_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b.db", folder.path().join("a.db")).unwrap();
        symlink("a.db", folder.path().join("b.db")).unwrap();
        let error = resolve(&folder.path().join("a.db")).unwrap_err().to_string();
        assert!(error.contains("a.db"), "{error}");
    }

    #[test]
    fn of_several_names_in_a_folder_all_programs_use_the_one_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        let (one, two) = (folder.join("one.db"), folder.join("two.db"));
        fs::write(&two, "").unwrap();
        fs::hard_link(&two, &one).unwrap();
        assert_eq!([&one, &two].map(|name| resolve(name).unwrap()), [&one, &one].map(Clone::clone));
        fs::write(folder.join("two.db-wal"), "").unwrap();
        assert_eq!([&one, &two].map(|name| resolve(name).unwrap()), [&two, &two].map(Clone::clone));
        fs::write(folder.join("one.db-wal"), "").unwrap();
        let error = resolve(&one).unwrap_err().to_string();
        assert!(error.contains("hard links"), "{error}");
    }
}
