//! `cargo xtask brokers` on systems where it begins no servers: only Linux shows processes as it needs them.

use std::io;
use std::process::ExitCode;

pub(crate) const USAGE: &str = "cargo xtask brokers …  (on Linux only)";

const ADVICE: &str = "servers are begun on Linux only: begin those of compose.yaml and set their EVENTBUS_TEST_…_URL, \
                      or test without them: `cargo xtask test --embedded`";

pub(crate) fn run(_arguments: impl Iterator<Item = String>) -> ExitCode {
    eprintln!("== {ADVICE}");
    ExitCode::FAILURE
}

/// What the workspace is built with beside Rust is the system's to have.
pub(crate) fn build_needs() -> io::Result<()> {
    Ok(())
}

/// Servers beside a run of tests: here those that the environment names.
pub(crate) struct Beside;

impl Beside {
    pub(crate) fn begin(_names: &[&str]) -> io::Result<Self> {
        println!("== {ADVICE}");
        Ok(Self)
    }

    pub(crate) fn variables(&mut self) -> io::Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }
}
