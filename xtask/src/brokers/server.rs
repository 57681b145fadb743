//! One server: a kind, and the instance that it belongs to.

use super::MAIN;
use super::certificates::Certificates;
use super::install::{Installer, last_lines};
use super::kind::{Kind, Program};
use super::place::{Ports, lock, wait_until};
use super::process::{Process, State};
use rustix::process::Signal;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) struct Server {
    kind: &'static dyn Kind,
    instance: String,
    home: PathBuf,
    folder: PathBuf,
    ports: Ports,
}

/// How a server is, as its processes are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Condition {
    /// It was not brought up, or taken down.
    Down,
    Up,
    Paused,
    /// It was brought up, and a process of it has ended: killed by us, or by itself.
    Dead,
}

/// What becomes of the data that a server had.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Data {
    Fresh,
    Kept,
}

/// How long it took to bring a server up.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) installing: Duration,
    pub(super) starting: Duration,
}

impl Server {
    pub(super) fn new(home: &Path, kind: &'static dyn Kind, instance: &str) -> io::Result<Self> {
        let folder = home.join("servers").join(instance).join(kind.name());
        let ports = Ports::read(&folder.join("ports"))?.unwrap_or_default();
        Ok(Self { kind, instance: instance.to_owned(), home: home.to_owned(), folder, ports })
    }

    pub(super) fn kind(&self) -> &'static dyn Kind {
        self.kind
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// Where its data, its configuration, its log and its ports are.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// What to do where it was begun by an earlier checkout, which knew fewer ports: it has no address there.
    pub(super) fn outdated(&self) -> Option<String> {
        let missing = self.ports.without(self.kind.ports());
        let instance = match self.instance.as_str() {
            MAIN => String::new(),
            other => format!(" --instance {other}"),
        };
        (!missing.is_empty()).then(|| {
            format!(
                "was begun by an earlier checkout, without a port for {}: `cargo xtask brokers up {}{instance}` begins it \
                 anew",
                missing.join(", "),
                self.kind.name()
            )
        })
    }

    pub(super) fn tls(&self) -> Certificates {
        Certificates::of(&self.home)
    }

    pub(super) fn condition(&self) -> io::Result<Condition> {
        let states: Vec<_> = self.processes()?.iter().map(Process::state).collect();
        Ok(if states.is_empty() {
            Condition::Down
        } else if states.contains(&State::Ended) {
            Condition::Dead
        } else if states.contains(&State::Paused) {
            Condition::Paused
        } else {
            Condition::Up
        })
    }

    /// Begins the server for a run of tests, or for nobody in particular, unless it runs already: then there are no
    /// times.
    ///
    /// # Errors
    ///
    /// What cannot be installed, what does not answer in time, with the end of its log, and one that is paused.
    pub(super) fn up(&mut self, data: Data, run: Option<&str>) -> io::Result<Option<Times>> {
        let _lock = self.lock()?;
        match self.condition()? {
            Condition::Up if self.outdated().is_some() => self.end()?,
            Condition::Up => return Ok(None),
            Condition::Paused => return Err(io::Error::other("it is paused: continue it, or take it down")),
            Condition::Dead => self.end()?,
            Condition::Down => {}
        }
        let began = Instant::now();
        let installer = Installer::new(&self.home);
        let program = self.kind.install(&installer)?;
        Certificates::made(&installer)?;
        let installing = began.elapsed();
        if data == Data::Fresh && self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        fs::create_dir_all(&self.folder)?;
        if data == Data::Fresh {
            fs::write(self.folder.join("run"), run.unwrap_or_default())?;
        }
        self.ports = Ports::remembered(&self.folder.join("ports"), self.kind.ports())?;
        let began = Instant::now();
        if let Err(error) = self.begin(&program) {
            self.end()?;
            return Err(error);
        }
        Ok(Some(Times { installing, starting: began.elapsed() }))
    }

    /// Begins the server again, with its data and on its ports, whether it was killed or not.
    pub(super) fn restart(&mut self) -> io::Result<Option<Times>> {
        {
            let _lock = self.lock()?;
            if self.condition()? == Condition::Down && !self.folder.join("ports").exists() {
                return Err(io::Error::other("it was never up: there is nothing to begin again"));
            }
            self.end()?;
        }
        self.up(Data::Kept, None)
    }

    /// Whether it was begun for that run of tests.
    pub(super) fn is_of_run(&self, run: &str) -> bool {
        fs::read_to_string(self.folder.join("run")).is_ok_and(|of| of == run)
    }

    /// Asks the server to end, and kills it where it does not. Its data stays until the next `up`.
    pub(super) fn down(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        self.end()
    }

    /// Kills the server in the midst of what it does.
    pub(super) fn kill(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        self.must_be_up()?;
        self.processes()?.iter().try_for_each(Process::kill)
    }

    /// Stops every process of the server where it is, connections stay open.
    pub(super) fn pause(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        self.must_be_up()?;
        self.processes()?.iter().try_for_each(|process| process.signal(Signal::STOP))?;
        self.awaited(Condition::Paused)
    }

    /// Lets a server that was paused go on.
    pub(super) fn resume(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        self.must_be_up()?;
        self.processes()?.iter().try_for_each(|process| process.signal(Signal::CONT))?;
        self.awaited(Condition::Up)
    }

    /// Makes the server short of memory or of disk, or lets it be as before.
    pub(super) fn starve(&self, short: bool) -> io::Result<()> {
        let _lock = self.lock()?;
        self.must_be_up()?;
        self.kind.starve(self, short)
    }

    fn begin(&self, program: &Path) -> io::Result<()> {
        // A stranger on the port would answer in the place of the server.
        self.ports.must_be_free()?;
        let programs = self.kind.programs(self, program)?;
        let mut begun = Vec::new();
        for Program { name, mut command, ready } in programs {
            let log = self.folder.join(format!("{name}.log"));
            let process = Process::begin(&mut command, &log, &self.folder.join(format!("{name}.pid")))?;
            begun.push((name, process, log, ready));
        }
        for (name, process, log, ready) in begun {
            let mut answer = Ok(());
            wait_until(self.kind.start_limit(), || {
                answer = ready();
                answer.is_ok() || process.state() == State::Ended
            });
            let reason = match (process.state(), answer) {
                (State::Ended, _) => "it ended".to_owned(),
                (_, Err(error)) => {
                    format!("it does not answer within {} s: {error}", self.kind.start_limit().as_secs())
                }
                (_, Ok(())) => continue,
            };
            let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
            return Err(io::Error::other(format!(
                "{name} did not start: {reason}. The end of {}:\n{}",
                log.display(),
                last_lines(&text)
            )));
        }
        Ok(())
    }

    fn end(&self) -> io::Result<()> {
        for file in self.process_files()? {
            if let Some(process) = Process::read(&file)? {
                process.end(self.kind.end_limit())?;
            }
            fs::remove_file(file)?;
        }
        Ok(())
    }

    fn must_be_up(&self) -> io::Result<()> {
        match self.condition()? {
            Condition::Up | Condition::Paused => Ok(()),
            Condition::Down => Err(io::Error::other("it is not up")),
            Condition::Dead => Err(io::Error::other("it is dead: restart it, or take it down")),
        }
    }

    fn awaited(&self, condition: Condition) -> io::Result<()> {
        let mut is = self.condition()?;
        let became = |is: &mut Condition| {
            *is = self.condition().unwrap_or(Condition::Dead);
            *is == condition
        };
        if wait_until(Duration::from_secs(10), || became(&mut is)) {
            return Ok(());
        }
        Err(io::Error::other(format!("it should be {condition:?} by now, and is {is:?}")))
    }

    pub(super) fn processes(&self) -> io::Result<Vec<Process>> {
        let read = self.process_files()?.into_iter().map(|file| Process::read(&file));
        Ok(read.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn process_files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "pid")).collect())
    }

    /// Nobody else changes this server while it is held.
    fn lock(&self) -> io::Result<fs::File> {
        lock(&self.folder.with_added_extension("lock"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment;
    use super::super::kind::named;
    use super::*;

    #[test]
    fn a_server_of_an_earlier_checkout_without_a_port_that_came_later_is_to_be_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let kind = named("nats").unwrap();
        let folder = home.path().join("servers/faults/nats");
        fs::create_dir_all(&folder).unwrap();
        let write = |names: &[&str]| {
            let lines: String =
                names.iter().zip(20_000..).map(|(name, port)| format!("{name}={port}\n")).collect();
            fs::write(folder.join("ports"), lines).unwrap();
            Server::new(home.path(), kind, "faults").unwrap()
        };
        let [earlier @ .., added] = kind.ports() else { panic!("it has ports") };
        let server = write(earlier);
        let told = server.outdated().expect("a port is missing");
        assert!(
            told.contains(added) && told.contains("`cargo xtask brokers up nats --instance faults`"),
            "{told}"
        );
        let error = environment::variables(home.path(), &[server]).unwrap_err().to_string();
        assert!(error.contains(&told), "{error}");
        let server = write(kind.ports());
        assert_eq!(server.outdated(), None);
        assert!(environment::variables(home.path(), &[server]).is_ok());
    }
}
