//! What start-up says of a group: how many events it skips, and who has it. Every test captures the log first: where one
//! thread already logs while another begins to listen, `tracing` may have decided that nobody does.

mod support;

use eventbus::{Bus, Start};
use rusqlite::Connection;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use support::{Log, Ping, Seen, pings, publish_pings, settled, until};

const CHILD: &str = "EVENTBUS_TEST_LOG";

/// The lines that this thread logs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    /// The lines so far that contain `words`.
    fn with(&self, words: &str) -> Vec<String> {
        let lines = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        lines.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a group on a pattern and ends again.
async fn begin(log: &Log, group: &str, pattern: &str, start: Start) {
    let bus = log.bus().await;
    bus.on_topic(pattern, async |_| ()).group(group).start(start).await.unwrap();
    bus.start().unwrap();
    bus.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_new_group_behind_events_says_once_how_many_it_skips_and_how_to_get_them() {
    let (lines, _guard) = Lines::capture();
    let log = Log::new();
    begin(&log, "quiet", "ping.sent", Start::Latest).await;
    assert_eq!(lines.with("skips"), [] as [&str; 0], "there is nothing to skip");
    let bus = log.bus().await;
    publish_pings(&bus, 0..3).await;
    bus.publish_to("noise.made", &1).await.unwrap();
    bus.shutdown().await.unwrap();
    begin(&log, "late", "ping.sent", Start::Latest).await;
    let said = lines.with("skips");
    assert_eq!(said.len(), 1, "{said:?}");
    for words in [
        "WARN",
        "`late`",
        "skips 3 earlier events on \"ping.sent\"",
        "bus.replay(\"late\")",
        "start = \"earliest\"",
    ] {
        assert!(said[0].contains(words), "{words}: {}", said[0]);
    }
    // It is known by now, has nothing to skip, or goes on where an earlier pattern was.
    begin(&log, "late", "ping.sent", Start::Latest).await;
    begin(&log, "quiet", "ping.sent", Start::Latest).await;
    begin(&log, "early", "ping.sent", Start::Earliest).await;
    begin(&log, "elsewhere", "order.placed", Start::Latest).await;
    begin(&log, "late", "ping.*", Start::Latest).await;
    assert_eq!(lines.with("skips").len(), 1, "{:?}", lines.with("skips"));
    begin(&log, "all", ">", Start::Latest).await;
    assert_eq!(lines.with("skips 4 earlier events on \">\"").len(), 1);
    // A group that is known, on a topic that it has not listened on.
    begin(&log, "late", "noise.made", Start::Latest).await;
    assert_eq!(
        lines.with("`late` begins with what is published from now on: it skips 1 earlier event on").len(),
        1
    );
}

#[tokio::test]
async fn a_long_log_is_not_counted_to_its_end() {
    let (lines, _guard) = Lines::capture();
    let log = Log::new();
    let bus = log.bus().await;
    publish_pings(&bus, 0..1).await;
    bus.shutdown().await.unwrap();
    let sql = "with recursive place(at) as (select 2 union all select at + 1 from place where at < 100001) \
               insert into event (offset, topic, id, source, version, time, nanosecond, stored, causation_depth, payload, \
               checksum) select at, topic, 'id ' || at, source, version, time, nanosecond, stored, causation_depth, payload, \
               checksum from event, place where offset = 1";
    assert_eq!(Connection::open(log.path()).unwrap().execute(sql, []), Ok(100_000));
    begin(&log, "late", "ping.*", Start::Latest).await;
    assert_eq!(lines.with("skips more than 100,000 earlier events").len(), 1);
}

#[tokio::test]
async fn a_second_process_says_that_it_stands_by_and_who_has_the_group() {
    let (lines, _guard) = Lines::capture();
    if let Ok(path) = std::env::var(CHILD) {
        let broker = eventbus_sqlite::SqliteBroker::open(path).await.unwrap();
        let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
        pings(&bus, "pings").await;
        bus.start().unwrap();
        println!("\nready");
        return std::future::pending().await;
    }
    let log = Log::new();
    let name = "a_second_process_says_that_it_stands_by_and_who_has_the_group";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, log.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(out.any(|line| line.unwrap() == "ready"));
    let bus = log.bus().await;
    let seen: Seen<u64> = pings(&bus, "pings").await;
    bus.start().unwrap();
    let said = lines.with("stands by");
    assert_eq!(said.len(), 1, "{said:?}");
    let who = format!("process {} handles the group `pings` on \"ping.sent\"", child.id());
    assert!(said[0].contains("INFO") && said[0].contains(&who), "{said:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    until("it takes over", async || seen.len() == 1).await;
}

#[tokio::test]
async fn two_buses_of_one_process_are_told_apart_from_two_processes() {
    let (lines, _guard) = Lines::capture();
    let log = Log::new();
    let first = log.bus().await;
    let seen = pings(&first, "pings").await;
    first.start().unwrap();
    let second = log.bus().await;
    pings(&second, "pings").await;
    second.start().unwrap();
    assert_eq!(lines.with("another bus of this process handles the group `pings`").len(), 1);
    publish_pings(&first, 0..2).await;
    settled(&first).await;
    assert_eq!(seen.len(), 2);
}
