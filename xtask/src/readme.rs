//! `cargo xtask readme`: follows the README's first page word by word, in a new crate outside of the workspace.
//!
//! What it tells to type is typed, its program must print what it says, and its mistake must fail with the words that it
//! shows.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{fs, io};

pub(crate) const USAGE: &str = "cargo xtask readme";

const README: &str = include_str!("../../README.md");
/// The workspace, wherever the command is given.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

pub(crate) fn run() -> ExitCode {
    match follow() {
        Ok(()) => {
            println!("== the README's first page does what it says");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("== the README's first page fails: {error}");
            ExitCode::FAILURE
        }
    }
}

fn follow() -> io::Result<()> {
    let page =
        Page::read(README).ok_or_else(|| io::Error::other("it has not the blocks that are looked for"))?;
    let root = fs::canonicalize(ROOT)?;
    let folder = tempfile::tempdir()?;
    // The checkout of a user lies beside the new crate.
    let commands = page.commands.replace("../eventbus", &root.to_string_lossy());
    shell(folder.path(), &format!("set -e\n{commands}"))?;

    let program = folder.path().join("hello");
    // The versions that the project was tested with.
    fs::copy(root.join("Cargo.lock"), program.join("Cargo.lock"))?;
    fs::write(program.join("src/main.rs"), page.program)?;
    let (printed, errors) = cargo(&program, ["run", "--quiet"])?;
    if printed != page.output {
        return Err(io::Error::other(format!(
            "the program printed {printed:?}, not {:?}\n{errors}",
            page.output
        )));
    }

    fs::write(program.join("src/main.rs"), page.program.replacen(page.right, page.wrong, 1))?;
    let (_, errors) = cargo(&program, ["build", "--quiet"])?;
    match page
        .mistake
        .lines()
        .find(|line| !errors.lines().any(|error| without_number(error).starts_with(line)))
    {
        Some(line) => Err(io::Error::other(format!("the mistake does not say `{line}`, but:\n{errors}"))),
        None => Ok(()),
    }
}

/// The blocks of the first page.
struct Page<'a> {
    commands: &'a str,
    program: &'a str,
    output: &'a str,
    /// The attribute as it is, and as it does not build.
    right: &'a str,
    wrong: &'a str,
    mistake: &'a str,
}

impl<'a> Page<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (commands, rest) = block(text, "sh")?;
        let (program, rest) = block(rest, "rust")?;
        let (output, rest) = block(rest, "text")?;
        let wrong = rest.split_once("With `")?.1.split_once('`')?.0;
        let (mistake, _) = block(rest, "text")?;
        let right = program.lines().find(|line| line.starts_with("#[subscribe"))?;
        Some(Self { commands, program, output, right, wrong, mistake })
    }
}

/// The next block of a language, and what stands behind it.
fn block<'a>(text: &'a str, language: &str) -> Option<(&'a str, &'a str)> {
    text.split_once(&format!("```{language}\n"))?.1.split_once("```")
}

/// A line of the compiler without the number of the line that it shows: the README has none.
fn without_number(line: &str) -> String {
    let number = line.chars().take_while(char::is_ascii_digit).count();
    format!("{}{}", " ".repeat(number), &line[number..])
}

fn shell(folder: &Path, script: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{script}\n{}", String::from_utf8_lossy(&output.stderr))))
}

/// What cargo wrote to standard output, and to standard error.
fn cargo<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> io::Result<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(program)
        // What is built for the workspace need not be built again.
        .env("CARGO_TARGET_DIR", Path::new(ROOT).join("target"))
        .output()?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_has_its_blocks() {
        let page = Page::read(README).unwrap();
        assert!(page.commands.starts_with("cargo new hello"), "{}", page.commands);
        assert!(page.program.contains("async fn main()"), "{}", page.program);
        assert_ne!(page.program, page.program.replacen(page.right, page.wrong, 1));
    }

    #[test]
    fn the_numbers_of_lines_are_passed_over() {
        assert_eq!(without_number("13 | #[subscribe]"), "   | #[subscribe]");
        assert_eq!(without_number("   |   ^^^"), "   |   ^^^");
    }
}
