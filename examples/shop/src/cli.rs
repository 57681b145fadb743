//! The command line: the shop's own verbs, and those that come with eventbus.

use crate::database::Database;
use crate::generate;
use crate::import::{self, Report};
use crate::orders::Orders;
use crate::serve;
use clap::{Args, Parser, Subcommand};
use eventbus::BoxError;
use eventbus::bus::BusBuilder;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use tokio::net::TcpListener;

/// A shop on an event bus
#[derive(Parser)]
#[command(name = "shop", mut_arg("url", |url| url.default_value("sqlite:shop.db")))]
pub struct Cli {
    /// The file of the shop's own database
    #[arg(long, global = true, value_name = "FILE", default_value = "shop-data.db")]
    data: PathBuf,
    /// Run the consumers of these groups and no others: the role of this machine
    #[arg(long, global = true, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    options: eventbus_cli::Options,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve HTTP and handle events, until Ctrl-C or SIGTERM
    Serve(Serve),
    /// Place the orders of a file, a line of JSON each
    Import(Import),
    /// Write orders that look real, a line of JSON each
    Generate(Generate),
    /// `run`, `tail`, `log`, `replay`, `dead-letters`, …
    #[command(flatten)]
    Bus(eventbus_cli::Command),
}

#[derive(Args)]
struct Serve {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
}

#[derive(Args)]
struct Import {
    /// The file: one `POST /orders` body for each line
    file: PathBuf,
}

#[derive(Args)]
struct Generate {
    /// How many
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    orders: usize,
    /// The same seed gives the same orders
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Cli {
    /// Does what the arguments say.
    pub async fn run(self) -> ExitCode {
        let Self { data, only, options, verb } = self;
        let done = match verb {
            Verb::Serve(serve) => serve.run(data, only, &options.url).await,
            Verb::Import(import) => import.run(data, &options.url).await,
            Verb::Generate(generate) => generate.run(),
            Verb::Bus(command) => {
                let build = async || Ok::<_, BoxError>(bus(&Database::open(data)?, only, &options.url));
                return command.execute_with(build, &options).await;
            }
        };
        done.unwrap_or_else(|error| {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        })
    }
}

impl Serve {
    async fn run(self, data: PathBuf, only: Vec<String>, url: &str) -> Result<ExitCode, BoxError> {
        tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
        let stop = serve::signals()?;
        let database = Database::open(data)?;
        let bus = bus(&database, only, url).connect(url).await?;
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|error| format!("cannot listen on {}: {error}", self.listen))?;
        tracing::info!("listening on http://{}", listener.local_addr()?);
        serve::serve(listener, database, bus, stop).await?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Import {
    async fn run(self, data: PathBuf, url: &str) -> Result<ExitCode, BoxError> {
        let database = Database::open(data)?;
        let bus = crate::bus(&database, url).without_subscriptions().connect(url).await?;
        let style = "{bar:40} {percent}% of {total_bytes}, {eta} left";
        // Nothing is drawn where standard error is no terminal.
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?);
        let begin = Instant::now();
        let imported = match import::expect_consumers(&bus).await {
            Ok(()) => import::import(&Orders::new(database, bus.publisher()), &self.file, &bar).await,
            Err(error) => Err(error),
        };
        bar.finish_and_clear();
        bus.shutdown().await?;
        let Report { new, known, failed } = imported?;
        let seconds = begin.elapsed().as_secs_f64();
        let rate = (new + known) as f64 / seconds;
        println!("{new} new, {known} known, {failed} failed, in {seconds:.1} s ({rate:.0} orders/s)");
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Generate {
    fn run(self) -> Result<ExitCode, BoxError> {
        let mut out = BufWriter::new(io::stdout().lock());
        let written = generate::orders(self.orders, self.seed).try_for_each(|order| {
            serde_json::to_writer(&mut out, &order)?;
            out.write_all(b"\n")
        });
        match written.and_then(|()| out.flush()) {
            // Whoever closes the pipe has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

/// The bus of a machine that has a role, or all of them.
fn bus(database: &Database, only: Vec<String>, url: &str) -> BusBuilder {
    let bus = crate::bus(database, url);
    if only.is_empty() { bus } else { bus.only(only) }
}

/// An error, and what caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["shop", "serve"]);
        assert_eq!(cli.options.url, "sqlite:shop.db");
        let cli = Cli::parse_from(["shop", "run", "--only", "shop.reserve,shop.send_confirmation"]);
        assert_eq!(cli.only, ["shop.reserve", "shop.send_confirmation"], "a role stands where it is read");
    }

    // The start-up checks of the bus, over all handlers of the shop.
    eventbus::check!();
}
