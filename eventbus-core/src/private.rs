//! Used by generated code, and by nothing else: no promise is made about what is in here.

pub use crate::backoff::Backoff;
pub use crate::check;
pub use crate::codec::Json;
pub use crate::delivery::Delivery;
pub use crate::error::DecodeError;
pub use crate::event::{Event, EventMeta, IntoEvent, Key};
pub use crate::extract::{FromBatch, FromDelivery};
pub use crate::handler::{StaticBatchHandler, StaticHandler};
pub use crate::outcome::{IntoOutcome, IntoOutcomes, Outcome};
pub use crate::registry::*;
pub use crate::state::State;
pub use crate::subscription::{Options, Start, StateType, Subscription};
pub use crate::worker::Worker;
pub use eventbus_grammar as grammar;

/// Runs the checks that need no broker, for `check!`.
///
/// # Panics
/// Where they find a mistake; the message lists all of them.
pub fn check_census() {
    let subscriptions: Vec<_> = subscribers().iter().map(|subscriber| &subscriber.subscription).collect();
    let findings = crate::census::check(&subscriptions);
    findings.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    assert!(findings.mistakes.is_empty(), "{}", crate::error::StartupError::new(findings.mistakes));
}
