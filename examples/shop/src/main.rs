//! A web shop on the embedded log: an HTTP service, an import, and the consumers of their orders.
//!
//! ```text
//! cargo run --package shop -- serve
//! ```

#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    shop::cli::Cli::parse().run().await
}
