//! What there is to know of a kind of server, and the table of all of them.

use super::aws::Aws;
use super::fauxqs::Fauxqs;
use super::install::Installer;
use super::kafka::Kafka;
use super::nats::Nats;
use super::rabbitmq::RabbitMq;
use super::redis::{Redis, Valkey};
use super::server::Server;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Who may connect with TLS, and how.
pub(super) const USER: &str = "app";
pub(super) const PASSWORD: &str = "secret";

/// Every kind of server, in the order in which they are listed.
pub(super) const KINDS: &[&dyn Kind] = &[&Nats, &Redis, &Valkey, &RabbitMq, &Kafka, &Aws, &Fauxqs];

pub(super) fn named(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

pub(super) trait Kind: Sync {
    fn name(&self) -> &'static str;

    /// As in `EVENTBUS_TEST_<variable>_URL`.
    fn variable(&self) -> &'static str;

    /// What it needs ports for.
    fn ports(&self) -> &'static [&'static str];

    /// The server's program: one that is there, or one that is installed.
    fn install(&self, installer: &Installer) -> io::Result<PathBuf>;

    /// Writes what the server reads, and gives what is to be run, in this order.
    fn programs(&self, server: &Server, program: &Path) -> io::Result<Vec<Program>>;

    /// Where clients reach it.
    fn addresses(&self, server: &Server) -> Vec<Address>;

    /// Makes it short of memory or of disk, so that it takes nothing new, or lets it be as before.
    fn starve(&self, _server: &Server, _short: bool) -> io::Result<()> {
        Err(io::Error::other(format!("nobody knows how to make {} short of memory or of disk", self.name())))
    }

    /// How long it may take to start.
    fn start_limit(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How long it may take to end when asked.
    fn end_limit(&self) -> Duration {
        Duration::from_secs(10)
    }
}

/// One process of a server.
pub(super) struct Program {
    /// Of its log and of the file that notes its process.
    pub(super) name: String,
    pub(super) command: Command,
    /// Speaks the protocol: `Ok` once the server answers as it should.
    pub(super) ready: Box<dyn Fn() -> io::Result<()>>,
}

/// What clients need to reach a server, and the variable that it is handed over in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Address {
    /// What follows `EVENTBUS_TEST_<variable>_`.
    pub(super) ending: &'static str,
    pub(super) value: String,
}

impl Address {
    pub(super) fn plain(url: String) -> Self {
        Self { ending: "URL", value: url }
    }

    /// With TLS, user and password.
    pub(super) fn tls(url: String) -> Self {
        Self { ending: "TLS_URL", value: url }
    }

    pub(super) fn is_url(&self) -> bool {
        self.ending.ends_with("URL")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{aws, fauxqs, kafka, nats, rabbitmq, redis};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn compose_has_the_versions_that_are_installed() {
        let compose = include_str!("../../../compose.yaml");
        let images: BTreeSet<_> =
            compose.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
        let versions = [
            ("nats", nats::VERSION),
            ("redis", redis::REDIS_VERSION),
            ("valkey/valkey", redis::VALKEY_VERSION),
            ("rabbitmq", rabbitmq::VERSION),
            ("apache/kafka", kafka::VERSION),
            ("ministackorg/ministack", aws::VERSION),
            ("kibertoad/fauxqs", fauxqs::VERSION),
        ];
        let expected: Vec<_> = versions.iter().map(|(image, version)| format!("{image}:{version}")).collect();
        assert_eq!(images, expected.iter().map(String::as_str).collect());
        assert_eq!(images.len(), KINDS.len(), "a kind is missing here");
    }

    #[test]
    fn no_two_kinds_share_a_name_or_a_variable() {
        let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name()).collect();
        let variables: BTreeSet<_> = KINDS.iter().map(|kind| kind.variable()).collect();
        assert_eq!((names.len(), variables.len()), (KINDS.len(), KINDS.len()));
    }
}
