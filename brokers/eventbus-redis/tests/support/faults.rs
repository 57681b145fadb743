//! A server of its own for a test.

use std::process::Command;

/// A server that only one test has, so that it may be killed.
pub struct Server(&'static str);

impl Server {
    pub fn up(instance: &'static str) -> Self {
        let server = Self(instance);
        server.order("down");
        server.order("up");
        server
    }

    /// One of the verbs of `cargo xtask brokers`; what it printed.
    pub fn order(&self, verb: &str) -> String {
        let mut command = match super::setting("EVENTBUS_TEST_XTASK") {
            Some(xtask) => Command::new(xtask),
            None => {
                let mut cargo = Command::new("cargo");
                cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
                cargo
            }
        };
        let output = command.args(["brokers", verb, "redis", "--instance", self.0]).output();
        let output = output.expect("the servers of tests can be begun");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`cargo xtask brokers {verb} redis`: {errors}");
        String::from_utf8(output.stdout).expect("it prints text")
    }

    pub fn url(&self) -> String {
        let exports = self.order("env");
        let url = exports.lines().find_map(|line| line.strip_prefix("export EVENTBUS_TEST_REDIS_URL='"));
        url.expect("it has an address").trim_end_matches('\'').to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.order("down");
        }
    }
}
