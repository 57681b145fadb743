//! Servers beside a run of tests: they come up while the first steps run, and go down whatever ends the run.

use super::environment::{self, Variables};
use super::kind::{KINDS, Kind, named};
use super::server::{Condition, Data, Server};
use super::{Brokers, MAIN, told_of_start};
use std::io::{self, Read as _};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Names the run of tests that this process is part of: what a test begins goes down with the run, if not before.
const RUN: &str = "EVENTBUS_TEST_RUN";

/// Servers that come up, or are up.
pub(crate) struct Beside {
    coming: Option<JoinHandle<io::Result<Variables>>>,
    guard: Child,
}

impl Beside {
    /// Begins to bring these up, and comes back at once.
    pub(crate) fn begin(names: &[&str]) -> io::Result<Self> {
        let kinds: Vec<_> = names
            .iter()
            .map(|name| named(name).ok_or_else(|| io::Error::other(super::unknown(name))))
            .collect::<io::Result<_>>()?;
        let run = format!("{}-{:x}", std::process::id(), fastrand::u32(..));
        let guard = begin_guard(&run)?;
        Ok(Self { coming: Some(thread::spawn(move || bring_up(&kinds, run))), guard })
    }

    /// Waits until all are up, and gives what the tests are to be told. Asked again, it has nothing to add.
    ///
    /// # Errors
    ///
    /// What did not come up.
    pub(crate) fn variables(&mut self) -> io::Result<Variables> {
        let Some(coming) = self.coming.take() else { return Ok(Variables::new()) };
        let began = Instant::now();
        let variables = coming.join().map_err(|_| io::Error::other("bringing up the servers panicked"))??;
        println!("== the servers are up ({:.1} s waited for)", began.elapsed().as_secs_f64());
        Ok(variables)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // What is being begun right now would come up after the guard has looked.
        if let Some(coming) = self.coming.take() {
            if !coming.is_finished() {
                println!("== waiting for the servers that are being begun, to take them down");
            }
            let _ = coming.join();
        }
        drop(self.guard.stdin.take());
        if let Err(error) = self.guard.wait() {
            eprintln!("== who takes the servers down has failed: {error}");
        }
    }
}

/// A process that takes the servers down once this one has ended, in whatever way.
fn begin_guard(run: &str) -> io::Result<Child> {
    use std::os::unix::process::CommandExt as _;
    Command::new(std::env::current_exe()?)
        .args(["brokers", "guard"])
        .env(RUN, run)
        // Ctrl-C is for the run, and not for who tidies up after it.
        .process_group(0)
        .stdin(Stdio::piped())
        .spawn()
}

fn bring_up(kinds: &[&'static dyn Kind], run: String) -> io::Result<Variables> {
    let brokers = Brokers::here()?;
    let mut servers = Vec::new();
    for kind in kinds {
        let server = Server::new(brokers.home(), *kind, MAIN)?;
        if brokers.given(&server).is_none() {
            servers.push(server);
        }
    }
    let results = thread::scope(|scope| {
        let threads: Vec<_> = servers
            .iter_mut()
            .map(|server| {
                scope.spawn(|| {
                    let name = server.kind().name();
                    let times = server.up(Data::Fresh, Some(&run)).map_err(|error| {
                        io::Error::new(error.kind(), format!("{name} did not come up: {error}"))
                    })?;
                    println!("== {name} is {}", told_of_start(times.as_ref()).trim_start_matches("is "));
                    Ok(())
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<()>>| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("bringing up a server panicked")),
        };
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    brokers.write_environment()?;
    results.into_iter().collect::<io::Result<()>>()?;
    let mut variables = environment::variables(brokers.home(), &servers)?;
    variables.push((RUN.to_owned(), run));
    Ok(variables)
}

/// The run of tests that this process is part of.
pub(super) fn this_run() -> Option<String> {
    std::env::var(RUN).ok()
}

/// Waits until standard input is closed, and takes down what was begun for this run of tests.
pub(super) fn guard(brokers: &Brokers) -> io::Result<()> {
    let run = this_run().ok_or_else(|| io::Error::other(format!("`{RUN}` does not say what to guard")))?;
    io::stdin().read_to_end(&mut Vec::new())?;
    let mut failed = None;
    for server in running(brokers)? {
        if server.is_of_run(&run) {
            failed = server.down().err().or(failed);
        }
    }
    brokers.write_environment()?;
    failed.map_or(Ok(()), Err)
}

/// Every server of every instance that is not down.
fn running(brokers: &Brokers) -> io::Result<Vec<Server>> {
    let mut running = Vec::new();
    for instance in brokers.instances()? {
        for kind in KINDS {
            let server = Server::new(brokers.home(), *kind, &instance)?;
            if server.condition()? != Condition::Down {
                running.push(server);
            }
        }
    }
    Ok(running)
}
