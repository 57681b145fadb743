//! What a command tells of failures, kept to be told once more at the end of a long run.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many lines are kept of each failure: the last ones, where its panic stands.
const KEPT: usize = 30;
/// How long what a command has printed may take to arrive after its end. A process that it left behind may hold
/// the pipe for ever.
const LATE: Duration = Duration::from_secs(2);

/// Runs a command, which prints as ever, and returns what it told of failures.
pub(crate) fn run(command: &mut Command) -> io::Result<(ExitStatus, Vec<String>)> {
    run_to(command, io::stdout(), io::stderr())
}

/// The same, with what it prints going elsewhere.
fn run_to(
    command: &mut Command,
    out: impl Write + Send + 'static,
    error: impl Write + Send + 'static,
) -> io::Result<(ExitStatus, Vec<String>)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let failures = Arc::new(Mutex::new(Failures::default()));
    let stdout = child.stdout.take().expect("it is piped");
    let stderr = child.stderr.take().expect("it is piped");
    let copies = [
        copy(stdout, out, Arc::clone(&failures), Failures::hear_tests),
        copy(stderr, error, Arc::clone(&failures), Failures::hear_cargo),
    ];
    let status = child.wait()?;
    let ended = Instant::now();
    while ended.elapsed() < LATE && !copies.iter().all(JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(5));
    }
    let failures = mem::take(&mut *failures.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((status, failures.told()))
}

/// What tests tell of failures, in what they have printed.
pub(crate) fn of_tests(output: &str) -> Vec<String> {
    let mut failures = Failures::default();
    output.lines().for_each(|line| failures.hear_tests(line));
    failures.told()
}

type Hear = fn(&mut Failures, &str);

/// Copies each line to where it would have gone, and keeps what it tells of failures.
fn copy(
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    failures: Arc<Mutex<Failures>>,
    hear: Hear,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            // Where nobody reads what is printed, the failures are kept all the same.
            let _ = to.write_all(&line).and_then(|()| to.flush());
            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
            hear(&mut failures, String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    })
}

/// The failures among the lines of cargo and of its test binaries.
#[derive(Debug, Default)]
struct Failures {
    tests: Vec<Failure>,
    cargo: Vec<Failure>,
    /// The harness lists failures, or cargo an error.
    in_tests: bool,
    in_cargo: bool,
}

/// The beginning of a failure, and its last lines.
#[derive(Debug, Default)]
struct Failure {
    first: String,
    last: VecDeque<String>,
    left_out: usize,
    in_backtrace: bool,
}

impl Failures {
    /// A line of standard output, where the harness shows the output of each test that failed.
    fn hear_tests(&mut self, line: &str) {
        match line {
            "failures:" => self.in_tests = true,
            _ if line.starts_with("test result: ") => self.in_tests = false,
            _ if !self.in_tests => {}
            _ if line.starts_with("---- ") => self.tests.push(Failure::begins(line)),
            _ => self.tests.last_mut().into_iter().for_each(|failure| failure.hear(line)),
        }
    }

    /// A line of standard error, where cargo tells errors, and which test binary it was.
    fn hear_cargo(&mut self, line: &str) {
        if line.starts_with("error: ") || line.starts_with("error[") {
            self.in_cargo = true;
            self.cargo.push(Failure::begins(line));
        } else if !line.starts_with(' ') || is_progress(line) {
            self.in_cargo = false;
        } else if self.in_cargo {
            self.cargo.last_mut().into_iter().for_each(|failure| failure.hear(line));
        }
    }

    fn told(self) -> Vec<String> {
        self.tests.into_iter().chain(self.cargo).flat_map(Failure::told).collect()
    }
}

/// Whether cargo tells what it does: a verb that ends in the twelfth column.
fn is_progress(line: &str) -> bool {
    let verb = line.trim_start().split(' ').next().unwrap_or_default();
    verb.starts_with(char::is_uppercase) && line.len() - line.trim_start().len() + verb.len() == 12
}

impl Failure {
    fn begins(line: &str) -> Self {
        Self { first: line.to_owned(), ..Self::default() }
    }

    fn hear(&mut self, line: &str) {
        self.in_backtrace = line == "stack backtrace:" || self.in_backtrace && line.starts_with(' ');
        if line.is_empty() || self.in_backtrace {
            return;
        }
        self.last.push_back(line.to_owned());
        if self.last.len() > KEPT {
            self.last.pop_front();
            self.left_out += 1;
        }
    }

    fn told(self) -> Vec<String> {
        let left_out = (self.left_out > 0).then(|| format!("… {} lines above", self.left_out));
        std::iter::once(self.first).chain(left_out).chain(self.last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(hear: Hear, lines: &str) -> String {
        let mut failures = Failures::default();
        lines.lines().for_each(|line| hear(&mut failures, line));
        failures.told().join("\n")
    }

    #[test]
    fn the_output_of_each_test_that_failed_is_kept_and_nothing_else() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\n\
                      thread 'b' panicked at b.rs:1:1:\n2 of 3\nstack backtrace:\n   0: b\n             at ./b.rs\n\
                      note: more\n\n\nfailures:\n    b\n\n\
                      test result: FAILED. 1 passed\nrunning 1 test\ntest c ... ok";
        let told = "---- b stdout ----\nthread 'b' panicked at b.rs:1:1:\n2 of 3\nnote: more\n    b";
        assert_eq!(heard(Failures::hear_tests, output), told);
        assert_eq!(heard(Failures::hear_tests, "test a ... ok\n\ntest result: ok. 1 passed"), "");
    }

    #[test]
    fn the_end_of_a_long_output_is_kept_where_the_panic_stands() {
        let long: String = (0..100).map(|line| format!("line {line}\n")).collect();
        let told = heard(Failures::hear_tests, &format!("failures:\n---- b stdout ----\n{long}"));
        assert!(told.starts_with("---- b stdout ----\n… 70 lines above\nline 70\n"), "{told}");
        assert!(told.ends_with("line 99"), "{told}");
    }

    #[test]
    fn the_errors_of_cargo_are_kept_with_what_belongs_to_them() {
        let output = "     Running tests/a.rs\nerror: test failed, to rerun pass `--test a`\nwarning: b\n  --> b.rs\n\
                      error[E0308]: mismatched types\n  --> c.rs:1:1\n   Doc-tests a\n    b";
        let told =
            "error: test failed, to rerun pass `--test a`\nerror[E0308]: mismatched types\n  --> c.rs:1:1";
        assert_eq!(heard(Failures::hear_cargo, output), told);
    }

    #[cfg(unix)]
    #[test]
    fn a_process_that_is_left_behind_with_the_pipe_is_not_waited_for() {
        let script = "echo failures:; echo '---- b stdout ----'; sleep 60 & exit 3";
        let began = Instant::now();
        // Not among the output of this program: who runs the tests looks there for failures.
        let (status, told) = run_to(Command::new("sh").args(["-c", script]), io::sink(), io::sink()).unwrap();
        assert_eq!((status.code(), told), (Some(3), vec!["---- b stdout ----".to_owned()]));
        assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
    }
}
