//! What a process does until it is killed.

use crate::notes::{Notes, Number, Pen};
use eventbus::{Backoff, Batch, Bus, Delivery, Event, State, subscribe};
use eventbus_sqlite::SqliteBroker;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const KEYS: u64 = 8;
/// How many attempts may follow the first.
pub(crate) const RETRIES: u32 = 2;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "number.drawn", key = key)]
struct Drawn {
    key: u64,
    number: u64,
}

impl Drawn {
    fn number(&self) -> Number {
        Number { key: self.key, number: self.number }
    }
}

/// What no group listens to; it keeps the offsets of the others apart.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "noise.made")]
struct Noise;

/// Whether every attempt at an event fails, in the group `failing`.
pub(crate) fn is_hopeless(event: Number) -> bool {
    event.number % 101 == 50
}

/// Whether the first attempts fail, and how many.
fn failures(event: Number) -> u32 {
    match event.number % 17 {
        _ if is_hopeless(event) => u32::MAX,
        3 => 1,
        11 => 2,
        _ => 0,
    }
}

/// What a process is to do.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) folder: PathBuf,
    /// The process's name in the notes.
    pub(crate) run: String,
    pub(crate) publish: bool,
    pub(crate) consume: bool,
    /// Only what is there is handled; then the process ends.
    pub(crate) drain: bool,
    pub(crate) lease: Duration,
}

impl Work {
    pub(crate) fn new(folder: &Path, run: impl Into<String>) -> Self {
        Self {
            folder: folder.to_owned(),
            run: run.into(),
            publish: false,
            consume: false,
            drain: false,
            lease: Duration::from_secs(10),
        }
    }

    /// Starts a process that does it.
    pub(crate) fn start(&self) -> Child {
        let mut command = Command::new(env::current_exe().expect("this binary"));
        command.env("EVENTBUS_KILL_FOLDER", &self.folder).env("EVENTBUS_KILL_RUN", &self.run);
        let does = [(self.publish, "publish"), (self.consume, "consume"), (self.drain, "drain")];
        let does: Vec<_> = does.iter().filter(|(does, _)| *does).map(|(_, name)| *name).collect();
        command.env("EVENTBUS_KILL_WORK", does.join(" "));
        command.env("EVENTBUS_KILL_LEASE", self.lease.as_millis().to_string());
        command.spawn().expect("the process starts")
    }

    /// What this process was started for.
    pub(crate) fn asked_for() -> Option<Self> {
        let does = env::var("EVENTBUS_KILL_WORK").ok()?;
        let does = |name| does.split(' ').any(|one| one == name);
        let variable = |name| env::var(name).expect("the parent sets it");
        Some(Self {
            folder: variable("EVENTBUS_KILL_FOLDER").into(),
            run: variable("EVENTBUS_KILL_RUN"),
            publish: does("publish"),
            consume: does("consume"),
            drain: does("drain"),
            lease: Duration::from_millis(variable("EVENTBUS_KILL_LEASE").parse().expect("milliseconds")),
        })
    }
}

/// Notes what handlers do.
struct Diary {
    run: String,
    pen: Pen,
    /// Which events this process has failed in a batch.
    failed: Mutex<BTreeSet<Number>>,
}

impl Diary {
    fn note(&self, what: &str, group: &str, event: Number, attempt: u32) {
        let Number { key, number } = event;
        self.pen.note(&format!("{} {what} {group} {key} {number} {attempt}", self.run));
    }

    /// Handles an event as `failures` wants it.
    fn handle(&self, group: &str, event: Number, attempt: u32, failures: u32) -> Result<(), String> {
        if attempt <= failures {
            self.note("failed", group, event, attempt);
            return Err(format!("attempt {attempt} was to fail"));
        }
        self.note("done", group, event, attempt);
        Ok(())
    }
}

/// A batch does not tell its attempts, so that each process fails some members once.
#[subscribe(group = "batched", batch = 16, linger = "2ms", retries = 1000, backoff = "5ms..20ms")]
async fn batched(drawn: Batch<Drawn>, diary: State<Diary>) -> Vec<Result<(), String>> {
    drawn
        .iter()
        .map(|(drawn, _)| {
            let event = drawn.number();
            let fails = event.number % 23 == 7 && diary.failed.lock().unwrap().insert(event);
            diary.handle("batched", event, 1, u32::from(fails))
        })
        .collect()
}

#[tokio::main(worker_threads = 2)]
pub(crate) async fn run(work: Work) {
    let notes = Notes::in_folder(&work.folder);
    let diary =
        Arc::new(Diary { run: work.run.clone(), pen: notes.pen("handled"), failed: Mutex::default() });
    let broker = SqliteBroker::builder(notes.log()).lease(work.lease).open().await.expect("the log opens");
    let builder = Bus::builder().shared_state(Arc::clone(&diary));
    let builder = if work.consume { builder.only(["batched"]) } else { builder.only([] as [&str; 0]) };
    let bus = builder.broker(broker).await.expect("the bus connects");
    if work.consume {
        consume(&bus, &diary).await;
        bus.start().expect("the bus starts");
    }
    notes.pen("ready").note(&work.run);
    if work.publish {
        publish(&bus, &notes).await;
    }
    if work.drain {
        bus.settled().await.expect("everything settles");
        bus.shutdown().await.expect("the bus ends");
    } else {
        std::future::pending::<()>().await;
    }
}

async fn consume(bus: &Bus, diary: &Arc<Diary>) {
    let steady = Arc::clone(diary);
    bus.on_topic("number.drawn", move |delivery: Delivery| {
        let diary = Arc::clone(&steady);
        async move {
            let event = delivery.event::<Drawn>().expect("it decodes").number();
            diary.note("begun", "steady", event, delivery.attempt());
            tokio::time::sleep(Duration::from_millis(1)).await;
            diary.note("done", "steady", event, delivery.attempt());
        }
    })
    .group("steady")
    .await
    .expect("the group is free");
    let failing = Arc::clone(diary);
    bus.on_topic("number.drawn", move |delivery: Delivery| {
        let diary = Arc::clone(&failing);
        async move {
            let event = delivery.event::<Drawn>().expect("it decodes").number();
            diary.handle("failing", event, delivery.attempt(), failures(event))
        }
    })
    .group("failing")
    .retries(RETRIES)
    .backoff(Backoff::parse("5ms..20ms"))
    .await
    .expect("the group is free");
}

/// Publishes the numbers of each key one after the other, without an end: some keys one by one, others several at
/// once.
async fn publish(bus: &Bus, notes: &Notes) {
    let attempted = notes.numbers("attempted");
    let publishers: Vec<_> = (1..=KEYS)
        .map(|key| {
            let last = attempted.range(..Number { key: key + 1, number: 0 }).next_back();
            let next = last.filter(|last| last.key == key).map_or(1, |last| last.number + 1);
            tokio::spawn(publish_key(bus.clone(), notes.clone(), key, next))
        })
        .collect();
    for publisher in publishers {
        publisher.await.expect("publishers do not end");
    }
}

async fn publish_key(bus: Bus, notes: Notes, key: u64, mut next: u64) {
    let (attempted, acknowledged) = (notes.pen("attempted"), notes.pen("acknowledged"));
    loop {
        let count = if key.is_multiple_of(4) { 5 } else { 1 };
        let numbers: Vec<_> = (next..next + count).map(|number| Drawn { key, number }).collect();
        numbers.iter().for_each(|drawn| attempted.note(&format!("{key} {}", drawn.number)));
        let answers = match &numbers[..] {
            [one] => vec![bus.publish(one).await],
            many => bus.publish_all(many).await,
        };
        for (drawn, answer) in numbers.iter().zip(answers) {
            answer.expect("the event is published");
            acknowledged.note(&format!("{key} {}", drawn.number));
        }
        next += count;
        if next.is_multiple_of(10) {
            bus.publish(&Noise).await.expect("the event is published");
        }
        // Consumers of a debug build keep up with this.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
