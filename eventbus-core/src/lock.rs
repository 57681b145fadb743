//! Locks with an order.
//!
//! Two threads that take two locks in different orders wait for each other for ever. So each lock has a rank, and a
//! thread that holds one takes only locks of higher ranks. Code of others (wakers, destructors, handlers, hooks,
//! brokers from outside) may take any lock, so it is called with none held: [`assert_none_held`]. Debug builds panic
//! where either rule is broken; release builds carry no trace of it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// A place in the order of locks: a thread takes locks in rising ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u8, &'static str);

impl Rank {
    /// Which subscriptions a bus has, and whether it runs.
    pub const BUS: Self = Self(10, "bus");
    /// What a subscription holds.
    pub const LANES: Self = Self(20, "lanes");
    /// How fast a replay may go.
    pub const PACE: Self = Self(30, "pace");
    /// The first lock of a broker.
    pub const BROKER: Self = Self(40, "broker");
    /// A lock of a broker that is taken under its first.
    pub const BROKER_INNER: Self = Self(50, "broker, inner");
    /// A lock of a broker that is taken under any other of it.
    pub const BROKER_LAST: Self = Self(60, "broker, last");
    /// A lock under which nothing else is taken.
    pub const LEAF: Self = Self(255, "leaf");
}

/// A mutex with a [`Rank`]. A panic of its holder does not poison it: what it guards is kept whole at every point
/// where code that can panic is called.
pub struct Lock<T> {
    rank: Rank,
    value: Mutex<T>,
}

impl<T> Lock<T> {
    /// A lock at `rank`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, value: Mutex::new(value) }
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// In debug builds, where this thread holds a lock of the same or a higher rank.
    pub fn lock(&self) -> Locked<'_, T> {
        let held = Held::enter(self.rank);
        Locked { value: self.value.lock().unwrap_or_else(PoisonError::into_inner), _held: held }
    }
}

impl<T: fmt::Debug> fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// What a [`Lock`] guards, until it is dropped.
pub struct Locked<'a, T> {
    // Released before the rank is left.
    value: MutexGuard<'a, T>,
    _held: Held,
}

impl<T> Locked<'_, T> {
    /// Releases the lock, waits until `bell` rings or, where there is one, `timeout` is over, and takes it again.
    pub fn wait(self, bell: &Condvar, timeout: Option<Duration>) -> Self {
        let Self { value, _held } = self;
        let value = match timeout {
            Some(timeout) => bell.wait_timeout(value, timeout).unwrap_or_else(PoisonError::into_inner).0,
            None => bell.wait(value).unwrap_or_else(PoisonError::into_inner),
        };
        Self { value, _held }
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// A lock with a [`Rank`] that many may hold at once to read. As a [`Lock`] otherwise.
pub struct SharedLock<T> {
    rank: Rank,
    value: RwLock<T>,
}

impl<T> SharedLock<T> {
    /// A lock at `rank`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, value: RwLock::new(value) }
    }

    /// Waits until nobody writes.
    ///
    /// # Panics
    /// As [`Lock::lock`].
    pub fn read(&self) -> Reading<'_, T> {
        let held = Held::enter(self.rank);
        Reading { value: self.value.read().unwrap_or_else(PoisonError::into_inner), _held: held }
    }

    /// Waits until nobody reads or writes.
    ///
    /// # Panics
    /// As [`Lock::lock`].
    pub fn write(&self) -> Writing<'_, T> {
        let held = Held::enter(self.rank);
        Writing { value: self.value.write().unwrap_or_else(PoisonError::into_inner), _held: held }
    }
}

impl<T: fmt::Debug> fmt::Debug for SharedLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// What a [`SharedLock`] guards, to read it.
pub struct Reading<'a, T> {
    value: RwLockReadGuard<'a, T>,
    _held: Held,
}

impl<T> Deref for Reading<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What a [`SharedLock`] guards, to change it.
pub struct Writing<'a, T> {
    value: RwLockWriteGuard<'a, T>,
    _held: Held,
}

impl<T> Deref for Writing<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Writing<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Says that this thread holds a lock of a rank.
#[must_use = "the rank is held until this is dropped"]
pub struct Held(#[cfg(debug_assertions)] Rank);

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::RefCell<Vec<Rank>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Looks at what this thread holds. Nothing is known any more while its thread-local values are destroyed.
#[cfg(debug_assertions)]
fn look<T: Default>(look: impl FnOnce(&mut Vec<Rank>) -> T) -> T {
    HELD.try_with(|held| look(&mut held.borrow_mut())).unwrap_or_default()
}

impl Held {
    /// Enters a rank.
    ///
    /// # Panics
    /// In debug builds, where this thread holds a lock of the same or a higher rank.
    #[cfg_attr(not(debug_assertions), inline(always))]
    pub fn enter(rank: Rank) -> Self {
        #[cfg(debug_assertions)]
        {
            let highest = look(|held| held.iter().max().copied());
            if let Some(highest) = highest.filter(|highest| *highest >= rank) {
                panic!(
                    "the lock `{}` is taken under the lock `{}`: the order of locks is broken",
                    rank.1, highest.1
                );
            }
            look(|held| held.push(rank));
            Self(rank)
        }
        #[cfg(not(debug_assertions))]
        {
            let _ = rank;
            Self()
        }
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        look(|held| {
            if let Some(place) = held.iter().rposition(|rank| *rank == self.0) {
                held.remove(place);
            }
        });
    }
}

/// Code of others is about to be called.
///
/// # Panics
/// In debug builds, where this thread holds a lock.
#[cfg_attr(not(debug_assertions), inline(always))]
pub fn assert_none_held(called: &str) {
    #[cfg(debug_assertions)]
    if let Some(held) = look(|held| held.last().copied()) {
        // A second panic while one unwinds would end the process and hide the first.
        assert!(std::thread::panicking(), "{called} is called under the lock `{}`; release it first", held.1);
    }
    #[cfg(not(debug_assertions))]
    let _ = called;
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn locks_are_taken_in_rising_ranks() {
        let (first, second) = (Lock::new(Rank::LANES, 1), Lock::new(Rank::BROKER, 2));
        {
            let first = first.lock();
            assert_eq!(*first + *second.lock(), 3);
        }
        let descending = catch_unwind(|| {
            let _second = second.lock();
            let _first = first.lock();
        });
        let message = descending.unwrap_err();
        let message = message.downcast_ref::<String>().unwrap();
        assert!(message.contains("`lanes` is taken under the lock `broker`"), "{message}");
        // What was held when the panic came is released.
        drop((first.lock(), second.lock()));
    }

    #[test]
    fn code_of_others_is_called_without_a_lock() {
        let lock = Lock::new(Rank::LEAF, ());
        assert_none_held("a waker");
        let under_a_lock = catch_unwind(|| {
            let _guard = lock.lock();
            assert_none_held("a waker");
        });
        assert!(under_a_lock.is_err());
        assert_none_held("a waker");
    }
}
