//! The command line inside of an application, as scripts meet it.
//!
//! This test binary is the application too, where a variable says so; therefore it has a `main` of its own.

use eventbus::{BoxError, Bus, BusBuilder, Event, State, subscribe};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Output, Stdio};
use std::{env, fs};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

struct Mailer;

#[subscribe(group = "mail")]
async fn confirm(_order: OrderPlaced, _mailer: State<Mailer>) {}

const ROLE: &str = "EVENTBUS_TEST_ROLE";

async fn build() -> Result<BusBuilder, BoxError> {
    match env::var(ROLE)?.as_str() {
        "shop" => Ok(Bus::builder().state(Mailer)),
        "shop without a mailer" => Ok(Bus::builder()),
        _ => Err("the mail server is down".into()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    if env::var_os(ROLE).is_some() {
        return eventbus_cli::main_with(build).await;
    }
    let tests: [(&str, fn()); 5] = [
        ("a_check_fails_where_a_start_would", a_check_fails_where_a_start_would),
        (
            "states_are_built_for_the_verbs_that_need_them_only",
            states_are_built_for_the_verbs_that_need_them_only,
        ),
        ("colour_is_for_terminals_and_for_those_who_ask", colour_is_for_terminals_and_for_those_who_ask),
        ("a_shell_can_complete_every_verb", a_shell_can_complete_every_verb),
        ("a_run_ends_with_a_signal", a_run_ends_with_a_signal),
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
    let mut child = shop(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut remarks = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(remarks.next().unwrap().unwrap(), "running 1 subscription; Ctrl-C ends it");
    // The signal is listened for right after; until then it would end the program unheard.
    let id = child.id().to_string();
    for _ in 0..100 {
        let caught = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let mask = caught.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
        if u64::from_str_radix(mask, 16).unwrap() & (1 << 14) != 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
