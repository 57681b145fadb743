//! Topics and patterns: the addresses that events are published to and subscriptions listen on.

use eventbus_grammar::{TopicFault, check_pattern, check_topic, matches, overlap};
use smol_str::SmolStr;
use std::fmt;

/// The address that an event is published to: segments of `[A-Za-z0-9_-]` joined by `.`, at most 249 bytes.
///
/// ```
/// use eventbus_core::Topic;
///
/// const PLACED: Topic = Topic::from_static("order.placed");
/// assert_eq!(Topic::new("order.placed").unwrap(), PLACED);
/// assert!(Topic::new("order placed").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(SmolStr);

impl Topic {
    /// A topic that is known at compile time.
    ///
    /// # Panics
    /// Where `topic` is not well-formed; in a `const` this is a compile error.
    #[must_use]
    pub const fn from_static(topic: &'static str) -> Self {
        match check_topic(topic) {
            Ok(()) => Self(SmolStr::new_static(topic)),
            Err(fault) => panic!("{}", fault.explain(topic).as_str()),
        }
    }

    /// A topic that is known at run time only.
    ///
    /// # Errors
    /// Where `topic` is empty, too long, or holds something else than `[A-Za-z0-9_-]` segments joined by `.`.
    pub fn new(topic: impl AsRef<str>) -> Result<Self, TopicError> {
        let topic = topic.as_ref();
        match check_topic(topic) {
            Ok(()) => Ok(Self(SmolStr::new(topic))),
            Err(fault) => Err(TopicError::new(topic, fault)),
        }
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A topic out of an [`EventMeta`](crate::EventMeta), whose topic the derive has checked already.
    pub(crate) const fn of_event(topic: &'static str) -> Self {
        Self(SmolStr::new_static(topic))
    }

    pub(crate) fn to_smol_str(&self) -> SmolStr {
        self.0.clone()
    }
}

/// A topic that may hold wildcards: `*` stands for one whole segment, a final `>` for one or more.
///
/// ```
/// use eventbus_core::Pattern;
///
/// let orders = Pattern::new("order.>").unwrap();
/// assert!(orders.matches("order.placed"));
/// assert!(!orders.matches("user.created"));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(SmolStr);

impl Pattern {
    /// Checks and takes `pattern`.
    ///
    /// # Errors
    /// Where `pattern` is not well-formed; the error says what is allowed.
    pub fn new(pattern: impl AsRef<str>) -> Result<Self, TopicError> {
        let pattern = pattern.as_ref();
        match check_pattern(pattern) {
            Ok(()) => Ok(Self(SmolStr::new(pattern))),
            Err(fault) => Err(TopicError::new(pattern, fault)),
        }
    }

    /// Whether the pattern covers `topic`, which must be well-formed.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        self.0 == topic || matches(&self.0, topic)
    }

    /// Whether some topic is covered by both patterns.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        overlap(&self.0, &other.0)
    }

    /// Whether the pattern holds no wildcard, and so is a topic.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '>'])
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A topic or a pattern that is not well-formed: which one, what is wrong with it, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", self.fault.explain(&self.text).as_str(), self.place())]
pub struct TopicError {
    text: String,
    fault: TopicFault,
}

impl TopicError {
    fn new(text: &str, fault: TopicFault) -> Self {
        Self { text: text.to_owned(), fault }
    }

    /// The text as a whole, where the explanation names a part of it only: a compiler points at the rest.
    fn place(&self) -> String {
        match self.fault {
            TopicFault::Empty | TopicFault::TooLong(_) | TopicFault::EmptySegment => String::new(),
            _ => format!(" (in {:?})", self.text),
        }
    }
}

macro_rules! reads_as_text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = TopicError;

            fn from_str(text: &str) -> Result<Self, TopicError> {
                Self::new(text)
            }
        }
    )*};
}
reads_as_text!(Topic Pattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_whole_topic() {
        for text in ["order.>.x", "order.pla ced", "order.pl*", "order..x"] {
            let error = Pattern::new(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        let error = Topic::new("order.*").unwrap_err().to_string();
        assert!(error.contains("\"order.*\""), "{error}");
    }
}
