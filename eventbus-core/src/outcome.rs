//! Outcomes: what a handler's answer means for its delivery.

use crate::broker::FailureKind;
use crate::counted::counted;
use crate::envelope::Envelope;
use crate::error::{BoxError, DecodeError, chain, links};
use crate::event::{Event, EventMeta, IntoEvent};
use crate::foreign::{self, Panicked};
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// What becomes of a delivery.
///
/// Most handlers return `()`, `Result<(), E>` or the event that they cause; a handler that decides more finely
/// returns an `Outcome`.
///
/// ```
/// use eventbus_core::Outcome;
/// use std::time::Duration;
///
/// fn charge(status: u16) -> Outcome {
///     match status {
///         200 => Outcome::Ack,
///         429 => Outcome::RetryAfter(Duration::from_secs(30)),
///         400..=499 => Outcome::Reject("the card was refused".into()),
///         _ => Outcome::Retry("the payment service is down".into()),
///     }
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Done.
    Ack,
    /// Done, once these events are published; they are marked as caused by the delivered one.
    Publish(Vec<Envelope>),
    /// Failed; try again by the subscription's `retries` and `backoff`.
    Retry(Reason),
    /// Failed; try again after this time, within the subscription's `retries`.
    RetryAfter(Duration),
    /// Failed for good: no other attempt is of use.
    Reject(Reason),
}

impl Outcome {
    /// Done, once `event` is published.
    #[must_use]
    pub fn publish(event: impl IntoEvent) -> Self {
        Self::Publish(vec![Envelope::from_event(event)])
    }

    /// Also publishes `event`, where the outcome is a success; a failure stays what it is.
    #[must_use]
    pub fn and_publish(self, event: impl IntoEvent) -> Self {
        match self {
            Self::Ack => Self::publish(event),
            Self::Publish(mut events) => {
                events.push(Envelope::from_event(event));
                Self::Publish(events)
            }
            failure => failure,
        }
    }
}

/// Why a delivery failed: a text, made from an error and what caused it.
///
/// ```
/// use eventbus_core::Reason;
/// assert_eq!(Reason::from("no such account").to_string(), "no such account");
/// ```
#[derive(Clone, Debug)]
pub struct Reason {
    kind: FailureKind,
    text: String,
}

impl Reason {
    /// The longest text that is kept, in bytes.
    pub const LIMIT: usize = 8 * 1024;

    pub(crate) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > Self::LIMIT {
            let note = format!("… ({} in all)", counted(text.len(), "byte"));
            let mut end = Self::LIMIT - note.len();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(&note);
            text.shrink_to_fit();
        }
        Self { kind, text }
    }

    pub(crate) fn of(kind: FailureKind, error: &(dyn Error + 'static)) -> Self {
        Self::new(kind, chain(error))
    }

    pub(crate) fn kind(&self) -> FailureKind {
        self.kind
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::new(FailureKind::Failed, text)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::new(FailureKind::Failed, text)
    }
}

impl From<BoxError> for Reason {
    fn from(error: BoxError) -> Self {
        Self::of(FailureKind::Failed, &*error)
    }
}

impl From<Panicked> for Reason {
    fn from(panicked: Panicked) -> Self {
        Self::new(FailureKind::Panicked, panicked.into_text())
    }
}

impl From<DecodeError> for Outcome {
    /// Bytes do not get better by reading them again.
    fn from(error: DecodeError) -> Self {
        let kind = match error {
            DecodeError::UnknownType { .. } | DecodeError::UnknownVersion { .. } => FailureKind::UnknownType,
            _ => FailureKind::Undecodable,
        };
        Self::Reject(Reason::of(kind, &error))
    }
}

/// Marks an error as permanent: the delivery goes to the dead letters without another attempt.
///
/// The mark is found anywhere in the chain of an error's sources, so it survives `?`, added context, and the variants of
/// a `thiserror` enum, `#[error(transparent)]` as well. It is not found where it is itself the context of an
/// `anyhow::Error`, which hides the types of contexts: mark the error below, and add a text as its context, or mark the
/// `anyhow::Error` as a whole.
///
/// ```
/// use eventbus_core::{BoxError, Permanent};
///
/// fn parse(account: &str) -> Result<u64, BoxError> {
///     Ok(account.parse().map_err(Permanent::new)?)
/// }
/// assert!(parse("x").is_err());
/// ```
pub struct Permanent(Marked);

/// The error in a [`Permanent`], which is its source: an error that stands for it (`#[error(transparent)]`) shows its
/// source as its own, and so the mark.
struct Marked(BoxError);

impl Permanent {
    /// Marks `error`.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(Marked(error.into()))
    }

    fn is_in(error: &(dyn Error + 'static)) -> bool {
        links(error).any(|link| link.is::<Self>() || link.is::<Marked>())
    }
}

impl fmt::Debug for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Permanent").field(&self.0.0).finish()
    }
}

impl fmt::Display for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Permanent {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Debug for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Marked {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// What a handler may return as its error: whatever turns into a `Box<dyn Error + Send + Sync>`, such as errors of
/// `thiserror` and `anyhow`, `String` and `&str`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a subscriber",
    label = "neither an error that can go to another thread, nor a text",
    note = "implement `std::error::Error` for it (`thiserror` derives it), or return `String`, `&str`, \
            `anyhow::Error` or `eventbus::BoxError`, which is a `Box<dyn Error + Send + Sync>`",
    note = "`Permanent::new(…)` is the error that rejects at once; an `Outcome` is no error but an answer: return \
            `Outcome`, or `Ok(outcome)` in a `Result<Outcome, E>`"
)]
pub trait SubscriberError {
    /// The error in the form that a dead letter's reason is made from.
    fn into_error(self) -> BoxError;
}

#[diagnostic::do_not_recommend]
impl<E: Into<BoxError>> SubscriberError for E {
    fn into_error(self) -> BoxError {
        self.into()
    }
}

/// What a handler may return.
#[diagnostic::on_unimplemented(
    message = "a subscriber cannot return `{Self}`",
    label = "not an outcome",
    note = "return `()`, an event to publish it, `Option` or `Vec` of events, an `Outcome`, \
            or a `Result` of one of these"
)]
pub trait IntoOutcome {
    /// The event that is published where the answer holds one.
    const PUBLISHES: Option<&'static EventMeta> = None;

    /// What the answer means for the delivery.
    fn into_outcome(self) -> Outcome;
}

#[diagnostic::do_not_recommend]
impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Ack
    }
}

#[diagnostic::do_not_recommend]
impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

// Recommended, so that the compiler names the part of a `Result` that is wrong.
impl<T: IntoOutcome, E: SubscriberError> IntoOutcome for Result<T, E> {
    const PUBLISHES: Option<&'static EventMeta> = T::PUBLISHES;

    fn into_outcome(self) -> Outcome {
        match self {
            Ok(answer) => answer.into_outcome(),
            Err(error) => failure(&*error.into_error()),
        }
    }
}

fn failure(error: &(dyn Error + 'static)) -> Outcome {
    if Permanent::is_in(error) {
        Outcome::Reject(Reason::of(FailureKind::Rejected, error))
    } else {
        Outcome::Retry(Reason::of(FailureKind::Failed, error))
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoOutcome> IntoOutcome for Option<T> {
    const PUBLISHES: Option<&'static EventMeta> = T::PUBLISHES;

    fn into_outcome(self) -> Outcome {
        self.map_or(Outcome::Ack, T::into_outcome)
    }
}

#[diagnostic::do_not_recommend]
impl<E: Event> IntoOutcome for Vec<E> {
    const PUBLISHES: Option<&'static EventMeta> = Some(E::META);

    fn into_outcome(self) -> Outcome {
        Outcome::Publish(
            self.into_iter().map(|event| Envelope::from_event(std::sync::Arc::new(event))).collect(),
        )
    }
}

/// What a batch handler may return: one answer for all members, or a `Vec` with one answer for each.
#[diagnostic::on_unimplemented(
    message = "a batch subscriber cannot return `{Self}`",
    label = "not an outcome of a batch",
    note = "return `()` or `Result<(), E>` for all members, or a `Vec` with one `Outcome` or `Result` for each, \
            in the order of the batch"
)]
pub trait IntoOutcomes {
    /// Whether one answer stands for all members, so that they succeed or fail together. Only then a batch has several
    /// events of one key: with an answer for each, one that fails would be tried again after later ones of its key.
    const TOGETHER: bool;

    /// The outcomes of `members` deliveries.
    fn into_outcomes(self, members: usize) -> Vec<Outcome>;
}

#[diagnostic::do_not_recommend]
impl IntoOutcomes for () {
    const TOGETHER: bool = true;

    fn into_outcomes(self, members: usize) -> Vec<Outcome> {
        vec![Outcome::Ack; members]
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoOutcome> IntoOutcomes for Vec<T> {
    const TOGETHER: bool = false;

    fn into_outcomes(self, members: usize) -> Vec<Outcome> {
        if self.len() == members {
            // What the answer for one member says of itself is no matter of the others.
            let outcome = |answer| foreign::call("an answer", || T::into_outcome(answer));
            let outcomes = self.into_iter().map(outcome);
            return outcomes
                .map(|outcome| outcome.unwrap_or_else(|panicked| Outcome::Retry(panicked.into())))
                .collect();
        }
        let reason = format!(
            "the batch has {} and the handler returned {}",
            counted(members, "member"),
            counted(self.len(), "outcome")
        );
        vec![Outcome::Retry(reason.into()); members]
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoOutcomes, E: SubscriberError> IntoOutcomes for Result<T, E> {
    const TOGETHER: bool = T::TOGETHER;

    fn into_outcomes(self, members: usize) -> Vec<Outcome> {
        match self {
            Ok(answers) => answers.into_outcomes(members),
            Err(error) => vec![failure(&*error.into_error()); members],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("saving failed")]
    struct Saving(#[source] BoxError);

    #[test]
    fn an_error_that_is_its_own_cause_is_a_failure_as_any_other() {
        #[derive(Debug)]
        struct Circle;
        impl fmt::Display for Circle {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("round and round")
            }
        }
        impl Error for Circle {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(self)
            }
        }
        let Outcome::Retry(reason) = Err::<(), _>(Circle).into_outcome() else {
            panic!("it may be tried again")
        };
        assert_eq!(reason.text, "round and round");
    }

    #[test]
    fn a_reason_tells_the_whole_chain_of_errors() {
        let outcome = Err::<(), _>(Saving("disk full".into())).into_outcome();
        let Outcome::Retry(reason) = outcome else { panic!("{outcome:?}") };
        assert_eq!(reason.to_string(), "saving failed: disk full");
    }

    #[test]
    fn a_permanent_error_is_found_under_added_context_which_is_told_as_well() {
        let outcome = Err::<(), _>(Saving(Permanent::new("no such table").into())).into_outcome();
        let Outcome::Reject(reason) = outcome else { panic!("{outcome:?}") };
        assert_eq!(reason.to_string(), "saving failed: no such table");
    }

    /// As `thiserror` has them in enums.
    #[derive(Debug, thiserror::Error)]
    enum Charging {
        #[error(transparent)]
        Refused(#[from] Permanent),
        #[error(transparent)]
        Other(#[from] BoxError),
        #[error("charging: {0}")]
        Told(#[source] Permanent),
    }

    #[test]
    fn a_permanent_error_is_found_in_one_that_stands_for_it_and_told_once() {
        let permanent = || Permanent::new(Saving("no such table".into()));
        for (error, told) in [
            (Charging::Refused(permanent()), "saving failed: no such table"),
            (Charging::Other(permanent().into()), "saving failed: no such table"),
            (Charging::Other(Charging::Refused(permanent()).into()), "saving failed: no such table"),
            (Charging::Told(permanent()), "charging: saving failed: no such table"),
        ] {
            let outcome = Err::<(), _>(error).into_outcome();
            let Outcome::Reject(reason) = outcome else { panic!("{outcome:?}") };
            assert_eq!(reason.to_string(), told);
        }
        let outcome = Err::<(), _>(Charging::Other("the network".into())).into_outcome();
        assert!(matches!(outcome, Outcome::Retry(_)), "{outcome:?}");
    }

    #[test]
    fn a_huge_reason_is_cut_between_characters_and_says_so() {
        let reason = Reason::from("é".repeat(10 << 20));
        assert!(reason.text.len() <= Reason::LIMIT);
        assert!(reason.text.ends_with("(20,971,520 bytes in all)"));
    }

    #[test]
    fn a_batch_answer_of_the_wrong_length_fails_every_member() {
        let outcomes = vec![Outcome::Ack].into_outcomes(2);
        assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Retry(_))).count(), 2);
    }
}
