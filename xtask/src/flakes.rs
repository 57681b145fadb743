//! `cargo xtask flakes`: runs every test binary round and round, and names what failed.
//!
//! The binary that has taken the least time so far is next, so that a fast one has hundreds of runs while a slow one
//! has some. Every other run of a binary is under load: threads that compute, twice as many as there are processors,
//! or the neighbours where several binaries run at once.

use crate::binaries::{self, ROOT, TestBinary, results};
use crate::test::WITH_SERVERS;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const USAGE: &str = "\
cargo xtask flakes [--minutes N] [--rounds N] [--jobs N] [--filter NAME] [--limit SECONDS] [--embedded]
  --minutes N       how long (default: 10, or no limit where --rounds is given)
  --rounds N        how many runs of each binary at most, and a tenth of it where each takes a second or more
  --jobs N          how many binaries run at once, each beside others only (default: 1, every other run beside
                    threads that compute)
  --filter NAME     only test binaries with NAME in theirs (`eventbus-sqlite/restart`)
  --limit SECONDS   after how long a run counts as hung and is killed (default: 300)
  --embedded        leave out what needs a server
The counts so far are in target/flakes/report.txt";

/// How long each run takes at least where a binary counts as slow.
const SLOW: Duration = Duration::from_secs(1);
/// Where the output of runs that failed is kept.
const FOLDER: &str = "target/flakes";
/// The counts so far, written after each run: they are there also where the command is ended.
const REPORT: &str = "target/flakes/report.txt";

pub(crate) fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let options = match Options::read(arguments) {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("{wrong}\nusage: {USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match binaries(&options).and_then(|binaries| go_round(binaries, &options)) {
        Ok(binaries) => {
            print!("\n{}", report(&binaries));
            if binaries.iter().all(|binary| binary.failures.is_empty()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("== cannot look for flakes: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, PartialEq)]
struct Options {
    time: Duration,
    rounds: usize,
    jobs: usize,
    filter: String,
    limit: Duration,
    embedded: bool,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut minutes, mut rounds, mut jobs, mut filter, mut limit) = (None, None, 1, String::new(), 300);
        let mut embedded = false;
        while let Some(name) = arguments.next() {
            if name == "--embedded" {
                embedded = true;
                continue;
            }
            let Some(value) = arguments.next() else { return Err(format!("`{name}` has no value")) };
            let number = || value.parse::<u64>().map_err(|_| format!("`{name} {value}` is no number"));
            match name.as_str() {
                "--minutes" => minutes = Some(number()?),
                "--rounds" => rounds = Some(number()?),
                "--jobs" => jobs = number()?.max(1),
                "--limit" => limit = number()?,
                "--filter" => filter = value,
                _ => return Err(format!("there is no option `{name}`")),
            }
        }
        let minutes = minutes.or(if rounds.is_some() { None } else { Some(10) });
        Ok(Self {
            time: minutes.map_or(Duration::MAX, |minutes| Duration::from_secs(60 * minutes)),
            rounds: rounds.map_or(usize::MAX, |rounds| usize::try_from(rounds).unwrap_or(usize::MAX)),
            jobs: usize::try_from(jobs).unwrap_or(usize::MAX),
            filter,
            limit: Duration::from_secs(limit),
            embedded,
        })
    }
}

/// A test binary, and what came of its runs.
#[derive(Debug)]
struct Binary {
    test: TestBinary,
    runs: usize,
    taken: Duration,
    /// How long the quickest of them took.
    quickest: Duration,
    /// The tests that were seen.
    tests: BTreeSet<String>,
    /// The runs in which a test failed, each with the file of its output.
    failures: BTreeMap<String, Vec<PathBuf>>,
}

/// Builds all test binaries, and finds those that are asked for.
fn binaries(Options { filter, embedded, .. }: &Options) -> io::Result<Vec<Binary>> {
    println!("== building the test binaries");
    let mut binaries = binaries::build(&["test", "--workspace", "--lib", "--bins", "--tests", "--no-run"])?;
    let left_out = if *embedded { WITH_SERVERS } else { &[] };
    binaries.retain(|binary| binary.name.contains(filter) && !left_out.contains(&binary.package()));
    if binaries.is_empty() {
        return Err(io::Error::other(format!("no test binary has `{filter}` in its name")));
    }
    Ok(binaries.into_iter().map(Binary::of).collect())
}

fn go_round(binaries: Vec<Binary>, options: &Options) -> io::Result<Vec<Binary>> {
    fs::create_dir_all(Path::new(ROOT).join(FOLDER))?;
    let began = Instant::now();
    let waiting = Mutex::new(binaries);
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let left =
            waiting.iter().enumerate().filter(|(_, binary)| binary.runs < binary.rounds(options.rounds));
        let (place, _) = left.min_by_key(|(_, binary)| binary.taken)?;
        Some(waiting.swap_remove(place))
    };
    // A binary is with one job at a time, which puts it back: where none waits, the other jobs need no help.
    let job = || {
        while began.elapsed() < options.time
            && let Some(mut binary) = next()
        {
            let ran = binary.run(options);
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(binary);
            // What is with other jobs now is missing until they have put it back.
            fs::write(Path::new(ROOT).join(REPORT), report(&waiting))?;
            ran?;
        }
        io::Result::Ok(())
    };
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..options.jobs).map(|_| scope.spawn(job)).collect();
        jobs.into_iter().try_for_each(|job| job.join().expect("a job does not panic"))
    })?;
    Ok(waiting.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Binary {
    fn of(test: TestBinary) -> Self {
        Self {
            test,
            runs: 0,
            taken: Duration::ZERO,
            quickest: Duration::MAX,
            tests: BTreeSet::new(),
            failures: BTreeMap::new(),
        }
    }

    /// How often it is to run where fast ones run `rounds` times.
    fn rounds(&self, rounds: usize) -> usize {
        let is_slow = self.runs > 0 && self.quickest >= SLOW;
        if is_slow { rounds.div_ceil(10) } else { rounds }
    }

    fn run(&mut self, options: &Options) -> io::Result<()> {
        self.runs += 1;
        let computing = options.jobs == 1 && self.runs.is_multiple_of(2);
        let output = Path::new(FOLDER).join(format!("{}-{}.txt", self.test.file_name(), self.runs));
        let file = File::create(Path::new(ROOT).join(&output))?;
        let began = Instant::now();
        let status = {
            let _load = computing.then(Load::begin);
            self.test.run(file, &[], options.limit)?
        };
        let took = began.elapsed();
        self.taken += took;
        self.quickest = self.quickest.min(took);
        let text = String::from_utf8_lossy(&fs::read(Path::new(ROOT).join(&output))?).into_owned();
        let mut failed = failures(&text, status);
        self.tests.extend(results(&text).map(|(test, _)| test.to_owned()));
        if status.is_none() {
            failed.extend(self.test.unfinished(&text).into_iter().map(|test| format!("{test} (hung)")));
        }
        if status.is_some_and(|status| status.success()) {
            return fs::remove_file(Path::new(ROOT).join(output));
        }
        if failed.is_empty() {
            failed.insert("(the binary itself)".to_owned());
        }
        for test in failed {
            let load = if computing { ", under load" } else { "" };
            println!("== failed: {} {test}, run {}{load}: {}", self.test.name, self.runs, output.display());
            self.failures.entry(test).or_default().push(output.clone());
        }
        Ok(())
    }
}

/// The tests that failed; a run that was killed has no status.
fn failures(output: &str, status: Option<ExitStatus>) -> BTreeSet<String> {
    if status.is_some_and(|status| status.success()) {
        return BTreeSet::new();
    }
    results(output)
        .filter(|(_, result)| result.starts_with("FAILED"))
        .map(|(test, _)| test.to_owned())
        .collect()
}

/// Threads that compute until it is dropped.
struct Load {
    ended: std::sync::Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn begin() -> Self {
        let ended = std::sync::Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().map_or(2, usize::from);
        let busy = || {
            let ended = std::sync::Arc::clone(&ended);
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = std::iter::repeat_with(busy).take(2 * processors).collect();
        Self { ended, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What came of all runs.
fn report(binaries: &[Binary]) -> String {
    let mut lines = vec!["== runs  failures  test".to_owned()];
    let mut sorted: Vec<_> = binaries.iter().collect();
    sorted.sort_by_key(|binary| &binary.test.name);
    for binary in sorted.iter().filter(|binary| binary.runs > 0) {
        let failed: usize = binary.failures.values().map(Vec::len).sum();
        let (tests, seconds) = (binary.tests.len(), binary.taken.as_secs_f64());
        let quickest = binary.quickest.as_secs_f64();
        lines.push(format!(
            "{:>7}  {failed:>8}  {} ({tests} tests, {seconds:.1} s, the quickest {quickest:.2} s)",
            binary.runs, binary.test.name
        ));
        for (test, outputs) in &binary.failures {
            lines.push(format!("{:>7}  {:>8}    {test}", binary.runs, outputs.len()));
            lines.extend(outputs.iter().map(|output| format!("{:>21}{}", "", output.display())));
        }
    }
    let unrun: Vec<_> = sorted.iter().filter(|binary| binary.runs == 0).map(|one| &*one.test.name).collect();
    if !unrun.is_empty() {
        lines.push(format!("== there was no time for {}", unrun.join(", ")));
    }
    if binaries.iter().all(|binary| binary.failures.is_empty()) {
        lines.push("== nothing failed".to_owned());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &str) -> Result<Options, String> {
        Options::read(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn rounds_lift_the_limit_of_ten_minutes_that_there_is_otherwise() {
        assert_eq!(read("").unwrap().time, Duration::from_secs(600));
        let rounds = read("--rounds 3 --filter logs").unwrap();
        assert_eq!((rounds.time, rounds.rounds, &*rounds.filter), (Duration::MAX, 3, "logs"));
        assert_eq!(read("--rounds 3 --minutes 1").unwrap().time, Duration::from_secs(60));
        assert_eq!((read("").unwrap().jobs, read("--jobs 6").unwrap().jobs), (1, 6));
        assert_eq!(
            (read("").unwrap().embedded, read("--embedded --jobs 6").unwrap().embedded),
            (false, true)
        );
        for wrong in ["--minutes", "--minutes soon", "--days 1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_test_that_failed_is_named_and_one_that_passed_is_not() {
        let output = "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ignored, slow\nfailures:\n    c\n";
        assert_eq!(failures(output, None), BTreeSet::from(["c".to_owned()]));
        assert_eq!(results(output).count(), 3);
    }

    fn binary_of(name: &str) -> Binary {
        Binary::of(TestBinary::named(name))
    }

    #[test]
    fn a_slow_binary_has_a_tenth_of_the_rounds() {
        let binary = |runs, millis| Binary {
            runs,
            taken: Duration::from_secs(60),
            quickest: Duration::from_millis(millis),
            ..binary_of("shop/orders")
        };
        assert_eq!(binary(0, u64::MAX).rounds(200), 200);
        assert_eq!(binary(10, 999).rounds(200), 200);
        assert_eq!(binary(10, 1_000).rounds(200), 20);
        assert_eq!(binary(1, 60_000).rounds(3), 1);
    }

    #[test]
    fn the_report_names_what_failed_and_what_there_was_no_time_for() {
        let mut failed = Binary { runs: 3, ..binary_of("shop/orders") };
        failed.failures.insert("one".to_owned(), vec!["target/flakes/one.txt".into()]);
        let told = report(&[failed, binary_of("shop/late")]);
        assert!(
            told.contains("      3         1  shop/orders (0 tests") && told.contains("    one\n"),
            "{told}"
        );
        assert!(told.ends_with("== there was no time for shop/late\n"), "{told}");
        assert!(report(&[binary_of("shop/late")]).ends_with("== nothing failed\n"));
    }
}
