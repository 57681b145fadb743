//! The whole command line of a program, from its arguments to its exit code.

use crate::command::{Command, execute_standalone};
use crate::options::Options;
use crate::output::columns;
use crate::text::{counted, printable_lines};
use crate::verbs::{StandaloneVerb, Verb};
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use eventbus_core::command_line::is_called;
use eventbus_core::printable::is_hostile;
use eventbus_core::{BoxError, BusBuilder, census};
use std::convert::Infallible;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// The whole command line of an application, for the one line in `main`. The macro of the same name lets the help begin
/// with the words of the application's package.
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
    main_of("", "", build).await
}

/// As [`main`](fn@main), with the words of the package in whose code this stands: `--help` begins with its `description`,
/// and `--version` tells its version.
///
/// ```
/// use eventbus::Bus;
/// use std::process::ExitCode;
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     # if std::env::args().count() < 2 { return ExitCode::SUCCESS; }
///     eventbus_cli::main!(Bus::builder()).await
/// }
/// ```
#[macro_export]
macro_rules! main {
    ($builder:expr $(,)?) => {{
        let builder = $builder;
        $crate::main_with!(async move || ::core::result::Result::<_, ::core::convert::Infallible>::Ok(
            builder
        ))
    }};
}

/// As [`main_with`](fn@main_with), with the words of the package in whose code this stands, as [`main!`](macro@crate::main).
///
/// ```
/// use eventbus::{BoxError, Bus};
/// use std::process::ExitCode;
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     # if std::env::args().count() < 2 { return ExitCode::SUCCESS; }
///     eventbus_cli::main_with!(async || Ok::<_, BoxError>(Bus::builder())).await
/// }
/// ```
#[macro_export]
macro_rules! main_with {
    ($build:expr $(,)?) => {
        $crate::__private::main_of(
            ::core::env!("CARGO_PKG_DESCRIPTION"),
            ::core::env!("CARGO_PKG_VERSION"),
            $build,
        )
    };
}

/// The command line of a program with these words; without any, its help begins with what it declares.
pub async fn main_of<E: Into<BoxError>>(
    about: &'static str,
    version: &'static str,
    build: impl AsyncFnOnce() -> Result<BusBuilder, E>,
) -> ExitCode {
    let words = |command: clap::Command| {
        let command = if version.is_empty() { command } else { command.version(version) };
        if about.is_empty() { command.about(declared()) } else { command.about(about) }
    };
    let program: Program = match parse(words) {
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
    let program: Standalone = match parse(|command| command) {
        Ok(program) => program,
        Err(code) => return code,
    };
    called_from_here(false, StandaloneVerb::has_subcommand);
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
#[command(after_help = EXIT_CODES, disable_help_subcommand = true)]
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
Exit codes: 0 done, 1 failed (`check` found mistakes, `status` a stall), 2 wrong usage, 3 what was named is not \
there, 4 `status` cannot tell";

/// Reads the arguments. The help and the version are a success, and wrong usage is exit code 2.
fn parse<P: Parser>(words: impl FnOnce(clap::Command) -> clap::Command) -> Result<P, ExitCode> {
    let mut command = words(P::command().bin_name(called()));
    if io::stdout().is_terminal() {
        // Longer lines are hard to read on a wide one.
        command = command.term_width(columns().min(100));
    }
    let read = || P::from_arg_matches_mut(&mut command.try_get_matches()?);
    read().map_err(|mut error: clap::Error| {
        tell_whose(&mut error);
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

/// Says of a verb that only programs have where it is to be found.
fn tell_whose(error: &mut clap::Error) {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return };
    if Verb::has_subcommand(word) {
        let tip = format!(
            "`{word}` needs the handlers of a program: give yours a command line, `eventbus_cli::main(Bus::builder())`, \
             and call it there"
        );
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}

/// What a program without words of its own is.
fn declared() -> String {
    let subscriptions = counted(census::subscribers().len(), "subscription");
    let events = counted(census::events().len(), "event type");
    format!("{}: a program with {subscriptions} and {events}", called())
}

/// Lets messages name the command line as it was called, so that what they say to do can be pasted.
pub(crate) fn called_from_here(handlers: bool, is_ours: fn(&str) -> bool) {
    // An argument that is no text is none of the words that are looked for.
    let arguments: Vec<_> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if !arguments.is_empty() {
        is_called(words_before(&arguments, is_ours), handlers);
    }
}

/// The words that a verb of ours is called with: the program, and where an application has our verbs below some of its
/// own, these. What a value of its own options may be is none.
fn words_before(arguments: &[String], is_ours: fn(&str) -> bool) -> &[String] {
    let own = arguments.iter().skip(1).take_while(|word| !word.starts_with('-') && !is_ours(word)).count();
    let ours = arguments.iter().skip(1).any(|word| is_ours(word));
    &arguments[..arguments.len().min(if ours { 1 + own } else { 1 })]
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
    fn an_application_is_helped_with_its_own_words() {
        #[derive(Parser)]
        struct Silent {
            #[command(flatten)]
            _options: Options,
            #[command(subcommand)]
            _verb: Own,
        }

        /// Sells books
        #[derive(Parser)]
        struct Shop {
            #[command(flatten)]
            _options: Options,
            #[command(subcommand)]
            _verb: Own,
        }

        #[derive(clap::Subcommand)]
        enum Own {
            #[command(flatten)]
            Bus(Command),
        }

        assert_eq!(Silent::command().get_about().map(ToString::to_string), None);
        assert_eq!(Shop::command().get_about().unwrap().to_string(), "Sells books");
        assert!(Shop::command().get_long_about().is_none_or(|about| about.to_string() == "Sells books"));
        assert!(Program::command().get_about().is_none(), "what it says is set when it is parsed");
        assert!(declared().ends_with(": a program with 2 subscriptions and 4 event types"), "{}", declared());
    }

    #[test]
    fn messages_name_the_verbs_of_an_application_that_ours_stand_below() {
        for (line, called) in [
            ("./shop groups list", "./shop"),
            ("shop --url sqlite:a.db groups list", "shop"),
            ("shop bus groups list --url sqlite:a.db", "shop bus"),
            ("shop admin bus --json log order.placed", "shop admin bus"),
            ("shop --tenant acme bus run", "shop"),
            ("shop", "shop"),
        ] {
            let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(
                words_before(&arguments, crate::verbs::Verb::has_subcommand).join(" "),
                called,
                "{line}"
            );
        }
    }

    #[test]
    fn the_command_lines_are_well_formed() {
        Program::command().debug_assert();
        Standalone::command().debug_assert();
    }
}
