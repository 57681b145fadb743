//! The project's own commands.
//!
//! `cargo xtask test` is what CI runs, and what a contributor runs before a commit. `cargo xtask flakes` runs the tests
//! again and again.

#![forbid(unsafe_code)]

mod flakes;
mod readme;
mod surface;

use std::env;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// One command of a task, and why it is there.
struct Step {
    purpose: &'static str,
    environment: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
}

const fn step(purpose: &'static str, arguments: &'static [&'static str]) -> Step {
    Step { purpose, environment: &[], arguments }
}

/// The steps that share one build come one after the other.
const TEST: &[Step] = &[
    step("format", &["fmt", "--all", "--check"]),
    step("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    step("unit, integration and UI tests", &["test", "--workspace", "--all-targets"]),
    // The models include sources of core, whose examples run there.
    step("documentation tests", &["test", "--workspace", "--exclude", "eventbus-models", "--doc"]),
    Step {
        purpose: "documentation",
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        arguments: &["doc", "--workspace", "--no-deps"],
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
        arguments: &["run", "--quiet", "--example", "quickstart"],
    },
];

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    match arguments.next().as_deref() {
        Some("test") => run(TEST),
        Some("flakes") => flakes::run(arguments),
        Some("readme") => readme::run(),
        Some("surface") => surface::run(arguments),
        _ => {
            eprintln!(
                "usage: cargo xtask test\n       {}\n       {}\n       {}",
                flakes::USAGE,
                readme::USAGE,
                surface::USAGE
            );
            ExitCode::FAILURE
        }
    }
}

fn run(steps: &[Step]) -> ExitCode {
    for (number, step) in steps.iter().enumerate() {
        let command = format!("cargo {}", step.arguments.join(" "));
        println!("\n== {}/{} {}: {command}", number + 1, steps.len(), step.purpose);
        let started = Instant::now();
        let status =
            Command::new(env!("CARGO")).args(step.arguments).envs(step.environment.iter().copied()).status();
        match status {
            Ok(status) if status.success() => println!("== done in {} s", started.elapsed().as_secs()),
            Ok(status) => {
                eprintln!("== failed ({status}): {command}");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("== cannot run `{command}`: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("\n== all {} steps passed", steps.len());
    ExitCode::SUCCESS
}
