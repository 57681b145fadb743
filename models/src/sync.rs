//! The primitives of core and of tokio, of shuttle.

pub(crate) use crate::tasks::notify::Notify;
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
