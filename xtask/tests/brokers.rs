//! A real server (NATS, the quickest to install and to begin) under every verb of `cargo xtask brokers`.

#![cfg(target_os = "linux")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// NATS in an instance that only this test has; it is taken down at the end, also of a test that fails.
struct Nats {
    instance: &'static str,
    run: Option<&'static str>,
}

impl Nats {
    fn up(instance: &'static str, run: Option<&'static str>) -> Self {
        let nats = Self { instance, run };
        nats.done("down");
        nats.done("up");
        nats
    }

    fn order(&self, verb: &str) -> Output {
        let mut command = xtask();
        command.args(["brokers", verb, "nats", "--instance", self.instance]);
        if let Some(run) = self.run {
            command.env("EVENTBUS_TEST_RUN", run);
        }
        command.output().unwrap()
    }

    /// What an order printed that succeeded.
    fn done(&self, verb: &str) -> String {
        let output = self.order(verb);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of an order that failed.
    fn refused(&self, verb: &str) -> String {
        let output = self.order(verb);
        assert!(!output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    fn variable(&self, name: &str) -> String {
        let exports = self.done("env");
        let value = exports.lines().find_map(|line| line.strip_prefix(&format!("export {name}='")));
        value.unwrap_or_else(|| panic!("no {name} in {exports}")).trim_end_matches('\'').to_owned()
    }

    fn url(&self) -> String {
        self.variable("EVENTBUS_TEST_NATS_URL")
    }

    fn is(&self, condition: &str) -> bool {
        self.done("status").split_whitespace().any(|word| word == condition)
    }

    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.url().strip_prefix("nats://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut connection = Connection(BufReader::new(stream));
        assert!(connection.line().starts_with("INFO "));
        connection.write("CONNECT {\"verbose\":false}\r\nSUB reply 1\r\n");
        connection
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.order("down");
    }
}

/// Just enough of the protocol.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn write(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn ask(&mut self, subject: &str, body: &str) -> String {
        self.write(&format!("PUB {subject} reply {}\r\n{body}\r\n", body.len()));
        let header = self.line();
        assert!(header.starts_with("MSG reply "), "{header}");
        self.line()
    }
}

fn xtask() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    // What the environment says of servers is none of these tests' business: they have their own.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EVENTBUS_TEST_")) {
        command.env_remove(name);
    }
    command
}

#[test]
fn a_server_that_is_killed_comes_back_with_its_data_on_its_ports_and_a_new_one_is_empty() {
    let nats = Nats::up("xtask-kill", None);
    let url = nats.url();
    let stream = "{\"name\":\"ORDERS\",\"subjects\":[\"orders\"]}";
    let mut connection = nats.connect();
    assert!(connection.ask("$JS.API.STREAM.CREATE.ORDERS", stream).contains("stream_create_response"));
    assert!(connection.ask("orders", "one").contains("\"seq\":1"));

    nats.done("kill");
    assert!(nats.is("dead"));
    assert_eq!(connection.line(), "", "the connection is cut");
    assert!(nats.refused("kill").contains("it is dead: restart it"));
    assert_eq!(nats.url(), url, "a test that connects is to fail, not to find no server named");

    nats.done("restart");
    assert_eq!(nats.url(), url);
    let kept = nats.connect().ask("$JS.API.STREAM.INFO.ORDERS", "");
    assert!(kept.contains("\"messages\":1"), "{kept}");

    nats.done("down");
    assert!(nats.is("down"));
    assert!(nats.refused("env").contains("`cargo xtask brokers up nats --instance xtask-kill`"));
    nats.done("up");
    let fresh = nats.connect().ask("$JS.API.STREAM.INFO.ORDERS", "");
    assert!(fresh.contains("stream not found"), "{fresh}");
}

#[test]
fn a_server_that_is_paused_answers_once_it_goes_on() {
    let nats = Nats::up("xtask-pause", None);
    let mut connection = nats.connect();
    connection.write("PING\r\n");
    assert_eq!(connection.line(), "PONG\r\n");

    nats.done("pause");
    assert!(nats.is("paused"));
    connection.write("PING\r\n");
    let stream = connection.0.get_ref().try_clone().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let silence = connection.0.read_line(&mut String::new()).unwrap_err();
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    assert!(nats.refused("up").contains("it is paused: continue it"));

    nats.done("continue");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(connection.line(), "PONG\r\n");
}

#[test]
fn what_was_begun_for_a_run_of_tests_goes_down_with_it_and_nothing_else_does() {
    let theirs = Nats::up("xtask-theirs", None);
    let mut guard = xtask()
        .args(["brokers", "guard"])
        .env("EVENTBUS_TEST_RUN", "this-run")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let ours = Nats::up("xtask-ours", Some("this-run"));
    ours.done("kill");
    ours.done("restart");

    // As it is closed when a run is killed.
    drop(guard.stdin.take());
    assert!(guard.wait().unwrap().success());
    assert!(ours.is("down"));
    assert!(theirs.is("up"));
}

#[test]
fn a_server_that_cannot_begin_says_why_and_begins_once_it_can() {
    let nats = Nats::up("xtask-cannot", None);
    let port = nats.url().rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    nats.done("kill");

    let stranger = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let taken = nats.refused("restart");
    assert!(taken.contains(&format!("the port {port} (plain) cannot be had")), "{taken}");
    drop(stranger);

    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/brokers/servers/xtask-cannot/nats/nats");
    fs::remove_dir_all(folder.join("jetstream")).unwrap();
    fs::write(folder.join("jetstream"), "no folder").unwrap();
    let ended = nats.refused("restart");
    assert!(ended.contains("nats did not start: it ended. The end of "), "{ended}");
    assert!(ended.contains("[FTL]"), "the server's own words are missing: {ended}");
    assert!(nats.is("down"));

    fs::remove_file(folder.join("jetstream")).unwrap();
    nats.done("restart");
    assert_eq!(nats.url(), format!("nats://127.0.0.1:{port}"));
}

#[test]
fn a_server_of_somebody_else_is_taken_as_it_runs_and_not_killed() {
    let order = |verb: &str| {
        let url = "nats://192.0.2.1:4222";
        xtask().args(["brokers", verb, "nats"]).env("EVENTBUS_TEST_NATS_URL", url).output().unwrap()
    };
    let up = order("up");
    assert!(up.status.success());
    assert!(
        String::from_utf8(up.stdout).unwrap().contains("given by the environment: nats://192.0.2.1:4222")
    );
    let kill = order("kill");
    assert!(!kill.status.success());
    assert!(String::from_utf8(kill.stderr).unwrap().contains("only who began it can do that"));
}
