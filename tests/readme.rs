//! The blocks of Rust in README are excerpts of the examples, word by word, so that they compile and run.

use std::fs;
use std::path::Path;

const README: &str = include_str!("../README.md");

/// The blocks of a language, each with its lines.
fn blocks(language: &str) -> Vec<&str> {
    let fence = format!("```{language}\n");
    README.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// A block as it stands in an example, deeper inside.
fn indented(block: &str, spaces: usize) -> String {
    let indent = " ".repeat(spaces);
    block
        .split_inclusive('\n')
        .map(|line| if line == "\n" { line.to_owned() } else { format!("{indent}{line}") })
        .collect()
}

#[test]
fn blocks_of_rust_are_excerpts_of_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["examples", "extras/eventbus-cli/examples"];
    let examples: Vec<_> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let blocks = blocks("rust");
    assert!(blocks.len() > 5, "the blocks were found: {}", blocks.len());
    for block in blocks {
        let found = [0, 4, 8].map(|spaces| indented(block, spaces));
        let found = found.iter().any(|block| examples.iter().any(|example| example.contains(block)));
        assert!(found, "no example has this:\n{block}");
    }
}

/// A code host shows the lines that rustdoc hides.
#[test]
fn no_block_has_hidden_lines() {
    for block in README.split("```").skip(1).step_by(2) {
        assert!(!block.lines().any(|line| line.starts_with("# ")), "a hidden line:\n{block}");
    }
}

/// The first block is a whole program, the one that is added to a new crate.
#[test]
fn the_first_program_is_an_example_as_it_stands() {
    let (_what_it_is, program) = include_str!("../examples/hello.rs").split_once("\n\n").unwrap();
    assert_eq!(blocks("rust")[0], program);
}

#[test]
fn options_of_addresses_are_those_of_a_broker() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("brokers");
    let brokers: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|crate_| fs::read_to_string(crate_.unwrap().path().join("src/config.rs")).ok())
        .collect();
    assert!(brokers.len() > 5, "the brokers' settings were found: {}", brokers.len());
    let is_word = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let options: Vec<_> = README
        .split('?')
        .skip(1)
        .filter_map(|rest| rest.split_once('=').map(|(option, _)| option))
        .filter(|option| option.chars().all(is_word))
        .collect();
    assert!(options.len() > 5, "the options were found: {options:?}");
    for option in options {
        let quoted = format!("\"{option}\"");
        assert!(brokers.iter().any(|broker| broker.contains(&quoted)), "no broker has `?{option}=`");
    }
}

/// The program of the first page returns another type from `main` than the command line does.
#[test]
fn each_main_is_shown_whole() {
    let mentions = README.lines().filter(|line| line.contains("eventbus_cli::main"));
    assert!(mentions.clone().count() > 0, "the command line is shown");
    for line in mentions {
        let main = blocks("rust").into_iter().find(|block| block.contains(line));
        assert!(main.is_some_and(|main| main.contains("ExitCode")), "no `main` to paste: {line}");
    }
}
