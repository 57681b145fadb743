//! The places of a queue: how many deliveries it may hold, and who waits for room.
//!
//! `models/` runs this file under every order of its steps that shuttle finds.

use crate::lock::{Lock, Rank};
use crate::sync::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::task::Waker;

/// The places of one queue.
pub(crate) struct Places {
    taken: AtomicUsize,
    /// How many stand in line: who gives places back need not look into the line where nobody does.
    waiting: AtomicUsize,
    line: Lock<Line>,
}

/// Those who wait for room, in the order in which they came.
struct Line {
    last_number: u64,
    wakers: BTreeMap<u64, Waker>,
}

// Whoever waits enters the line before it looks for room, and whoever makes room does so before it looks at the line.
// One of the two sees the other, since all of these are in one order (`SeqCst`).
impl Places {
    /// Places of which so many are taken.
    pub(crate) fn new(taken: usize) -> Self {
        Self {
            taken: AtomicUsize::new(taken),
            waiting: AtomicUsize::new(0),
            line: Lock::new(Rank::LEAF, Line { last_number: 0, wakers: BTreeMap::new() }),
        }
    }

    /// Takes a place, if fewer than `limit` are taken. It never takes one for a moment only: another publisher could
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
        self.call()
    }

    /// Those who wait, so that they look again: to be woken once no lock is held.
    pub(crate) fn call(&self) -> Vec<Waker> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let mut line = self.line.lock();
        let called: Vec<_> = std::mem::take(&mut line.wakers).into_values().collect();
        self.waiting.fetch_sub(called.len(), Ordering::SeqCst);
        called
    }

    /// Enters the line, at its end or where `number` stood before. Look for room after this, not only before.
    pub(crate) fn enter_line(&self, number: Option<u64>, waker: Waker) -> u64 {
        let (number, former) = {
            let mut line = self.line.lock();
            let number = number.unwrap_or_else(|| {
                line.last_number += 1;
                line.last_number
            });
            let former = line.wakers.insert(number, waker);
            if former.is_none() {
                self.waiting.fetch_add(1, Ordering::SeqCst);
            }
            (number, former)
        };
        drop(former);
        number
    }

    /// Leaves the line.
    pub(crate) fn leave_line(&self, number: u64) {
        let left = {
            let mut line = self.line.lock();
            let left = line.wakers.remove(&number);
            if left.is_some() {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            left
        };
        drop(left);
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
        assert!(places.give_back(3).is_empty());
        assert!(places.take(2));
    }

    #[test]
    fn whoever_waits_is_called_once_in_the_order_of_the_line() {
        let places = Places::new(2);
        let first = places.enter_line(None, Waker::noop().clone());
        let second = places.enter_line(None, Waker::noop().clone());
        assert!(first < second);
        assert_eq!(places.enter_line(Some(first), Waker::noop().clone()), first);
        assert_eq!(places.give_back(1).len(), 2);
        assert!(places.give_back(1).is_empty(), "nobody waits any more");
        places.enter_line(Some(second), Waker::noop().clone());
        places.leave_line(second);
        places.leave_line(first);
        assert!(places.call().is_empty());
    }
}
