//! Dead letters: envelopes that a subscription gave up on, kept with the reason.

use super::BrokerFuture;
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::headers::Headers;
use bytes::Bytes;
use jiff::Timestamp;
use std::fmt;
use std::sync::Arc;

/// An envelope that a subscription gave up on, unchanged, with the reason beside it.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The event, as it was delivered.
    pub envelope: Arc<Envelope>,
    /// The group that gave it up.
    pub group: String,
    /// The handler: module path, function and source line.
    pub handler: String,
    /// Why, in one word.
    pub kind: FailureKind,
    /// Why, as the error and what caused it; at most 8 KiB.
    pub reason: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// When the first attempt failed.
    pub first_failed_at: Timestamp,
    /// When the last attempt failed.
    pub last_failed_at: Timestamp,
    /// The event's place in its topic.
    pub offset: super::Offset,
}

impl DeadLetter {
    /// What is known of the failure, under the names that are the same on every broker:
    /// `eventbus-dead-letter-reason`, `-kind`, `-topic`, `-group`, `-handler`, `-attempts`, `-first-failed-at`,
    /// `-last-failed-at` (RFC 3339) and `-offset`.
    #[must_use]
    pub fn headers(&self) -> Headers {
        [
            ("reason", self.reason.clone()),
            ("kind", self.kind.to_string()),
            ("topic", self.envelope.topic().to_string()),
            ("group", self.group.clone()),
            ("handler", self.handler.clone()),
            ("attempts", self.attempts.to_string()),
            ("first-failed-at", self.first_failed_at.to_string()),
            ("last-failed-at", self.last_failed_at.to_string()),
            ("offset", self.offset.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("eventbus-dead-letter-{name}"), value))
        .collect()
    }
}

/// Why a subscription gave an event up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The handler returned an error on its last attempt.
    Failed,
    /// The handler said that another attempt is of no use.
    Rejected,
    /// The handler panicked on its last attempt.
    Panicked,
    /// The handler did not finish in time on its last attempt.
    TimedOut,
    /// The payload is not the event that the handler takes.
    Undecodable,
    /// The event is of a type or a version that the handler does not know.
    UnknownType,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Panicked => "panicked",
            Self::TimedOut => "timed-out",
            Self::Undecodable => "undecodable",
            Self::UnknownType => "unknown-type",
        })
    }
}

/// The name of a dead letter in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId(pub u64);

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Dead letters under their names in the store, oldest first.
pub type DeadLetterList = Vec<(DeadLetterId, Arc<DeadLetter>)>;

/// A store of dead letters. Each operation is idempotent: done twice, it does what it does once.
pub trait DeadLetters: Send + Sync + 'static {
    /// All dead letters, oldest first.
    fn list(&self) -> BrokerFuture<Result<DeadLetterList, BrokerError>>;

    /// Delivers a dead letter again, to the group that gave it up and to no other, and removes it. With
    /// `payload` the envelope carries those bytes instead of its own. `Ok(false)` means that there is none
    /// under `id` (any more).
    fn republish(&self, id: DeadLetterId, payload: Option<Bytes>) -> BrokerFuture<Result<bool, BrokerError>>;

    /// Removes a dead letter. `Ok(false)` means that there is none under `id` (any more).
    fn purge(&self, id: DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>>;
}
