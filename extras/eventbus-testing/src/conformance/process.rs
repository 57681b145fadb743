//! Other processes: a case begins the test binary once more, and may kill it in the middle of anything.

use super::Fixture;
use super::case::{Case, number};
use super::seen::Seen;
use eventbus_core::{Backoff, Bus, Delivery, Outcome};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, process, thread};
use tokio::runtime::Builder;

/// What another process is to do.
const ORDERS: &str = "EVENTBUS_CONFORMANCE_ORDERS";
/// What begins a line that is for the case, among those of the test harness.
const MARK: &str = "@eventbus ";

/// What another process does: it handles the events of a group, and notes each step, until it is killed or the case ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    place: String,
    topic: String,
    group: String,
    /// Its handler never returns from events whose number is as high.
    pub(super) hangs_from: u64,
    /// Its handler fails for this one: first it is to be tried again at once, then after this time.
    pub(super) fails: Option<(u64, Duration)>,
    /// Its handler ends the process with this one.
    pub(super) aborts: Option<u64>,
    /// How many attempts may follow the first.
    pub(super) retries: u32,
    pub(super) competing: bool,
    /// How many deliveries it holds at most.
    pub(super) holds: usize,
}

impl Orders {
    /// To handle each event of a group, in order by key.
    pub(super) fn new(case: &Case, topic: &impl AsRef<str>, group: &str) -> Self {
        Self {
            place: case.place().to_owned(),
            topic: topic.as_ref().to_owned(),
            group: case.group(group),
            hangs_from: u64::MAX,
            fails: None,
            aborts: None,
            retries: 4,
            competing: false,
            holds: 64,
        }
    }
}

/// A step of another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// Its subscription is open, and its bus runs.
    Ready,
    /// A handler has begun with the event of this number, in this attempt.
    Begun(u64, u32),
    /// A handler has succeeded.
    Handled(u64),
    /// A handler has failed.
    Failed(u64, u32),
    /// So much memory the process has, in bytes, where the system tells.
    Memory(u64),
}

/// Another process, which is killed when this is dropped.
pub(super) struct Process {
    child: Child,
    pub(super) steps: Seen<Step>,
}

impl Process {
    /// Begins a process, and waits until its subscription is open. One that is to end by itself may have ended by then.
    pub(super) async fn begin(case: &Case, orders: &Orders) -> Self {
        // Tests are named without the crate.
        let module = case.module.split_once("::").map_or(String::new(), |(_, module)| format!("{module}::"));
        let mut child = Command::new(env::current_exe().expect("the test binary has a path"))
            .args([&format!("{module}another_process"), "--exact", "--ignored", "--nocapture"])
            .env(ORDERS, serde_json::to_string(orders).expect("they have a form in JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary can be run again");
        let steps = case.seen();
        let (noted, lines) = (steps.clone(), BufReader::new(child.stdout.take().expect("it is a pipe")));
        thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some((_, step)) = line.split_once(MARK) {
                    noted.push(serde_json::from_str(step).expect("it is a step"));
                }
            }
        });
        let mut process = Self { child, steps };
        let may_end = orders.aborts.is_some();
        case.until("the other process is ready", async || {
            process.steps.all().contains(&Step::Ready) || may_end && process.has_ended()
        })
        .await;
        process
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_some()
    }

    /// Ends it in the middle of whatever it does.
    pub(super) fn kill(&mut self) {
        // One that has ended by itself cannot be killed, and what it lacks is seen by the case.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// The numbers of the events that it has handled.
    pub(super) fn handled(&self) -> Vec<u64> {
        let handled = |step| if let Step::Handled(number) = step { Some(number) } else { None };
        self.steps.all().into_iter().filter_map(handled).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Does what a case has ordered, where one has.
#[doc(hidden)]
pub fn another_process<F: Fixture>() {
    let Ok(orders) = env::var(ORDERS) else { return };
    let orders: Orders = serde_json::from_str(&orders).expect("they are from a case");
    // It ends with the process that wants it.
    thread::spawn(|| {
        drop(stdin().read_to_end(&mut Vec::new()));
        process::exit(0);
    });
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("the system gives a process its threads").block_on(handle::<F>(orders));
}

async fn handle<F: Fixture>(orders: Orders) {
    let broker = F::open(&orders.place).await;
    let settings = Bus::builder().without_subscriptions().in_flight(orders.holds).held_back(orders.holds);
    let bus = settings.broker(broker).await.expect("the bus connects");
    let Orders { hangs_from, fails, aborts, .. } = orders;
    let handler = move |delivery: Delivery| async move {
        let (number, attempt) = (number(&delivery), delivery.attempt());
        note(&Step::Begun(number, attempt));
        if aborts == Some(number) {
            process::abort();
        }
        if number >= hangs_from {
            std::future::pending::<()>().await;
        }
        if let Some((_, delay)) = fails.filter(|(fails, _)| *fails == number) {
            note(&Step::Failed(number, attempt));
            return Outcome::RetryAfter(if attempt == 1 { Duration::ZERO } else { delay });
        }
        note(&Step::Handled(number));
        Outcome::Ack
    };
    bus.on_topic(&orders.topic, handler)
        .group(&orders.group)
        .competing(orders.competing)
        .concurrency(4)
        .retries(orders.retries)
        .backoff(Backoff::new(Duration::from_millis(1), Duration::from_millis(1)))
        .await
        .expect("the group is free");
    bus.start_quietly().expect("it has a subscription");
    note(&Step::Ready);
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Some(bytes) = memory() {
            note(&Step::Memory(bytes));
        }
    }
}

fn note(step: &Step) {
    let step = serde_json::to_string(step).expect("a step has a form in JSON");
    // In one piece, and past the harness, which might keep it.
    let mut out = stdout().lock();
    drop(out.write_all(format!("\n{MARK}{step}\n").as_bytes()).and_then(|()| out.flush()));
}

/// How much memory this process has, as Linux tells it.
fn memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1_024)
}
