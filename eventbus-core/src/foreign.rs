//! Calls into code of others: handlers, extractors, layers, hooks, observers, destructors, codecs, brokers.
//!
//! Any of it may panic wherever it is called. Every such call goes through here, so that a panic is the failure of
//! one delivery or one publish and never that of a worker, and no lock is held meanwhile.

use crate::lock::assert_none_held;
use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The text of a panic in code of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panicked(pub(crate) String);

/// Calls `code` of others; `called` names it where it is called under a lock.
pub(crate) fn call<T>(called: &str, code: impl FnOnce() -> T) -> Result<T, Panicked> {
    assert_none_held(called);
    catch_unwind(AssertUnwindSafe(code)).map_err(Panicked::new)
}

/// Drops a value of others, whose destructor may panic.
pub(crate) fn discard<T>(called: &str, value: T) -> Result<(), Panicked> {
    call(called, || drop(value))
}

impl Panicked {
    fn new(panic: Box<dyn Any + Send>) -> Self {
        let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (_, Some(text)) => text.clone(),
            _ => "a panic with a value that is no text".to_owned(),
        };
        // The value that was thrown is code of others as well. Whatever its destructor throws is let go of.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
        Self(text)
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text_whatever_is_thrown() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }

        assert_eq!(call("a test", || 7), Ok(7));
        assert_eq!(call("a test", || panic!("number {}", 7)), Err::<(), _>(Panicked("number 7".to_owned())));
        assert_eq!(discard("a test", Bomb), Err(Panicked("dropped".to_owned())));
        let thrown = call("a test", || std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(thrown.0, "a panic with a value that is no text");
    }
}
