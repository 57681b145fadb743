//! A process group that outlives the command that began it, and is known again later.

use super::place::wait_until;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, kill_process_group, prlimit};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a process that was killed may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// The leader of a group: its id, and what tells it from a later process that was given the same id.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Process {
    id: i32,
    /// In ticks of the kernel since the machine started.
    began: u64,
    /// Which start of the machine that was.
    boot: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum State {
    Running,
    Paused,
    Ended,
}

impl Process {
    /// Begins the command as the leader of a group of its own, so that Ctrl-C passes it by, and notes it in `file`.
    pub(super) fn begin(command: &mut Command, log: &Path, file: &Path) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let child =
            command.process_group(0).stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log).spawn();
        let child = child.map_err(|error| {
            let program = command.get_program().display();
            io::Error::new(error.kind(), format!("cannot run {program}: {error}"))
        })?;
        let id = child.id().cast_signed();
        let stat = Stat::read(id).ok_or_else(|| io::Error::other("/proc does not show a new process"))?;
        let process = Self { id, began: stat.began, boot: boot()? };
        fs::write(file, process.to_line())?;
        Ok(process)
    }

    /// The process that a file notes, if there is such a file.
    pub(super) fn read(file: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(file) {
            Ok(line) => Self::from_line(&line).map(Some).ok_or_else(|| {
                io::Error::other(format!("{} does not say which process it means", file.display()))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `Ended` also where another process has the id by now, and where nobody has waited for this one yet.
    pub(super) fn state(&self) -> State {
        match Stat::read(self.id) {
            Some(stat) if stat.began == self.began && boot().is_ok_and(|boot| boot == self.boot) => {
                stat.state()
            }
            _ => State::Ended,
        }
    }

    /// Sends a signal to the whole group, unless its leader has ended: then the id may be a stranger's.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.state() == State::Ended {
            return Ok(());
        }
        match kill_process_group(self.pid()?, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets it write no file beyond so many bytes, as if the disk were full there, or any as long as it likes.
    pub(super) fn limit_files(&self, bytes: Option<u64>) -> io::Result<()> {
        if self.state() == State::Ended {
            return Err(io::Error::other("it has ended"));
        }
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(self.pid()?), Resource::Fsize, limit)?;
        Ok(())
    }

    /// Kills the group, and waits until it is gone: its ports and its files are free then.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.destroy(&members(self))
    }

    /// Asks the group to end, and kills what has not ended within `patience`.
    pub(super) fn end(&self, patience: Duration) -> io::Result<()> {
        // Read before, since nobody can tell whose the members of a group are once its leader is gone.
        let members = members(self);
        self.signal(Signal::TERM)?;
        // One that is stopped hears it only when it goes on.
        self.signal(Signal::CONT)?;
        wait_until(patience, || members.iter().all(Self::has_ended));
        self.destroy(&members)
    }

    fn destroy(&self, members: &[Self]) -> io::Result<()> {
        self.signal(Signal::KILL)?;
        for left in members.iter().filter(|member| !member.has_ended()) {
            let _ = kill_process(left.pid()?, Signal::KILL);
        }
        if wait_until(KILLED, || members.iter().all(Self::has_ended)) {
            return Ok(());
        }
        Err(io::Error::other(format!("process {} does not end, although it was killed", self.id)))
    }

    fn has_ended(&self) -> bool {
        self.state() == State::Ended
    }

    fn pid(&self) -> io::Result<Pid> {
        Pid::from_raw(self.id).ok_or_else(|| io::Error::other("no process has the id 0"))
    }

    fn to_line(&self) -> String {
        format!("{} {} {}\n", self.id, self.began, self.boot)
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (id, began) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        // 0 and 1 as groups are everybody's and that of the first process.
        (id > 1).then_some(Self { id, began, boot: words.next()?.to_owned() })
    }
}

/// The living processes of a group whose leader lives.
fn members(leader: &Process) -> Vec<Process> {
    if leader.state() == State::Ended {
        return Vec::new();
    }
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let of_group = ids.filter_map(|id| {
        let stat = Stat::read(id)?;
        (stat.group == leader.id).then(|| Process { id, began: stat.began, boot: leader.boot.clone() })
    });
    of_group.filter(|process| process.state() != State::Ended).collect()
}

/// What the kernel says of a process.
#[derive(Debug, PartialEq)]
struct Stat {
    letter: char,
    group: i32,
    threads: u32,
    began: u64,
}

impl Stat {
    fn read(id: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name of the program stands in parentheses, and may have spaces and parentheses of its own.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let letter = fields.next()?.chars().next()?;
        let group = fields.nth(1)?.parse().ok()?;
        let threads = fields.nth(14)?.parse().ok()?;
        let began = fields.nth(1)?.parse().ok()?;
        Some(Self { letter, group, threads, began })
    }

    fn state(&self) -> State {
        match self.letter {
            // The letter is that of the first thread: until the last one is gone, ports and files are held.
            'Z' if self.threads > 1 => State::Running,
            'Z' | 'X' | 'x' => State::Ended,
            'T' | 't' => State::Paused,
            _ => State::Running,
        }
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & wait"]);
        Process::begin(&mut command, &folder.join("log"), &folder.join("pid")).unwrap()
    }

    #[test]
    fn a_process_is_known_again_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let process = sleeper(folder.path());
        let read = Process::read(&folder.path().join("pid")).unwrap().unwrap();
        assert_eq!((&read, read.state()), (&process, State::Running));
        read.kill().unwrap();
        assert_eq!(process.state(), State::Ended);
        assert_eq!(Process::read(&folder.path().join("nothing")).unwrap(), None);
    }

    #[test]
    fn a_stranger_who_has_the_id_by_now_is_not_killed() {
        let folder = tempfile::tempdir().unwrap();
        let stranger = sleeper(folder.path());
        let earlier = Process { began: stranger.began - 1, ..stranger.clone() };
        let before_a_reboot = Process { boot: "another".to_owned(), ..stranger.clone() };
        for stale in [earlier, before_a_reboot] {
            assert_eq!(stale.state(), State::Ended);
            stale.end(Duration::ZERO).unwrap();
            assert!(!wait_until(Duration::from_millis(300), || stranger.has_ended()));
        }
        stranger.kill().unwrap();
    }

    #[test]
    fn what_is_paused_goes_on_and_ends_with_all_that_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let process = sleeper(folder.path());
        assert!(wait_until(Duration::from_secs(10), || members(&process).len() == 2));
        let members = members(&process);
        process.signal(Signal::STOP).unwrap();
        assert!(wait_until(Duration::from_secs(10), || members
            .iter()
            .all(|one| one.state() == State::Paused)));
        process.signal(Signal::CONT).unwrap();
        assert!(wait_until(Duration::from_secs(10), || process.state() == State::Running));
        process.signal(Signal::STOP).unwrap();
        process.end(Duration::from_secs(10)).unwrap();
        assert!(members.iter().all(|one| one.state() == State::Ended));
    }

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let stat = "71 (a) b (c) S 1 70 70 0 -1 4194304 9 0 0 0 1 2 3 4 20 0 5 0 4711 1 1";
        assert_eq!(Stat::parse(stat), Some(Stat { letter: 'S', group: 70, threads: 5, began: 4711 }));
    }

    #[test]
    fn a_process_has_not_ended_while_a_thread_of_it_holds_what_it_had() {
        let stat = |letter, threads| Stat { letter, group: 70, threads, began: 4711 }.state();
        assert_eq!((stat('Z', 2), stat('Z', 1), stat('T', 5)), (State::Running, State::Ended, State::Paused));
    }

    #[test]
    fn a_file_that_names_no_process_is_an_error_and_never_the_group_of_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        for line in ["", "0 1 boot", "1 1 boot", "-5 1 boot", "71", "71 soon boot"] {
            fs::write(&file, line).unwrap();
            assert!(Process::read(&file).is_err(), "{line:?}");
        }
    }
}
