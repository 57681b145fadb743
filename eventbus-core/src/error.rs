//! What can go wrong, and what to do about it.
//!
//! An error says in its message what caused it, down to the last cause, and so it exposes none as
//! [`source`](std::error::Error::source): whoever writes a chain of errors would say it twice. `Debug` is the same text,
//! since that is what a `main` shows that returns the error, and what `unwrap` shows.

use crate::counted::{count, counted};
use crate::event::EventMeta;
use crate::paused;
use crate::topic::TopicError;
use std::fmt;
use std::time::Duration;

/// An error of any type, as it comes from a codec, a broker or a subscriber.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything that a bus does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a bus reports to the program that runs it.
///
/// Returned from `main` it reads as it is meant to. A program that tells its ends apart matches on it:
///
/// ```
/// use eventbus::{Bus, Error};
/// use std::process::ExitCode;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> ExitCode { exit_code(Bus::connect("nowhere:").await.map(drop)) }
/// # fn _never() { let _ = run(); }
/// async fn run() -> eventbus::Result<()> {
///     Bus::connect("memory:").await?.run().await
/// }
///
/// fn exit_code(result: eventbus::Result<()>) -> ExitCode {
///     match result {
///         Ok(()) => ExitCode::SUCCESS,
///         Err(Error::Drain { unfinished, .. }) => {
///             eprintln!("{unfinished} deliveries were cut off");
///             ExitCode::from(2)
///         }
///         Err(Error::Startup(error)) => {
///             error.mistakes().iter().for_each(|mistake| eprintln!("- {mistake}"));
///             ExitCode::from(3)
///         }
///         Err(error) => {
///             eprintln!("{error}");
///             # return ExitCode::SUCCESS;
///             ExitCode::FAILURE
///         }
///     }
/// }
/// ```
#[derive(thiserror::Error)]
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
    /// There was no tokio runtime around a call that needs one.
    #[error(
        "`{call}` was called outside of a tokio runtime; call it inside of `#[eventbus::main]`, `#[tokio::main]` or \
         `Runtime::block_on`"
    )]
    NoRuntime {
        /// What was called.
        call: &'static str,
    },
    /// The tokio runtime around a call has no timers, which retries, timeouts and the end of a bus need.
    #[error(
        "`{call}` was called on a tokio runtime without timers; build the runtime with `.enable_all()`, as \
         `#[eventbus::main]` and `#[tokio::main]` do"
    )]
    NoTimers {
        /// What was called.
        call: &'static str,
    },
    /// A replay was refused.
    #[error("cannot replay `{group}`: {reason}")]
    Replay {
        /// The group that was to be replayed.
        group: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A rebuild failed.
    #[error("cannot rebuild `{group}`: {reason}{}", because(cause.as_ref()))]
    Rebuild {
        /// The group whose read model was to be rebuilt.
        group: String,
        /// Whether the new model is in place; otherwise the live subscription goes on with the old one.
        swapped: bool,
        /// What failed, and what to do.
        reason: String,
        /// What the program or the broker said.
        cause: Option<BoxError>,
    },
    /// The bus has ended before everything was handled that it had accepted.
    #[error(
        "{} not finished when {}, {after:.1?} after its shutdown began (`drain` is {}): {}{}",
        deliveries(*unfinished),
        if *cut_short { "a second signal ended the bus" } else { "the bus ended" },
        limit(*drain),
        what_became(*unfinished, *lost, *cut_short),
        paused::hint(*real, *after)
    )]
    Drain {
        /// How many deliveries were accepted and are not settled, as far as they were at hand: those that were being
        /// handled, and those that are lost.
        unfinished: usize,
        /// How many of these are lost, since the broker keeps them in memory only. A durable broker delivers the others
        /// again.
        lost: usize,
        /// Whether a second signal cut the shutdown short.
        cut_short: bool,
        /// How long the bus has waited for them. Shorter than `drain` where a second signal cut it short, or where the
        /// bus was never started.
        after: Duration,
        /// How long that was on the real clock: as long, but where a test has paused tokio's clock, which jumps.
        real: Duration,
        /// The time that a shutdown may take.
        drain: Duration,
    },
}

/// "1 delivery was", "2 deliveries were".
pub(crate) fn deliveries(number: usize) -> String {
    format!("{} {}", counted(number, "delivery"), if number == 1 { "was" } else { "were" })
}

fn limit(drain: Duration) -> String {
    if drain == Duration::MAX { "without limit".to_owned() } else { format!("{drain:?}") }
}

fn what_became(unfinished: usize, lost: usize, cut_short: bool) -> String {
    let remedy = match (lost, cut_short) {
        (0, true) => "let a shutdown come to its end after the first signal",
        (0, false) => "set a longer `drain`, or a shorter `timeout` for the handlers",
        (_, true) => "let a shutdown come to its end after the first signal, or use a durable broker",
        (_, false) => "start the bus before it is shut down, set a longer `drain`, or use a durable broker",
    };
    let lost = match lost {
        0 => return format!("delivered again by a broker that keeps them ({remedy})"),
        all if all == unfinished => "lost".to_owned(),
        some => format!("{} of them lost", count(some)),
    };
    format!("{lost}, since the broker keeps them in memory only ({remedy})")
}

/// What is said of a cause, behind what is said of the error.
fn because(cause: Option<&BoxError>) -> String {
    cause.map(|cause| format!(": {}", chain(&**cause))).unwrap_or_default()
}

/// An error, what caused it, and so on; not for ever, since an error of others may be its own cause.
pub(crate) fn links<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    const LINKS: usize = 100;
    std::iter::successors(Some(error), |&error| error.source()).take(LINKS)
}

/// An error with everything that caused it, in one text.
#[doc(hidden)]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in links(error).skip(1) {
        let cause = cause.to_string();
        // Many errors repeat their source in their own message.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

macro_rules! debug_as_display {
    ($($error:ty)*) => {$(
        impl fmt::Debug for $error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
debug_as_display!(Error PublishError DecodeError BrokerError StartupError);

/// Why an event was not published. Nothing was stored, unless it is [`Unconfirmed`](Self::Unconfirmed).
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is not well-formed.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The value has no form in its codec.
    #[error("cannot encode the payload for \"{topic}\": {}", chain(&**cause))]
    Encode {
        /// The topic that the value was meant for.
        topic: String,
        /// What the codec said.
        cause: BoxError,
    },
    /// The event cannot be read again from its own bytes, so whoever takes it from a log would not get it.
    #[error(
        "cannot publish to \"{topic}\": `{}` ({}:{}) cannot be read again as it is written: {}; make its \
         `Serialize` and `Deserialize` agree (a field with `skip_serializing_if` needs `default`, an untagged enum \
         distinct variants, a number of 128 bits no `flatten`)",
        event.name, event.file, event.line, chain(&**cause)
    )]
    Unreadable {
        /// The topic that was published to.
        topic: String,
        /// The type of the event.
        event: &'static EventMeta,
        /// What the codec said, or what came back as something else.
        cause: BoxError,
    },
    /// A subscription's queue is full and the broker was told not to wait.
    #[error(
        "cannot publish to \"{topic}\": the queue of `{group}` holds {}; \
         publish later, raise the capacity, or let the broker wait (`Overflow::Wait`)",
        counted(capacity, "event")
    )]
    Full {
        /// The topic that was published to.
        topic: String,
        /// The group whose queue is full.
        group: String,
        /// How many events the queue may hold.
        capacity: usize,
    },
    /// The payload, or what stands around it, is larger than the broker takes.
    #[error(
        "cannot publish to \"{topic}\": its {} {}, and {} are allowed; \
         publish a reference to what is stored elsewhere, or raise the broker's `max_payload`",
        of_part(part),
        counted(size, "byte"),
        count(limit)
    )]
    TooLarge {
        /// The topic that was published to.
        topic: String,
        /// What is too large, or has most of what is: the payload, or an attribute or the headers.
        part: &'static str,
        /// The size of the payload, or else of all attributes and headers together, in bytes.
        size: usize,
        /// The largest that the broker takes, in bytes.
        limit: usize,
    },
    /// The event is the end of a long chain of events that caused each other, most likely a loop.
    #[error(
        "cannot publish to \"{topic}\": it would be caused by {} in a row, the last one on \"{cause}\"; \
         a subscriber most likely causes its own topic: break the loop, or raise `causation_limit`",
        counted(limit, "event")
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
    /// The broker refused.
    #[error("cannot publish to \"{topic}\": {}", chain(&**cause))]
    Broker {
        /// The topic that was published to.
        topic: String,
        /// What the broker said.
        cause: BoxError,
    },
    /// The broker did not confirm: the event may have been stored, and may not.
    #[error(
        "the event for \"{topic}\" may have been stored, or not: {}; publish it again with the same id (`.id(…)`): a broker \
         that tells duplicates apart stores it once, and another one may store it twice",
        chain(&**cause)
    )]
    Unconfirmed {
        /// The topic that was published to.
        topic: String,
        /// What went wrong before the broker could confirm.
        cause: BoxError,
    },
}

/// How a message begins that tells the size of a part.
fn of_part(part: &str) -> String {
    match part {
        "payload" => "payload has".to_owned(),
        _ => format!("{part} and the other attributes have"),
    }
}

/// Why a payload could not become the event that a subscriber asked for.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes are not such an event.
    #[error("cannot decode `{}` v{}: {}", event.name, event.version, chain(&**cause))]
    Malformed {
        /// The event that was asked for.
        event: &'static EventMeta,
        /// What the codec said, with the place where it knows it.
        cause: BoxError,
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
    #[error("cannot encode the event on \"{topic}\" for a subscriber that takes its bytes: {}", chain(&**cause))]
    Encode {
        /// The topic of the event.
        topic: String,
        /// What the codec said.
        cause: BoxError,
    },
}

/// What a broker reports.
///
/// ```
/// use eventbus::error::BrokerError;
/// # use std::io;
///
/// let full = io::Error::from(io::ErrorKind::StorageFull);
/// let error = BrokerError::new("cannot write the log; make room").with_cause(full);
/// assert_eq!(error.to_string(), "cannot write the log; make room: no storage space");
/// assert!(error.cause().is_some_and(|cause| cause.is::<io::Error>()));
/// ```
#[derive(thiserror::Error)]
#[error("{message}{}", because(cause.as_ref()))]
pub struct BrokerError {
    message: String,
    cause: Option<BoxError>,
}

impl BrokerError {
    /// An error with a message that says what failed and what to do.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: None }
    }

    /// Keeps what the client library said.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What the client library said; the message ends with it.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }
}

/// The mistakes that the start-up checks found, each in a line or two with its source lines.
#[derive(thiserror::Error)]
#[error("{}:{}", self.what, self.list())]
pub struct StartupError {
    what: &'static str,
    mistakes: Vec<String>,
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
            Error::Drain { unfinished, lost, cut_short: false, after, real: after, drain }.to_string()
        };
        let one = text(1, 0);
        assert!(one.starts_with("1 delivery was not finished when the bus ended, 1.2s after"), "{one}");
        assert!(one.contains("delivered again") && one.contains("`drain` is 30s"), "{one}");
        let all = text(50, 50);
        assert!(all.starts_with("50 deliveries were not finished") && all.contains(": lost, since"), "{all}");
        assert!(text(3, 2).contains("2 of them lost"), "{}", text(3, 2));
        let (after, drain) = (Duration::ZERO, Duration::MAX);
        let endless = Error::Drain { unfinished: 1, lost: 1, cut_short: false, after, real: after, drain };
        assert!(endless.to_string().contains("`drain` is without limit"), "{endless}");
        assert!(!endless.to_string().contains("the clock is paused"), "{endless}");
        let (after, real) = (Duration::from_secs(30), Duration::from_millis(2));
        let jumped = Error::Drain { unfinished: 1, lost: 1, cut_short: false, after, real, drain: after };
        assert!(jumped.to_string().contains("the clock is paused and jumped over this time"), "{jumped}");
    }

    /// What `main` shows, and `unwrap`, is `Debug`.
    #[test]
    fn an_error_says_its_causes_once_in_either_form() {
        let full = BrokerError::new("cannot write the log").with_cause("the disk is full");
        let error =
            Error::from(PublishError::Broker { topic: "order.placed".to_owned(), cause: full.into() });
        let text = "cannot publish to \"order.placed\": cannot write the log: the disk is full";
        assert_eq!(error.to_string(), text);
        assert_eq!(format!("{error:?}"), text);
        assert_eq!(chain(&error), text);
    }

    #[test]
    fn an_error_of_others_that_repeats_its_source_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot save: {source}")]
        struct Repeats {
            source: std::io::Error,
        }
        let error = Repeats { source: std::io::ErrorKind::StorageFull.into() };
        assert_eq!(chain(&error), "cannot save: no storage space");
    }
}
