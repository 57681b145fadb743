//! Ctrl-C and SIGTERM, on a child process: this test binary itself, in the role that a variable names.

#![cfg(unix)]

mod support;

use eventbus::Bus;
use eventbus::bus::shutdown_signal;
use std::future::pending;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Ping;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

const ROLE: &str = "EVENTBUS_TEST_ROLE";
/// Set where the child writes its log to the terminal.
const LOGS: &str = "EVENTBUS_TEST_LOGS";

/// How a child handles its events: `<handler> <runtime> <drain in ms>`.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if std::env::var(LOGS).is_ok() {
        tracing_subscriber::fmt().init();
    }
    let [handler, runtime, drain] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
    let drain = Duration::from_millis(drain.parse().unwrap());
    let code = match runtime {
        // As `#[eventbus::main]` does it, and `#[tokio::main]`, which waits for its threads.
        "eventbus" => eventbus::__private::block_on(main(handler.to_owned(), drain)),
        "tokio" => Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(main(handler.to_owned(), drain)),
        _ => Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(main(handler.to_owned(), drain)),
    };
    std::process::exit(code);
}

async fn main(handler: String, drain: Duration) -> i32 {
    let (bus, _broker) = support::bus_with(Bus::builder().drain(drain)).await;
    let handler_ends = handler == "ends";
    let lingers = handler_ends || handler == "lingers";
    let (serves, answers) = (handler.ends_with("serves"), handler == "serves");
    say_when_it_is_late(if handler_ends { Duration::ZERO } else { drain });
    bus.on(move |ping: Arc<Ping>| {
        let handler = handler.clone();
        async move {
            println!("started {}", ping.number);
            match &*handler {
                "waits" => pending().await,
                "blocks" => std::thread::sleep(Duration::from_secs(3_600)),
                "prints" => loop {
                    print!("{}", "x".repeat(10_000));
                },
                "spins" => loop {
                    std::hint::spin_loop();
                },
                _ => tokio::time::sleep(Duration::from_millis(300)).await,
            }
            println!("finished {}", ping.number);
        }
    })
    .group("worker")
    .concurrency(4)
    .await
    .unwrap();
    for number in 0..4 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    if handler_ends {
        tokio::spawn({
            let bus = bus.clone();
            async move {
                bus.settled().await.unwrap();
                bus.shutdown().await
            }
        });
    }
    // As a server that ends before its bus does.
    let server = async {
        shutdown_signal().await;
        println!("the server ends");
        if !answers {
            pending::<()>().await;
        }
    };
    let ended = if serves { bus.run_until(server).await } else { bus.run().await };
    println!("ended {ended:?}");
    if lingers {
        std::thread::sleep(Duration::from_secs(3_600));
    }
    i32::from(ended.is_err())
}

/// What a child says that still runs a second after its drain time, or after a second signal. It says so by a clock of
/// its own that begins with the signal, as that of the bus does: what a busy machine delays, it delays for both.
const LATE: &str = "the promised second is over";

fn say_when_it_is_late(drain: Duration) {
    let (ready, listens) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut terminate = signal(SignalKind::terminate()).unwrap();
            let mut interrupt = signal(SignalKind::interrupt()).unwrap();
            ready.send(()).unwrap();
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            next().await;
            tokio::select! {
                () = tokio::time::sleep(drain + SECOND) => {}
                () = next() => tokio::time::sleep(SECOND).await,
            }
            println!("{LATE}");
        });
    });
    listens.recv().unwrap();
}

const SECOND: Duration = Duration::from_secs(1);

struct Program {
    child: Child,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Program {
    fn start(role: &str) -> Self {
        Self::spawn(&mut Self::command(role))
    }

    fn command(role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(ROLE, role);
        command
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
        let mut program = Program::start("works tokio 30000");
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
fn a_server_that_listens_for_signals_ends_before_its_bus_does() {
    for signal in ["-TERM", "-INT"] {
        let mut program = Program::start("serves tokio 30000");
        let mut lines = program.read_until("started");
        kill(program.child.id(), signal);
        lines.extend(program.read_until("ended"));
        assert!(program.child.wait().unwrap().success(), "{signal}: {lines:?}");
        assert_eq!(lines.iter().filter(|line| line.contains("the server ends")).count(), 1, "{lines:?}");
        let finished = lines.iter().filter(|line| line.contains("finished")).count();
        assert_eq!(finished, 4, "{signal}: {lines:?}");
    }
}

#[test]
fn a_server_that_does_not_end_is_ended_by_a_second_signal() {
    let mut program = Program::start("never-serves tokio 30000");
    program.read_until("started");
    let id = program.child.id();
    kill(id, "-TERM");
    program.read_until("the server ends");
    let began = Instant::now();
    kill(id, "-INT");
    let (_, code, errors) = end(program, began);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("the process ends now"), "{errors}");
}

/// Waits for the end of a program, which is to come within the promised second: how long it took, its exit code, and what
/// it wrote to stderr.
fn end(program: Program, began: Instant) -> (Duration, Option<i32>, String) {
    let Program { mut child, output } = program;
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let code = child.wait().unwrap().code();
    let took = began.elapsed();
    let late = output.map(Result::unwrap).any(|line| line.contains(LATE));
    assert!(!late, "the program goes on for more than a second: {errors}");
    (took, code, errors)
}

/// Whatever the handlers do, and on each kind of runtime.
const ALL: [&str; 8] = [
    "waits eventbus",
    "waits tokio",
    "waits current",
    "blocks eventbus",
    "blocks tokio",
    "blocks current",
    "spins tokio",
    "spins current",
];

#[test]
fn a_second_signal_ends_the_program_within_a_second_whatever_runs() {
    for role in ALL {
        let mut program = Program::start(&format!("{role} 600000"));
        program.read_until("started");
        let began = Instant::now();
        let id = program.child.id();
        kill(id, "-TERM");
        // Two signals at once may be seen as one.
        std::thread::sleep(Duration::from_millis(200));
        kill(id, "-INT");
        let (_, code, errors) = end(program, began);
        assert_eq!(code, Some(1), "{role}: {errors}");
        if role.starts_with("blocks") && !role.ends_with("eventbus") {
            assert!(errors.contains("signals.rs"), "it names the handler: {role}: {errors}");
        }
    }
}

#[test]
fn after_the_drain_time_the_program_ends_within_a_second_whatever_runs() {
    for role in ALL {
        let mut program = Program::start(&format!("{role} 300"));
        program.read_until("started");
        let began = Instant::now();
        kill(program.child.id(), "-TERM");
        let (took, code, errors) = end(program, began);
        assert_eq!(code, Some(1), "{role}: {errors}");
        assert!(took >= Duration::from_millis(300), "{role}: the drain time is kept: {took:?}");
    }
}

#[test]
fn one_more_signal_ends_a_program_that_goes_on_after_its_bus_has_ended() {
    let mut program = Program::start("lingers tokio 30000");
    program.read_until("started");
    let id = program.child.id();
    kill(id, "-TERM");
    program.read_until("ended Ok");
    let began = Instant::now();
    kill(id, "-INT");
    let (_, code, errors) = end(program, began);
    assert_eq!(code, Some(1), "{errors}");
}

#[test]
fn a_signal_ends_a_program_whose_bus_has_ended_without_one() {
    let mut program = Program::start("ends tokio 10000");
    program.read_until("ended Ok");
    let signalled = Instant::now();
    kill(program.child.id(), "-INT");
    let (_, code, errors) = end(program, signalled);
    assert_eq!(code, Some(1), "{errors}");
}

#[test]
fn a_shutdown_that_is_cut_short_says_what_is_left() {
    let mut program = Program::start("waits eventbus 600000");
    program.read_until("started");
    let id = program.child.id();
    kill(id, "-TERM");
    std::thread::sleep(Duration::from_millis(200));
    kill(id, "-TERM");
    let lines = program.read_until("ended");
    let said = lines.last().unwrap();
    assert!(said.contains("4 deliveries were not finished") && said.contains("lost"), "{said}");
    assert!(said.contains("`drain` is 600s") && said.contains("a second signal ended the bus"), "{said}");
    assert!(!said.contains("set a longer `drain`"), "{said}");
}

/// Sends a signal to a child that was not waited for yet, so that its number is still its own.
fn kill(id: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
}

#[test]
fn a_terminal_that_is_gone_or_stuck_does_not_keep_the_program_from_ending() {
    for (role, gone) in
        [("blocks tokio 200", true), ("waits eventbus 200", true), ("prints tokio 200", false)]
    {
        let mut program = Program::spawn(Program::command(role).env(LOGS, "yes"));
        program.read_until("started");
        let Program { mut child, output } = program;
        // A pipe that is full, where nobody reads it, or broken.
        let _unread = (!gone).then_some((output, child.stderr.take()));
        drop(child.stderr.take());
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        kill(child.id(), "-TERM");
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(5) {
                child.kill().unwrap();
                panic!("{role}: the program goes on");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
