//! The `eventbus` command: looks into an event bus, and publishes on it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    eventbus_cli::standalone().await
}
