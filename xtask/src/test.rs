//! `cargo xtask test`: every check that a commit has to pass, with the servers that the tests need.

use crate::brokers::{Beside, build_needs};
use crate::{binaries, failures, side_by_side, surface};
use std::io;
use std::process::{Command, ExitCode};
use std::time::Instant;

pub(crate) const USAGE: &str = "\
cargo xtask test [--embedded]
  --embedded        leave out what needs a server";

/// The servers that tests find in their environment.
const SERVERS: &[&str] = &["nats", "redis", "valkey", "rabbitmq", "kafka", "aws", "fauxqs"];
/// The packages whose tests need a server: those of brokers that have one, and this one.
pub(crate) const WITH_SERVERS: &[&str] =
    &["eventbus-aws", "eventbus-kafka", "eventbus-nats", "eventbus-rabbitmq", "eventbus-redis", "xtask"];

/// One command of a task, and why it is there.
struct Step {
    purpose: &'static str,
    environment: &'static [(&'static str, &'static str)],
    needs: Needs,
    arguments: &'static [&'static str],
    tests: Tests,
}

/// What a step needs beside the sources.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    /// All servers.
    Servers,
    /// All servers, and the clients for Python.
    Python,
    /// The server that it runs on.
    Server(OnServer),
}

/// A server that an example runs on.
#[derive(Clone, Copy)]
struct OnServer {
    /// Where its address is.
    variable: &'static str,
    /// What stands before that in the address of a broker.
    before: &'static str,
}

/// Which packages a step tests.
#[derive(Clone, Copy, PartialEq)]
enum Tests {
    /// None, or those that it names.
    Named,
    /// All of the workspace, also those that need a server.
    Workspace,
    /// Those too, whose binaries cargo builds only, and which run side by side.
    SideBySide,
}

const fn step(purpose: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { purpose, environment: &[], needs: Needs::Nothing, arguments, tests: Tests::Named }
}

/// The main example on the server whose address is in a variable.
const fn on(purpose: &'static str, variable: &'static str, before: &'static str) -> Step {
    let arguments = &["run", "--quiet", "--example", "quickstart", "--features", ALL_BROKERS];
    let needs = Needs::Server(OnServer { variable, before });
    Step { purpose, environment: &[], needs, arguments, tests: Tests::Named }
}

/// With all brokers, which a step adds to one package so that no other step has them.
const ALL_BROKERS: &str = "aws,kafka,nats,rabbitmq,redis";

/// The steps that share one build come one after the other.
const STEPS: &[Step] = &[
    step("format", &["fmt", "--all", "--check"]),
    step("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    Step {
        purpose: "unit, integration and UI tests, side by side",
        environment: &[],
        needs: Needs::Nothing,
        arguments: &["test", "--workspace", "--all-targets", "--no-run"],
        tests: Tests::SideBySide,
    },
    // The models include sources of core, whose examples run there.
    Step {
        purpose: "documentation tests",
        environment: &[],
        needs: Needs::Nothing,
        arguments: &["test", "--workspace", "--exclude", "eventbus-models", "--doc"],
        tests: Tests::Workspace,
    },
    Step {
        purpose: "documentation",
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        needs: Needs::Nothing,
        arguments: surface::DOCUMENTATION,
        tests: Tests::Named,
    },
    step("the public items", &["xtask", "surface"]),
    step("the README in a new crate", &["xtask", "readme"]),
    step("lints of the inventory registry", &["clippy", "--features", "inventory", "--", "-D", "warnings"]),
    step("the registry by inventory", &["test", "--features", "inventory", "--test", "registration"]),
    step("the registry by linkme, fat LTO", &["test", "--profile", "fat-lto", "--test", "registration"]),
    step(
        "the registry by inventory, fat LTO",
        &["test", "--profile", "fat-lto", "--features", "inventory", "--test", "registration"],
    ),
    step(
        "what a release build reads back",
        &["test", "--profile", "fat-lto", "--test", "readable", "--test", "typed"],
    ),
    step("the main example", &["run", "--quiet", "--example", "quickstart"]),
    Step {
        purpose: "the main example on the embedded log",
        environment: &[("EVENTBUS_URL", "sqlite:target/quickstart.db")],
        needs: Needs::Nothing,
        arguments: &["run", "--quiet", "--example", "quickstart"],
        tests: Tests::Named,
    },
    on("the main example on Kafka", "EVENTBUS_TEST_KAFKA_URL", ""),
    on("the main example on NATS", "EVENTBUS_TEST_NATS_URL", ""),
    on("the main example on Redis", "EVENTBUS_TEST_REDIS_URL", ""),
    on("the main example on RabbitMQ", "EVENTBUS_TEST_AMQP_URL", ""),
    // The server alone is no address of a broker. The example wants order by key.
    on(
        "the main example on SNS and SQS",
        "EVENTBUS_TEST_AWS_URL",
        "sns://test:test@us-east-1?fifo=true&endpoint=",
    ),
    step(
        "lints of the shop on all brokers",
        &["clippy", "-p", "shop", "--features", ALL_BROKERS, "--all-targets", "--", "-D", "warnings"],
    ),
    Step {
        purpose: "the shop on all brokers, and on several machines",
        environment: &[],
        needs: Needs::Servers,
        arguments: &[
            "test",
            "-p",
            "shop",
            "--features",
            ALL_BROKERS,
            "--no-fail-fast",
            "--test",
            "addresses",
            "--test",
            "machines",
        ],
        tests: Tests::Named,
    },
    Step {
        purpose: "services in Python beside ours",
        environment: &[],
        needs: Needs::Python,
        arguments: &["test", "-p", "shop", "--features", ALL_BROKERS, "--test", "interop"],
        tests: Tests::Named,
    },
];

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let embedded = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => false,
        (Some("--embedded"), None) => true,
        _ => {
            eprintln!("usage: {USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match pass(embedded) {
        Ok(failed) if failed.is_empty() => ExitCode::SUCCESS,
        Ok(failed) => {
            failed.iter().for_each(|failed| eprintln!("\n== failed: {failed}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("== {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes every step, also after one that failed, and returns which those were and what they told: one run tells
/// all, and its end is enough to know what failed.
fn pass(embedded: bool) -> io::Result<Vec<String>> {
    // Also what is not run is looked at.
    build_needs()?;
    let mut servers = if embedded { None } else { Some(Beside::begin(SERVERS)?) };
    let (mut variables, mut failed) = (Vec::new(), Vec::new());
    let (mut no_python, mut left_out) = (None, Vec::new());
    let steps: Vec<_> = STEPS.iter().filter(|step| !embedded || step.runs_alone()).collect();
    for (number, step) in steps.iter().enumerate() {
        if let (Tests::Workspace | Tests::SideBySide, Some(servers)) = (step.tests, &mut servers) {
            let came_up = servers.came_up()?;
            variables.extend(came_up.variables);
            came_up.failed.iter().for_each(|server| eprintln!("== {server}"));
            failed.extend(came_up.failed);
            no_python = no_python.or(came_up.no_python);
        }
        if let (Needs::Python, Some(reason)) = (step.needs, &no_python) {
            left_out.push(format!("{}, for want of Python's clients: {reason}", step.purpose));
            continue;
        }
        let arguments = arguments(step, embedded);
        let command = format!("cargo {}", arguments.join(" "));
        println!("\n== {}/{} {}: {command}", number + 1, steps.len(), step.purpose);
        let started = Instant::now();
        let result = take(step, &arguments, &variables);
        let seconds = started.elapsed().as_secs();
        match result {
            Ok(None) => println!("== done in {seconds} s"),
            Ok(Some(told)) => {
                eprintln!("== failed after {seconds} s");
                failed.push(format!("{command}\n{}", told.join("\n")));
            }
            Err(error) => {
                eprintln!("== failed after {seconds} s: {error}");
                failed.push(format!("{command} ({error})"));
            }
        }
    }
    // On a machine without Python the rest is worth something; CI leaves nothing out.
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
        failed.extend(left_out.drain(..).map(|what| format!("left out: {what}")));
    }
    if failed.is_empty() {
        println!("\n== all {} steps passed", steps.len() - left_out.len());
    }
    for what in left_out {
        println!("== left out: {}", what.lines().next().unwrap_or_default());
    }
    if embedded {
        let left_out = STEPS.iter().filter(|step| !step.runs_alone()).map(|step| step.purpose);
        let left_out: Vec<_> = left_out.collect();
        let (packages, steps) = (WITH_SERVERS.join(", "), left_out.join(", "));
        println!("== left out, since they need servers: the tests of {packages}; {steps}");
    }
    Ok(failed)
}

/// Runs a step, with what the tests are told of the servers, and returns what it told of failures, if it failed.
fn take(step: &Step, arguments: &[&str], variables: &[(String, String)]) -> io::Result<Option<Vec<String>>> {
    if step.tests == Tests::SideBySide {
        let told = side_by_side::run(binaries::build(arguments)?, variables)?;
        return Ok((!told.is_empty()).then_some(told));
    }
    let mut command = Command::new(env!("CARGO"));
    command
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .envs(step.environment.iter().copied())
        .envs(step.address(variables)?);
    let (status, mut told) = failures::run(&mut command)?;
    told.insert(0, status.to_string());
    Ok((!status.success()).then_some(told))
}

impl Step {
    /// Whether it needs no server.
    fn runs_alone(&self) -> bool {
        matches!(self.needs, Needs::Nothing)
    }

    /// The address of the server that it runs on, as a program takes it.
    fn address(&self, variables: &[(String, String)]) -> io::Result<Option<(&'static str, String)>> {
        let Needs::Server(OnServer { variable, before }) = self.needs else { return Ok(None) };
        let address = variables.iter().find(|(name, _)| name == variable).map(|(_, address)| address.clone());
        let address = address.or_else(|| std::env::var(variable).ok());
        let address = address.ok_or_else(|| io::Error::other(format!("{variable} names no server")))?;
        Ok(Some(("EVENTBUS_URL", format!("{before}{address}"))))
    }
}

fn arguments(step: &Step, embedded: bool) -> Vec<&'static str> {
    let mut arguments = step.arguments.to_vec();
    if embedded && step.tests != Tests::Named {
        arguments.extend(WITH_SERVERS.iter().flat_map(|package| ["--exclude", package]));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_server_leaves_packages_out_of_the_steps_that_test_all() {
        let of_all: Vec<_> = STEPS.iter().filter(|step| step.tests != Tests::Named).collect();
        let names_all = |step: &&Step| step.arguments.starts_with(&["test", "--workspace"]);
        assert_eq!(of_all.len(), STEPS.iter().filter(names_all).count());
        for step in of_all {
            assert_eq!(arguments(step, false), step.arguments);
            assert!(arguments(step, true).windows(2).any(|pair| pair == ["--exclude", "xtask"]));
        }
        let lints = &STEPS[1];
        assert_eq!(arguments(lints, true), lints.arguments, "what is not run is looked at all the same");
    }
}
