//! Ctrl-C and SIGTERM, on a child process: this test binary itself, in the role that a variable names.

#![cfg(unix)]

mod support;

use eventbus::Bus;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Ping;

const ROLE: &str = "EVENTBUS_TEST_ROLE";

/// Handles events of 300 ms each and prints what it does; ends when it is told to.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let (bus, _broker) = support::bus_with(Bus::builder()).await;
        let duration = Duration::from_millis(if role == "slow" { 60_000 } else { 300 });
        bus.on(move |ping: Arc<Ping>| async move {
            println!("started {}", ping.number);
            tokio::time::sleep(duration).await;
            println!("finished {}", ping.number);
        })
        .concurrency(4)
        .await
        .unwrap();
        for number in 0..4 {
            bus.publish(&Ping { number }).await.unwrap();
        }
        bus.run().await
    });
    println!("ended {}", result.is_ok());
    // A blocked or sleeping handler must not keep the process.
    runtime.shutdown_background();
    std::process::exit(if result.is_ok() { 0 } else { 1 });
}

struct Program {
    child: Child,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Program {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    fn read_until(&mut self, word: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for line in self.output.by_ref() {
            lines.push(line.unwrap());
            if lines.last().is_some_and(|line| line.contains(word)) {
                return lines;
            }
        }
        panic!("the program ended without `{word}`: {lines:?}")
    }
}

#[test]
fn a_signal_ends_the_program_with_nothing_lost_and_nothing_handled_twice() {
    for signal in ["-TERM", "-INT"] {
        let mut program = Program::start("quick");
        let mut lines = program.read_until("started");
        let signalled = Instant::now();
        kill(program.child.id(), signal);
        lines.extend(program.read_until("ended"));
        assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
        assert!(program.child.wait().unwrap().success());
        for number in 0..4 {
            let finished = format!("finished {number}");
            assert_eq!(
                lines.iter().filter(|line| line.ends_with(&finished)).count(),
                1,
                "{signal}: {lines:?}"
            );
        }
    }
}

#[test]
fn a_second_signal_cuts_the_shutdown_short() {
    let mut program = Program::start("slow");
    let id = program.child.id();
    program.read_until("started");
    let ended = std::thread::spawn(move || {
        let lines = program.read_until("ended");
        (program, lines)
    });
    let started = Instant::now();
    while !ended.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(25), "the drain of 30 s was not cut short");
        // Two signals at once may be seen as one, so they are sent until the program has ended.
        kill(id, "-TERM");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (mut program, lines) = ended.join().unwrap();
    assert!(lines.iter().any(|line| line.contains("ended false")), "{lines:?}");
    assert!(!program.child.wait().unwrap().success());
}

/// Sends a signal to a child that was not waited for yet, so that its number is still its own.
fn kill(id: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
}
