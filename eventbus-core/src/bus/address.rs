//! Addresses: from a text such as `sqlite:shop.db` to an open broker.

use super::home::needs_runtime;
use crate::broker::Broker;
use crate::choice::choice;
use crate::error::{Error, Result};
use crate::memory::MemoryBroker;
use crate::registry;
use std::env;
use std::sync::Arc;

/// Where the address of the broker is looked for.
const VARIABLE: &str = "EVENTBUS_URL";
/// The address where none is given.
const DEFAULT: &str = "sqlite:eventbus.db";
/// The schemes of our own brokers, each with the Cargo feature that it needs.
const OUR_SCHEMES: &[(&str, &str)] = &[
    ("nats", "nats"),
    ("redis", "redis"),
    ("redis+cluster", "redis"),
    ("redis+sentinel", "redis"),
    ("rediss", "redis"),
    ("rediss+cluster", "redis"),
    ("rediss+sentinel", "redis"),
    ("sqlite", "sqlite"),
    ("tls", "nats"),
    ("valkey", "redis"),
    ("valkeys", "redis"),
];

/// The address that the environment names.
pub(super) fn from_env() -> Result<String> {
    match env::var(VARIABLE) {
        Ok(url) if url.is_empty() => {
            let reason =
                format!("the variable is set and empty; unset it for `{DEFAULT}`, or name an address there");
            Err(Error::Url { url: format!("${VARIABLE}"), reason })
        }
        Ok(url) => Ok(url),
        Err(env::VarError::NotPresent) => Ok(DEFAULT.to_owned()),
        Err(error @ env::VarError::NotUnicode(_)) => {
            Err(Error::Url { url: format!("${VARIABLE}"), reason: error.to_string() })
        }
    }
}

/// Opens the broker at `url`.
pub(super) async fn open(url: &str) -> Result<Arc<dyn Broker>> {
    let refused = |reason: String| Error::Url { url: without_secrets(url), reason };
    let Some(scheme) = scheme(url) else {
        return Err(refused("an address starts with a scheme, such as `memory:`".to_owned()));
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
        None => Err(refused(unknown(scheme))),
    }
}

/// What stands before the first colon, where that is a word.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let is_word = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|other| other.is_ascii_alphanumeric() || "+-.".contains(other));
    is_word.then_some(scheme)
}

fn unknown(scheme: &str) -> String {
    if let Some((_, feature)) = OUR_SCHEMES.iter().find(|(ours, _)| *ours == scheme) {
        return format!(
            "this build lacks the broker of `{scheme}:`; add it with `cargo add eventbus --features {feature}`"
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
    use super::{open, unknown, without_secrets};

    #[test]
    fn a_broker_that_this_build_lacks_says_how_to_add_it() {
        assert!(unknown("sqlite").contains("`cargo add eventbus --features sqlite`"));
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
