//! The locks of core, of shuttle's mutexes.

use shuttle::sync::{Mutex, MutexGuard};

/// Ranks are checked by core itself.
pub(crate) struct Rank;

impl Rank {
    pub(crate) const LANES: Self = Self;
    pub(crate) const LEAF: Self = Self;
}

/// What is held is checked by core itself.
pub(crate) fn assert_none_held(_called: &str) {}

pub(crate) struct Lock<T>(Mutex<T>);

pub(crate) type Locked<'a, T> = MutexGuard<'a, T>;

impl<T> Lock<T> {
    pub(crate) fn new(_rank: Rank, value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> Locked<'_, T> {
        self.0.lock().expect("no model panics with a lock")
    }
}
