//! Workers: what runs a subscription's handler.

use crate::handler::{StaticBatchHandler, StaticHandler};
use std::fmt;

/// What runs a handler.
#[derive(Clone)]
pub struct Worker;

impl Worker {
    /// The worker of a function.
    #[must_use]
    pub const fn of<H: StaticHandler>() -> Self {
        Self
    }

    /// The worker of a function that takes batches.
    #[must_use]
    pub const fn of_batch<H: StaticBatchHandler>() -> Self {
        Self
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}
