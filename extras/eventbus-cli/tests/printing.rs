//! Handlers that print, block and take long, in a program with the whole command line: each verb that calls code of the
//! program comes to its end, whatever that does, and whether anybody reads what is printed or not.
//!
//! This test binary is the program too, where a variable says so; therefore it has a `main` of its own.

use eventbus::bus::BusBuilder;
use eventbus::{BoxError, Bus, Event, subscribe};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "page.wanted")]
struct PageWanted {
    way: String,
}

/// Prints in the way that is wanted.
#[subscribe(group = "printer", retries = 0)]
async fn print(page: PageWanted) -> Result<(), String> {
    match page.way.as_str() {
        "println" => println!("by println"),
        "eprintln" => eprintln!("by eprintln"),
        "print" => print!("by print; "),
        "writeln" => writeln!(io::stdout().lock(), "by writeln").unwrap(),
        "tracing" => tracing::info!("by tracing"),
        "thread" => thread::spawn(|| println!("by thread")).join().unwrap(),
        "panic" => panic!("by panic"),
        "flood" => drop(thread::spawn(|| (0..100_000).for_each(|page| println!("page {page}")))),
        "sleep" => tokio::time::sleep(PATIENCE).await,
        "block" => thread::sleep(PATIENCE),
        "fail" => return Err("no paper; ".repeat(800)),
        "mark" => fs::write(env::var("EVENTBUS_TEST_MARK").unwrap(), "marked").unwrap(),
        _ => {}
    }
    Ok(())
}

/// Prints from a thread that may block.
#[subscribe(group = "typewriter", blocking)]
fn print_blocking(page: PageWanted) {
    if page.way == "blocking" {
        println!("by blocking");
    }
}

const ROLE: &str = "EVENTBUS_TEST_ROLE";

/// A program that prints wherever it is called: its `tracing` and its panics go to standard output as well.
async fn build() -> Result<BusBuilder, BoxError> {
    println!("by build");
    if env::var(ROLE)? == "printing" {
        tracing_subscriber::fmt().with_writer(io::stdout).init();
        std::panic::set_hook(Box::new(|panic| println!("hook: {panic}")));
    }
    Ok(Bus::builder().on_publish(|_| thread::spawn(|| println!("by hook")).join().unwrap()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if env::var_os(ROLE).is_some() {
        return eventbus_cli::main_with(build).await;
    }
    let tests: [(&str, fn()); 7] = [
        ("handlers_of_a_run_print_as_they_like", handlers_of_a_run_print_as_they_like),
        ("handlers_of_a_replay_print_as_they_like", handlers_of_a_replay_print_as_they_like),
        (
            "what_the_program_prints_around_its_bus_is_printed",
            what_the_program_prints_around_its_bus_is_printed,
        ),
        ("a_replay_goes_on_while_nobody_reads_it", a_replay_goes_on_while_nobody_reads_it),
        ("a_run_goes_on_while_nobody_reads_its_log", a_run_goes_on_while_nobody_reads_its_log),
        ("a_replay_goes_on_when_its_reader_has_left", a_replay_goes_on_when_its_reader_has_left),
        (
            "a_signal_ends_a_replay_within_a_second_whatever_its_handlers_do",
            a_signal_ends_a_replay_within_a_second_whatever_its_handlers_do,
        ),
    ];
    if cfg!(target_os = "linux") {
        for (name, test) in tests {
            println!("test {name}");
            test();
        }
    }
    ExitCode::SUCCESS
}

/// What is printed by the events of [`publish_all`] to standard output.
const PRINTED: [&str; 8] = [
    "by println",
    "by print; ",
    "by writeln",
    "by tracing",
    "by thread",
    "by blocking",
    "hook: ",
    "by panic",
];

fn program(role: &str, log: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(arguments)
        .env(ROLE, role)
        .env("EVENTBUS_URL", url(log))
        .env("EVENTBUS_TEST_MARK", log.with_extension("mark"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn url(log: &Path) -> String {
    format!("sqlite:{}", log.display())
}

fn publish(log: &Path, way: &str) {
    let mut publish = Command::new(env!("CARGO_BIN_EXE_eventbus"));
    publish.args(["publish", "page.wanted", &format!("{{\"way\":\"{way}\"}}")]);
    let publish = publish.env("EVENTBUS_URL", url(log)).output().unwrap();
    assert!(publish.status.success(), "{publish:?}");
}

fn publish_all(log: &Path) {
    for way in ["println", "eprintln", "print", "writeln", "tracing", "thread", "blocking", "panic"] {
        publish(log, way);
    }
}

/// A program at work.
struct Running {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (out, err) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    #[track_caller]
    fn wait_for(&self, condition: impl Fn(&str, &str) -> bool) {
        let met = || condition(&self.out.lock().unwrap(), &self.err.lock().unwrap());
        wait(met, || format!("{}\n---\n{}", self.out.lock().unwrap(), self.err.lock().unwrap()));
    }
}

impl Drop for Running {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe to its end.
fn read(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let of_thread = Arc::clone(&text);
    thread::spawn(move || {
        let mut piece = [0; 4_096];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            of_thread.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    });
    text
}

const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn wait(condition: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "this never came to be: {}", otherwise());
        thread::sleep(Duration::from_millis(10));
    }
}

fn log() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("pages.db");
    (folder, log)
}

fn handlers_of_a_run_print_as_they_like() {
    let (_folder, log) = log();
    let mut running = Running::start(&mut program("printing", &log, &["run"]));
    running.wait_for(|_, err| err.contains("running 2 subscriptions"));
    publish_all(&log);
    running.wait_for(|out, err| {
        // What ends with no line feed comes with the next line.
        PRINTED.iter().all(|printed| out.contains(printed)) && err.contains("by eprintln")
    });
    signal(&running.child);
    assert_eq!(wait_for_end(&mut running.child), Some(0));
}

fn handlers_of_a_replay_print_as_they_like() {
    let (_folder, log) = log();
    publish_all(&log);
    for group in ["printer", "typewriter"] {
        for json in [false, true] {
            let mut replay = program("printing", &log, &["replay", group, "--yes"]);
            if json {
                replay.arg("--json");
            }
            let replay = replay.output().unwrap();
            let out = String::from_utf8(replay.stdout).unwrap();
            let err = String::from_utf8(replay.stderr).unwrap();
            let (code, printed) = if group == "printer" { (1, "by println") } else { (0, "by blocking") };
            assert_eq!(replay.status.code(), Some(code), "{out}{err}");
            assert!(out.contains(printed), "{out}");
            let report = out.lines().find(|line| line.contains("\"report\"") || line.starts_with("replayed"));
            let report = report.unwrap_or_else(|| panic!("{out}"));
            // What a handler has printed without a line feed breaks no line of ours.
            if json {
                let report: Value = serde_json::from_str(report).unwrap();
                assert_eq!(report["report"]["events"], 8, "{out}");
            } else {
                assert!(report.starts_with(&format!("replayed 8 events to {group}")), "{report}");
            }
        }
    }
}

fn what_the_program_prints_around_its_bus_is_printed() {
    let (_folder, log) = log();
    for (arguments, printed) in [
        (&["publish", "page.wanted", "{\"way\":\"none\"}"][..], "by hook"),
        (&["publish", "page.wanted", "--lines", "{\"way\":\"none\"}", "--json"], "by hook"),
        (&["check"], "by build"),
    ] {
        let mut running = Running::start(&mut program("quiet", &log, arguments));
        running.wait_for(|out, _| out.contains(printed));
        assert_eq!(wait_for_end(&mut running.child), Some(0), "{arguments:?}");
    }
}

fn a_replay_goes_on_while_nobody_reads_it() {
    let (_folder, log) = log();
    for way in ["flood", "none", "mark"] {
        publish(&log, way);
    }
    // At this rate it lasts for several reports, which find the pipe full and a thread of the program at its lock.
    let mut replay = program("quiet", &log, &["replay", "printer", "--yes", "--rate", "2", "--json"]);
    let mut running = Unread(replay.spawn().unwrap());
    let mark = log.with_extension("mark");
    wait(|| mark.exists(), || "the handlers stand still".to_owned());
    let out = read(running.0.stdout.take().unwrap());
    wait(|| out.lock().unwrap().contains("\"report\""), || "there is no report".to_owned());
    assert_eq!(wait_for_end(&mut running.0), Some(0));
}

fn a_run_goes_on_while_nobody_reads_its_log() {
    let (_folder, log) = log();
    let mut program = program("quiet", &log, &["run"]);
    let mut running = Unread(program.spawn().unwrap());
    let groups = || {
        let mut list = Command::new(env!("CARGO_BIN_EXE_eventbus"));
        let list = list.args(["groups", "list", "--json"]).env("EVENTBUS_URL", url(&log)).output().unwrap();
        String::from_utf8(list.stdout).unwrap()
    };
    wait(|| groups().matches("\"active\":true").count() == 2, || "it does not begin".to_owned());
    // Each is a line of some kilobytes, and a pipe holds 64 of them.
    for _ in 0..40 {
        publish(&log, "fail");
    }
    publish(&log, "mark");
    let mark = log.with_extension("mark");
    wait(|| mark.exists(), || "the handlers stand still".to_owned());
    signal(&running.0);
    wait_for_end(&mut running.0);
    let err = read(running.0.stderr.take().unwrap());
    wait(|| err.lock().unwrap().contains("no paper"), || "there is no log".to_owned());
}

fn a_replay_goes_on_when_its_reader_has_left() {
    let (_folder, log) = log();
    for way in ["none", "none", "none", "mark"] {
        publish(&log, way);
    }
    let mut replay = program("quiet", &log, &["replay", "printer", "--yes", "--rate", "4", "--json"]);
    let mut running = Unread(replay.spawn().unwrap());
    // What the program prints itself fails once nobody reads, so it is read.
    running.0.stdout.as_mut().unwrap().read_exact(&mut [0; "by build\n".len()]).unwrap();
    drop(running.0.stdout.take());
    assert_eq!(wait_for_end(&mut running.0), Some(0));
    assert!(log.with_extension("mark").exists(), "every event was handled");
}

fn a_signal_ends_a_replay_within_a_second_whatever_its_handlers_do() {
    for way in ["sleep", "block"] {
        let (_folder, log) = log();
        for way in ["mark", way, "none"] {
            publish(&log, way);
        }
        let mut running = Running::start(&mut program("quiet", &log, &["replay", "printer", "--yes"]));
        let mark = log.with_extension("mark");
        wait(|| mark.exists(), || "the handlers stand still".to_owned());
        let began = Instant::now();
        signal(&running.child);
        assert_eq!(wait_for_end(&mut running.child), Some(143), "{way}");
        // The machine may be busy; the handlers take half a minute.
        assert!(began.elapsed() < PATIENCE / 3, "{way}: {:?}", began.elapsed());
        if way == "sleep" {
            running.wait_for(|_, err| err.contains("error: the replay was ended before it was through"));
        }
    }
}

/// A program whose output nobody reads.
struct Unread(Child);

impl Drop for Unread {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
}

/// Waits for the end of a program: its exit code.
#[track_caller]
fn wait_for_end(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(began.elapsed() < PATIENCE, "it does not end");
        thread::sleep(Duration::from_millis(10));
    }
}
