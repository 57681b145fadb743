//! Addresses: from a text such as `sqlite:shop.db` to an open broker.

use super::home::needs_runtime;
use crate::broker::Broker;
use crate::choice::choice;
use crate::command_line;
use crate::error::{Error, Result};
use crate::memory::MemoryBroker;
use crate::printable::printable;
use crate::registry;
use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

/// Where the address of the broker is looked for.
const VARIABLE: &str = "EVENTBUS_URL";
/// The address where none is given.
const DEFAULT: &str = "sqlite:eventbus.db";
/// The schemes of our own brokers, each with the Cargo feature that it needs.
const OUR_SCHEMES: &[(&str, &str)] = &[
    ("amqp", "rabbitmq"),
    ("amqps", "rabbitmq"),
    ("kafka", "kafka"),
    ("kafkas", "kafka"),
    ("nats", "nats"),
    ("redis", "redis"),
    ("redis+cluster", "redis"),
    ("redis+sentinel", "redis"),
    ("rediss", "redis"),
    ("rediss+cluster", "redis"),
    ("rediss+sentinel", "redis"),
    ("sns", "aws"),
    ("sqlite", "sqlite"),
    ("tls", "nats"),
    ("valkey", "redis"),
    ("valkeys", "redis"),
];

/// What others call what has another scheme here.
const OTHER_SCHEMES: &[(&str, &str)] =
    &[("aws", "sns"), ("rabbitmq", "amqp"), ("rabbitmqs", "amqps"), ("sqs", "sns")];

/// The address that the environment names.
pub(super) fn from_env() -> Result<String> {
    named(env::var(VARIABLE))
}

fn named(variable: Result<String, env::VarError>) -> Result<String> {
    let reason = match variable {
        Ok(url) if url.is_empty() => {
            format!("the variable is set and empty; unset it for `{DEFAULT}`, or name an address there")
        }
        Ok(url) => return Ok(url),
        // Who has forgotten the variable has never seen this address.
        Err(env::VarError::NotPresent) if !has_scheme("sqlite") => format!(
            "the variable is not set, and this build lacks the broker of the default, `{DEFAULT}`; name an address \
             there, or `cargo add eventbus --features sqlite`"
        ),
        Err(env::VarError::NotPresent) => return Ok(DEFAULT.to_owned()),
        Err(error @ env::VarError::NotUnicode(_)) => error.to_string(),
    };
    Err(Error::Url { url: format!("${VARIABLE}"), reason })
}

/// Whether a broker of this build has the scheme.
fn has_scheme(name: &str) -> bool {
    registry::schemes().iter().any(|known| known.name == name)
}

/// Opens the broker at `url`.
pub(super) async fn open(url: &str) -> Result<Arc<dyn Broker>> {
    let refused = |reason: String| Error::Url { url: without_secrets(url), reason };
    let Some(scheme) = scheme(url) else {
        return Err(refused(format!("an address starts with a scheme, such as `memory:`{}", meant(url))));
    };
    if let Some(end) = url.chars().next_back().filter(|end| end.is_whitespace() || end.is_control()) {
        // A secret that `echo` has written; the log would be another file than the one that is meant.
        return Err(refused(format!("it ends with {end:?}; leave that out")));
    }
    if matches!(url, "memory:" | "memory://") {
        return Ok(Arc::new(MemoryBroker::new()));
    }
    match registry::schemes().iter().find(|known| known.name == scheme) {
        Some(known) => {
            needs_runtime("connect")?;
            Ok((known.open)(url).await?)
        }
        None => Err(refused(format!("{}{}", unknown(scheme), meant(url)))),
    }
}

/// What stands before the first colon, where that is a word.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let is_word = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|other| other.is_ascii_alphanumeric() || "+-.".contains(other));
    // One letter is a drive of Windows.
    (is_word && scheme.len() > 1).then_some(scheme)
}

/// `; did you mean …?`, where a text without a scheme says what it is: a file, a server by its port, or the bare name of
/// a broker.
fn meant(url: &str) -> String {
    let bare = url.trim_matches(|around: char| around.is_whitespace() || "\"'`".contains(around));
    let address = match bare {
        "memory" => Some("memory:".to_owned()),
        "sqlite" => Some(DEFAULT.to_owned()),
        "sns" => Some("sns://default".to_owned()),
        // What may be secret, or an option, is not repeated.
        _ if bare.contains(['@', '?', '#']) || bare.chars().any(char::is_control) => None,
        _ if OUR_SCHEMES.iter().any(|(ours, _)| *ours == bare) => Some(format!("{bare}://localhost")),
        _ if let Some((ours, rest)) = by_other_scheme(bare) => Some(format!("{ours}:{rest}")),
        _ if scheme(bare).is_some() => by_port(bare).or_else(|| (bare != url).then(|| bare.to_owned())),
        _ if let Some((ours, rest)) = without_colon(bare) => Some(format!("{ours}://{rest}")),
        _ => by_port(bare).or_else(|| is_file(bare).then(|| format!("sqlite:{bare}"))),
    };
    address.map(|address| format!("; did you mean `{}`?", printable(address))).unwrap_or_default()
}

/// What stands before and behind the slashes of an address of ours whose colon is missing.
fn without_colon(address: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = address.split_once("//")?;
    OUR_SCHEMES.iter().any(|(ours, _)| *ours == scheme).then_some((scheme, rest))
}

/// The scheme of ours that is meant by one of others, and what stands behind it.
fn by_other_scheme(address: &str) -> Option<(&'static str, &str)> {
    let (theirs, rest) = address.split_once(':')?;
    let (_, ours) = OTHER_SCHEMES.iter().find(|(other, _)| *other == theirs)?;
    Some((ours, rest))
}

/// The address of a server that is given as its host and a port that everybody knows.
fn by_port(server: &str) -> Option<String> {
    let (host, port) = server.rsplit_once(':')?;
    let scheme = match port {
        "4222" => "nats",
        "6379" => "redis",
        "9092" => "kafka",
        _ => return None,
    };
    let is_host = !host.is_empty() && !host.contains(['/', '\\']);
    is_host.then(|| format!("{scheme}://{server}"))
}

/// Whether this looks like the path of a file.
fn is_file(path: &str) -> bool {
    let end = Path::new(path).extension().and_then(OsStr::to_str);
    path.contains(['/', '\\']) || end.is_some_and(|end| ["db", "db3", "sqlite", "sqlite3"].contains(&end))
}

fn unknown(scheme: &str) -> String {
    if let Some((_, feature)) = OUR_SCHEMES.iter().find(|(ours, _)| *ours == scheme) {
        return format!(
            "this build lacks the broker of `{scheme}:`; {}",
            added_by(feature, command_line::is_all())
        );
    }
    let schemes = registry::schemes();
    let known = schemes.iter().map(|scheme| scheme.name).chain(["memory"]);
    let known: Vec<_> = known.map(|scheme| format!("{scheme}:")).collect();
    format!(
        "no broker of this build has the scheme `{scheme}` (any other broker can be given to \
         `Bus::builder().broker(…)`); {}",
        choice(&format!("{scheme}:"), known.iter().map(String::as_str))
    )
}

/// How a broker is added to a program, or to a command line that is installed.
fn added_by(feature: &str, installed: bool) -> String {
    if installed {
        return format!("install it again with `cargo install … --features {feature}`");
    }
    format!("add it with `cargo add eventbus --features {feature}`")
}

/// The address as it may be shown: without who connects, since a user may be a token, and without options.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may hold what else ends the part that it stands in.
    let rest = match rest.rsplit_once('@') {
        Some((_, rest)) => format!("***@{rest}"),
        None => rest.to_owned(),
    };
    format!("{scheme}://{}", rest.split(['?', '#']).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{added_by, meant, named, open, unknown, without_secrets};
    use std::env::VarError;

    #[test]
    fn a_broker_that_this_build_lacks_says_how_to_add_it() {
        assert!(unknown("sqlite").contains("`cargo add eventbus --features sqlite`"));
        assert!(added_by("nats", true).contains("`cargo install … --features nats`"));
        assert!(
            unknown("carrier-pigeon").contains("no broker of this build has the scheme `carrier-pigeon`")
        );
        assert!(unknown("memroy").ends_with("; there are: `memory:`; did you mean \"memory:\"?"));
    }

    #[tokio::test]
    async fn an_address_that_names_another_place_than_the_one_meant_is_refused() {
        for (url, told) in [
            ("shop.db", "starts with a scheme"),
            (" memory:", "starts with a scheme"),
            ("\"memory:\"", "starts with a scheme"),
            // As a secret has it that `echo` has written.
            ("memory:\n", r"ends with '\n'"),
            ("sqlite:shop.db ", "ends with ' '"),
            ("", "starts with a scheme"),
        ] {
            let Err(error) = open(url).await else { panic!("{url:?} is open") };
            assert!(error.to_string().contains(told), "{url:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_text_without_a_scheme_is_answered_with_the_address_that_was_meant() {
        for (url, address) in [
            ("shop.db", "sqlite:shop.db"),
            ("data/shop", "sqlite:data/shop"),
            ("/var/lib/shop.sqlite3", "sqlite:/var/lib/shop.sqlite3"),
            (r"C:\data\shop.db", r"sqlite:C:\data\shop.db"),
            ("\"shop.db\"", "sqlite:shop.db"),
            ("memory", "memory:"),
            (" memory:", "memory:"),
            ("sqlite", "sqlite:eventbus.db"),
            ("nats", "nats://localhost"),
            ("nats//localhost", "nats://localhost"),
            ("rediss//cache.internal:6380/1", "rediss://cache.internal:6380/1"),
            ("localhost:4222", "nats://localhost:4222"),
            ("127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("kafka-1:9092", "kafka://kafka-1:9092"),
            ("rabbitmq://localhost", "amqp://localhost"),
            ("aws://eu-central-1", "sns://eu-central-1"),
        ] {
            let Err(error) = open(url).await else { panic!("{url:?} is open") };
            assert!(error.to_string().ends_with(&format!("; did you mean `{address}`?")), "{url:?}: {error}");
        }
        for url in ["", "shop", "ada:secret@host/shop.db", "carrier-pigeon:home", "shop\u{1b}.db"] {
            assert_eq!(meant(url), "", "{url:?}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named_where_nothing_has_the_default() {
        assert_eq!(named(Ok("memory:".to_owned())).unwrap(), "memory:");
        // No broker of the tests of this crate has `sqlite:`.
        let error = named(Err(VarError::NotPresent)).unwrap_err().to_string();
        assert!(error.contains("`$EVENTBUS_URL`: the variable is not set"), "{error}");
        assert!(error.ends_with("or `cargo add eventbus --features sqlite`"), "{error}");
        let error = named(Ok(String::new())).unwrap_err().to_string();
        assert!(error.contains("the variable is set and empty"), "{error}");
    }

    #[test]
    fn addresses_are_shown_without_what_may_be_secret() {
        for (url, shown) in [
            ("amqp://ada:p@ss@host:5672/v?x=1", "amqp://***@host:5672/v"),
            ("nats://t0ken@host", "nats://***@host"),
            ("nats://ada:p/?#ss@host/v", "nats://***@host/v"),
            ("redis://host?password=x", "redis://host"),
            ("nats://host", "nats://host"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
