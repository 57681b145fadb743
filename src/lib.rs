//! Event-driven programs from plain async functions.

#![forbid(unsafe_code)]

#[doc(hidden)]
pub use eventbus_core::__private;
pub use eventbus_core::*;
pub use eventbus_macros::{Event, link_all, main, publish, subscribe, subscriber, topics};

/// Links crates that no code names.
#[macro_export]
macro_rules! link {
    ($($name:ident),+ $(,)?) => { $(#[allow(unused_imports)] use ::$name as _;)+ };
}

/// Writes a test that checks the topology.
#[macro_export]
macro_rules! check {
    () => {
        $crate::__private::check_test!();
    };
}
