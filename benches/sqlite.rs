//! The embedded log beside the raw file that bounds it, in one run. Run it with `cargo bench --bench sqlite`, or one
//! part of it with `cargo bench --bench sqlite -- publish` (parts: publish, latency, subscriptions, consume, replay,
//! reopen, memory).
//!
//! The file is in `EVENTBUS_BENCH_DIR`, or else in the target folder: it must be on a real disk, not in memory.

use eventbus::sqlite::SqliteBroker;
use eventbus::{Bus, Event};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// An event whose JSON has about 256 bytes.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "bench.stored")]
struct Stored {
    number: u64,
    filler: String,
}

impl Stored {
    fn new(number: u64) -> Self {
        Self { number, filler: "x".repeat(220) }
    }
}

/// How much is measured: all of it, or so little that a test sees it work.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    events: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks once, to see that they work.
    let measured = arguments.iter().any(|argument| argument == "--bench");
    let scale =
        if measured { Scale { rounds: 5, events: 1_000_000 } } else { Scale { rounds: 1, events: 2_000 } };
    let parts: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let run = |part: &str| parts.is_empty() || parts.iter().any(|chosen| *chosen == part);
    if run("publish") {
        runtime.block_on(publish(scale));
    }
    if run("latency") {
        runtime.block_on(latency(scale));
    }
    if run("subscriptions") {
        runtime.block_on(subscriptions(measured));
    }
    if run("consume") {
        runtime.block_on(consume(scale));
    }
    if run("replay") {
        runtime.block_on(replay(scale));
    }
    if run("memory") {
        runtime.block_on(memory(scale));
    }
    if run("reopen") {
        runtime.block_on(reopen(scale));
    }
}

/// Durable publishing, beside appending to a file with the same syncs.
async fn publish(scale: Scale) {
    for (publishers, events) in [(256, scale.events / 10), (1, scale.events / 500)] {
        let (mut raw, mut logged) = (Vec::new(), Vec::new());
        for _ in 0..scale.rounds {
            raw.push(raw_publish(publishers, events).await);
            logged.push(bus_publish(publishers, events).await);
        }
        let (raw, logged) = (median(&mut raw), median(&mut logged));
        println!(
            "durable publish, {publishers} publishers: raw file {raw:>8.0}/s, log {logged:>8.0}/s, ratio {:.2}",
            logged / raw
        );
    }
}

async fn bus_publish(publishers: u64, events: u64) -> f64 {
    let folder = Folder::new();
    let bus = Bus::builder().broker(SqliteBroker::open(folder.file("log.db")).await.unwrap()).await.unwrap();
    let started = Instant::now();
    let tasks: Vec<_> = (0..publishers)
        .map(|publisher| {
            let bus = bus.clone();
            tokio::spawn(async move {
                for number in (publisher..events).step_by(publishers as usize) {
                    bus.publish(Stored::new(number)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let rate = events as f64 / started.elapsed().as_secs_f64();
    bus.shutdown().await.unwrap();
    rate
}

/// A file with one thread that appends what waits, syncs once, and answers.
struct RawFile {
    waiting: Mutex<Vec<(Vec<u8>, oneshot::Sender<()>)>>,
    bell: Condvar,
}

impl RawFile {
    fn start(mut file: File) -> Arc<Self> {
        let raw = Arc::new(Self { waiting: Mutex::default(), bell: Condvar::new() });
        let appending = Arc::clone(&raw);
        std::thread::spawn(move || {
            let mut buffer = Vec::new();
            loop {
                let mut waiting = appending.waiting.lock().unwrap();
                while waiting.is_empty() {
                    if Arc::strong_count(&appending) == 1 {
                        return;
                    }
                    waiting = appending.bell.wait_timeout(waiting, Duration::from_millis(100)).unwrap().0;
                }
                let taken = std::mem::take(&mut *waiting);
                drop(waiting);
                buffer.clear();
                taken.iter().for_each(|(bytes, _)| buffer.extend_from_slice(bytes));
                file.write_all(&buffer).unwrap();
                file.sync_data().unwrap();
                taken.into_iter().for_each(|(_, answer)| answer.send(()).expect("the benchmark waits"));
            }
        });
        raw
    }

    async fn append(&self, bytes: Vec<u8>) {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap().push((bytes, answer));
        self.bell.notify_one();
        answered.await.unwrap();
    }
}

async fn raw_publish(publishers: u64, events: u64) -> f64 {
    let folder = Folder::new();
    let file = OpenOptions::new().create(true).append(true).open(folder.file("raw")).unwrap();
    let raw = RawFile::start(file);
    let started = Instant::now();
    let tasks: Vec<_> = (0..publishers)
        .map(|publisher| {
            let raw = Arc::clone(&raw);
            tokio::spawn(async move {
                for number in (publisher..events).step_by(publishers as usize) {
                    raw.append(serde_json::to_vec(&Stored::new(number)).unwrap()).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    events as f64 / started.elapsed().as_secs_f64()
}

/// From a publish to its handler, at a low rate, beside one sync of a file.
async fn latency(scale: Scale) {
    let folder = Folder::new();
    let bus = Bus::builder().broker(SqliteBroker::open(folder.file("log.db")).await.unwrap()).await.unwrap();
    let (handled, mut handlings) = tokio::sync::mpsc::unbounded_channel();
    bus.on(move |_: Arc<Stored>| {
        let handled = handled.clone();
        async move { handled.send(Instant::now()).expect("the benchmark waits") }
    })
    .group("latency")
    .await
    .unwrap();
    bus.start().unwrap();
    let mut file = File::create(folder.file("raw")).unwrap();
    let (mut synced, mut delivered) = (Vec::new(), Vec::new());
    for number in 0..scale.events / 2_000 {
        let started = Instant::now();
        file.write_all(&[b'x'; 256]).unwrap();
        file.sync_data().unwrap();
        synced.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(3)).await;
        let started = Instant::now();
        bus.publish(Stored::new(number)).await.unwrap();
        let at = handlings.recv().await.unwrap();
        delivered.push((at - started).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let (synced, delivered) = (median(&mut synced), median(&mut delivered));
    println!(
        "publish → handler at a low rate, p50: one sync {synced:.3} ms, log {delivered:.3} ms, {:.3} ms more",
        delivered - synced
    );
    bus.shutdown().await.unwrap();
}

/// What a publish takes beside many subscriptions, and beside few.
async fn subscriptions(measured: bool) {
    let (few, many, rounds) = if measured { (10, 3_000, 100) } else { (2, 20, 3) };
    let (few_opened, few_took) = publish_beside(few, rounds).await;
    let (many_opened, many_took) = publish_beside(many, rounds).await;
    println!(
        "opening a subscription: {few_opened:.3} ms among {few}, {many_opened:.3} ms among {many}, ratio {:.2}",
        many_opened / few_opened
    );
    let kinds = ["to none of them", "to all of them", "to all, one after the other"];
    for ((kind, few_took), many_took) in kinds.into_iter().zip(few_took).zip(many_took) {
        println!(
            "a publish {kind}, p50: {few_took:.3} ms beside {few} subscriptions, {many_took:.3} ms beside {many}, \
             ratio {:.2}",
            many_took / few_took
        );
    }
}

/// How long it takes to open one of `count` subscriptions, and what a publish takes then, in milliseconds: on a topic
/// of none of them, on that of all of them with time to handle it, and without.
async fn publish_beside(count: u64, rounds: u64) -> (f64, [f64; 3]) {
    let folder = Folder::new();
    let bus = Bus::builder().broker(SqliteBroker::open(folder.file("log.db")).await.unwrap()).await.unwrap();
    let handled = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    for number in 0..count {
        let handled = Arc::clone(&handled);
        let handler = move |_: Arc<Stored>| {
            handled.fetch_add(1, Ordering::Relaxed);
            async {}
        };
        bus.on(handler).group(format!("group-{number}")).await.unwrap();
    }
    let opened = started.elapsed().as_secs_f64() * 1e3 / count as f64;
    bus.start().unwrap();
    let (mut to_none, mut to_all, mut in_a_row) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..rounds {
        let started = Instant::now();
        bus.publish_to("nobody.listens", &number).await.unwrap();
        to_none.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for number in 0..rounds {
        let started = Instant::now();
        bus.publish(Stored::new(number)).await.unwrap();
        to_all.push(started.elapsed().as_secs_f64() * 1e3);
        bus.settled().await.unwrap();
    }
    for number in 0..rounds {
        let started = Instant::now();
        bus.publish(Stored::new(number)).await.unwrap();
        in_a_row.push(started.elapsed().as_secs_f64() * 1e3);
    }
    bus.settled().await.unwrap();
    assert_eq!(handled.load(Ordering::Relaxed), count * rounds * 2);
    bus.shutdown().await.unwrap();
    (opened, [median(&mut to_none), median(&mut to_all), median(&mut in_a_row)])
}

/// Handling a backlog, acks included, beside reading the rows.
async fn consume(scale: Scale) {
    let folder = Folder::new();
    let path = folder.file("log.db");
    let count = scale.events / 2;
    fill(&path, count).await;
    let mut rates = Vec::new();
    let mut scans = Vec::new();
    for round in 0..scale.rounds {
        scans.push(scan(&path));
        let bus = Bus::builder().broker(SqliteBroker::open(&path).await.unwrap()).await.unwrap();
        let group = format!("consume-{round}");
        bus.on(|event: Arc<Stored>| async move { drop(event) }).group(&group).await.unwrap();
        bus.shutdown().await.unwrap();
        let broker = SqliteBroker::open(&path).await.unwrap();
        let bus = Bus::builder().broker(broker).await.unwrap();
        bus.groups().unwrap().seek(&group, None).await.unwrap();
        bus.on(|event: Arc<Stored>| async move { drop(event) }).group(&group).await.unwrap();
        let started = Instant::now();
        bus.start().unwrap();
        bus.settled().await.unwrap();
        rates.push(count as f64 / started.elapsed().as_secs_f64());
        bus.shutdown().await.unwrap();
    }
    let (rate, scan) = (median(&mut rates), median(&mut scans));
    println!(
        "consume + ack of a backlog: {rate:>8.0}/s; a scan of its rows {scan:>8.0}/s, ratio {:.2}",
        rate / scan
    );
}

/// A replay through a handler that does nothing, beside reading the rows.
async fn replay(scale: Scale) {
    let folder = Folder::new();
    let path = folder.file("log.db");
    let count = scale.events * 2;
    fill(&path, count).await;
    let bus = Bus::builder().broker(SqliteBroker::open(&path).await.unwrap()).await.unwrap();
    bus.on(|event: Arc<Stored>| async move { drop(event) }).group("replay").await.unwrap();
    let (mut rates, mut scans) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        scans.push(scan(&path));
        let report = bus.replay("replay").await.unwrap();
        assert_eq!(report.acked, count);
        rates.push(count as f64 / report.elapsed.as_secs_f64());
    }
    let (rate, scan) = (median(&mut rates), median(&mut scans));
    println!(
        "replay of {count} events: {rate:>8.0}/s; a scan of its rows {scan:>8.0}/s, ratio {:.2}",
        rate / scan
    );
    bus.shutdown().await.unwrap();
}

/// What a slow handler before a long backlog holds in memory.
async fn memory(scale: Scale) {
    let folder = Folder::new();
    let path = folder.file("log.db");
    let idle = {
        let bus = Bus::builder().broker(SqliteBroker::open(&path).await.unwrap()).await.unwrap();
        bus.on(|_: Arc<Stored>| async {}).group("slow").await.unwrap();
        bus.shutdown().await.unwrap();
        resident()
    };
    fill(&path, scale.events).await;
    let bus = Bus::builder().broker(SqliteBroker::open(&path).await.unwrap()).await.unwrap();
    bus.on(|_: Arc<Stored>| tokio::time::sleep(Duration::from_millis(1))).group("slow").await.unwrap();
    bus.start().unwrap();
    let mut most = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(resident());
    }
    let more = most.saturating_sub(idle) >> 20;
    println!(
        "a backlog of {} events and a slow handler: {more} MiB above idle ({} MiB)",
        scale.events,
        idle >> 20
    );
    bus.shutdown().await.unwrap();
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Opening a long log again, after an end in order.
async fn reopen(scale: Scale) {
    let folder = Folder::new();
    let path = folder.file("log.db");
    let count = scale.events * 10;
    fill(&path, count).await;
    let (mut raw, mut opened) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let started = Instant::now();
        let connection = rusqlite::Connection::open(&path).unwrap();
        let _: i64 = connection.query_row("select max(offset) from event", [], |row| row.get(0)).unwrap();
        raw.push(started.elapsed().as_secs_f64() * 1e3);
        drop(connection);
        let started = Instant::now();
        let bus = Bus::builder().broker(SqliteBroker::open(&path).await.unwrap()).await.unwrap();
        bus.on(|_: Arc<Stored>| async {}).group("reopen").await.unwrap();
        opened.push(started.elapsed().as_secs_f64() * 1e3);
        bus.shutdown().await.unwrap();
    }
    let (raw, opened) = (median(&mut raw), median(&mut opened));
    println!(
        "opening a log of {count} events, with a subscription: {opened:.1} ms; SQLite alone {raw:.1} ms"
    );
}

/// A log with `count` events.
async fn fill(path: &Path, count: u64) {
    let broker =
        SqliteBroker::builder(path).durability(eventbus::sqlite::Durability::Off).open().await.unwrap();
    let bus = Bus::builder().broker(broker).await.unwrap();
    let numbers: Vec<u64> = (0..count).collect();
    for chunk in numbers.chunks(4_096) {
        for result in bus.publish_all(chunk.iter().map(|number| Arc::new(Stored::new(*number)))).await {
            result.unwrap();
        }
    }
    bus.shutdown().await.unwrap();
}

/// Reads every payload of the file, with SQLite alone.
fn scan(path: &Path) -> f64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut statement = connection.prepare("select offset, payload from event order by offset").unwrap();
    let started = Instant::now();
    let mut rows = statement.query([]).unwrap();
    let (mut count, mut bytes) = (0, 0);
    while let Some(row) = rows.next().unwrap() {
        bytes += row.get_ref(1).unwrap().as_bytes().unwrap().to_vec().len();
        count += 1;
    }
    std::hint::black_box(bytes);
    f64::from(count) / started.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let root = std::env::var_os("EVENTBUS_BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench"), PathBuf::from);
        let name = format!("{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
