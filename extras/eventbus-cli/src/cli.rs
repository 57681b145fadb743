//! The whole command line of a program, from its arguments to its exit code.

use crate::command::{Command, execute_standalone};
use crate::options::Options;
use crate::output::columns;
use crate::text::printable_lines;
use crate::verbs::StandaloneVerb;
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use eventbus_core::printable::is_hostile;
use eventbus_core::{BoxError, BusBuilder};
use std::convert::Infallible;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// The whole command line of an application, for the one line in `main`.
///
/// ```
/// use eventbus::Bus;
/// use std::process::ExitCode;
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     # if std::env::args().count() < 2 { return ExitCode::SUCCESS; }
///     eventbus_cli::main(Bus::builder()).await
/// }
/// ```
pub async fn main(builder: BusBuilder) -> ExitCode {
    main_with(async move || Ok::<_, Infallible>(builder)).await
}

/// As [`main`], for a bus whose states are expensive: `build` is called by the verbs that start, check or publish
/// (`run`, `replay`, `check`, `publish`), and by no other.
///
/// ```
/// use eventbus::{BoxError, Bus};
/// use std::process::ExitCode;
///
/// # struct Pool;
/// # impl Pool { async fn connect() -> Result<Self, BoxError> { Ok(Self) } }
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     # if std::env::args().count() < 2 { return ExitCode::SUCCESS; }
///     eventbus_cli::main_with(async || Ok::<_, BoxError>(Bus::builder().state(Pool::connect().await?))).await
/// }
/// ```
pub async fn main_with<E: Into<BoxError>>(build: impl AsyncFnOnce() -> Result<BusBuilder, E>) -> ExitCode {
    let program: Program = match parse() {
        Ok(program) => program,
        Err(code) => return code,
    };
    match program.verb {
        ProgramCommand::Completions { shell } => completions::<Program>(shell),
        ProgramCommand::Command(command) => command.execute_with(build, &program.options).await,
    }
}

/// The command line of the `eventbus` binary: the verbs that need no handlers. A binary of your own that links
/// another broker calls this to have them on its addresses.
pub async fn standalone() -> ExitCode {
    let program: Standalone = match parse() {
        Ok(program) => program,
        Err(code) => return code,
    };
    match program.verb {
        StandaloneCommand::Completions { shell } => completions::<Standalone>(shell),
        StandaloneCommand::Verb(verb) => execute_standalone(verb, &program.options).await,
    }
}

/// Writes a script that completes the verbs and options of `C` in `shell`: for an application with verbs of its own.
pub fn completions<C: CommandFactory>(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut C::command(), called(), &mut script);
    // Whoever closes the pipe has read enough.
    let _ = io::stdout().write_all(&script);
    ExitCode::SUCCESS
}

#[derive(Parser)]
#[command(about = "The command line of this program's event bus", after_help = EXIT_CODES, disable_help_subcommand = true)]
struct Program {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: ProgramCommand,
}

#[derive(clap::Subcommand)]
enum ProgramCommand {
    #[command(flatten)]
    Command(Command),
    /// Write a script that completes verbs and options in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Parser)]
#[command(
    name = "eventbus",
    version,
    about = "Look into an event bus, and publish on it",
    after_help = EXIT_CODES,
    disable_help_subcommand = true
)]
struct Standalone {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: StandaloneCommand,
}

#[derive(clap::Subcommand)]
enum StandaloneCommand {
    #[command(flatten)]
    Verb(StandaloneVerb),
    /// Write a script that completes verbs and options in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed (or `check` found mistakes), 2 wrong usage, 3 what was named is not there";

/// Reads the arguments. The help and the version are a success, and wrong usage is exit code 2.
fn parse<P: Parser>() -> Result<P, ExitCode> {
    let mut command = P::command().bin_name(called());
    if io::stdout().is_terminal() {
        // Longer lines are hard to read on a wide one.
        command = command.term_width(columns().min(100));
    }
    let read = || P::from_arg_matches_mut(&mut command.try_get_matches()?);
    read().map_err(|error: clap::Error| {
        let text = error.render().to_string();
        // There is nobody to tell that nobody can be told.
        let _ = if text.contains(|c| c != '\n' && is_hostile(c)) {
            // An argument is quoted that came from somewhere else, and is worth more than colour.
            writeln!(io::stderr(), "{}", printable_lines(&text))
        } else {
            error.print()
        };
        u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
    })
}

/// The name that the program was called by.
fn called() -> String {
    let name = std::env::args_os().next();
    let stem = name.as_deref().map(Path::new).and_then(Path::file_stem);
    stem.map_or_else(|| "eventbus".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_lines_are_well_formed() {
        Program::command().debug_assert();
        Standalone::command().debug_assert();
    }
}
