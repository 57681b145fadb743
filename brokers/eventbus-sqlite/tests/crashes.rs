//! Events whose handler ends the process: attempts are counted over restarts, and in the end they are dead letters.
//!
//! Processes that end are this binary again, which then runs nothing but `a_process_of_its_own`.

mod support;

use eventbus::broker::FailureKind;
use eventbus::{Batch, Bus, Delivery, Outcome, State, subscribe};
use eventbus_sqlite::SqliteBroker;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::{Log, Ping, Seen, pings, publish_pings, settled, until};

/// The event whose handler ends the process.
const CULPRIT: u64 = 13;
/// How many attempts may follow the first.
const RETRIES: u32 = 2;

/// What handlers have begun and done, in a file, each by one `write`.
#[derive(Clone)]
struct Notes(Arc<File>, PathBuf);

impl Notes {
    fn beside(log: &Path) -> Self {
        let path = log.with_extension("notes");
        Self(Arc::new(File::options().create(true).append(true).open(&path).unwrap()), path)
    }

    fn push(&self, note: &str) {
        (&*self.0).write_all(format!("{note}\n").as_bytes()).unwrap();
    }

    fn count(&self, note: &str) -> usize {
        fs::read_to_string(&self.1).unwrap().lines().filter(|line| *line == note).count()
    }

    fn all(&self, prefix: &str) -> Vec<String> {
        let notes = fs::read_to_string(&self.1).unwrap();
        notes.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    }
}

/// What a group does with an event. All but those that are named here end the process when they get the culprit.
async fn handle(notes: &Notes, group: &str, number: u64) {
    match group {
        // It takes longer than the culprit next to it.
        "slow" => tokio::time::sleep(Duration::from_millis(40)).await,
        // Nobody waits for it for so long.
        "slower" => tokio::time::sleep(Duration::from_secs(3)).await,
        "stuck" | "still" => std::future::pending().await,
        "quick" => {}
        _ if number == CULPRIT => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            std::process::abort();
        }
        _ => {}
    }
    notes.push(&format!("{group} {number} done"));
}

#[subscribe(group = "batched", batch = 8, linger = "10ms", retries = 2)]
async fn batched(pings: Batch<Ping>, notes: State<Notes>) {
    for (ping, _) in pings.iter() {
        handle(&notes, "batched", ping.number).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the others start it as a process of its own"]
async fn a_process_of_its_own() {
    let log = PathBuf::from(std::env::var_os("EVENTBUS_CRASHES_LOG").expect("the others say where"));
    let groups = std::env::var("EVENTBUS_CRASHES").expect("the others say which");
    let notes = Notes::beside(&log);
    let broker = SqliteBroker::open(&log).await.unwrap();
    let batched: &[&str] = if groups.contains("batched") { &["batched"] } else { &[] };
    let bus = Bus::builder().state(notes.clone()).only(batched.iter().copied()).broker(broker).await.unwrap();
    for group in groups.split(' ').filter(|group| *group != "batched") {
        let (notes, name) = (notes.clone(), group.to_owned());
        bus.on_topic("ping.sent", move |delivery: Delivery| {
            let (notes, name) = (notes.clone(), name.clone());
            async move {
                let number = delivery.event::<Ping>().unwrap().number;
                notes.push(&format!("{name} {number} attempt {}", delivery.attempt()));
                handle(&notes, &name, number).await;
            }
        })
        .group(group)
        .concurrency(4)
        .retries(RETRIES)
        .await
        .unwrap();
    }
    bus.start().unwrap();
    settled(&bus).await;
    bus.shutdown().await.unwrap();
}

/// Starts a process that handles these groups.
fn start(log: &Log, groups: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "a_process_of_its_own", "--nocapture"]);
    command.env("EVENTBUS_CRASHES", groups).env("EVENTBUS_CRASHES_LOG", log.path());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts the process until it ends in order; how often it did not.
fn crashes(log: &Log, groups: &str) -> usize {
    for crashes in 0..16 {
        if start(log, groups).wait().unwrap().success() {
            return crashes;
        }
    }
    panic!("each process is ended");
}

/// A log whose groups have yet to handle pings of these numbers.
async fn waiting(groups: &str, numbers: std::ops::Range<u64>) -> Log {
    let log = Log::new();
    let bus = log.bus().await;
    for group in groups.split(' ') {
        bus.on_topic("ping.sent", |_: Delivery| async {}).group(group).await.unwrap();
    }
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    publish_pings(&bus, numbers).await;
    bus.shutdown().await.unwrap();
    log
}

/// The group, the kind, the number and the attempts of each dead letter.
async fn letters(log: &Log) -> Vec<(String, FailureKind, u64, u32)> {
    let bus = log.bus().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let told = |letter: &eventbus::broker::DeadLetter| {
        assert!(letter.reason.contains("the process ended"), "{}", letter.reason);
        let number = letter.envelope.event::<Ping>().unwrap().number;
        (letter.group.clone(), letter.kind, number, letter.attempts)
    };
    letters.iter().map(|(_, letter)| told(letter)).collect()
}

#[tokio::test]
async fn an_event_that_ends_the_process_is_a_dead_letter_once_its_attempts_are_spent() {
    let log = waiting("culprit", CULPRIT..CULPRIT + 1).await;
    assert_eq!(crashes(&log, "culprit"), 5, "two until it is the suspect, one attempt, and two retries");
    assert_eq!(letters(&log).await, [("culprit".to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
    let attempts = Notes::beside(&log.path()).all(&format!("culprit {CULPRIT} attempt "));
    assert_eq!(attempts, ["1", "1", "1", "2", "3"], "the handler is told");
    assert_eq!(crashes(&log, "culprit"), 0);
}

#[tokio::test]
async fn an_event_that_ended_the_process_is_handled_anew_when_it_is_published_again() {
    let log = waiting("culprit", CULPRIT..CULPRIT + 1).await;
    crashes(&log, "culprit");
    let bus = log.bus().await;
    let seen = pings(&bus, "culprit").await;
    bus.start().unwrap();
    let letters = bus.dead_letters().unwrap();
    for (id, _) in letters.list().await.unwrap() {
        letters.republish(id, None).await.unwrap();
    }
    settled(&bus).await;
    assert_eq!(seen.all(), [CULPRIT]);
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_events_beside_it_and_after_it_are_handled() {
    for groups in ["culprit", "batched"] {
        let log = waiting(groups, 0..60).await;
        assert_eq!(crashes(&log, groups), 5);
        let letters = letters(&log).await;
        assert_eq!(letters, [(groups.to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
        let notes = Notes::beside(&log.path());
        for number in (0..60).filter(|number| *number != CULPRIT) {
            assert!(notes.count(&format!("{groups} {number} done")) >= 1, "{number} of {groups}");
        }
    }
}

#[tokio::test]
async fn the_events_of_other_groups_do_not_become_dead_letters() {
    for slow in ["slow", "slower"] {
        let log = waiting(&format!("culprit {slow}"), CULPRIT..CULPRIT + 1).await;
        crashes(&log, &format!("{slow} culprit"));
        assert_eq!(letters(&log).await, [("culprit".to_owned(), FailureKind::Crashed, CULPRIT, 3)]);
        assert_eq!(Notes::beside(&log.path()).count(&format!("{slow} {CULPRIT} done")), 1);
    }
}

/// Kills processes that have an event of each of `groups` in a handler.
async fn kill(log: &Log, groups: &str, times: usize) {
    let notes = Notes::beside(&log.path());
    let begun =
        || groups.split(' ').map(|group| notes.all(&format!("{group} 0 attempt ")).len()).sum::<usize>();
    for _ in 0..times {
        let before = begun();
        let mut process = start(log, groups);
        until("each group has begun", async || begun() == before + groups.split(' ').count()).await;
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_process_that_leaves_in_order_counts_nothing() {
    let log = waiting("stuck", 0..1).await;
    // Now it is a suspect, and charged with one end.
    kill(&log, "stuck", 3).await;
    for _ in 0..4 {
        let bus = log.bus_with(Bus::builder().drain(Duration::from_millis(10))).await;
        let seen = Seen::new();
        let begun = seen.clone();
        let handler = move |delivery: Delivery| {
            begun.push(delivery.attempt());
            std::future::pending::<Outcome>()
        };
        bus.on_topic("ping.sent", handler).group("stuck").retries(0).await.unwrap();
        bus.start().unwrap();
        until("it is handled", async || seen.len() == 1).await;
        assert_eq!(seen.all(), [2]);
        assert!(bus.shutdown().await.is_err(), "the handler is cut off");
    }
    assert_eq!(letters(&log).await, []);
}

#[tokio::test]
async fn a_suspect_that_does_not_end_holds_up_others_for_a_while_only() {
    let log = waiting("stuck still", 0..1).await;
    kill(&log, "stuck still", 2).await;
    let bus = log.bus().await;
    let stuck = Seen::new();
    let begun = stuck.clone();
    let handler = move |_: Delivery| {
        begun.push(());
        std::future::pending::<Outcome>()
    };
    bus.on_topic("ping.sent", handler).group("stuck").await.unwrap();
    bus.start().unwrap();
    until("the suspect is handled", async || stuck.len() == 1).await;
    let seen = pings(&bus, "still").await;
    publish_pings(&bus, 1..2).await;
    until("the other group goes on", async || seen.sorted() == [0, 1]).await;
}
