//! Causation: which event a handler is working on, so that what it publishes says what caused it; and whose handler it
//! is, so that none waits for itself.

use crate::envelope::Envelope;
use std::cell::{Cell, RefCell};
use std::mem::swap;
use std::sync::Arc;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Envelope>>> = const { RefCell::new(None) };
    static SCOPE: Cell<usize> = const { Cell::new(NOBODY) };
}

/// No scope is there.
const NOBODY: usize = 0;

/// The event that is being handled on this task, if one is.
pub(crate) fn current() -> Option<Arc<Envelope>> {
    CURRENT.with_borrow(Clone::clone)
}

/// The subscription whose handler is at work on this task, if one is: where its scope is
/// ([`Delivery::scope`](crate::Delivery::scope)).
pub(crate) fn scope() -> Option<usize> {
    Some(SCOPE.get()).filter(|scope| *scope != NOBODY)
}

/// Runs `poll` with `cause` as the current event, in the handler of the subscription at `scope`; a handler inside a handler
/// restores the outer one.
#[inline]
pub(crate) fn during<T>(cause: &mut Option<Arc<Envelope>>, scope: usize, poll: impl FnOnce() -> T) -> T {
    struct Restore<'a>(&'a mut Option<Arc<Envelope>>, usize);
    impl Drop for Restore<'_> {
        fn drop(&mut self) {
            SCOPE.set(self.1);
            CURRENT.with_borrow_mut(|current| swap(current, self.0));
        }
    }

    CURRENT.with_borrow_mut(|current| swap(current, cause));
    let _restore = Restore(cause, SCOPE.replace(scope));
    poll()
}
