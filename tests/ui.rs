//! Compile errors are user interface: each mistake has a file in `tests/ui`, and beside it what the compiler says.

use std::path::{Path, PathBuf};

/// One mistake is one error, at most a second one that follows from it.
const MOST_ERRORS: usize = 2;
/// What fits on a screen together with the code.
const MOST_LINES: usize = 40;
/// The table of mistakes in the design has about this many rows.
const FEWEST_CASES: usize = 40;

#[test]
fn each_mistake_is_told_as_it_was_written_down() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/*.rs");
}

#[test]
fn no_mistake_is_told_at_length() {
    let told = files("stderr");
    assert!(told.len() >= FEWEST_CASES, "{} cases are left", told.len());
    for file in told {
        let text = std::fs::read_to_string(&file).unwrap();
        let errors = text.lines().filter(|line| line.starts_with("error")).count();
        let lines = text.lines().count();
        let name = file.display();
        assert!((1..=MOST_ERRORS).contains(&errors), "{name} has {errors} errors");
        assert!(lines <= MOST_LINES, "{name} has {lines} lines");
        assert!(!text.contains("__p::"), "{name} names what the macro keeps to itself");
    }
}

#[test]
fn each_mistake_has_its_text() {
    for file in files("rs") {
        let stderr = file.with_extension("stderr");
        assert!(stderr.exists(), "{} is missing", stderr.display());
    }
}

/// The files of `tests/ui` with this extension.
fn files(extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}
