//! The test binaries of the workspace: what cargo has built, and a run of one.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The workspace, wherever the command is given.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A test binary that cargo has built.
#[derive(Clone, Debug)]
pub(crate) struct TestBinary {
    /// Package and target.
    pub(crate) name: String,
    executable: PathBuf,
    /// Where `cargo test` would run it.
    folder: PathBuf,
}

/// Builds the test binaries that a `cargo test … --no-run` names.
pub(crate) fn build(arguments: &[&str]) -> io::Result<Vec<TestBinary>> {
    let mut cargo = Command::new(env!("CARGO"))
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(ROOT)
        .stdout(Stdio::piped())
        .spawn()?;
    let messages = BufReader::new(cargo.stdout.take().expect("it is piped"));
    let mut binaries = Vec::new();
    for message in messages.lines() {
        binaries.extend(TestBinary::of(&message?));
    }
    match cargo.wait()?.success() {
        true => Ok(binaries),
        false => Err(io::Error::other("the tests do not build")),
    }
}

impl TestBinary {
    /// The one that a message of cargo tells of, if it tells of one.
    fn of(message: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(message).ok()?;
        if message["profile"]["test"] != true {
            return None;
        }
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        // `path+file:///shop#0.1.0`, or `path+file:///shop#the-shop@0.1.0` where the folder has another name.
        let (path, named) = message["package_id"].as_str()?.split_once('#')?;
        let package = named.split_once('@').map_or(path.rsplit('/').next()?, |(package, _)| package);
        Some(Self {
            name: format!("{package}/{}", message["target"]["name"].as_str()?),
            executable: message["executable"].as_str()?.into(),
            folder,
        })
    }

    /// One that was never built.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), executable: PathBuf::new(), folder: PathBuf::new() }
    }

    pub(crate) fn package(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// A name for a file of its own: a library and a test may share theirs.
    pub(crate) fn file_name(&self) -> String {
        let executable = self.executable.file_name().unwrap_or_default();
        format!("{}.{}", self.package(), executable.to_string_lossy())
    }

    /// Runs it, with its output in a file, and kills it with all that it began where it takes longer than this; then
    /// there is no status.
    pub(crate) fn run(
        &self,
        output: File,
        variables: &[(String, String)],
        limit: Duration,
    ) -> io::Result<Option<ExitStatus>> {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.folder)
            .env("CARGO", env!("CARGO"))
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("CARGO_PKG_NAME", self.package())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output);
        wait(group_of_its_own(&mut command).spawn()?, limit)
    }

    /// The tests that were begun, or were still to come, when a run with this output was killed.
    pub(crate) fn unfinished(&self, output: &str) -> BTreeSet<String> {
        let list = Command::new(&self.executable).current_dir(&self.folder).arg("--list").output();
        let list = list.map(|list| String::from_utf8_lossy(&list.stdout).into_owned()).unwrap_or_default();
        let known = list.lines().filter_map(|line| line.strip_suffix(": test"));
        let done: BTreeSet<_> = results(output).map(|(test, _)| test).collect();
        known.filter(|test| !done.contains(test)).map(str::to_owned).collect()
    }
}

/// The results that the harness tells, test by test.
pub(crate) fn results(output: &str) -> impl Iterator<Item = (&str, &str)> {
    output.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "))
}

/// Waits for a run to end, and kills it where it takes too long.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if began.elapsed() > limit {
            kill_group(&child);
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tests begin processes, which would outlive a test that is killed.
#[cfg(unix)]
fn group_of_its_own(command: &mut Command) -> &mut Command {
    std::os::unix::process::CommandExt::process_group(command, 0)
}

#[cfg(not(unix))]
fn group_of_its_own(command: &mut Command) -> &mut Command {
    command
}

fn kill_group(leader: &Child) {
    if cfg!(unix) {
        // Where there is no `kill`, the leader is killed all the same.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", leader.id())]).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_binaries_are_run() {
        let message = |test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact", "profile": { "test": test }, "manifest_path": "/w/shop/Cargo.toml",
                "package_id": "path+file:///w/shop#0.1.0",
                "target": { "name": "orders" }, "executable": "/w/target/debug/deps/orders-1",
            })
            .to_string()
        };
        assert!(TestBinary::of(&message(false)).is_none() && TestBinary::of("no JSON").is_none());
        let found = TestBinary::of(&message(true)).unwrap();
        assert_eq!((&*found.name, found.folder), ("shop/orders", PathBuf::from("/w/shop")));
    }

    #[cfg(unix)]
    #[test]
    fn a_run_that_takes_too_long_is_killed_with_what_it_began() {
        let mut command = Command::new("sh");
        // The shell's child holds the pipe as long as it lives.
        command.args(["-c", "sleep 600 & wait"]).stdout(Stdio::piped());
        let mut child = group_of_its_own(&mut command).spawn().unwrap();
        let pipe = child.stdout.take().unwrap();
        assert_eq!(wait(child, Duration::from_millis(50)).unwrap(), None);
        assert_eq!(io::read_to_string(pipe).unwrap(), "");
    }
}
