//! What survives a restart and a kill, and what a kill may repeat.
//!
//! Processes that are killed are this binary again, which then runs nothing but `a_process_of_its_own`.

mod support;

use eventbus::{Batch, Bus, Delivery, Outcome, State, subscribe};
use jiff::Timestamp;
use rusqlite::Connection;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::{Log, PATIENCE, Ping, pings, publish_pings, settled, until};

/// A process that works on a log until it is killed.
struct Process(Child);

impl Process {
    /// Starts what `works` has under that name.
    fn start(work: &str, log: &Log) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "a_process_of_its_own", "--nocapture"]);
        command.env("EVENTBUS_RESTART", work).env("EVENTBUS_RESTART_LOG", log.path());
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the others start it as a process of its own"]
async fn a_process_of_its_own() {
    let log = PathBuf::from(std::env::var_os("EVENTBUS_RESTART_LOG").expect("the others say where"));
    let broker = eventbus_sqlite::SqliteBroker::open(&log).await.unwrap();
    let builder = Bus::builder().state(Notes::beside(&log));
    match std::env::var("EVENTBUS_RESTART").unwrap().as_str() {
        "fail once" => {
            let bus = builder.without_subscriptions().broker(broker).await.unwrap();
            let handler = |_: Delivery| async { Outcome::RetryAfter(DELAY) };
            bus.on_topic("ping.sent", handler).group("failing").await.unwrap();
            bus.start().unwrap();
            publish_pings(&bus, 1..2).await;
            std::future::pending().await
        }
        "never finish one" => {
            let bus = builder.without_subscriptions().broker(broker).await.unwrap();
            let handler = |ping: Arc<Ping>| async move {
                if ping.number == 3 {
                    std::future::pending().await
                }
            };
            bus.on(handler).group("pings").concurrency(4).await.unwrap();
            bus.start().unwrap();
            publish_pings(&bus, 1..21).await;
            std::future::pending().await
        }
        group @ ("halved" | "stuck") => {
            let bus = builder.only([group]).broker(broker).await.unwrap();
            bus.start().unwrap();
            publish_pings(&bus, 1..9).await;
            std::future::pending().await
        }
        "publish again" => {
            let bus = builder.without_subscriptions().broker(broker).await.unwrap();
            note_pings(&bus, Notes::beside(&log)).await;
            bus.start().unwrap();
            publish_again(&bus).await;
            std::future::pending().await
        }
        other => panic!("there is no work `{other}`"),
    }
}

/// Numbers that handlers note in a file, each by one `write`: a killed process keeps what it wrote.
#[derive(Clone)]
struct Notes(Arc<File>, PathBuf);

impl Notes {
    fn beside(log: &Path) -> Self {
        let path = log.with_extension("notes");
        Self(Arc::new(File::options().create(true).append(true).open(&path).unwrap()), path)
    }

    fn push(&self, number: u64) {
        (&*self.0).write_all(format!("{number}\n").as_bytes()).unwrap();
    }

    fn all(&self) -> Vec<u64> {
        let text = fs::read_to_string(&self.1).unwrap();
        text[..text.rfind('\n').map_or(0, |end| end + 1)].lines().map(|line| line.parse().unwrap()).collect()
    }
}

async fn note_pings(bus: &Bus, notes: Notes) {
    let handler = move |ping: Arc<Ping>| {
        let notes = notes.clone();
        async move { notes.push(ping.number) }
    };
    bus.on(handler).group("failing").await.unwrap();
}

/// What one row of the log says, where there is one.
fn ask<T: rusqlite::types::FromSql>(log: &Log, sql: &str) -> Option<T> {
    let connection = Connection::open(log.path()).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).ok()
}

const DELAY: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn after_a_kill_attempts_go_on_counting_and_come_when_they_are_due() {
    let log = Log::new();
    let process = Process::start("fail once", &log);
    until("the first attempt has failed", async || {
        ask::<i64>(&log, "select attempt from delivery where due is not null") == Some(2)
    })
    .await;
    process.kill();
    let at = |column| ask::<i64>(&log, &format!("select {column} from delivery")).unwrap();
    let (due, first_failed) = (at("due"), at("first_failed"));

    let bus = log.bus().await;
    let seen = support::Seen::new();
    let attempts = seen.clone();
    bus.on_topic("ping.sent", move |delivery: Delivery| {
        let attempts = attempts.clone();
        async move {
            attempts.push((delivery.attempt(), Timestamp::now()));
            Err::<(), _>("again")
        }
    })
    .group("failing")
    .retries(1)
    .await
    .unwrap();
    bus.start().unwrap();
    settled(&bus).await;
    let [(attempt, handled)] = seen.all()[..] else { panic!("{:?}", seen.all()) };
    assert_eq!(attempt, 2);
    let late = i64::try_from(handled.as_nanosecond()).unwrap() - due;
    assert!((0..1_000_000_000).contains(&late), "handled {late} ns after it was due");
    bus.shutdown().await.unwrap();

    let bus = log.bus().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let letter = &letters[0].1;
    assert_eq!((letters.len(), letter.attempts), (1, 2), "it is there after another restart");
    assert_eq!(
        letter.first_failed_at.as_nanosecond(),
        i128::from(first_failed),
        "what it was at the first failure"
    );
    assert!(letter.last_failed_at >= handled);
}

#[tokio::test]
async fn an_event_that_never_finishes_holds_the_cursor_and_the_later_ones_are_not_repeated() {
    let log = Log::new();
    let process = Process::start("never finish one", &log);
    until("the others are saved", async || ask::<i64>(&log, "select reached from subscription") == Some(20))
        .await;
    process.kill();
    assert_eq!(
        ask::<i64>(&log, "select cursor from subscription"),
        Some(2),
        "a cursor never passes what is open"
    );
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.all(), [3]);
    assert_eq!(ask::<i64>(&log, "select cursor from subscription"), Some(20));
    assert_eq!(ask::<i64>(&log, "select count(*) from delivery"), Some(0));
}

/// Half of a batch is done, and the other half waits.
#[subscribe(group = "halved", batch = 8, linger = "200ms")]
async fn halved(pings: Batch<Ping>, notes: State<Notes>) -> Vec<Outcome> {
    let halve = |ping: &Ping| {
        notes.push(ping.number);
        if ping.number.is_multiple_of(2) {
            Outcome::RetryAfter(Duration::from_secs(60))
        } else {
            Outcome::Ack
        }
    };
    pings.iter().map(|(ping, _)| halve(ping)).collect()
}

/// Never comes to its end.
#[subscribe(group = "stuck", batch = 8, linger = "200ms")]
async fn stuck(pings: Batch<Ping>, notes: State<Notes>) {
    pings.iter().for_each(|(ping, _)| notes.push(ping.number));
    std::future::pending().await
}

#[tokio::test]
async fn of_a_batch_that_was_cut_in_half_only_what_was_not_done_comes_again() {
    let log = Log::new();
    let process = Process::start("halved", &log);
    until("the batch is settled", async || {
        ask::<i64>(&log, "select count(*) from delivery where due is not null") == Some(4)
            && ask::<i64>(&log, "select reached from subscription") == Some(8)
    })
    .await;
    process.kill();
    // It is due in a minute; whoever operates the log does not wait for that.
    Connection::open(log.path()).unwrap().execute("update delivery set due = 1", []).unwrap();
    let bus = log.bus().await;
    let seen = pings(&bus, "halved").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.sorted(), [2, 4, 6, 8]);
}

#[tokio::test]
async fn a_batch_whose_handler_was_killed_comes_again_as_a_whole() {
    let log = Log::new();
    let notes = Notes::beside(&log.path());
    let process = Process::start("stuck", &log);
    until("the handler has begun", async || notes.all().len() == 8).await;
    process.kill();
    let bus = log.bus().await;
    let seen = pings(&bus, "stuck").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.sorted(), (1..9).collect::<Vec<_>>());
}

/// A log with so many dead letters of the group `failing`.
async fn with_dead_letters(count: u64) -> Log {
    let log = Log::new();
    let bus = log.bus().await;
    bus.on(|_: Arc<Ping>| async { Outcome::Reject("not now".into()) }).group("failing").await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..count).await;
    settled(&bus).await;
    bus.shutdown().await.unwrap();
    assert_eq!(ask(&log, "select count(*) from dead_letter"), Some(count));
    log
}

/// Publishes every dead letter again, many at once.
async fn publish_again(bus: &Bus) {
    let dead_letters = bus.dead_letters().unwrap();
    for (id, _) in dead_letters.list().await.unwrap() {
        // Not awaited one by one: the log takes many into one transaction.
        tokio::spawn(dead_letters.republish(&id, None));
    }
    until("all are published again", async || dead_letters.list().await.unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_behind_an_unfinished_delivery_is_not_delivered_again_after_a_crash() {
    let log = Log::new();
    let broker = log.broker_with(|settings| settings.lease(Duration::from_millis(500))).await;
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let handler = |ping: Arc<Ping>| async move {
        if ping.number == 1 {
            std::future::pending().await
        }
        Outcome::Reject("no".into())
    };
    bus.on(handler).group("pings").concurrency(4).await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 1..4).await;
    let dead_letters = async |bus: &Bus| bus.dead_letters().unwrap().list().await.unwrap().len();
    until("two are dead letters", async || dead_letters(&bus).await == 2).await;
    // What is in the files at this moment is what a crash leaves.
    let crashed = Log::new();
    for end in ["", "-wal"] {
        let file = |log: &Log| format!("{}{end}", log.path().display());
        fs::copy(file(&log), file(&crashed)).unwrap();
    }
    let again = crashed.bus().await;
    let seen = pings(&again, "pings").await;
    again.start().unwrap();
    settled(&again).await;
    assert_eq!(seen.all(), [1]);
    assert_eq!(dead_letters(&again).await, 2);
}

#[tokio::test]
async fn a_dead_letter_that_is_published_again_while_nobody_listens_is_handled_after_the_restart() {
    let log = with_dead_letters(1).await;
    let bus = log.bus().await;
    publish_again(&bus).await;
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    let seen = pings(&bus, "failing").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.all(), [0]);
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    let seen = pings(&bus, "failing").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.len(), 0, "and once only");
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_dead_letters_go_again_through_a_kill_and_none_is_lost() {
    const COUNT: u64 = 10_000;
    let log = with_dead_letters(COUNT).await;
    let notes = Notes::beside(&log.path());
    let process = Process::start("publish again", &log);
    until("some thousands are handled", async || notes.all().len() > 2_000).await;
    process.kill();
    let before = notes.all().len();
    let bus = log.bus().await;
    note_pings(&bus, notes.clone()).await;
    bus.start().unwrap();
    publish_again(&bus).await;
    settled(&bus).await;
    let mut handled = notes.all();
    let all = handled.len() as u64;
    handled.sort_unstable();
    handled.dedup();
    assert!(handled.iter().copied().eq(0..COUNT), "{} of {COUNT} are handled", handled.len());
    // What was handled and not saved when the process was killed.
    assert!(all - COUNT <= 1_024, "{} are handled twice", all - COUNT);
    println!("killed after {before} of {COUNT}; {} handled twice", all - COUNT);
}

#[tokio::test]
async fn events_of_others_neither_hold_up_a_group_nor_what_it_settles() {
    let log = Log::new();
    let bus = log.bus().await;
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    bus.publish_to("noise.made", &()).await.unwrap();
    // The group is moved on behind the noise, a quarter of a second later.
    until("the group moves on", async || {
        bus.groups().unwrap().list().await.unwrap()[0].cursor.is_some_and(|cursor| cursor.get() == 1)
    })
    .await;
    settled(&bus).await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    settled(&bus).await;
    assert_eq!(seen.all(), [1]);
}
