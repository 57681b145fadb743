//! Causation: which event a handler is working on, so that what it publishes says what caused it.

use crate::envelope::Envelope;
use std::cell::RefCell;
use std::mem::swap;
use std::sync::Arc;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Envelope>>> = const { RefCell::new(None) };
}

/// The event that is being handled on this task, if one is.
pub(crate) fn current() -> Option<Arc<Envelope>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Runs `poll` with `cause` as the current event; a handler inside a handler restores the outer one.
#[inline]
pub(crate) fn during<T>(cause: &mut Option<Arc<Envelope>>, poll: impl FnOnce() -> T) -> T {
    struct Restore<'a>(&'a mut Option<Arc<Envelope>>);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            CURRENT.with_borrow_mut(|current| swap(current, self.0));
        }
    }

    CURRENT.with_borrow_mut(|current| swap(current, cause));
    let _restore = Restore(cause);
    poll()
}
