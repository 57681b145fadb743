//! The binary `eventbus` as scripts meet it: exit codes, pipes, completions.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

/// The binary, on a broker that ends with it.
fn eventbus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventbus"));
    command.args(arguments).env("EVENTBUS_URL", "memory:").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn ended(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    output
}

#[test]
fn each_kind_of_end_has_its_exit_code() {
    ended(&mut eventbus(&["--help"]), 0);
    ended(&mut eventbus(&["--version"]), 0);
    ended(&mut eventbus(&["publish", "order.placed", "{}"]), 0);
    let failed = ended(&mut eventbus(&["tail", "--url", "nope:"]), 1);
    assert!(text(&failed.stderr).starts_with("error: cannot connect to `nope:`"), "{failed:?}");
    assert!(failed.stdout.is_empty());
    for wrong in
        [&["frobnicate"][..], &["publish", "order placed", "{}"], &["log", "--since", "soon"], &["run"], &[]]
    {
        ended(&mut eventbus(wrong), 2);
    }
    ended(&mut eventbus(&["dead-letters", "show", "7"]), 3);
}

#[test]
fn looking_at_a_mistyped_path_is_an_error_and_creates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mistyped.db");
    let url = format!("sqlite:{}", path.display());
    for verb in [
        &["log"][..],
        &["log", "show", "1"],
        &["tail"],
        &["topics"],
        &["groups", "list"],
        &["groups", "drop", "mail", "--yes"],
        &["dead-letters", "list"],
    ] {
        let failed = ended(eventbus(verb).args(["--url", &url]), 1);
        let told = text(&failed.stderr);
        assert!(told.contains("there is no log") && told.contains("mistyped.db"), "{verb:?}: {told}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{verb:?}");
    }
    ended(eventbus(&["publish", "order.placed", "{}"]).args(["--url", &url]), 0);
    assert!(path.exists());
    let log = ended(eventbus(&["log"]).args(["--url", &format!("{url}?durability=normal")]), 0);
    assert!(text(&log.stdout).contains("order.placed"), "{log:?}");
}

#[test]
fn a_reader_that_has_read_enough_ends_the_program_in_peace() {
    let mut child = eventbus(&["publish", "a", "--lines", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        for number in 0..50_000 {
            // The program ends before it has read everything.
            if writeln!(lines, "{number}").is_err() {
                return;
            }
        }
    });
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    drop(output);
    let mut remarks = String::new();
    child.stderr.take().unwrap().read_to_string(&mut remarks).unwrap();
    assert_eq!((child.wait().unwrap().code(), remarks.as_str()), (Some(0), ""));
    assert!(first.starts_with(r#"{"id":""#), "{first}");
    writer.join().unwrap();
}

#[test]
fn a_shell_can_complete_the_verbs_that_need_no_handlers() {
    let script = ended(&mut eventbus(&["completions", "bash"]), 0);
    assert!(text(&script.stdout).contains("dead-letters") && !text(&script.stdout).contains("subscriptions"));
}

/// Two logs, and the binary on one of them.
struct Logs(tempfile::TempDir);

impl Logs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn eventbus(&self, log: &str, arguments: &[&str]) -> Command {
        let mut command = eventbus(arguments);
        command.env("EVENTBUS_URL", format!("sqlite:{}", self.0.path().join(log).display()));
        command
    }
}

#[test]
fn a_log_that_is_piped_into_another_one_is_the_same() {
    let logs = Logs::new();
    for arguments in [
        &["order.placed", "{\"b\": 1.10, \"a\": [ ]}", "--key", "日本", "--header", "tenant=acme"][..],
        &["order.placed", "", "--content-type", "text/plain", "--key", ""],
        &[
            "order.placed",
            "<a/>",
            "--content-type",
            "Application/XML",
            "--header",
            "X-A=1",
            "--header",
            "x-a=2",
        ],
        &["order.paid", "{\"a\":1}", "--content-type", "text/json", "--event-version", "7", "--subject", "s"],
        &["order.paid", "1", "--header", "subject=of a header", "--header", "partitionkey=9", "--id", "é/1"],
    ] {
        ended(&mut logs.eventbus("a.db", &[&["publish"], arguments].concat()), 0);
    }
    let log = |name| ended(&mut logs.eventbus(name, &["log", "--json"]), 0).stdout;
    let pipe = || {
        let mut printing = logs.eventbus("a.db", &["log", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let printed = printing.stdout.take().unwrap();
        let published = ended(logs.eventbus("b.db", &["publish", "--cloudevents"]).stdin(printed), 0);
        printing.wait().unwrap();
        published
    };
    assert_eq!(text(&pipe().stdout), "published 5 events to 2 topics\n");
    assert_eq!(text(&log("b.db")), text(&log("a.db")));
    // The embedded log stores an event once.
    pipe();
    assert_eq!(text(&log("b.db")), text(&log("a.db")));
}

#[test]
fn what_comes_slowly_is_published_as_it_comes() {
    let logs = Logs::new();
    for (arguments, line) in [
        (&["publish", "a", "--lines", "--json"][..], "1"),
        (
            &["publish", "--cloudevents", "--json"],
            r#"{"specversion":"1.0","id":"1","source":"s","type":"a"}"#,
        ),
    ] {
        let mut command = logs.eventbus("a.db", arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..3 {
            writeln!(lines, "{line}").unwrap();
            assert!(answers.next().unwrap().unwrap().contains("\"topic\":\"a\""), "{arguments:?}");
        }
        drop(lines);
        assert!(child.wait().unwrap().success());
    }
}
