//! Servers beside a run of tests: they come up while the first steps run, and go down whatever ends the run.

use super::environment::{self, Variables};
use super::kind::{KINDS, Kind, named};
use super::python;
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
    coming: Option<JoinHandle<io::Result<CameUp>>>,
    guard: Child,
}

/// What has come of bringing servers up.
#[derive(Default)]
pub(crate) struct CameUp {
    /// What the tests are to be told of those that are up.
    pub(crate) variables: Variables,
    /// What did not come up, and why.
    pub(crate) failed: Vec<String>,
    /// Why there are no clients for Python, where there are none.
    pub(crate) no_python: Option<String>,
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

    /// Waits until each is up or has failed. Asked again, it has nothing to add.
    ///
    /// # Errors
    ///
    /// What keeps all of them down.
    pub(crate) fn came_up(&mut self) -> io::Result<CameUp> {
        let Some(coming) = self.coming.take() else { return Ok(CameUp::default()) };
        let began = Instant::now();
        let came_up = coming.join().map_err(|_| io::Error::other("bringing up the servers panicked"))??;
        println!("== {:.1} s waited for the servers", began.elapsed().as_secs_f64());
        Ok(came_up)
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

fn bring_up(kinds: &[&'static dyn Kind], run: String) -> io::Result<CameUp> {
    let brokers = Brokers::here()?;
    let mut servers = Vec::new();
    for kind in kinds {
        let server = Server::new(brokers.home(), *kind, MAIN)?;
        if brokers.given(&server).is_none() {
            servers.push(server);
        }
    }
    let (results, python): (Vec<_>, _) = thread::scope(|scope| {
        let python = scope.spawn(|| python::install(brokers.home()));
        let up = |mut server: Server| {
            let times = told_of_start(server.up(Data::Fresh, Some(&run))?.as_ref());
            println!("== {} is {}", server.kind().name(), times.trim_start_matches("is "));
            Ok(server)
        };
        let threads: Vec<_> = servers
            .into_iter()
            .map(|server| (server.kind().name(), scope.spawn(move || up(server))))
            .collect();
        (threads.into_iter().map(|(name, thread)| (name, thread.join())).collect(), python.join())
    });
    let python = python.unwrap_or_else(|_| Err(io::Error::other("installing them panicked")));
    brokers.write_environment()?;
    let (mut up, mut failed) = (Vec::new(), Vec::new());
    for (name, result) in results {
        match result.unwrap_or_else(|_| Err(io::Error::other("bringing it up panicked"))) {
            Ok(server) => up.push(server),
            Err(error) => failed.push(format!("{name} did not come up: {error}")),
        }
    }
    let mut variables = environment::variables(brokers.home(), &up)?;
    variables.push((RUN.to_owned(), run));
    Ok(CameUp { variables, failed, no_python: python.err().map(|error| error.to_string()) })
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
