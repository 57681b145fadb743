//! Failures of a verb, and the exit codes that scripts see.

use crate::signals;
use eventbus_core::printable::printable;
use eventbus_core::{BoxError, BrokerError, DecodeError, Error, PublishError, TopicError, chain};
use std::fmt::Display;
use std::io;

pub(crate) type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// Why a verb ended early. What a text quotes is printable, so it is one line, unless it lists mistakes.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It failed; the text says why, and what to do.
    Failed(String),
    /// It was called in a wrong way that only shows with all options together.
    Usage(String),
    /// What was asked for by name is not there.
    NotFound(String),
    /// Whether what was asked for is well is not known: who was asked has not said.
    Unknown(String),
    /// It has said everything that there is to say, and it is no success.
    Told,
    /// Nobody reads the output any more, as behind `| head`.
    Closed,
    /// A signal of this number ended it, and how far it came is said.
    Ended(u8),
}

impl Failure {
    pub(crate) fn new(text: impl Display) -> Self {
        Self::Failed(printable(text).to_string())
    }

    pub(crate) fn not_found(text: impl Display) -> Self {
        Self::NotFound(printable(text).to_string())
    }

    pub(crate) fn unknown(text: impl Display) -> Self {
        Self::Unknown(printable(text).to_string())
    }

    /// As the end of a verb that changes something and could not write what it did: how far it came is told, since the
    /// output does not say it.
    pub(crate) fn halfway(self, done: impl Display) -> Self {
        match self {
            Self::Closed => {
                Self::new(format_args!("nobody reads the output any more: ended halfway ({done})"))
            }
            Self::Failed(text) => Self::Failed(format!("{text} ({})", printable(done))),
            other => other,
        }
    }

    /// The sentence for the person at the terminal, where one is left to say.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Failed(text) | Self::Usage(text) | Self::NotFound(text) | Self::Unknown(text) => Some(text),
            Self::Told | Self::Closed | Self::Ended(_) => None,
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Failed(_) | Self::Told => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unknown(_) => 4,
            Self::Ended(signal) => signals::exit_code(*signal),
        }
    }
}

macro_rules! fails {
    ($($error:ty)*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error)
            }
        }
    )*};
}
fails!(PublishError BrokerError TopicError DecodeError);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            // Its lines are the program's own.
            Error::Startup(error) => Self::Failed(error.to_string()),
            error => Self::new(error),
        }
    }
}

impl From<BoxError> for Failure {
    fn from(error: BoxError) -> Self {
        Self::new(chain(&*error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::new(format_args!("cannot write the output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_its_causes_once() {
        let error = BrokerError::new("the log is closed").with_cause("the disk is full");
        let Failure::Failed(text) = error.into() else { panic!() };
        assert_eq!(text, "the log is closed: the disk is full");
        let error = PublishError::Broker { topic: "a".into(), cause: "the disk is full".into() };
        let Failure::Failed(text) = error.into() else { panic!() };
        assert_eq!(text.matches("the disk is full").count(), 1, "{text}");
    }

    #[test]
    fn what_a_failure_quotes_begins_no_line() {
        let error = BrokerError::new("refused\nerror: all is well").with_cause("\u{1b}[2J");
        let Failure::Failed(text) = error.into() else { panic!() };
        assert_eq!(text, r"refused\nerror: all is well: \u{1b}[2J");
    }
}
