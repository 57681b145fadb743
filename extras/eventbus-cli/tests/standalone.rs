//! The binary `eventbus` as scripts meet it: exit codes, pipes, completions.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary, on a broker that ends with it.
fn eventbus(arguments: &[&str]) -> Command {
    let binary = env!("CARGO_BIN_EXE_eventbus");
    // What a shell begins in the background ignores Ctrl-C, and so would all that it begins.
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", binary]);
        command
    } else {
        Command::new(binary)
    };
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
fn a_verb_that_needs_handlers_says_where_it_is_to_be_found() {
    for verb in ["run", "replay", "check", "subscriptions"] {
        let refused = ended(&mut eventbus(&[verb]), 2);
        let tip = format!("`{verb}` needs the handlers of a program");
        assert!(text(&refused.stderr).contains(&tip), "{refused:?}");
    }
    let unknown = ended(&mut eventbus(&["frobnicate"]), 2);
    assert!(!text(&unknown.stderr).contains("handlers"), "{unknown:?}");
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

/// Ends `command` after the first line that it writes, with what it remarked. It is given more lines than a pipe holds.
fn read_one_line(mut command: Command) -> (String, Option<i32>, String) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
    writer.join().unwrap();
    (first, child.wait().unwrap().code(), remarks)
}

#[test]
fn a_publish_whose_reader_has_left_before_its_end_says_how_far_it_came() {
    let logs = Logs::new();
    let (first, code, remarks) = read_one_line(logs.eventbus("a.db", &["publish", "a", "--lines", "--json"]));
    assert!(first.starts_with(r#"{"id":""#), "{first}");
    let log = ended(&mut logs.eventbus("a.db", &["log", "--json"]), 0);
    let published = text(&log.stdout).lines().count();
    let said = remarks.trim_end().replace(',', "");
    let expected =
        format!("error: nobody reads the output any more: ended halfway ({published} events published)");
    assert_eq!((code, said), (Some(1), expected));
}

#[test]
fn a_reader_that_leaves_when_all_is_done_or_nothing_is_changed_ends_the_program_in_peace() {
    let logs = Logs::new();
    let lines = logs.0.path().join("lines");
    std::fs::write(&lines, "1\n".repeat(2_000)).unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let output = ended(logs.eventbus("a.db", &["publish", "a", "1", "--lines", "--json"]).stdout(closed), 0);
    assert_eq!(text(&output.stderr), "");
    ended(logs.eventbus("a.db", &["publish", "a", "--lines"]).stdin(std::fs::File::open(&lines).unwrap()), 0);
    let (first, code, remarks) = read_one_line(logs.eventbus("a.db", &["log", "--json"]));
    assert!(first.starts_with(r#"{"offset":"1""#), "{first}");
    assert_eq!((code, remarks.as_str()), (Some(0), ""));
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
    let published = pipe();
    assert_eq!(text(&published.stdout), "published 5 events to 2 topics\n");
    assert_eq!(text(&log("b.db")), text(&log("a.db")));
    // The embedded log stores an event once.
    let again = pipe();
    assert_eq!(text(&again.stdout), "published 0 events, 5 were there already\n");
    assert_eq!(text(&log("b.db")), text(&log("a.db")));
}

#[test]
fn events_that_the_log_had_already_are_told_from_new_ones() {
    let logs = Logs::new();
    let event =
        |id: u32| format!("{{\"specversion\":\"1.0\",\"id\":\"{id}\",\"source\":\"s\",\"type\":\"a\"}}");
    let events = |ids: &[u32]| ids.iter().map(|id| event(*id)).collect::<String>();
    let publish = |ids: &[u32], arguments: &[&str], code| {
        let events = events(ids);
        let arguments = [&["publish", "--cloudevents", &events][..], arguments].concat();
        ended(&mut logs.eventbus("a.db", &arguments), code)
    };
    // Two of one id in one input, and another that comes in between.
    assert_eq!(text(&publish(&[1, 2, 1], &[], 0).stdout), "published 2 events to a, 1 was there already\n");
    ended(&mut logs.eventbus("a.db", &["publish", "b", "1"]), 0);
    assert_eq!(
        text(&publish(&[2, 3, 1, 4], &[], 0).stdout),
        "published 2 events to a, 2 were there already\n"
    );
    assert_eq!(text(&publish(&[5], &[], 0).stdout), "published 1 event to a\n");
    let told = publish(&[5, 6], &["--json"], 0);
    let known: Vec<_> = text(&told.stdout).lines().map(|line| line.contains("\"known\":true")).collect();
    assert_eq!(known, [true, false], "{told:?}");
    // More than are looked at in one go.
    let many: Vec<_> = (1..=1_500).collect();
    assert_eq!(text(&publish(&many, &[], 0).stdout), "published 1,494 events to a, 6 were there already\n");
}

#[test]
fn the_first_event_that_the_log_refuses_is_named_whatever_comes_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let event =
        |topic| format!("{{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"{topic}\"}}");
    // The id of the second is that of another event; the third is none.
    let events = format!("{} {} {{}}", event("a"), event("b"));
    let refused = ended(&mut eventbus(&["publish", "--cloudevents", &events, "--url", &url]), 1);
    let said = text(&refused.stderr);
    assert!(said.contains("error: event 2: ") && said.contains("another event of its source"), "{said}");
    assert!(said.contains("(1 event published)"), "{said}");
}

#[test]
fn a_text_that_windows_has_marked_is_read_as_one_without_a_mark() {
    let logs = Logs::new();
    let file = logs.0.path().join("input");
    let publish = |input: &[u8], arguments: &[&str], code| {
        std::fs::write(&file, input).unwrap();
        let mut publish = logs.eventbus("a.db", &[&["publish"], arguments].concat());
        ended(publish.stdin(std::fs::File::open(&file).unwrap()), code)
    };
    publish("\u{feff}{\"a\": 1}\r\n".as_bytes(), &["a"], 0);
    publish("\u{feff}1\r\n2\r\n".as_bytes(), &["a", "--lines"], 0);
    let event = r#"{"specversion":"1.0","id":"3","source":"/t","type":"a","data":3}"#;
    publish(format!("\u{feff}[{event}]\r\n").as_bytes(), &["a", "--cloudevents"], 0);
    // What is no JSON is published to the letter.
    publish("\u{feff}4".as_bytes(), &["a", "--content-type", "text/plain"], 0);
    for arguments in [&["a"][..], &["a", "--lines"], &["--cloudevents"]] {
        let refused = publish(b"\xff\xfe5\0", arguments, 1);
        assert!(text(&refused.stderr).contains("it is in UTF-16"), "{refused:?}");
    }
    let log = ended(&mut logs.eventbus("a.db", &["log", "--json"]), 0);
    let payloads =
        [r#""data":{"a":1}"#, r#""data":1"#, r#""data":2"#, r#""data":3"#, r#""data_base64":"77u/NA==""#];
    assert_eq!(text(&log.stdout).lines().count(), payloads.len(), "{log:?}");
    for (line, payload) in text(&log.stdout).lines().zip(payloads) {
        assert!(line.contains(payload), "{payload}: {line}");
    }
}

#[test]
fn what_begins_with_a_minus_is_a_value_where_one_stands() {
    let logs = Logs::new();
    ended(&mut logs.eventbus("a.db", &["publish", "degrees.measured", "-7", "--key", "-1"]), 0);
    for arguments in [&["--key", "-1"][..], &["--since", "-2h"]] {
        let log = ended(&mut logs.eventbus("a.db", &[&["log", "--json"], arguments].concat()), 0);
        assert!(text(&log.stdout).contains("\"data\":-7"), "{arguments:?}: {log:?}");
    }
    for (arguments, told) in [
        (&["log", "-n", "-4"][..], "invalid value '-4' for '--limit"),
        (&["log", "--after", "-1"], "`-1` is no offset"),
        (&["log", "--since", "--json"], "`--json` is no time"),
        (&["groups", "seek", "mail", "-1", "--yes"], "`-1` is no offset"),
        (&["tail", "--last", "-1"], "invalid value '-1' for '--last"),
    ] {
        let refused = ended(&mut logs.eventbus("a.db", arguments), 2);
        assert!(text(&refused.stderr).contains(told), "{arguments:?}: {refused:?}");
    }
}

#[test]
fn a_log_is_piped_into_another_one_to_its_end() {
    let logs = Logs::new();
    let lines = logs.0.path().join("lines");
    std::fs::write(&lines, (0..2_345).map(|number| format!("{number}\n")).collect::<String>()).unwrap();
    let lines = std::fs::File::open(&lines).unwrap();
    ended(logs.eventbus("a.db", &["publish", "a", "--lines"]).stdin(lines), 0);
    let count = |arguments: &[&str]| {
        let log = ended(&mut logs.eventbus("a.db", &[&["log"], arguments].concat()), 0);
        (text(&log.stdout).lines().count(), text(&log.stderr).contains("there are more"))
    };
    assert_eq!(count(&["--json"]), (2_345, false));
    assert_eq!(count(&["--json", "--newest"]), (2_345, false));
    assert_eq!(count(&["--json", "--limit", "1234"]), (1_234, true));
    assert_eq!(count(&["--json", "--limit", "2345"]), (2_345, false));
    assert_eq!(count(&[]), (1 + 100, true));
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

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Until it is the binary, signals may still be ignored.
        let program = std::path::PathBuf::from(format!("/proc/{}/exe", child.id()));
        while cfg!(target_os = "linux")
            && !program.read_link().is_ok_and(|program| program.ends_with("eventbus"))
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    /// Sends a signal, and waits for the end: how it ended, and what it said.
    #[cfg(unix)]
    #[track_caller]
    fn end_by(mut self, signal: &str) -> (ExitStatus, String) {
        let id = self.0.id().to_string();
        let began = Instant::now();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            // A second is promised; the machine may be busy.
            assert!(began.elapsed() < Duration::from_secs(10), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut remarks = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut remarks).unwrap();
        (status, remarks)
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_what_waits_for_events_for_lines_or_for_its_reader() {
    use std::os::unix::process::ExitStatusExt;

    let logs = Logs::new();
    let line = format!("\"{}\"", "x".repeat(1_000));
    let lines = vec![line.as_str(); 1_000].join("\n");
    let mut many = logs.eventbus("a.db", &["publish", "a", "--lines"]);
    let mut many = many.stdin(Stdio::piped()).spawn().unwrap();
    many.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(many.wait().unwrap().success());
    for (name, signal, number) in [("INT", "-INT", 2), ("TERM", "-TERM", 15)] {
        // Whoever reads has read no more than the beginning.
        for arguments in [
            &["tail", "--last", "1", "--json"][..],
            &["log", "--json", "--limit", "1000"],
            &["log", "--limit", "1000"],
        ] {
            let mut running = Running::start(&mut logs.eventbus("a.db", arguments));
            running.0.stdout.as_mut().unwrap().read_exact(&mut [0; 10]).unwrap();
            let (status, remarks) = running.end_by(signal);
            assert_eq!((status.signal(), remarks.as_str()), (Some(number), ""), "{arguments:?} by {name}");
        }
        let mut publish = logs.eventbus("a.db", &["publish", "a", "--lines", "--json"]);
        let mut running = Running::start(publish.stdin(Stdio::piped()));
        let mut input = running.0.stdin.take().unwrap();
        input.write_all(b"1\n").unwrap();
        running.0.stdout.as_mut().unwrap().read_exact(&mut [0; 10]).unwrap();
        let (status, remarks) = running.end_by(signal);
        assert_eq!(status.code(), Some(128 + number), "{remarks}");
        assert_eq!(remarks, "error: ended by a signal (1 event published)\n");
        let mut publish = logs.eventbus("a.db", &["publish", "a", "-"]);
        let mut running = Running::start(publish.stdin(Stdio::piped()));
        let input = running.0.stdin.take().unwrap();
        assert_eq!(running.end_by(signal).0.signal(), Some(number));
        drop(input);
    }
}

#[test]
fn whoever_has_read_enough_ends_every_verb_in_peace() {
    let logs = Logs::new();
    let lines = "{\"a\":1}\n".repeat(3_000);
    let mut many = logs.eventbus("a.db", &["publish", "a", "--lines"]).stdin(Stdio::piped()).spawn().unwrap();
    many.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(many.wait().unwrap().success());
    for arguments in [
        &["log", "--limit", "3000"][..],
        &["log", "--limit", "3000", "--json"],
        &["tail", "--last", "3000"],
        &["tail", "--last", "3000", "--json"],
        &["topics"],
        &["groups", "list"],
        &["log", "show", "1"],
        &["log", "causes", "1"],
        &["completions", "zsh"],
        &["publish", "--help"],
        &["--version"],
    ] {
        let mut running = Running::start(&mut logs.eventbus("a.db", arguments));
        drop(running.0.stdout.take());
        let mut remarks = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut remarks).unwrap();
        let none = if arguments[0] == "groups" { "the broker knows no groups\n" } else { "" };
        assert_eq!((running.0.wait().unwrap().code(), remarks.as_str()), (Some(0), none), "{arguments:?}");
    }
}
