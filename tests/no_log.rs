//! Programs that set up no log: what fails is not silent. Each is a child process, this test binary itself, in the role
//! that a variable names.

mod support;

use eventbus::memory::MemoryBroker;
use eventbus::{Backoff, Bus};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::Ping;

const ROLE: &str = "EVENTBUS_TEST_ROLE";
const GIVEN_UP: &str = "kept as a dead letter";
/// So many lines that are long are more than a pipe holds, and fewer than wait for their reader.
const MANY: u64 = 900;
const ENDS: &str = "the bus ends now";

#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "logs to stdout" {
        tracing_subscriber::fmt().with_writer(std::io::stdout).init();
    }
    if role == "is silent" {
        tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new()).unwrap();
    }
    // As tests and start-up code do, for this thread and as long as it lives.
    let _scope = (role == "listens on one thread").then(|| {
        tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(std::io::stdout).finish())
    });
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        if role == "drops its bus" {
            return drop_a_bus().await;
        }
        if let Some(role) = role.strip_prefix("never starts: ") {
            // Whoever waits for a word that does not come is to see the child end.
            let _ = tokio::time::timeout(Duration::from_secs(20), never_start(role)).await;
            return;
        }
        let broker = MemoryBroker::builder().history(10).build();
        let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
        if role == "begins late" {
            bus.publish(&Ping { number: 6 }).await.unwrap();
        }
        let (retries, room) =
            if role == "runs and ends" { (0, "x".repeat(2_000)) } else { (1, String::new()) };
        let fails = move |ping: Arc<Ping>| {
            let reason = format!("no table\nfor {}{room}", ping.number);
            async { Err::<(), _>(reason) }
        };
        bus.on(fails)
            .group("player")
            .retries(retries)
            .backoff(Backoff::new(Duration::from_millis(1), Duration::from_millis(1)))
            .await
            .unwrap();
        match role.as_str() {
            "starts" | "sets up its log later" | "listens on one thread" | "is silent" => {
                bus.start().unwrap();
                bus.publish(&Ping { number: 7 }).await.unwrap();
                bus.settled().await.unwrap();
                if role == "sets up its log later" {
                    tracing_subscriber::fmt().with_writer(std::io::stdout).init();
                    bus.publish(&Ping { number: 8 }).await.unwrap();
                }
                bus.shutdown().await.unwrap();
            }
            "runs and ends" => {
                let ends = async {
                    for number in 0..MANY {
                        bus.publish(&Ping { number }).await.unwrap();
                    }
                    bus.settled().await.unwrap();
                    println!("{ENDS}");
                    bus.shutdown().await.unwrap();
                };
                tokio::join!(async { bus.run().await.unwrap() }, ends);
                std::process::exit(0);
            }
            _ => {
                bus.publish(&Ping { number: 7 }).await.unwrap();
                bus.run().await.unwrap();
            }
        }
    });
}

/// What a `main` does that forgets the shutdown.
async fn drop_a_bus() {
    let bus = Bus::builder().without_subscriptions().connect("memory:").await.unwrap();
    for group in ["player", "judge"] {
        bus.on(|_: Arc<Ping>| std::future::pending::<()>()).group(group).await.unwrap();
    }
    bus.start().unwrap();
    bus.publish(&Ping { number: 7 }).await.unwrap();
    bus.publish(&Ping { number: 8 }).await.unwrap();
}

/// What a `main` does that forgets the start, and listens to no log.
async fn never_start(role: &str) {
    let folder = tempfile::tempdir().unwrap();
    let log = format!("sqlite:{}", folder.path().join("shop.db").display());
    let builder = Bus::builder().without_subscriptions();
    let bus = match role {
        "fills its queue" => builder.broker(MemoryBroker::builder().capacity(1).build()).await,
        "settles" | "drops its bus" => builder.connect("memory:").await,
        _ => builder.connect(&log).await,
    };
    let bus = bus.unwrap();
    if role != "publishes only" {
        bus.on(|_: Arc<Ping>| async {}).group("player").await.unwrap();
    }
    bus.publish(&Ping { number: 7 }).await.unwrap();
    match role {
        "settles" => bus.settled().await.unwrap(),
        "fills its queue" => drop(bus.publish(&Ping { number: 8 }).await.unwrap()),
        "drops its bus" => drop(bus),
        "replays" => {
            bus.replay("player").await.unwrap();
            bus.shutdown().await.unwrap();
        }
        // Whether that is enough for the broker is not what is looked at.
        "has no time to end" => drop(bus.shutdown_within(Duration::ZERO).await),
        _ => bus.shutdown().await.unwrap(),
    }
}

fn child_in(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(ROLE, role);
    command
}

/// What a child that ends by itself has written to standard output and to standard error.
fn all_lines_of(role: &str) -> (String, String) {
    let output = child_in(role).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{out}{err}");
    (out, err)
}

/// What the child has written to standard output and to standard error, once one of the lines has told that it gave
/// the event up.
fn lines_of(role: &str, told_on_stderr: bool) -> (String, String) {
    lines_until(GIVEN_UP, role, told_on_stderr)
}

/// What the child has written to standard output and to standard error, once one of the lines has this.
fn lines_until(awaited: &str, role: &str, told_on_stderr: bool) -> (String, String) {
    let mut child = child_in(role).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) =
        (BufReader::new(child.stdout.take().unwrap()), BufReader::new(child.stderr.take().unwrap()));
    let (mut out_text, mut err_text) = (String::new(), String::new());
    let (told, text): (&mut dyn BufRead, _) =
        if told_on_stderr { (&mut err, &mut err_text) } else { (&mut out, &mut out_text) };
    while !text.contains(awaited) {
        assert!(told.read_line(text).unwrap() > 0, "the child has ended: {text}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    out.read_to_string(&mut out_text).unwrap();
    err.read_to_string(&mut err_text).unwrap();
    (out_text, err_text)
}

#[test]
fn a_program_without_a_log_says_on_standard_error_what_failed() {
    let (_, err) = lines_of("no log", true);
    assert_eq!(err.lines().count(), 2, "an attempt that is tried again, and a dead letter: {err}");
    assert!(err.lines().all(|line| line.contains("player") && line.contains(r"no table\nfor 7")), "{err}");
    assert!(!err.contains('\u{1b}'), "no colours where it is no terminal: {err:?}");
}

#[test]
fn a_program_without_a_log_says_on_standard_error_what_its_start_up_warned_of() {
    let (_, err) = lines_of("begins late", true);
    let first = err.lines().next().unwrap();
    assert!(first.contains("WARN") && first.contains("`player`"), "{err}");
    assert!(first.contains("skips 1 earlier event on"), "{err}");
    assert_eq!(err.lines().count(), 3, "{err}");
}

#[test]
fn a_program_with_a_log_has_all_lines_there_and_none_beside_it() {
    let (out, err) = lines_of("logs to stdout", false);
    assert!(out.contains("no table"), "{out}");
    assert_eq!(err, "");
}

#[test]
fn a_program_that_starts_its_bus_and_ends_says_on_standard_error_what_failed() {
    let (_, err) = all_lines_of("starts");
    assert_eq!(err.lines().count(), 2, "an attempt that is tried again, and a dead letter: {err}");
    assert!(err.lines().all(|line| line.contains("player") && line.contains(r"no table\nfor 7")), "{err}");
    assert!(err.contains(GIVEN_UP), "{err}");
}

#[test]
fn a_program_sets_up_its_log_after_its_bus_has_started_and_has_the_lines_there_from_then_on() {
    let (out, err) = all_lines_of("sets up its log later");
    assert!(err.contains("tried again") && err.contains("for 7") && !err.contains("for 8"), "{err}");
    // That the first event is given up is told once it is settled, so perhaps here already.
    let second: Vec<_> = out.lines().filter(|line| line.contains("for 8")).collect();
    assert!(second.len() == 2 && second[1].contains(GIVEN_UP), "{out}");
}

#[test]
fn a_bus_that_has_run_waits_for_its_lines_before_it_ends() {
    let told = || {
        let mut child =
            child_in("runs and ends").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(out.any(|line| line.unwrap().contains(ENDS)), "the child has ended");
        // Nobody has read what it told so far, and whoever reads comes a moment later.
        std::thread::sleep(Duration::from_millis(30));
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(child.wait().unwrap().success(), "{err}");
        err.matches(GIVEN_UP).count() as u64
    };
    // Not for long where nobody reads; on a machine that is busy with other things, that may be too short.
    assert!((0..3).any(|_| told() == MANY), "the last lines are missing");
}

#[test]
fn a_program_whose_log_is_of_one_thread_has_the_lines_of_all_others_on_standard_error() {
    let (out, err) = all_lines_of("listens on one thread");
    assert_eq!((out + &err).matches(GIVEN_UP).count(), 1, "each line in one place: {err}");
    assert!(err.contains("tried again") && err.contains(r"no table\nfor 7"), "{err}");
}

#[test]
fn a_program_that_has_chosen_silence_has_it() {
    let (_, err) = all_lines_of("is silent");
    assert_eq!(err, "");
}

#[test]
fn a_program_that_ends_without_a_shutdown_says_in_one_line_what_was_not_handled() {
    let (_, err) = all_lines_of("drops its bus");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("before 4 deliveries were handled (2 for `player`, 2 for `judge`): lost"), "{err}");
    assert!(err.contains("end the program with `bus.shutdown().await`"), "{err}");
}

#[test]
fn a_program_that_awaits_what_it_published_and_has_not_started_its_bus_is_told_so() {
    let (_, err) = lines_until("WARN", "never starts: settles", true);
    assert!(err.contains("`settled` waits for a bus that was not started"), "{err}");
    assert!(err.contains("call `bus.start()`"), "{err}");
}

#[test]
fn a_publisher_that_waits_for_a_queue_of_a_bus_that_was_not_started_is_told_so() {
    let (_, err) = lines_until("WARN", "never starts: fills its queue", true);
    assert!(err.contains("the queue of `player` is full, and nobody reads it"), "{err}");
}

#[test]
fn a_bus_that_ends_and_was_never_started_says_what_it_leaves() {
    let (_, err) = all_lines_of("never starts: drops its bus");
    assert!(err.contains("1 for `player`") && err.contains("start it with `bus.start()?`"), "{err}");
    for role in ["shuts down", "has no time to end"] {
        let (_, err) = all_lines_of(&format!("never starts: {role}"));
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains("the bus was never started, so nothing was handled"), "{err}");
        assert!(err.contains("1 event for `player` waits") && err.contains("`bus.start()?`"), "{err}");
    }
}

#[test]
fn a_bus_that_has_only_published_or_replayed_ends_without_a_word() {
    for role in ["publishes only", "replays"] {
        let (_, err) = all_lines_of(&format!("never starts: {role}"));
        assert_eq!(err, "", "{role}");
    }
}
