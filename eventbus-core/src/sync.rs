//! The primitives of what is also run under a model checker: `models/` includes such files with its own in their
//! place.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
