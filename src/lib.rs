//! Event-driven programs from plain async functions.

#![forbid(unsafe_code)]

#[doc(hidden)]
pub use eventbus_core::__private;
pub use eventbus_core::*;
