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

/// What has come of bringing servers up.
#[derive(Default)]
pub(crate) struct CameUp {
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) failed: Vec<String>,
    pub(crate) no_python: Option<String>,
}

impl Beside {
    pub(crate) fn begin(_names: &[&str]) -> io::Result<Self> {
        println!("== {ADVICE}");
        Ok(Self)
    }

    pub(crate) fn came_up(&mut self) -> io::Result<CameUp> {
        let given = std::env::var_os("EVENTBUS_TEST_PYTHON").is_some();
        let no_python = (!given).then(|| "EVENTBUS_TEST_PYTHON names no folder with them".to_owned());
        Ok(CameUp { no_python, ..CameUp::default() })
    }
}
