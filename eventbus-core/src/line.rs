//! A line of those who wait for something, each with the waker of its task.
//!
//! `models/` runs this file under every order of its steps that shuttle finds.

use crate::lock::{Lock, Rank};
use crate::sync::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::task::Waker;

/// Those who wait, in the order in which they came.
///
/// Whoever waits enters the line before it looks for what it waits for; whoever brings that about does so before it
/// calls. One of the two sees the other, as long as both use `SeqCst`.
pub(crate) struct Line {
    /// How many there are, so that nobody looks into an empty line.
    waiting: AtomicUsize,
    places: Lock<Places>,
}

struct Places {
    last_number: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Line {
    pub(crate) fn new() -> Self {
        let places = Places { last_number: 0, wakers: BTreeMap::new() };
        Self { waiting: AtomicUsize::new(0), places: Lock::new(Rank::LEAF, places) }
    }

    /// Enters, at the end or where `number` stood before. Look for what is waited for after this, not only before.
    pub(crate) fn enter(&self, number: Option<u64>, waker: Waker) -> u64 {
        let (number, former) = {
            let mut places = self.places.lock();
            let number = number.unwrap_or_else(|| {
                places.last_number += 1;
                places.last_number
            });
            let former = places.wakers.insert(number, waker);
            if former.is_none() {
                self.waiting.fetch_add(1, Ordering::SeqCst);
            }
            (number, former)
        };
        drop(former);
        number
    }

    pub(crate) fn leave(&self, number: u64) {
        let left = {
            let mut places = self.places.lock();
            let left = places.wakers.remove(&number);
            if left.is_some() {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            left
        };
        drop(left);
    }

    /// Those who wait, so that they look again: to be woken once no lock is held.
    pub(crate) fn call(&self) -> Vec<Waker> {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let mut places = self.places.lock();
        let called: Vec<_> = std::mem::take(&mut places.wakers).into_values().collect();
        self.waiting.fetch_sub(called.len(), Ordering::SeqCst);
        called
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_called_once() {
        let line = Line::new();
        let enter = |number| line.enter(number, Waker::noop().clone());
        let (first, second) = (enter(None), enter(None));
        assert!(first < second);
        assert_eq!(enter(Some(first)), first, "it keeps its place");
        assert_eq!(line.call().len(), 2);
        assert!(line.call().is_empty(), "nobody waits any more");
        enter(Some(second));
        line.leave(second);
        line.leave(first);
        assert!(line.call().is_empty());
    }
}
