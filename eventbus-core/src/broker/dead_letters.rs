//! Dead letters: envelopes that a subscription gave up on, kept with the reason.

use super::{BrokerFuture, DeadLetterId};
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::headers::Headers;
use crate::topic::Pattern;
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
    /// The process ended again and again while a handler had the event: by an abort, a stack overflow, or because it was
    /// killed for its memory. Noted by brokers that find that out, such as the embedded log.
    Crashed,
    /// The broker's own record of the event is damaged: its checksum is wrong.
    Damaged,
}

impl FailureKind {
    const ALL: [Self; 8] = [
        Self::Failed,
        Self::Rejected,
        Self::Panicked,
        Self::TimedOut,
        Self::Undecodable,
        Self::UnknownType,
        Self::Crashed,
        Self::Damaged,
    ];

    /// The kind that is written as `text`.
    ///
    /// ```
    /// use eventbus_core::broker::FailureKind;
    /// assert_eq!(FailureKind::parse("timed-out"), Some(FailureKind::TimedOut));
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The kind as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Panicked => "panicked",
            Self::TimedOut => "timed-out",
            Self::Undecodable => "undecodable",
            Self::UnknownType => "unknown-type",
            Self::Crashed => "crashed",
            Self::Damaged => "damaged",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Dead letters under their names in the store, oldest first.
pub type DeadLetterList = Vec<(DeadLetterId, Arc<DeadLetter>)>;

/// Which dead letters are asked for: those that meet every condition that is set.
///
/// ```
/// use eventbus_core::Pattern;
/// use eventbus_core::broker::{DeadLetterQuery, FailureKind};
///
/// let mut query = DeadLetterQuery::default();
/// query.group = Some("billing.charge".to_owned());
/// query.pattern = Some(Pattern::new("order.>")?);
/// query.kind = Some(FailureKind::TimedOut);
/// query.limit = 20;
/// # Ok::<(), eventbus_core::TopicError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetterQuery {
    /// Under this name in the store.
    pub id: Option<DeadLetterId>,
    /// Given up by this group.
    pub group: Option<String>,
    /// Published on these topics.
    pub pattern: Option<Pattern>,
    /// For this reason.
    pub kind: Option<FailureKind>,
    /// Behind this one.
    pub after: Option<DeadLetterId>,
    /// At most so many. Default: no limit.
    pub limit: usize,
}

impl Default for DeadLetterQuery {
    fn default() -> Self {
        Self { id: None, group: None, pattern: None, kind: None, after: None, limit: usize::MAX }
    }
}

impl DeadLetterQuery {
    /// Whether a dead letter meets every condition.
    #[must_use]
    pub fn matches(&self, id: &DeadLetterId, letter: &DeadLetter) -> bool {
        self.id.as_ref().is_none_or(|wanted| wanted == id)
            && self.group.as_deref().is_none_or(|group| group == letter.group)
            && self.pattern.as_ref().is_none_or(|pattern| pattern.matches(letter.envelope.topic().as_str()))
            && self.kind.is_none_or(|kind| kind == letter.kind)
            && self.after.as_ref().is_none_or(|after| id > after)
    }
}

/// A store of dead letters. Each operation is idempotent: done twice, it does what it does once.
///
/// A bus gives its own as [`Bus::dead_letters`](crate::Bus::dead_letters).
///
/// ```
/// use eventbus::Bus;
/// use eventbus::broker::DeadLetterQuery;
///
/// # async fn mend(bus: Bus) -> eventbus::Result<()> {
/// let letters = bus.dead_letters()?;
/// let mut query = DeadLetterQuery::default();
/// query.group = Some("billing.charge".to_owned());
/// for (id, letter) in letters.find(query).await? {
///     println!("{id} {} at {}: {}", letter.envelope.topic(), letter.offset, letter.reason);
///     letters.republish(&id, None).await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// All methods may be called from any thread, at once: of two calls for one dead letter, one answers `true`.
///
/// # Cancel safety
/// A future that is dropped may have taken effect, wholly or not at all; asked again, the operation tells.
pub trait DeadLetters: Send + Sync + 'static {
    /// The dead letters that `query` describes, oldest first, as they are at one moment.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>>;

    /// All dead letters, oldest first.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    fn list(&self) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        self.find(DeadLetterQuery::default())
    }

    /// Delivers a dead letter again, to the group that gave it up and to no other, and removes it. With
    /// `payload` the envelope carries those bytes instead of its own. `Ok(false)` means that there is none
    /// under `id` (any more); `Ok(true)` that the group gets it, kept as well as what is published, and that
    /// its attempts begin anew. Another dead letter comes of it if it fails again. Where the broker keeps a
    /// history, the payload stays with the event for this group, in replays and rebuilds too.
    ///
    /// # Errors
    /// The dead letter stays: where the group listens on its topic no more, or has the event at hand already, where the
    /// dead letter is damaged, and where the store cannot be written.
    fn republish(&self, id: &DeadLetterId, payload: Option<Bytes>)
    -> BrokerFuture<Result<bool, BrokerError>>;

    /// Removes a dead letter: its group does not get the event again, but for a replay. `Ok(false)` means that there is
    /// none under `id` (any more).
    ///
    /// # Errors
    /// Where the store cannot be written.
    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>>;
}
