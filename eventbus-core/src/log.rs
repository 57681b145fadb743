//! Lines of the log. Who subscribes to `tracing` is code of others, and may panic: because the disk is full, or because
//! nobody reads standard error any more.
//!
//! Lines are written with the macros here, and spans are entered with `enter`, so that such a panic costs a line and
//! nothing else.

use crate::foreign;
use tracing::{Level, Span};

const LOG: &str = "the log";

#[doc(hidden)]
#[macro_export]
macro_rules! __error {
    ($($line:tt)*) => {
        $crate::foreign::log(|| $crate::stderr::or_to_stderr(|| ::tracing::error!($($line)*)))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __warn {
    ($($line:tt)*) => {
        $crate::foreign::log(|| $crate::stderr::or_to_stderr(|| ::tracing::warn!($($line)*)))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __info {
    ($($line:tt)*) => { $crate::foreign::log(|| ::tracing::info!($($line)*)) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __debug {
    ($($line:tt)*) => { $crate::foreign::log(|| ::tracing::debug!($($line)*)) };
}

pub use crate::{__debug as debug, __error as error, __info as info, __warn as warn};

/// Whether somebody listens to lines that are worth a trace.
pub(crate) fn is_traced() -> bool {
    foreign::call(LOG, || tracing::enabled!(target: "eventbus", Level::INFO)).unwrap_or(false)
}

/// What `make` makes; no span, where that panics.
pub(crate) fn span(make: impl FnOnce() -> Span) -> foreign::Kept<Span> {
    foreign::Kept::new(foreign::call(LOG, make).unwrap_or_else(|_| Span::none()))
}

/// Enters a span, until what this returns is dropped. Where nobody records, there is none to enter.
#[inline]
pub(crate) fn enter(span: &Span) -> Option<foreign::Kept<tracing::span::Entered<'_>>> {
    if span.is_none() {
        return None;
    }
    foreign::call(LOG, || span.enter()).ok().map(foreign::Kept::new)
}

/// What a subscriber of a test has written.
#[cfg(test)]
pub(crate) mod captured {
    use crate::lock::{Lock, Rank};
    use std::io::{self, Write};
    use std::sync::Arc;

    #[derive(Clone)]
    pub(crate) struct Captured(Arc<Lock<Vec<u8>>>);

    impl Default for Captured {
        fn default() -> Self {
            Self(Arc::new(Lock::new(Rank::LEAF, Vec::new())))
        }
    }

    impl Captured {
        /// All of it since the last time.
        pub(crate) fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
