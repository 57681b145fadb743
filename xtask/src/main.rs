//! The project's own commands.
//!
//! `cargo xtask test` is what CI runs, and what a contributor runs before a commit. `cargo xtask brokers` brings up the
//! servers that it needs. `cargo xtask flakes` runs the tests again and again.

#![forbid(unsafe_code)]

mod binaries;
#[cfg_attr(not(target_os = "linux"), path = "brokers/elsewhere.rs")]
mod brokers;
mod failures;
mod flakes;
mod readme;
mod side_by_side;
mod surface;
mod test;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    match arguments.next().as_deref() {
        Some("test") => test::run(arguments),
        Some("brokers") => brokers::run(arguments),
        Some("flakes") => flakes::run(arguments),
        Some("readme") => readme::run(),
        Some("surface") => surface::run(arguments),
        _ => {
            eprintln!(
                "usage: {}\n       {}\n       {}\n       {}\n       {}",
                test::USAGE,
                brokers::USAGE,
                flakes::USAGE,
                readme::USAGE,
                surface::USAGE
            );
            ExitCode::FAILURE
        }
    }
}
