//! What can go wrong, and what to do about it.

use crate::event::EventMeta;
use crate::topic::TopicError;
use std::fmt;
use std::time::Duration;

/// An error of any type, as it comes from a codec, a broker or a subscriber.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything that a bus does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a bus reports to the program that runs it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A publish failed.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A topic or a pattern is not well-formed.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The start-up checks found mistakes; all of them are listed.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// The broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The address of a broker cannot be used.
    #[error("cannot connect to `{url}`: {reason}")]
    Url {
        /// The address, without its password.
        url: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The bus was shut down; build another one.
    #[error("the bus was shut down; build another one")]
    Closed,
    /// A replay was refused.
    #[error("cannot replay `{group}`: {reason}")]
    Replay {
        /// The group that was to be replayed.
        group: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A rebuild failed.
    #[error("cannot rebuild `{group}`: {reason}{}", caused_by(source.as_deref()))]
    Rebuild {
        /// The group whose read model was to be rebuilt.
        group: String,
        /// Whether the new model is in place; otherwise the live subscription goes on with the old one.
        swapped: bool,
        /// What failed, and what to do.
        reason: String,
        /// What the program or the broker said.
        source: Option<BoxError>,
    },
    /// The bus has ended before everything was handled that it had accepted.
    #[error(
        "{} not finished when the bus ended, {after:.1?} after its shutdown began (`drain` is {}): {}",
        deliveries(*unfinished),
        limit(*drain),
        what_became(*unfinished, *lost)
    )]
    Drain {
        /// How many deliveries were accepted and are not settled, as far as they were at hand: those that were being
        /// handled, and those that are lost.
        unfinished: usize,
        /// How many of these are lost, since the broker keeps them in memory only. A durable broker delivers the others
        /// again.
        lost: usize,
        /// How long the bus has waited for them. Shorter than `drain` where a second signal cut it short, or where the
        /// bus was never started.
        after: Duration,
        /// The time that a shutdown may take.
        drain: Duration,
    },
}

/// "1 delivery was", "2 deliveries were".
fn deliveries(number: usize) -> String {
    if number == 1 { "1 delivery was".to_owned() } else { format!("{number} deliveries were") }
}

fn limit(drain: Duration) -> String {
    if drain == Duration::MAX { "without limit".to_owned() } else { format!("{drain:?}") }
}

fn what_became(unfinished: usize, lost: usize) -> String {
    let lost = match lost {
        0 => return "delivered again by a broker that keeps them (set a longer `drain`, or a shorter `timeout` for the \
                     handlers)"
            .to_owned(),
        all if all == unfinished => "lost".to_owned(),
        some => format!("{some} of them lost"),
    };
    format!(
        "{lost}, since the broker keeps them in memory only (start the bus before it is shut down, set a longer `drain`, \
         or use a durable broker)"
    )
}

fn caused_by(source: Option<&(dyn std::error::Error + Send + Sync)>) -> String {
    source.map(|source| format!(": {source}")).unwrap_or_default()
}

/// Why an event was not published. Nothing was stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is not well-formed.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The value has no form in its codec.
    #[error("cannot encode the payload for \"{topic}\": {source}")]
    Encode {
        /// The topic that the value was meant for.
        topic: String,
        /// What the codec said.
        source: BoxError,
    },
    /// The event cannot be read again from its own bytes, so whoever takes it from a log would not get it.
    #[error(
        "cannot publish to \"{topic}\": `{}` ({}:{}) cannot be read again as it is written: {source}; make its \
         `Serialize` and `Deserialize` agree (a field with `skip_serializing_if` needs `default`, an untagged enum \
         distinct variants, a number of 128 bits no `flatten`)",
        event.name, event.file, event.line
    )]
    Unreadable {
        /// The topic that was published to.
        topic: String,
        /// The type of the event.
        event: &'static EventMeta,
        /// What the codec said, or what came back as something else.
        source: BoxError,
    },
    /// A subscription's queue is full and the broker was told not to wait.
    #[error(
        "cannot publish to \"{topic}\": the queue of `{group}` holds {capacity} events; \
         publish later, raise the capacity, or let the broker wait (`Overflow::Wait`)"
    )]
    Full {
        /// The topic that was published to.
        topic: String,
        /// The group whose queue is full.
        group: String,
        /// How many events the queue may hold.
        capacity: usize,
    },
    /// The payload is larger than the broker takes.
    #[error(
        "cannot publish to \"{topic}\": its payload has {size} bytes, and {limit} are allowed; \
         publish a reference to what is stored elsewhere, or raise the broker's `max_payload`"
    )]
    TooLarge {
        /// The topic that was published to.
        topic: String,
        /// The payload's size, in bytes.
        size: usize,
        /// The largest size that the broker takes, in bytes.
        limit: usize,
    },
    /// The event is the end of a long chain of events that caused each other, most likely a loop.
    #[error(
        "cannot publish to \"{topic}\": it would be caused by {limit} events in a row, the last one on \"{cause}\"; \
         a subscriber most likely causes its own topic: break the loop, or raise `causation_limit`"
    )]
    CausationLimit {
        /// The topic that was published to.
        topic: String,
        /// The topic of the event whose handler published.
        cause: String,
        /// The longest chain that is allowed.
        limit: u32,
    },
    /// The bus was shut down.
    #[error(
        "cannot publish to \"{topic}\": the bus was shut down; publish before `shutdown`, or build another bus"
    )]
    Closed {
        /// The topic that was published to.
        topic: String,
    },
    /// The broker refused or did not confirm.
    #[error("cannot publish to \"{topic}\": {source}")]
    Broker {
        /// The topic that was published to.
        topic: String,
        /// What the broker said.
        source: BoxError,
    },
}

/// Why a payload could not become the event that a subscriber asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes are not such an event.
    #[error("cannot decode `{}` v{}: {source}", event.name, event.version)]
    Malformed {
        /// The event that was asked for.
        event: &'static EventMeta,
        /// What the codec said, with the place where it knows it.
        source: BoxError,
    },
    /// The payload is of another media type.
    #[error(
        "cannot decode `{}`: the payload says it is `{stated}`, and the event is read as `{expected}`; \
         publish it as such, or name its codec with `#[event(codec = …)]`",
        event.name
    )]
    ContentType {
        /// The event that was asked for.
        event: &'static EventMeta,
        /// The media type that the payload carries.
        stated: String,
        /// The media type of the event's codec.
        expected: &'static str,
    },
    /// The payload was written by another version of the program.
    #[error(
        "`{}` is known up to v{}, and this event is v{version}; deploy subscribers before publishers, \
         then re-publish the dead letter",
        event.name,
        event.version
    )]
    UnknownVersion {
        /// The newest version that is known.
        event: &'static EventMeta,
        /// The version of the payload.
        version: u32,
    },
    /// The envelope carries an event of another type.
    #[error(
        "the subscriber takes `{}` (\"{}\"), and this event is of type \"{found}\"; \
         subscribe to the exact topic, or take `&Envelope`",
        event.name,
        event.topic
    )]
    UnknownType {
        /// The event that was asked for.
        event: &'static EventMeta,
        /// The type that the envelope carries.
        found: String,
    },
    /// A value that was published in this process could not be encoded for a subscriber that takes bytes.
    #[error("cannot encode the event on \"{topic}\" for a subscriber that takes its bytes: {source}")]
    Encode {
        /// The topic of the event.
        topic: String,
        /// What the codec said.
        source: BoxError,
    },
}

/// What a broker reports.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BrokerError {
    message: String,
    source: Option<BoxError>,
}

impl BrokerError {
    /// An error with a message that says what failed and what to do.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// Keeps what the client library said.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The mistakes that the start-up checks found, each in a line or two with its source lines.
#[derive(thiserror::Error)]
#[error("{}:{}", self.what, self.list())]
pub struct StartupError {
    what: &'static str,
    mistakes: Vec<String>,
}

impl fmt::Debug for StartupError {
    /// As a text of lines, since a `main` that returns the error shows it in this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StartupError {
    pub(crate) fn new(mistakes: Vec<String>) -> Self {
        Self { what: "the bus cannot start", mistakes }
    }

    /// Mistakes of a subscription that is made at run time.
    pub(crate) fn of_subscription(mistakes: Vec<String>) -> Self {
        Self { what: "the subscription cannot begin", mistakes }
    }

    /// The mistakes, each with its remedy.
    #[must_use]
    pub fn mistakes(&self) -> &[String] {
        &self.mistakes
    }

    fn list(&self) -> String {
        self.mistakes.iter().map(|mistake| format!("\n- {}", mistake.replace('\n', "\n  "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_bus_says_how_many_deliveries_are_left_and_what_becomes_of_them() {
        let text = |unfinished, lost| {
            let (after, drain) = (Duration::from_millis(1_234), Duration::from_secs(30));
            Error::Drain { unfinished, lost, after, drain }.to_string()
        };
        let one = text(1, 0);
        assert!(one.starts_with("1 delivery was not finished when the bus ended, 1.2s after"), "{one}");
        assert!(one.contains("delivered again") && one.contains("`drain` is 30s"), "{one}");
        let all = text(50, 50);
        assert!(all.starts_with("50 deliveries were not finished") && all.contains(": lost, since"), "{all}");
        assert!(text(3, 2).contains("2 of them lost"), "{}", text(3, 2));
        let endless = Error::Drain { unfinished: 1, lost: 1, after: Duration::ZERO, drain: Duration::MAX };
        assert!(endless.to_string().contains("`drain` is without limit"), "{endless}");
    }
}
