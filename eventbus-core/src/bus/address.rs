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
/// The schemes of our own brokers, each with the Cargo feature of the same name.
const OUR_SCHEMES: &[&str] = &["sqlite"];

/// The address that the environment names.
pub(super) fn from_env() -> Result<String> {
    match env::var(VARIABLE) {
        Ok(url) => Ok(url),
        Err(env::VarError::NotPresent) => Ok(DEFAULT.to_owned()),
        Err(error @ env::VarError::NotUnicode(_)) => {
            Err(Error::Url { url: format!("${VARIABLE}"), reason: error.to_string() })
        }
    }
}

/// Opens the broker at `url`.
pub(super) async fn open(url: &str) -> Result<Arc<dyn Broker>> {
    let Some((scheme, _)) = url.split_once(':') else {
        let reason = "an address starts with a scheme, such as `memory:`".to_owned();
        return Err(Error::Url { url: url.to_owned(), reason });
    };
    if matches!(url, "memory:" | "memory://") {
        return Ok(Arc::new(MemoryBroker::new()));
    }
    match registry::schemes().iter().find(|known| known.name == scheme) {
        Some(known) => {
            needs_runtime("connect")?;
            Ok((known.open)(url).await?)
        }
        None => Err(Error::Url { url: without_password(url), reason: unknown(scheme) }),
    }
}

fn unknown(scheme: &str) -> String {
    if OUR_SCHEMES.contains(&scheme) {
        return format!(
            "this build lacks the broker of `{scheme}:`; add it with `cargo add eventbus --features {scheme}`"
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

/// The address as it may be shown.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{host}{}", &rest[authority.len()..])
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{unknown, without_password};

    #[test]
    fn a_broker_that_this_build_lacks_says_how_to_add_it() {
        assert!(unknown("sqlite").contains("`cargo add eventbus --features sqlite`"));
        assert!(
            unknown("carrier-pigeon").contains("no broker of this build has the scheme `carrier-pigeon`")
        );
        assert!(unknown("memroy").ends_with("; there are: `memory:`; did you mean \"memory:\"?"));
    }

    #[test]
    fn addresses_are_shown_without_their_password() {
        assert_eq!(without_password("amqp://ada:p@ss@host:5672/v?x=1"), "amqp://ada:***@host:5672/v?x=1");
        assert_eq!(without_password("nats://host"), "nats://host");
        assert_eq!(without_password("memory:"), "memory:");
    }
}
