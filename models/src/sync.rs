//! The primitives of core, of shuttle.

pub(crate) use shuttle::sync::atomic::{AtomicUsize, Ordering};
