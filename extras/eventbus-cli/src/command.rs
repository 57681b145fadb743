//! The verbs as a value that an application can put among its own.

use crate::cli::called_from_here;
use crate::failure::{Failure, Result};
use crate::options::Options;
use crate::session::Session;
use crate::verbs::{StandaloneVerb, Verb};
use clap::{ArgMatches, FromArgMatches, Subcommand};
use eventbus_core::{BoxError, Bus, BusBuilder};
use std::convert::Infallible;
use std::process::ExitCode;

/// The verbs, for an application that has verbs of its own.
///
/// ```
/// use clap::{Parser, Subcommand};
/// use eventbus::Bus;
/// use std::process::ExitCode;
///
/// #[derive(Parser)]
/// struct Shop {
///     #[command(flatten)]
///     options: eventbus_cli::Options,
///     #[command(subcommand)]
///     verb: Verb,
/// }
///
/// #[derive(Subcommand)]
/// enum Verb {
///     /// Fill the shop with goods
///     Seed,
///     #[command(flatten)]
///     Bus(eventbus_cli::Command),
/// }
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     # let arguments = ["shop", "seed"];
///     # let shop = Shop::parse_from(arguments);
///     # /*
///     let shop = Shop::parse();
///     # */
///     match shop.verb {
///         Verb::Seed => ExitCode::SUCCESS,
///         Verb::Bus(command) => command.execute(Bus::builder(), &shop.options).await,
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Command(Verb);

impl Command {
    /// Does what the command says, on the bus that `builder` describes, and says what is wrong where it fails.
    pub async fn execute(self, builder: BusBuilder, options: &Options) -> ExitCode {
        self.execute_with(async move || Ok::<_, Infallible>(builder), options).await
    }

    /// As [`execute`](Self::execute), for a bus whose states are expensive: `build` is called by the verbs that
    /// start, check or publish (`run`, `replay`, `check`, `publish`), and by no other.
    pub async fn execute_with<E: Into<BoxError>>(
        self,
        build: impl AsyncFnOnce() -> Result<BusBuilder, E>,
        options: &Options,
    ) -> ExitCode {
        called_from_here(true, Verb::has_subcommand);
        let builder = if self.0.needs_program() { build().await } else { Ok(Bus::builder()) };
        match builder {
            Ok(builder) => {
                conclude(Session::new(options, builder), async |session| self.0.execute(session).await).await
            }
            Err(error) => {
                options.output().error(Failure::from(error.into()).text().unwrap_or_default());
                ExitCode::FAILURE
            }
        }
    }
}

impl FromArgMatches for Command {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Verb::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl Subcommand for Command {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        Verb::augment_subcommands(command)
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Verb::augment_subcommands_for_update(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Verb::has_subcommand(name)
    }
}

/// Does what a verb of the standalone binary says.
pub(crate) async fn execute_standalone(verb: StandaloneVerb, options: &Options) -> ExitCode {
    conclude(Session::new(options, Bus::builder()), async |session| verb.execute(session).await).await
}

/// Runs a verb, writes what is left to write, and says how it ended.
async fn conclude(mut session: Session, verb: impl AsyncFnOnce(&mut Session) -> Result) -> ExitCode {
    let result = verb(&mut session).await;
    let flushed = session.out.flush();
    let failure = result.and(flushed).err();
    if let Some(text) = failure.as_ref().and_then(Failure::text) {
        session.out.error(text);
    }
    let ended = failure.map_or_else(|| session.out.end().err(), Some);
    ended.map_or(ExitCode::SUCCESS, |failure| ExitCode::from(failure.exit_code()))
}
