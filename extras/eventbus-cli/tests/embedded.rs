//! The command line inside of an application, as scripts meet it.
//!
//! This test binary is the application too, where a variable says so; therefore it has a `main` of its own.

use clap::Parser;
use eventbus::bus::BusBuilder;
use eventbus::{BoxError, Bus, Event, Outcome, State, subscribe};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;
use std::{env, fs};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

struct Mailer;

/// There is no order 13.
#[subscribe(group = "mail")]
async fn confirm(order: OrderPlaced, _mailer: State<Mailer>) -> Outcome {
    if order.id == 13 { Outcome::Reject("no such order".into()) } else { Outcome::Ack }
}

/// Ctrl-C in an editor goes to its parent as well.
const EDITOR: &str = r#"sh -c 'kill -INT $PPID; sed -i s/13/14/ "$0"'"#;
const ROLE: &str = "EVENTBUS_TEST_ROLE";

/// An application that has the verbs among its own, and below one of them.
#[derive(clap::Parser)]
struct Own {
    #[command(flatten)]
    options: eventbus_cli::Options,
    #[command(subcommand)]
    verb: OwnVerb,
}

#[derive(clap::Subcommand)]
enum OwnVerb {
    #[command(flatten)]
    Flat(eventbus_cli::Command),
    /// The event bus
    Bus {
        #[command(subcommand)]
        command: eventbus_cli::Command,
    },
}

async fn build() -> Result<BusBuilder, BoxError> {
    match env::var(ROLE)?.as_str() {
        "shop" => Ok(Bus::builder().state(Mailer)),
        "shop without a mailer" => Ok(Bus::builder()),
        _ => Err("the mail server is down".into()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match env::var(ROLE).as_deref() {
        Ok("shop with verbs of its own") => {
            let Own { options, verb } = Own::parse();
            return match verb {
                OwnVerb::Flat(command) | OwnVerb::Bus { command } => {
                    command.execute(Bus::builder().state(Mailer), &options).await
                }
            };
        }
        Ok(_) => return eventbus_cli::main_with(build).await,
        Err(_) => {}
    }
    let tests: [(&str, fn()); 11] = [
        (
            "an_application_with_verbs_of_its_own_is_named_in_what_can_be_pasted",
            an_application_with_verbs_of_its_own_is_named_in_what_can_be_pasted,
        ),
        (
            "a_check_creates_no_log_and_says_that_there_is_none",
            a_check_creates_no_log_and_says_that_there_is_none,
        ),
        ("a_check_fails_where_a_start_would", a_check_fails_where_a_start_would),
        (
            "states_are_built_for_the_verbs_that_need_them_only",
            states_are_built_for_the_verbs_that_need_them_only,
        ),
        ("colour_is_for_terminals_and_for_those_who_ask", colour_is_for_terminals_and_for_those_who_ask),
        ("a_shell_can_complete_every_verb", a_shell_can_complete_every_verb),
        ("a_run_ends_with_a_signal", a_run_ends_with_a_signal),
        ("operators_and_the_program_meet_on_one_file", operators_and_the_program_meet_on_one_file),
        (
            "a_purge_whose_reader_has_left_before_its_end_says_how_far_it_came",
            a_purge_whose_reader_has_left_before_its_end_says_how_far_it_came,
        ),
        (
            "a_move_says_how_much_the_heir_has_been_at_already",
            a_move_says_how_much_the_heir_has_been_at_already,
        ),
        (
            "a_topic_that_was_renamed_is_told_of_and_dropped_without_what_is_live",
            a_topic_that_was_renamed_is_told_of_and_dropped_without_what_is_live,
        ),
    ];
    for (name, test) in tests {
        println!("test {name}");
        test();
    }
    ExitCode::SUCCESS
}

fn shop(arguments: &[&str]) -> Command {
    in_role("shop", arguments)
}

fn in_role(role: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(arguments)
        .env(ROLE, role)
        .env("EVENTBUS_URL", "memory:")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
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

fn a_check_fails_where_a_start_would() {
    let output = ended(&mut shop(&["check"]), 0);
    assert_eq!(text(&output.stdout), "✓ 1 subscription and 1 event type checked\n");
    let json: Value = serde_json::from_slice(&ended(&mut shop(&["check", "--json"]), 0).stdout).unwrap();
    assert_eq!(json["mistakes"], Value::Array(Vec::new()));
    let output = ended(&mut in_role("shop without a mailer", &["check", "--json"]), 1);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["mistakes"][0].as_str().unwrap().contains("Mailer"), "{json}");
    ended(&mut in_role("shop without a mailer", &["run"]), 1);
}

fn a_check_creates_no_log_and_says_that_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let check = |role, url: &str, code| {
        let output =
            ended(in_role(role, &["check"]).current_dir(folder.path()).env("EVENTBUS_URL", url), code);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{url}: {output:?}");
        output
    };
    for url in ["sqlite:eventbus.db", "sqlite:./mistyped.db?durability=normal"] {
        let output = check("shop", url, 0);
        assert!(text(&output.stdout).starts_with('✓'), "{output:?}");
        assert!(text(&output.stderr).contains("there is no log `"), "{output:?}");
        assert!(text(&check("shop without a mailer", url, 1).stdout).contains("Mailer"));
    }
    for refused in ["sqlite:none/a.db", "sqlite:a.db?create=false", "sqlite:a.db?durability=total"] {
        assert!(text(&check("shop", refused, 1).stderr).starts_with("error: "), "{refused}");
    }
}

fn states_are_built_for_the_verbs_that_need_them_only() {
    ended(&mut in_role("broken shop", &["topics"]), 0);
    let failed = ended(&mut in_role("broken shop", &["check"]), 1);
    assert_eq!(text(&failed.stderr), "error: the mail server is down\n");
}

fn colour_is_for_terminals_and_for_those_who_ask() {
    let colourful = |command: &mut Command| text(&ended(command, 0).stdout).contains('\u{1b}');
    assert!(!colourful(&mut shop(&["topics"])));
    assert!(colourful(&mut shop(&["topics", "--color", "always"])));
    assert!(!colourful(&mut shop(&["topics", "--color", "never"])));
    assert!(!colourful(shop(&["topics"]).env("NO_COLOR", "1")));
}

fn a_shell_can_complete_every_verb() {
    let script = ended(&mut shop(&["completions", "zsh"]), 0);
    let name = env::current_exe().unwrap();
    let name = name.file_stem().unwrap().to_str().unwrap();
    assert!(text(&script.stdout).starts_with(&format!("#compdef {name}\n")));
    assert!(text(&script.stdout).contains("subscriptions") && text(&script.stdout).contains("dead-letters"));
}

fn a_run_ends_with_a_signal() {
    if !cfg!(target_os = "linux") {
        return; // The test reads there when the program is ready for a signal.
    }
    let program = Running::start("memory:");
    program.stop();
}

/// The program, while it handles events.
struct Running(Child);

impl Running {
    fn start(url: &str) -> Self {
        let mut child = shop(&["run", "--url", url]).stderr(Stdio::piped()).spawn().unwrap();
        let mut remarks = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        // The log of the bus is there as well, since the program has set up none.
        assert!(remarks.next().unwrap().contains("INFO eventbus: 1 subscription from"));
        assert!(remarks.any(|line| line == "running 1 subscription; Ctrl-C ends it"));
        // Whoever writes to a pipe that nobody reads fails.
        std::thread::spawn(move || remarks.for_each(drop));
        Self(child)
    }

    fn stop(mut self) {
        // The signal is listened for right after the remark; until then it would end the program unheard.
        let id = self.0.id().to_string();
        wait(|| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
            u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0
        });
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Running {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pipe whose reader has left.
fn closed() -> io::PipeWriter {
    let (_reader, writer) = io::pipe().unwrap();
    writer
}

/// Waits for a condition, up to ten seconds.
#[track_caller]
fn wait(condition: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("this never came to be");
}

fn operators_and_the_program_meet_on_one_file() {
    if !cfg!(target_os = "linux") {
        return; // It stops the program as the test above does.
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    let operator = |arguments: &[&str], code| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventbus"));
        let output = ended(command.args(arguments).env("EVENTBUS_URL", &url).env("EDITOR", EDITOR), code);
        text(&output.stdout).to_owned()
    };
    let lines = |arguments: &[&str]| -> Vec<Value> {
        operator(arguments, 0).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let program = Running::start(&url);
    operator(&["publish", "order.placed", "{\"id\":7}"], 0);
    operator(&["publish", "order.placed", "{\"id\":13}"], 0);
    wait(|| lines(&["dead-letters", "list", "--json"]).len() == 1);
    let group = || lines(&["groups", "list", "--json"]).remove(0);
    wait(|| group()["backlog"] == 0);
    assert_eq!((&group()["group"], &group()["active"]), (&"mail".into(), &true.into()));
    operator(&["groups", "drop", "mail"], 1);
    let unreadable = folder.path().join("payload.json");
    std::fs::write(&unreadable, r#"{"id":"seven"}"#).unwrap();
    let edit = ["dead-letters", "edit", "1", "--payload", unreadable.to_str().unwrap(), "--url", &url];
    let refused = ended(&mut shop(&edit), 1);
    assert!(text(&refused.stderr).contains("nothing was delivered; mend the payload"), "{refused:?}");
    assert_eq!(lines(&["dead-letters", "list", "--json"]).len(), 1, "what handlers cannot read stays");
    assert_eq!(operator(&["dead-letters", "edit", "1"], 0), "delivered again dead letter 1 of mail\n");
    operator(&["dead-letters", "edit", "1"], 3);
    wait(|| group()["backlog"] == 0);
    assert!(lines(&["dead-letters", "list", "--json"]).is_empty());
    // A replay runs beside the live subscription, and has what was mended.
    let replayed = ended(&mut shop(&["replay", "mail", "--yes", "--json", "--url", &url]), 0);
    let report: Value = serde_json::from_str(text(&replayed.stdout).lines().last().unwrap()).unwrap();
    assert_eq!((&report["report"]["acked"], &report["report"]["failed"]), (&2.into(), &0.into()));
    program.stop();
    assert_eq!(lines(&["topics", "--json"])[0]["events"], 2);
    operator(&["groups", "move", "mail", "post"], 2);
    operator(&["groups", "move", "mail", "post", "--yes"], 0);
    let findings = ended(&mut shop(&["check", "--url", &url]), 0);
    assert!(text(&findings.stdout).contains("was it renamed to `mail`"), "{findings:?}");
    for way in [&["check", "--strict", "--url", &url][..], &["check", "--strict", "--json", "--url", &url]] {
        let strict = text(&ended(&mut shop(way), 1).stdout).to_owned();
        assert!(strict.contains("was it renamed to `mail`") && !strict.contains('✓'), "{strict}");
    }
    ended(&mut shop(&["check", "--strict"]), 0);
}

/// The program as it was: this `group` listened on this topic.
fn earlier_program(url: String, group: &'static str, topic: &'static str) {
    let run = async move {
        let bus = Bus::builder().without_subscriptions().connect(&url).await.unwrap();
        bus.on_topic(topic, |_| async {}).group(group).await.unwrap();
        bus.shutdown().await.unwrap();
    };
    let program = move || tokio::runtime::Runtime::new().unwrap().block_on(run);
    std::thread::spawn(program).join().unwrap();
}

fn an_application_with_verbs_of_its_own_is_named_in_what_can_be_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    earlier_program(url.clone(), "send_mail", "order.placed");
    let program = env::current_exe().unwrap();
    for path in [&[][..], &["bus"]] {
        let arguments = [path, &["check", "--url", &url]].concat();
        let found = ended(&mut in_role("shop with verbs of its own", &arguments), 0);
        let words =
            [&[program.to_str().unwrap()], path, &["--url", &url, "groups move send_mail mail"]].concat();
        let command = format!("`{}`", words.join(" "));
        assert!(text(&found.stdout).contains(&command), "{command}: {found:?}");
    }
}

fn a_move_says_how_much_the_heir_has_been_at_already() {
    if !cfg!(target_os = "linux") {
        return; // It stops the program as the tests above do.
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    earlier_program(url.clone(), "send_mail", "order.placed");
    let operator = |arguments: &[&str], code| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventbus"));
        ended(command.args(arguments).env("EVENTBUS_URL", &url).stdin(Stdio::null()), code)
    };
    for _ in 0..3 {
        operator(&["publish", "order.placed", "{\"id\":7}"], 0);
    }
    let findings = ended(&mut shop(&["check", "--url", &url]), 0);
    let told = text(&findings.stdout);
    assert!(told.contains("before this program runs for long"), "{told}");
    let program = Running::start(&url);
    operator(&["publish", "order.placed", "{\"id\":7}"], 0);
    wait(|| {
        let groups = operator(&["groups", "list", "--json"], 0);
        let mut groups =
            text(&groups.stdout).lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        groups.any(|group| group["group"] == "mail" && group["cursor"] == "4" && group["backlog"] == 0)
    });
    program.stop();
    let asked = operator(&["groups", "move", "send_mail", "mail"], 2);
    let told = "`mail` has been at up to 4 of these already, and handles again what it has handled";
    assert!(text(&asked.stderr).contains(told), "{asked:?}");
    let moved = operator(&["groups", "move", "send_mail", "mail", "--yes"], 0);
    assert!(text(&moved.stdout).contains(told), "{moved:?}");
}

fn a_topic_that_was_renamed_is_told_of_and_dropped_without_what_is_live() {
    if !cfg!(target_os = "linux") {
        return; // It stops the program as the tests above do.
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    Running::start(&url).stop();
    earlier_program(url.clone(), "mail", "order.made");
    let operator = |arguments: &[&str], code| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventbus"));
        ended(command.args(arguments).env("EVENTBUS_URL", &url).stdin(Stdio::null()), code)
    };
    for order in ["1", "2"] {
        operator(&["publish", "order.made", order], 0);
    }
    let findings = ended(&mut shop(&["check", "--url", &url]), 0);
    let told = text(&findings.stdout);
    for words in [
        "the group `mail` has a backlog of 2 events left over from when it listened on \"order.made\"",
        "now it listens on \"order.placed\"",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    // The command is that of the program, and does what it says where it is pasted.
    let command = told.split('`').find(|quoted| quoted.contains(" groups drop mail --pattern order.made"));
    let command = command.unwrap_or_else(|| panic!("{told}"));
    // Without the role, it would be these tests once more.
    let mut shell = Command::new("sh");
    let asked = ended(shell.args(["-c", command]).env(ROLE, "shop").stdin(Stdio::null()), 2);
    assert!(text(&asked.stderr).contains("forget what `mail` has: a backlog of 2 events"), "{asked:?}");
    let several = operator(&["groups", "drop", "mail", "--yes"], 2);
    let told = text(&several.stderr);
    assert!(told.contains("2 events on \"order.made\"") && told.contains("--all-patterns"), "{told}");
    assert_eq!(operator(&["groups", "drop", "mail", "--pattern", "order.mad", "--yes"], 3).stdout, b"");
    operator(&["groups", "drop", "mail", "--pattern", "order.made"], 2);
    operator(&["groups", "drop", "mail", "--pattern", "order.made", "--yes"], 0);
    let left = operator(&["groups", "list", "--json"], 0);
    assert!(text(&left.stdout).contains("order.placed") && !text(&left.stdout).contains("order.made"));
    let live = ended(&mut shop(&["groups", "drop", "mail", "--yes", "--url", &url]), 1);
    assert!(text(&live.stderr).contains("--live"), "{live:?}");
    assert_eq!(text(&ended(&mut shop(&["check", "--url", &url]), 0).stdout).lines().count(), 1);
}

fn a_purge_whose_reader_has_left_before_its_end_says_how_far_it_came() {
    if !cfg!(target_os = "linux") {
        return; // It stops the program as the test above does.
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("shop.db").display());
    let operator = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eventbus"));
        command.args(arguments).env("EVENTBUS_URL", &url);
        command
    };
    let program = Running::start(&url);
    let many = folder.path().join("many");
    fs::write(&many, "{\"id\":13}\n".repeat(400)).unwrap();
    ended(operator(&["publish", "order.placed", "--lines"]).stdin(fs::File::open(&many).unwrap()), 0);
    let letters = || {
        let list = ended(&mut operator(&["dead-letters", "list", "--json"]), 0);
        text(&list.stdout).lines().count()
    };
    wait(|| letters() == 400);
    let mut purge = operator(&["dead-letters", "purge", "--all", "--yes", "--json"]);
    let unread = ended(purge.stdout(closed()), 1);
    let left = letters();
    let told = format!("ended halfway ({} dead letters removed)", 400 - left);
    assert!(left > 0 && text(&unread.stderr).contains(&told), "{told}: {unread:?}");
    program.stop();
}
