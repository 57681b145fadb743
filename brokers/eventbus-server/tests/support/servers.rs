//! Where the servers for tests are, and servers of its own for a test.

#![allow(dead_code, reason = "not every broker's tests kill servers")]

use std::path::Path;
use std::process::Command;

/// A variable of the environment, or of the file that `cargo xtask brokers up` leaves.
pub fn setting(name: &str) -> Option<String> {
    let written = || {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/brokers/env");
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    std::env::var(name).ok().or_else(written)
}

/// The variable that has the address of a kind of server, as `cargo xtask brokers` names it.
pub fn variable(kind: &str) -> String {
    // This one is named after what it speaks.
    let named = if kind == "rabbitmq" { "AMQP".to_owned() } else { kind.to_uppercase() };
    format!("EVENTBUS_TEST_{named}_URL")
}

/// A server that only one test has, so that it may be killed.
pub struct Server {
    kind: &'static str,
    instance: &'static str,
}

impl Server {
    /// Begins one of a kind, as `cargo xtask brokers` names it, with fresh data.
    pub fn up(kind: &'static str, instance: &'static str) -> Self {
        let server = Self { kind, instance };
        server.order("down");
        server.order("up");
        server
    }

    /// One of the verbs of `cargo xtask brokers`; what it printed.
    pub fn order(&self, verb: &str) -> String {
        let mut command = match setting("EVENTBUS_TEST_XTASK") {
            Some(xtask) => Command::new(xtask),
            None => {
                let mut cargo = Command::new("cargo");
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        let Self { kind, instance } = self;
        let output = command.args(["brokers", verb, kind, "--instance", instance]).output();
        let output = output.expect("the servers of tests can be begun");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`cargo xtask brokers {verb} {kind}`: {errors}");
        String::from_utf8(output.stdout).expect("it prints text")
    }

    pub fn url(&self) -> String {
        self.setting(&variable(self.kind))
    }

    /// What a variable would have, were this the server that all tests have.
    pub fn setting(&self, name: &str) -> String {
        let exports = self.order("env");
        let export = format!("export {name}='");
        let value = exports.lines().find_map(|line| line.strip_prefix(&export));
        value.expect("the server has that variable").trim_end_matches('\'').to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.order("down");
        }
    }
}
