//! Observers: who is told what happens on a bus, for metrics, dashboards and tests.

use crate::broker::DeadLetter;
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use std::sync::Arc;
use std::time::Duration;

/// Is told what happens on a bus. Methods are called on the publishing or handling task, so they must be quick.
/// One that panics is named in an error line; what it was told of is not affected.
///
/// ```
/// use eventbus_core::{Attempted, Delivery, Observer};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
///
/// impl Observer for Failures {
///     fn attempted(&self, _delivery: &Delivery, result: &Attempted) {
///         if !matches!(result, Attempted::Acked) {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// The broker confirmed an event.
    fn published(&self, envelope: &Arc<Envelope>) {
        let _ = envelope;
    }

    /// A handler's attempt is over and settled.
    fn attempted(&self, delivery: &Delivery, result: &Attempted) {
        let _ = (delivery, result);
    }
}

/// How an attempt ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Attempted {
    /// The handler was successful.
    Acked,
    /// The handler failed and is tried again.
    Retrying {
        /// Why it failed.
        reason: String,
        /// How long the delivery waits before the next attempt.
        delay: Duration,
    },
    /// The delivery was given up, and its dead letter is stored.
    DeadLettered(Arc<DeadLetter>),
    /// The delivery was given up, by a subscription that keeps no dead letters or by a replay.
    Dropped {
        /// Why it was given up.
        reason: String,
    },
}
