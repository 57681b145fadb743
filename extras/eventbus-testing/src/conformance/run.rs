//! Runs a case, once or many times at once.

use super::Fixture;
use super::case::Case;
use super::cases;
use std::any::Any;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::runtime::Builder;

/// How often each case runs, all at once. Default: once.
const TIMES: &str = "EVENTBUS_CONFORMANCE_TIMES";
/// What chance decides, so that a run can be made again. Default: another one each time.
const SEED: &str = "EVENTBUS_CONFORMANCE_SEED";
/// A case waits several times, and no case so often.
const WAITS: u32 = 8;

/// Runs a case as often as the environment says.
///
/// # Panics
/// Where the promise is not kept in one of the runs; the message has the seed.
#[doc(hidden)]
pub fn run<F: Fixture>(case: &str, module: &'static str) {
    if let Err(failures) = outcome::<F>(case, module, variable(TIMES).unwrap_or(1), variable(SEED)) {
        panic!("{failures}");
    }
}

/// Runs a case so often at once.
///
/// # Errors
/// What has failed in which run.
#[doc(hidden)]
pub fn outcome<F: Fixture>(
    case: &str,
    module: &'static str,
    times: u64,
    seed: Option<u64>,
) -> Result<(), String> {
    let begin = cases::find(case);
    let seeds: Vec<_> = (0..times).map(|_| seed.unwrap_or_else(|| fastrand::u64(..))).collect();
    // A thread each, since a case stays on the thread that it began on; its handlers do not.
    let results: Vec<_> = thread::scope(|threads| {
        let runs: Vec<_> =
            seeds.iter().map(|seed| threads.spawn(|| once::<F>(begin, module, *seed))).collect();
        runs.into_iter().map(|run| run.join().unwrap_or_else(|panic| Err(text(&*panic)))).collect()
    });
    let failed: Vec<_> = seeds.iter().zip(&results).filter(|(_, result)| result.is_err()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let mut failures = format!("`{case}` does not hold in {} of {times} runs", failed.len());
    for (seed, why) in failed {
        let why = why.as_ref().err().map_or("", String::as_str);
        write!(failures, "\n{SEED}={seed}: {why}").expect("a text takes what is written");
    }
    Err(failures)
}

/// Runs a case in a fresh place, and leaves none of it.
fn once<F: Fixture>(begin: cases::Begin, module: &'static str, seed: u64) -> Result<(), String> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("the system gives a test its threads");
    let place = runtime.block_on(F::place());
    let case = runtime.block_on(Case::new::<F>(place.clone(), module, seed));
    let limit = F::PATIENCE.saturating_mul(WAITS);
    let running = async { tokio::time::timeout(limit, begin(Arc::clone(&case))).await };
    // Its panic is an answer, after which everything is ended as after any other.
    let result = match catch_unwind(AssertUnwindSafe(|| runtime.block_on(running))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(format!("it takes longer than {limit:?}")),
        Err(panic) => Err(text(&*panic)),
    };
    runtime.block_on(async {
        case.end().await;
        drop(case);
        F::clean_up(&place).await;
    });
    // Not what a handler that never ends would have it wait for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    match value.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is a number, not {value:?}"),
    }
}
