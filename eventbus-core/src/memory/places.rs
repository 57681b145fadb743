//! The places of a queue: how many deliveries it may hold, and who waits for room.
//!
//! `models/` runs this file under every order of its steps that shuttle finds.

use crate::line::Line;
use crate::sync::{AtomicUsize, Ordering};
use std::task::Waker;

/// The places of one queue.
pub(crate) struct Places {
    taken: AtomicUsize,
    /// Publishers that wait for room.
    pub(crate) line: Line,
}

impl Places {
    /// Places of which so many are taken.
    pub(crate) fn new(taken: usize) -> Self {
        Self { taken: AtomicUsize::new(taken), line: Line::new() }
    }

    /// Takes a place, if fewer than `limit` are taken. It never takes one for a moment to look: another publisher could
    /// miss room for it, and would wait for a call that nobody owes it.
    pub(crate) fn take(&self, limit: usize) -> bool {
        let more = |taken: usize| (taken < limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Takes a place for what was here before, however many are taken.
    pub(crate) fn take_beyond(&self) {
        self.taken.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives places back. The answer is to be woken once no lock is held.
    pub(crate) fn give_back(&self, places: usize) -> Vec<Waker> {
        self.taken.fetch_sub(places, Ordering::SeqCst);
        self.line.call()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_below_the_limit_only() {
        let places = Places::new(1);
        assert!(places.take(2));
        assert!(!places.take(2));
        assert!(places.take(3), "whoever has a higher limit is not bound by the lower one");
        places.take_beyond();
        places.line.enter(None, Waker::noop().clone());
        assert_eq!(places.give_back(3).len(), 1);
        assert!(places.take(2));
    }
}
