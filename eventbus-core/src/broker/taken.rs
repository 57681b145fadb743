//! What the in-process broker has taken on this thread.
//!
//! A broker that panics as it is told of a delivery is asked again, since nobody knows what it did before. A broker that is
//! built around the in-process one may panic after that has taken the answer, and it does not know a delivery again that
//! it has settled. So it notes here that it took one, and whoever asked looks.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// An in-process broker has taken what it was told of a delivery.
#[inline]
pub(crate) fn note() {
    // While the thread ends, nobody asks any more.
    let _ = TAKEN.try_with(|taken| taken.set(taken.get().wrapping_add(1)));
}

/// A mark, to see later whether one has taken something since.
#[inline]
pub(crate) fn mark() -> Mark {
    Mark(so_far())
}

#[inline]
fn so_far() -> u64 {
    TAKEN.try_with(Cell::get).unwrap_or_default()
}

/// How much was taken on this thread when it was made.
#[derive(Clone, Copy)]
pub(crate) struct Mark(u64);

impl Mark {
    /// Whether something was taken since.
    pub(crate) fn has_moved(self) -> bool {
        so_far() != self.0
    }

    /// Tells `taken` about that when the answer is dropped, as it is where what comes in between panics.
    pub(crate) fn tell(self, taken: &AtomicBool) -> impl Drop {
        struct Telling<'a>(Mark, &'a AtomicBool);
        impl Drop for Telling<'_> {
            fn drop(&mut self) {
                self.1.fetch_or(self.0.has_moved(), Ordering::Relaxed);
            }
        }
        Telling(self, taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_seen_after_a_panic_and_only_what_was_taken_since() {
        let taken = AtomicBool::new(false);
        note();
        drop(mark().tell(&taken));
        assert!(!taken.load(Ordering::Relaxed));
        let panicked = std::panic::catch_unwind(|| {
            let _telling = mark().tell(&taken);
            note();
            panic!("afterwards");
        });
        assert!(panicked.is_err() && taken.load(Ordering::Relaxed));
    }
}
