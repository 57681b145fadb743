//! A session: one verb at work, with its output and its way to the broker.

use crate::failure::Result;
use crate::options::Options;
use crate::output::Output;
use eventbus_core::command_line::command;
use eventbus_core::{Bus, BusBuilder, Error};
use std::path::{Path, PathBuf};

/// The option of an address whose log, or whose streams, are not created: by the scheme.
const EXPECTED: [(&str, &str); 11] = [
    ("sqlite:", "create=false"),
    ("nats:", "topology=check"),
    ("tls:", "topology=check"),
    ("redis:", "topology=check"),
    ("rediss:", "topology=check"),
    ("redis+sentinel:", "topology=check"),
    ("rediss+sentinel:", "topology=check"),
    ("redis+cluster:", "topology=check"),
    ("rediss+cluster:", "topology=check"),
    ("valkey:", "topology=check"),
    ("valkeys:", "topology=check"),
];

pub(crate) struct Session {
    pub(crate) url: String,
    pub(crate) out: Output,
    /// The application's settings, for the verbs that need them.
    pub(crate) builder: BusBuilder,
}

impl Session {
    pub(crate) fn new(options: &Options, builder: BusBuilder) -> Self {
        Self { url: options.url.clone(), out: options.output(), builder }
    }

    /// The bus with the subscriptions of the program.
    pub(crate) async fn connect(&mut self) -> Result<Bus> {
        Ok(std::mem::take(&mut self.builder).connect(&self.url).await?)
    }

    /// The bus without any subscription, to publish.
    pub(crate) async fn publisher(&mut self) -> Result<Bus> {
        Ok(self.without_subscriptions().await?)
    }

    /// The bus without any subscription, to look at what is there.
    pub(crate) async fn look(&mut self) -> Result<Bus> {
        Ok(self.try_look().await?)
    }

    /// The same, for a verb that has a word of its own where the broker cannot be had.
    pub(crate) async fn try_look(&mut self) -> Result<Bus, Error> {
        self.expect_log();
        self.without_subscriptions().await
    }

    async fn without_subscriptions(&mut self) -> Result<Bus, Error> {
        std::mem::take(&mut self.builder).without_subscriptions().connect(&self.url).await
    }

    /// A command that can be pasted, for a message.
    pub(crate) fn command(&self, verb: &[&str]) -> String {
        let added = EXPECTED.iter().find_map(|(_, option)| self.url.strip_suffix(option));
        let address = added.map_or(&*self.url, |url| url.trim_end_matches(['?', '&']));
        command(Some(address), verb)
    }

    /// The file of the embedded log where a start would create it.
    pub(crate) fn new_log(&self) -> Option<PathBuf> {
        let rest = self.url.strip_prefix("sqlite:")?;
        let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
        let path = Path::new(path.strip_prefix("//").unwrap_or(path));
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let creates = !options.contains("create=") && folder.is_none_or(Path::is_dir);
        let is_new = creates && path.file_name().is_some() && !path.exists();
        is_new.then(|| path.to_owned())
    }

    /// A mistyped path is an error from now on, and no new log.
    pub(crate) fn expect_log(&mut self) {
        expect(&mut self.url);
    }
}

/// Adds the option of its scheme to an address.
fn expect(url: &mut String) {
    let known = EXPECTED.iter().find(|(scheme, _)| url.starts_with(scheme));
    // The log takes the last word; of the others each is said once.
    let known = known.filter(|(scheme, _)| *scheme == "sqlite:" || !url.contains("topology="));
    if let Some((_, option)) = known {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(option);
    }
}

#[cfg(test)]
mod tests {
    use super::expect;

    #[test]
    fn looking_makes_nothing_on_any_broker() {
        for (given, expected) in [
            ("sqlite:a.db?create=true", "sqlite:a.db?create=true&create=false"),
            ("nats://h", "nats://h?topology=check"),
            ("tls://h?stream=s", "tls://h?stream=s&topology=check"),
            ("redis://h/1", "redis://h/1?topology=check"),
            ("rediss://h?prefix=p", "rediss://h?prefix=p&topology=check"),
            ("valkey://h", "valkey://h?topology=check"),
            ("valkeys://h", "valkeys://h?topology=check"),
            ("redis+sentinel://h/m", "redis+sentinel://h/m?topology=check"),
            ("rediss+sentinel://h/m", "rediss+sentinel://h/m?topology=check"),
            ("redis+cluster://h,i", "redis+cluster://h,i?topology=check"),
            ("rediss+cluster://h", "rediss+cluster://h?topology=check"),
            ("redis://h?topology=create", "redis://h?topology=create"),
            ("redish://h", "redish://h"),
        ] {
            let mut url = given.to_owned();
            expect(&mut url);
            assert_eq!(url, expected, "{given}");
        }
    }
}
