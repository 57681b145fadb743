//! Runs test binaries side by side, since those with a server wait for it more than they compute.

use crate::binaries::{ROOT, TestBinary};
use crate::failures;
use crate::test::WITH_SERVERS;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What each job takes first; where nothing of that is left, it takes what there is.
const JOBS: [Kind; 3] = [Kind::Embedded, Kind::WithServer, Kind::WithServer];
/// After how long a run counts as hung.
const LIMIT: Duration = Duration::from_secs(15 * 60);
/// Where the output of each run is kept.
const FOLDER: &str = "target/side-by-side";
/// So many of those that take longest are named at the end.
const SLOWEST: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Embedded,
    WithServer,
}

/// What is still to run.
#[derive(Debug, Default)]
struct Waiting {
    embedded: VecDeque<TestBinary>,
    /// Those of one package are apart from each other, so that jobs seldom load the same server.
    with_server: VecDeque<TestBinary>,
}

/// A run that has ended.
struct Run {
    name: String,
    took: Duration,
    /// What it told of its failure, if it failed.
    failed: Option<Vec<String>>,
}

/// Runs all of them, whatever fails, with these variables, prints what each has printed as it ends, and returns what
/// those told that failed.
pub(crate) fn run(binaries: Vec<TestBinary>, variables: &[(String, String)]) -> io::Result<Vec<String>> {
    fs::create_dir_all(Path::new(ROOT).join(FOLDER))?;
    let waiting = Mutex::new(Waiting::of(binaries));
    let runs = Mutex::new(Vec::new());
    let job = |first: Kind| {
        let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next(first);
        while let Some(binary) = next() {
            let (run, output) = run_one(&binary, variables)?;
            let mut runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
            // As the next one waits for this lock, outputs are not mixed.
            println!("\n== {} in {:.1} s\n{output}", run.name, run.took.as_secs_f64());
            runs.push(run);
        }
        io::Result::Ok(())
    };
    thread::scope(|scope| {
        let jobs: Vec<_> = JOBS.iter().map(|first| scope.spawn(|| job(*first))).collect();
        jobs.into_iter().try_for_each(|job| job.join().expect("a job does not panic"))
    })?;
    let mut runs = runs.into_inner().unwrap_or_else(PoisonError::into_inner);
    runs.sort_by_key(|run| std::cmp::Reverse(run.took));
    let slowest =
        runs.iter().take(SLOWEST).map(|run| format!("{} {:.0} s", run.name, run.took.as_secs_f64()));
    println!("== {} test binaries; the slowest: {}", runs.len(), slowest.collect::<Vec<_>>().join(", "));
    Ok(runs.into_iter().filter_map(|run| run.failed).flatten().collect())
}

fn run_one(binary: &TestBinary, variables: &[(String, String)]) -> io::Result<(Run, String)> {
    let path = Path::new(ROOT).join(FOLDER).join(format!("{}.txt", binary.file_name()));
    let began = Instant::now();
    let status = binary.run(File::create(&path)?, variables, LIMIT)?;
    let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let failed = (!status.is_some_and(|status| status.success())).then(|| told(binary, status, &output));
    Ok((Run { name: binary.name.clone(), took: began.elapsed(), failed }, output))
}

/// What a run tells that failed.
fn told(binary: &TestBinary, status: Option<ExitStatus>, output: &str) -> Vec<String> {
    let how = match status {
        Some(status) => status.to_string(),
        None => {
            let unfinished: Vec<_> = binary.unfinished(output).into_iter().collect();
            format!("hung for {} s: {}", LIMIT.as_secs(), unfinished.join(", "))
        }
    };
    let mut told = vec![format!("== {}: {how}", binary.name)];
    told.extend(failures::of_tests(output));
    told
}

impl Waiting {
    fn of(binaries: Vec<TestBinary>) -> Self {
        let (with_server, embedded): (Vec<_>, Vec<_>) =
            binaries.into_iter().partition(|binary| WITH_SERVERS.contains(&binary.package()));
        // The first of each package, then the second of each, and so on.
        let place = |at: usize| {
            let package = with_server[at].package();
            with_server[..at].iter().filter(|other| other.package() == package).count()
        };
        let mut order: Vec<_> = (0..with_server.len()).map(|at| (place(at), at)).collect();
        order.sort_unstable();
        let with_server = order.into_iter().map(|(_, at)| with_server[at].clone()).collect();
        Self { embedded: embedded.into(), with_server }
    }

    fn next(&mut self, first: Kind) -> Option<TestBinary> {
        let (mine, others) = match first {
            Kind::Embedded => (&mut self.embedded, &mut self.with_server),
            Kind::WithServer => (&mut self.with_server, &mut self.embedded),
        };
        mine.pop_front().or_else(|| others.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(names: &[&str]) -> Waiting {
        Waiting::of(names.iter().map(|name| TestBinary::named(name)).collect())
    }

    fn in_turn(mut waiting: Waiting, first: Kind) -> Vec<String> {
        std::iter::from_fn(|| waiting.next(first)).map(|binary| binary.name).collect()
    }

    #[test]
    fn a_job_takes_its_kind_first_and_helps_with_what_is_left() {
        let names = ["shop/a", "eventbus-nats/b", "shop/c"];
        assert_eq!(in_turn(waiting(&names), Kind::Embedded), ["shop/a", "shop/c", "eventbus-nats/b"]);
        assert_eq!(in_turn(waiting(&names), Kind::WithServer), ["eventbus-nats/b", "shop/a", "shop/c"]);
    }

    #[test]
    fn those_of_one_server_are_apart() {
        let names =
            ["eventbus-aws/a", "eventbus-aws/b", "eventbus-aws/c", "eventbus-nats/d", "eventbus-nats/e"];
        let apart =
            ["eventbus-aws/a", "eventbus-nats/d", "eventbus-aws/b", "eventbus-nats/e", "eventbus-aws/c"];
        assert_eq!(in_turn(waiting(&names), Kind::WithServer), apart);
    }

    #[test]
    fn what_failed_is_told_with_its_panic() {
        let binary = TestBinary::named("shop/a");
        let output = "test b ... FAILED\nfailures:\n---- b stdout ----\nthread 'b' panicked at b.rs:1:1:\n";
        let told = told(&binary, None, output);
        assert!(told[0].starts_with("== shop/a: hung for 900 s"), "{told:?}");
        assert_eq!(told[1..], ["---- b stdout ----", "thread 'b' panicked at b.rs:1:1:"]);
    }
}
