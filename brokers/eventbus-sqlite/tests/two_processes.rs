//! Two processes on one log, each with publishers and ten groups: both end by themselves, are killed, or are stopped for
//! longer than their lease and go on, at random instants; a third one handles what is left.
//!
//! ```text
//! cargo test -p eventbus-sqlite --test two_processes
//! EVENTBUS_STRESS_SECONDS=1800 EVENTBUS_STRESS_SEED=7 cargo test -p eventbus-sqlite --test two_processes
//! ```
//!
//! The processes are this binary again, and write down what they do as those of the test `kill`.

#[allow(dead_code, reason = "the test `kill` uses the rest")]
#[path = "kill/notes.rs"]
mod notes;

use eventbus::{Backoff, Bus, Delivery, Event, Outcome};
use eventbus_sqlite::{Durability, SqliteBroker};
use notes::{Notes, Number, Pen, What};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const GROUPS: u64 = 10;
const CUSTOMERS: u64 = 16;
const ORDERS: u64 = 12;
/// So short only where a process is stopped: a busy machine takes longer now and then to give one its turn.
const SHORT_LEASE: Duration = Duration::from_millis(400);
/// Whoever loses this one has stood still for as long: nobody waits for its end where processes end.
const LEASE: Duration = Duration::from_secs(600);
/// How long anything may take that takes less than a second on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where it is noted that a process could not save what it had settled last, and said so.
const UNSAVED: &str = "unsaved";
/// What handlers panic with here.
const PANIC: &str = "a handler panics on purpose";

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = customer)]
struct OrderPlaced {
    customer: u64,
    number: u64,
}

fn main() {
    if let Some(process) = Process::asked_for() {
        return process.run();
    }
    if env::args().any(|argument| argument == "--list") {
        return;
    }
    let variable = |name| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = variable("EVENTBUS_STRESS_SECONDS").unwrap_or(15);
    let first = variable("EVENTBUS_STRESS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    println!("from seed {first} (EVENTBUS_STRESS_SEED, EVENTBUS_STRESS_SECONDS)");
    let began = Instant::now();
    let mut seed = first;
    // Each way to end has its turn.
    while seed < first + 3 || began.elapsed() < Duration::from_secs(seconds) {
        round(seed);
        seed += 1;
    }
    println!("test what_two_processes_acknowledge_is_handled_in_order_however_they_end ... ok");
}

/// How the two processes end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    ByThemselves,
    Killed,
    Stopped,
}

fn round(seed: u64) {
    let end = [End::ByThemselves, End::Killed, End::Stopped][(seed % 3) as usize];
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pause = |milliseconds: std::ops::Range<u64>| Duration::from_millis(random.u64(milliseconds));
    let folder = tempfile::tempdir().unwrap();
    let process = |name: &str, lives: Duration| Process {
        folder: folder.path().to_owned(),
        name: name.to_owned(),
        seed,
        lives,
        lease: if end == End::Stopped { SHORT_LEASE } else { LEASE },
    };
    let long = PATIENCE * 10;
    let lives = pause(50..450);
    let mut one = process("one", if end == End::ByThemselves { lives } else { long }).start();
    thread::sleep(pause(0..100));
    let mut other = process("other", if end == End::Killed { long } else { lives + pause(0..1_500) }).start();
    thread::sleep(lives);
    match end {
        End::ByThemselves => {}
        End::Killed => {
            one.kill().unwrap();
            thread::sleep(pause(0..600));
            other.kill().unwrap();
        }
        End::Stopped => {
            for _ in 0..2 {
                signal(&one, Signal::STOP);
                thread::sleep(pause(200..900));
                signal(&one, Signal::CONT);
                thread::sleep(pause(0..300));
            }
            one.kill().unwrap();
        }
    }
    let (one, other) = (ended(&mut one, seed), ended(&mut other, seed));
    assert!(end != End::ByThemselves || one.success(), "seed {seed}: the first process failed: {one}");
    assert!(end == End::Killed || other.success(), "seed {seed}: the other process failed: {other}");
    let last = ended(&mut process("last", Duration::ZERO).start(), seed);
    assert!(last.success(), "seed {seed}, {end:?}: the process that handles the rest failed: {last}");
    check(&Notes::in_folder(folder.path()), end, seed);
}

/// Waits for a process to end.
fn ended(child: &mut Child, seed: u64) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > 2 * PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("seed {seed}: a process hangs");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn check(notes: &Notes, end: End, seed: u64) {
    let (acknowledged, handled) = (notes.numbers("acknowledged"), notes.handled());
    let all_saved = end == End::ByThemselves && notes.numbers(UNSAVED).is_empty();
    for group in 0..GROUPS {
        let given_up = notes.numbers(&format!("given-up-{group}"));
        let group = group.to_string();
        let (mut done, mut done_by) = (BTreeSet::new(), BTreeSet::new());
        let mut latest: BTreeMap<u64, u64> = BTreeMap::new();
        for note in handled.iter().filter(|note| note.group == group) {
            let Number { key, number } = note.event;
            match note.what {
                What::Begun => {
                    let before = latest.get(&key).copied();
                    // Whoever goes on for another may repeat what was not saved, and skips nothing.
                    let next = before.map_or(0, |before| before + 1);
                    let repeats = !all_saved && number < next;
                    assert!(
                        repeats || number == next || Some(number) == before,
                        "seed {seed}, {end:?}, group {group}: {note:?} begins after {before:?}"
                    );
                    latest.insert(key, before.map_or(number, |before| before.max(number)));
                }
                What::Done => {
                    // Whoever is stopped loses its lease, and with it what it had not saved; it may get the group back.
                    let again = !done_by.insert((note.run.clone(), note.event));
                    assert!(
                        !again || end == End::Stopped,
                        "seed {seed}, {end:?}: twice in one process: {note:?}"
                    );
                    let again = !done.insert(note.event);
                    assert!(
                        !again || !all_saved,
                        "seed {seed}: twice, though both ended by themselves: {note:?}"
                    );
                }
                What::Failed => {}
            }
        }
        for event in &acknowledged {
            let handled = done.contains(event) || given_up.contains(event);
            assert!(handled, "seed {seed}, {end:?}, group {group}: lost: {event:?}");
        }
    }
}

/// What a process is started for.
struct Process {
    folder: PathBuf,
    name: String,
    seed: u64,
    /// How long it publishes and handles. Nothing: it handles what is left.
    lives: Duration,
    lease: Duration,
}

impl Process {
    fn start(&self) -> Child {
        let mut command = Command::new(env::current_exe().expect("this binary"));
        command
            .env("EVENTBUS_TWO_FOLDER", &self.folder)
            .env("EVENTBUS_TWO_NAME", &self.name)
            .env("EVENTBUS_TWO_SEED", self.seed.to_string())
            .env("EVENTBUS_TWO_LIVES", self.lives.as_millis().to_string())
            .env("EVENTBUS_TWO_LEASE", self.lease.as_millis().to_string())
            .spawn()
            .expect("the process starts")
    }

    /// What this process was started for.
    fn asked_for() -> Option<Self> {
        let folder = env::var_os("EVENTBUS_TWO_FOLDER")?.into();
        let variable = |name| env::var(name).expect("the parent sets it");
        let number = |name| variable(name).parse().expect("a number");
        Some(Self {
            folder,
            name: variable("EVENTBUS_TWO_NAME"),
            seed: number("EVENTBUS_TWO_SEED"),
            lives: Duration::from_millis(number("EVENTBUS_TWO_LIVES")),
            lease: Duration::from_millis(number("EVENTBUS_TWO_LEASE")),
        })
    }

    #[tokio::main(worker_threads = 2)]
    async fn run(self) {
        quiet_panics();
        let notes = Notes::in_folder(&self.folder);
        let pen = Arc::new(notes.pen("handled"));
        let bus = open(&notes.log(), self.lease).await;
        for group in 0..GROUPS {
            let (name, seed, pen) = (self.name.clone(), self.seed, Arc::clone(&pen));
            bus.on_topic("order.placed", move |delivery: Delivery| {
                let (name, pen) = (name.clone(), Arc::clone(&pen));
                async move { handle(&name, seed, group, &delivery, &pen).await }
            })
            .group(group.to_string())
            .concurrency(1 + group as usize % 5)
            .await
            .expect("the group is free");
        }
        bus.start().expect("the bus starts");
        if self.lives.is_zero() {
            tokio::time::timeout(PATIENCE, bus.settled())
                .await
                .expect("it settles in time")
                .expect("it settles");
            for (_, letter) in bus.dead_letters().expect("a store").list().await.expect("dead letters") {
                let order = letter.envelope.event::<OrderPlaced>().expect("an order");
                notes
                    .pen(&format!("given-up-{}", letter.group))
                    .note(&format!("{} {}", order.customer, order.number));
            }
        } else {
            let first = if self.name == "one" { 0 } else { CUSTOMERS };
            for customer in first..first + CUSTOMERS {
                tokio::spawn(publish(bus.clone(), notes.pen("acknowledged"), customer, self.seed));
            }
            tokio::time::sleep(self.lives).await;
        }
        if let Err(error) = bus.shutdown().await {
            // On a busy machine the other one may be kept from going on in the middle of a transaction.
            assert!(
                error.to_string().contains("did not let go of it in time"),
                "the bus does not end: {error}"
            );
            notes.pen(UNSAVED).note("0 0");
        }
    }
}

async fn open(log: &Path, lease: Duration) -> Bus {
    let until = Instant::now() + PATIENCE;
    let broker = loop {
        match SqliteBroker::builder(log).durability(Durability::Off).lease(lease).open().await {
            Ok(broker) => break broker,
            // The other one may be stopped in the middle of a transaction.
            Err(error)
                if error.to_string().contains("did not let go of it in time") && Instant::now() < until => {}
            Err(error) => panic!("the log does not open: {error}"),
        }
    };
    let builder = Bus::builder()
        .without_subscriptions()
        .drain(PATIENCE / 2)
        .retries(1_000)
        .backoff(Backoff::new(Duration::from_micros(500), Duration::from_millis(2)))
        .in_flight(64);
    builder.broker(broker).await.expect("the bus connects")
}

async fn publish(bus: Bus, pen: Pen, customer: u64, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed ^ customer);
    for number in 0..ORDERS {
        // Beside a shutdown it is refused.
        if bus.publish(OrderPlaced { customer, number }).await.is_err() {
            return;
        }
        pen.note(&format!("{customer} {number}"));
        tokio::time::sleep(Duration::from_millis(random.u64(..20))).await;
    }
}

async fn handle(name: &str, seed: u64, group: u64, delivery: &Delivery, pen: &Pen) -> Outcome {
    let order = delivery.event::<OrderPlaced>().expect("an order");
    let OrderPlaced { customer, number } = *order;
    let attempt = delivery.attempt();
    let note = |what| pen.note(&format!("{name} {what} {group} {customer} {number} {attempt}"));
    note("begun");
    let place = group << 32 | customer << 16 | number << 8;
    let mut random = fastrand::Rng::with_seed(seed ^ place ^ u64::from(attempt) << 48);
    match random.u8(..) {
        0..8 => tokio::time::sleep(Duration::from_micros(500)).await,
        8..40 => tokio::task::yield_now().await,
        _ => {}
    }
    match random.u8(..) {
        0..8 => Outcome::Retry("again".into()),
        8..10 => std::panic::panic_any(PANIC),
        10..12 => Outcome::Reject("no".into()),
        _ => {
            note("done");
            Outcome::Ack
        }
    }
}

/// Panics of handlers are part of a round, and not worth a line each.
fn quiet_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some(PANIC) {
            before(panic);
        }
    }));
}
