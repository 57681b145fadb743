//! What tests are told in environment variables, and what they are told where nobody exports them.

use super::certificates::Certificates;
use super::kind::Kind;
use super::place::lock;
use super::python;
use super::server::{Condition, Server};
use std::fs;
use std::io;
use std::path::Path;

/// The names of the kinds whose variables were set here; another one that is set names a server of somebody else.
const OURS: &str = "EVENTBUS_TEST_OURS";

/// Variables with their values.
pub(super) type Variables = Vec<(String, String)>;

/// The URL of a server that was there before, as the environment says.
pub(super) fn given(kind: &dyn Kind, read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let ours = read(OURS).unwrap_or_default();
    if ours.split_whitespace().any(|name| name == kind.name()) {
        return None;
    }
    read(&variable(kind, "URL")).filter(|url| !url.is_empty())
}

/// What tests need to know of these servers.
pub(super) fn variables(home: &Path, servers: &[Server]) -> io::Result<Variables> {
    let mut variables = Variables::new();
    let python = python::installed(home).map(|folder| folder.display().to_string());
    variables.extend(python.map(|folder| (python::VARIABLE.to_owned(), folder)));
    if servers.is_empty() {
        return Ok(variables);
    }
    for server in servers {
        if let Some(outdated) = server.outdated() {
            return Err(io::Error::other(format!("{} {outdated}", server.kind().name())));
        }
        let addresses = server.kind().addresses(server);
        variables.extend(addresses.into_iter().map(|one| (variable(server.kind(), one.ending), one.value)));
    }
    let ours: Vec<_> = servers.iter().map(|server| server.kind().name()).collect();
    variables.push((OURS.to_owned(), ours.join(" ")));
    variables.push(("EVENTBUS_TEST_CA".to_owned(), Certificates::of(home).authority.display().to_string()));
    // Where cargo has built the program anew meanwhile, the system adds this to the name of the old one.
    let xtask = std::env::current_exe()?.display().to_string();
    let xtask = xtask.trim_end_matches(" (deleted)").to_owned();
    variables.push(("EVENTBUS_TEST_XTASK".to_owned(), xtask));
    Ok(variables)
}

/// As a shell reads them.
pub(super) fn exports(variables: &Variables) -> String {
    let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
    variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect()
}

/// Writes `target/brokers/env`, which tests read that are run by hand: one `NAME=value` a line.
pub(super) fn write(home: &Path, servers: impl IntoIterator<Item = Server>) -> io::Result<()> {
    let file = home.join("env");
    let _lock = lock(&home.join("env.lock"))?;
    let mut known = Vec::new();
    for server in servers {
        // One that is dead stays: a test should fail to connect, rather than pass without having run.
        if server.condition()? != Condition::Down {
            known.push(server);
        }
    }
    let lines: String =
        variables(home, &known)?.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let part = home.join("env.part");
    fs::write(&part, lines)?;
    fs::rename(part, file)
}

fn variable(kind: &dyn Kind, ending: &str) -> String {
    format!("EVENTBUS_TEST_{}_{ending}", kind.variable())
}

#[cfg(test)]
mod tests {
    use super::super::kind::named;
    use super::*;

    #[test]
    fn a_server_of_somebody_else_is_taken_and_one_of_ours_is_not_mistaken_for_it() {
        let nats = named("nats").unwrap();
        let url = |name: &str| (name == "EVENTBUS_TEST_NATS_URL").then(|| "nats://10.0.0.1".to_owned());
        assert_eq!(given(nats, url), Some("nats://10.0.0.1".to_owned()));
        assert_eq!(given(nats, |_| None), None);
        assert_eq!(given(nats, |name| url(name).map(|_| String::new())), None);
        let ours = |names: &'static str| {
            move |name: &str| if name == OURS { Some(names.to_owned()) } else { url(name) }
        };
        assert_eq!(given(nats, ours("redis nats")), None);
        assert_eq!(given(nats, ours("redis nats-of-others")), Some("nats://10.0.0.1".to_owned()));
    }

    #[test]
    fn what_is_exported_reaches_a_shell_unchanged() {
        let value = "/a path/with 'quotes' $HOME %2f";
        let exports = exports(&vec![("EVENTBUS_TEST_CA".to_owned(), value.to_owned())]);
        let script = format!("{exports}printf %s \"$EVENTBUS_TEST_CA\"");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }
}
