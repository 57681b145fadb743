//! The record of what happened on a bus.

use eventbus_core::{Attempted, Delivery, Envelope, EventId, Observer};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One attempt of one handler, and how it ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HandledAttempt {
    /// The group of the subscription.
    pub group: String,
    /// The id of the event.
    pub event: EventId,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// How it ended.
    pub result: Attempted,
}

/// What happened so far, in the order it happened.
#[derive(Clone, Default)]
pub(crate) struct Record(Arc<Mutex<Happened>>);

#[derive(Default)]
pub(crate) struct Happened {
    pub(crate) published: Vec<Arc<Envelope>>,
    pub(crate) attempts: Vec<HandledAttempt>,
}

impl Record {
    pub(crate) fn happened(&self) -> MutexGuard<'_, Happened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Record {
    fn published(&self, envelope: &Arc<Envelope>) {
        self.happened().published.push(Arc::clone(envelope));
    }

    fn attempted(&self, delivery: &Delivery, result: &Attempted) {
        self.happened().attempts.push(HandledAttempt {
            group: delivery.subscription().group.to_string(),
            event: delivery.envelope().id().clone(),
            attempt: delivery.attempt(),
            result: result.clone(),
        });
    }
}
