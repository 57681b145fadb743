//! Rounds, in which each contestant does the same by turns, and what is told of them.

use crate::work::{Contestant, Handler, Stored};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many events are on their way before confirmations are waited for.
const WINDOW: u64 = 256;

const BROKERS: [&str; 6] = ["nats", "redis", "valkey", "kafka", "rabbitmq", "aws"];
const PARTS: [&str; 2] = ["rates", "latency"];

/// What is to be measured, by the arguments.
#[derive(Clone)]
pub(crate) struct Chosen {
    names: Vec<String>,
    pub(crate) scale: Scale,
    /// How large an event is, about.
    pub(crate) sizes: Vec<usize>,
}

/// How much: all of it, or so little that a test sees it work.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    rounds: usize,
    events: u64,
    seconds: f64,
}

impl Chosen {
    /// # Panics
    /// Where an argument means nothing.
    pub(crate) fn from_arguments() -> Self {
        // `cargo test --all-targets` runs benchmarks once, to see that they work.
        let (mut scale, mut sizes) = (Scale { rounds: 1, events: 512, seconds: 0.2 }, vec![256, 1_024]);
        let (options, names): (Vec<_>, Vec<_>) =
            std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
        if options.iter().any(|option| option == "--bench") {
            scale = Scale { rounds: 5, events: 10_000, seconds: 1.0 };
        }
        for option in options.iter().filter(|option| *option != "--bench") {
            match option.split_once('=') {
                Some(("--rounds", rounds)) => scale.rounds = rounds.parse().expect("how many rounds"),
                Some(("--events", events)) => scale.events = events.parse().expect("how many events"),
                Some(("--seconds", seconds)) => scale.seconds = seconds.parse().expect("how many seconds"),
                Some(("--size", size)) => sizes = vec![size.parse().expect("how many bytes")],
                _ => panic!("no option `{option}`: it is one of --rounds=, --events=, --seconds=, --size="),
            }
        }
        for name in &names {
            let known = BROKERS.contains(&name.as_str()) || PARTS.contains(&name.as_str());
            assert!(known, "no broker or part `{name}`: it is one of {BROKERS:?} or {PARTS:?}");
        }
        Self { names, scale, sizes }
    }

    /// Whether a broker is chosen, or all are.
    pub(crate) fn has(&self, broker: &str) -> bool {
        self.names_it(&BROKERS, broker)
    }

    /// Whether a part is chosen, or all are.
    pub(crate) fn does(&self, part: &str) -> bool {
        self.names_it(&PARTS, part)
    }

    fn names_it(&self, among: &[&str], one: &str) -> bool {
        let mut named = self.names.iter().filter(|name| among.contains(&name.as_str())).peekable();
        named.peek().is_none() || named.any(|name| name == one)
    }

    /// The same with so many times fewer events, for a server that takes longer.
    pub(crate) fn fewer(&self, times: u64) -> Self {
        let Self { names, mut scale, sizes } = self.clone();
        scale.events /= times;
        Self { names, scale, sizes }
    }
}

/// The address of a server whose broker is chosen: as the environment says, or as `cargo xtask brokers up` has left it.
pub(crate) fn server(chosen: &Chosen, broker: &str, name: &str) -> Option<String> {
    if !chosen.has(broker) {
        return None;
    }
    let variable = format!("EVENTBUS_TEST_{name}_URL");
    let given = std::env::var(&variable).ok().filter(|url| !url.is_empty());
    let url = given.or_else(|| {
        let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".to_owned());
        let mut known = Path::new(&root).ancestors().map(|root| root.join("target/brokers/env"));
        let known = known.find_map(|known| std::fs::read_to_string(known).ok())?;
        known.lines().find_map(|line| Some(line.strip_prefix(&variable)?.strip_prefix('=')?.to_owned()))
    });
    if url.is_none() {
        println!("{broker} is left out: no server; run `cargo xtask brokers up {broker}`");
    }
    url
}

/// Compares contestants, of which the first is the measure of the others.
macro_rules! compare {
    ($chosen:expr, $title:expr, $url:expr, $($contestant:ty),+) => {{
        println!("\n{}; the load was {}", $title, $crate::measure::load());
        for &size in &$chosen.sizes {
            if $chosen.does("rates") {
                let mut rounds = Vec::new();
                for round in 0..$chosen.scale.rounds() {
                    let mut results = vec![
                        $($crate::measure::turn(<$contestant as $crate::work::Contestant>::NAME)),+
                    ];
                    let count = results.len();
                    // Each round another one is first.
                    for place in 0..count {
                        let whose = (place + round) % count;
                        let mut number = 0;
                        $(
                            if number == whose {
                                results[number].1 = $crate::measure::rates::<$contestant>($url, size, $chosen.scale).await;
                            }
                            number += 1;
                        )+
                        let _ = number;
                    }
                    rounds.push(results);
                }
                $crate::measure::tell_rates(size, &rounds);
            }
            if $chosen.does("latency") {
                let mut most = f64::INFINITY;
                $(most = most.min($crate::measure::saturation::<$contestant>($url, size, $chosen.scale).await);)+
                for rate in [100.0, most / 2.0] {
                    let mut results = vec![
                        $((<$contestant as $crate::work::Contestant>::NAME, Vec::new(), Vec::new())),+
                    ];
                    for _ in 0..$chosen.scale.rounds() {
                        let mut number = 0;
                        $(
                            let (took, cpu) =
                                $crate::measure::latency::<$contestant>($url, size, rate, $chosen.scale).await;
                            results[number].1.extend(took);
                            results[number].2.push(cpu);
                            number += 1;
                        )+
                        let _ = number;
                    }
                    $crate::measure::tell_latency(size, rate, results);
                }
            }
        }
        println!("the load is {}", $crate::measure::load());
    }};
}
pub(crate) use compare;

impl Scale {
    pub(crate) fn rounds(self) -> usize {
        self.rounds
    }
}

/// What one contestant did in one round: for each part its rate, and the CPU time of this process for each event in µs.
pub(crate) type Turn = (&'static str, Vec<(&'static str, f64, f64)>);

pub(crate) fn turn(name: &'static str) -> Turn {
    (name, Vec::new())
}

/// A name that nothing at the server has yet.
fn fresh() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("bench{}x{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed))
}

/// Runs one part, and says how fast it was and what it cost.
async fn timed(count: u64, part: impl Future<Output = ()>) -> (f64, f64) {
    let (started, before) = (Instant::now(), cpu());
    part.await;
    let (took, cost) = (started.elapsed(), cpu_since(&before));
    (count as f64 / took.as_secs_f64(), cost.as_secs_f64() * 1e6 / count as f64)
}

/// All parts whose rate is measured, by one contestant.
pub(crate) async fn rates<C: Contestant>(
    url: &str,
    size: usize,
    scale: Scale,
) -> Vec<(&'static str, f64, f64)> {
    let Scale { events, .. } = scale;
    let few = events / 40;
    let contestant = C::connect(url, &fresh()).await;
    // The way is open: what comes first takes longer.
    contestant.publish(Stored::new(0, size)).await;
    let mut told = Vec::new();
    let mut tell = |part, (rate, cost)| told.push((part, rate, cost));
    let one_by_one = async {
        for number in 0..few {
            contestant.publish(Stored::new(number, size)).await;
        }
    };
    tell("publish, one at a time", timed(few, one_by_one).await);
    let pipelined = async {
        for first in (0..events).step_by(WINDOW as usize) {
            let window = first..(first + WINDOW).min(events);
            contestant.publish_all(window.map(|number| Stored::new(number, size)).collect()).await;
        }
    };
    tell("publish, 256 in a row, then their confirmations", timed(events, pipelined).await);
    tell("publish, 256 publishers", timed(events, many_publishers(&contestant, events, size)).await);
    let handler = Arc::new(Handler::default());
    let backlog = 1 + few + 2 * events;
    contestant.consume(Arc::clone(&handler)).await;
    // To join a group takes as long as its server likes.
    handler.until(1, C::NAME).await;
    let rest = backlog - handler.handled();
    tell("consume + ack of a backlog", timed(rest, handler.until(backlog, C::NAME)).await);
    contestant.leave().await;
    all_acked(&contestant).await;
    contestant.remove().await;
    told
}

async fn many_publishers<C: Contestant>(contestant: &C, events: u64, size: usize) {
    let publishers: Vec<_> = (0..WINDOW)
        .map(|publisher| {
            let contestant = contestant.clone();
            tokio::spawn(async move {
                for number in (publisher..events).step_by(WINDOW as usize) {
                    contestant.publish(Stored::new(number, size)).await;
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

/// Whoever did not ack everything did not do the work.
async fn all_acked<C: Contestant>(contestant: &C) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let open = contestant.unacked().await;
        if open == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{} has not acked {open} events", C::NAME);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many events go ahead of those that are measured.
const OPENING: u64 = 20;

/// The handler of somebody who reads, once the way to it is open: what comes first takes longer.
async fn opened<C: Contestant>(contestant: &C, size: usize) -> Arc<Handler> {
    let handler = Arc::new(Handler::default());
    contestant.consume(Arc::clone(&handler)).await;
    for number in 0..OPENING {
        contestant.publish(Stored::new(number, size)).await;
    }
    handler.until(OPENING, C::NAME).await;
    handler
}

/// How many events a second get from publishers to the handler.
pub(crate) async fn saturation<C: Contestant>(url: &str, size: usize, scale: Scale) -> f64 {
    let contestant = C::connect(url, &fresh()).await;
    let handler = opened(&contestant, size).await;
    let both = async {
        many_publishers(&contestant, scale.events, size).await;
        handler.until(OPENING + scale.events, C::NAME).await;
    };
    let (rate, cost) = timed(scale.events, both).await;
    println!("{size} B, published and handled at once, {}: {rate:.0}/s, {cost:.1} µs of CPU", C::NAME);
    contestant.leave().await;
    contestant.remove().await;
    rate
}

/// From when an event is due to its handler, at a steady rate, and the CPU time for each event in µs.
pub(crate) async fn latency<C: Contestant>(
    url: &str,
    size: usize,
    rate: f64,
    scale: Scale,
) -> (Vec<Duration>, f64) {
    let contestant = C::connect(url, &fresh()).await;
    let handler = opened(&contestant, size).await;
    let count = (rate * scale.seconds).max(20.0) as u64;
    let sent = async {
        let started = tokio::time::Instant::now();
        for number in 0..count {
            let due = started + Duration::from_secs_f64(number as f64 / rate);
            if due > tokio::time::Instant::now() {
                tokio::time::sleep_until(due).await;
            }
            // What the timer adds is everybody's, and none of the work.
            let at = Instant::now();
            handler.is_due(OPENING + number, at);
            let (contestant, event) = (contestant.clone(), Stored::new(OPENING + number, size));
            tokio::spawn(async move { contestant.publish(event).await });
        }
        handler.until(OPENING + count, C::NAME).await;
    };
    let (_, cost) = timed(count, sent).await;
    contestant.leave().await;
    contestant.remove().await;
    (handler.took(), cost)
}

/// One row for each part: the rate of the first, and of the others the ratio to it, each in the same round.
pub(crate) fn tell_rates(size: usize, rounds: &[Vec<Turn>]) {
    println!("\n| {size} B | {} |", rounds[0].iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---:|".repeat(rounds[0].len()));
    for (part, (name, ..)) in rounds[0][0].1.iter().enumerate() {
        print!("| {name} |");
        for whose in 0..rounds[0].len() {
            let rate = median(rounds.iter().map(|round| round[whose].1[part].1));
            let cost = median(rounds.iter().map(|round| round[whose].1[part].2));
            let ratio = median(rounds.iter().map(|round| round[whose].1[part].1 / round[0].1[part].1));
            let dearer = median(rounds.iter().map(|round| round[whose].1[part].2 / round[0].1[part].2));
            if whose == 0 {
                print!(" {rate:.0}/s, {cost:.1} µs |");
            } else {
                print!(" {rate:.0}/s, **{ratio:.2}**; {cost:.1} µs, {dearer:.2} |");
            }
        }
        println!();
    }
}

pub(crate) fn tell_latency(size: usize, rate: f64, results: Vec<(&str, Vec<Duration>, Vec<f64>)>) {
    print!("| {size} B, {rate:.0}/s, p50 / p99 |");
    for (name, mut took, cost) in results {
        took.sort_unstable();
        let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        let cost = median(cost.into_iter());
        print!(" {name} {:.2} / {:.1} ms, {cost:.0} µs |", at(0.5), at(0.99));
    }
    println!();
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The CPU time of each thread of this process, by its number. Those that have ended are in none of it.
fn cpu() -> HashMap<OsString, Duration> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let known = threads.filter_map(|thread| {
        let told = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name(), Duration::from_nanos(told.split(' ').next()?.parse().ok()?)))
    });
    known.collect()
}

/// What all threads have used since then.
fn cpu_since(before: &HashMap<OsString, Duration>) -> Duration {
    let used = cpu().into_iter();
    used.map(|(thread, time)| time.saturating_sub(before.get(&thread).copied().unwrap_or_default())).sum()
}

pub(crate) fn load() -> String {
    let told = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    told.split(' ').take(2).collect::<Vec<_>>().join(", ")
}
