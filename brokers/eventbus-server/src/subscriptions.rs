//! The subscriptions that a broker has open.

use eventbus_core::Pattern;
use eventbus_core::broker::SubscribeRequest;
use eventbus_core::lock::{Lock, Rank};
use std::sync::Arc;

/// One open subscription, as its broker keeps it.
pub trait Subscribed {
    /// Its group, and the pattern that it listens on.
    fn group_on(&self) -> (&str, &Pattern);

    /// Whether its task has ended.
    fn is_finished(&self) -> bool;
}

/// All subscriptions of a broker whose tasks have not ended.
///
/// ```
/// use eventbus_core::Pattern;
/// use eventbus_server::subscriptions::{Subscribed, Subscriptions};
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// struct Subscription(Pattern, AtomicBool);
///
/// impl Subscribed for Subscription {
///     fn group_on(&self) -> (&str, &Pattern) {
///         ("mail", &self.0)
///     }
///
///     fn is_finished(&self) -> bool {
///         self.1.load(Ordering::Relaxed)
///     }
/// }
///
/// let pattern = Pattern::new("order.>").unwrap();
/// let one = Arc::new(Subscription(pattern.clone(), AtomicBool::new(false)));
/// let subscriptions = Subscriptions::new();
/// subscriptions.add(Arc::clone(&one));
/// assert_eq!((subscriptions.all().len(), subscriptions.of("mail", &pattern).len()), (1, 1));
/// assert!(subscriptions.of("stock", &pattern).is_empty());
///
/// one.1.store(true, Ordering::Relaxed);
/// assert!(subscriptions.all().is_empty());
/// ```
pub struct Subscriptions<T>(Lock<Vec<Arc<T>>>);

impl<T: Subscribed> Subscriptions<T> {
    /// There are none yet. The lock has the rank [`Rank::BROKER`], so those of the subscriptions have higher ones.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "whoever keeps it makes it")]
    pub fn new() -> Self {
        Self(Lock::new(Rank::BROKER, Vec::new()))
    }

    /// Another one is open.
    pub fn add(&self, subscription: Arc<T>) {
        self.change(|open| open.push(subscription));
    }

    /// Those whose tasks have not ended, in the order in which they were opened.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.change(|open| open.clone())
    }

    /// Forgets those that have ended, and does something with the others.
    fn change<R>(&self, act: impl FnOnce(&mut Vec<Arc<T>>) -> R) -> R {
        let mut subscriptions = self.0.lock();
        let finished: Vec<_> = subscriptions.extract_if(.., |one| one.is_finished()).collect();
        let done = act(&mut subscriptions);
        drop(subscriptions);
        // What they hold is somebody else's, wakers and deliveries, and its destructors run without the lock.
        drop(finished);
        done
    }

    /// Those of a group on a pattern.
    pub fn of(&self, group: &str, pattern: &Pattern) -> Vec<Arc<T>> {
        let mut subscriptions = self.all();
        subscriptions.retain(|one| one.group_on() == (group, pattern));
        subscriptions
    }

    /// One that was opened by such a request.
    pub fn find(&self, request: &SubscribeRequest) -> Option<Arc<T>> {
        self.of(&request.group, &request.pattern).into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// It has ended, and asks the broker for the others as it is dropped.
    struct Ended(Pattern, &'static Place);

    #[derive(Default)]
    struct Place {
        subscriptions: OnceLock<Subscriptions<Ended>>,
        dropped: AtomicUsize,
    }

    impl Subscribed for Ended {
        fn group_on(&self) -> (&str, &Pattern) {
            ("mail", &self.0)
        }

        fn is_finished(&self) -> bool {
            true
        }
    }

    impl Drop for Ended {
        fn drop(&mut self) {
            assert!(self.1.subscriptions.get().unwrap().all().is_empty());
            self.1.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_has_ended_is_dropped_without_the_lock() {
        let place: &Place = Box::leak(Box::default());
        let subscriptions = place.subscriptions.get_or_init(Subscriptions::new);
        let add = || subscriptions.add(Arc::new(Ended(Pattern::new("order.>").unwrap(), place)));
        add();
        assert!(subscriptions.all().is_empty());
        assert_eq!(place.dropped.load(Ordering::Relaxed), 1);
        (0..3).for_each(|_| add());
        assert_eq!(place.dropped.load(Ordering::Relaxed), 3, "nobody has to ask for the others");
    }
}
