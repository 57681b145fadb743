//! Where a group begins.

/// Where a new group begins; a group that the broker knows goes on where it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the first event that is published after the bus is connected.
    #[default]
    Latest,
    /// With the oldest event that the broker keeps.
    Earliest,
}

impl Start {
    /// Reads a start as it is written in `#[subscribe(start = "earliest")]`.
    ///
    /// # Panics
    /// Where `text` is neither "latest" nor "earliest"; in a `const` this is a compile error.
    #[must_use]
    pub const fn parse(text: &str) -> Self {
        match text.as_bytes() {
            b"latest" => Self::Latest,
            b"earliest" => Self::Earliest,
            _ => panic!("{}", eventbus_grammar::Text::new().push_quoted(text).push(
                " is not a start; write \"latest\" (events published from now on) or \"earliest\" (all that are kept)",
            ).as_str()),
        }
    }
}
