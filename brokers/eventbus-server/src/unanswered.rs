//! How many publishes are not answered, for whoever waits for the last answer.

use eventbus_core::waiters::Waiters;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is not answered.
///
/// ```
/// use eventbus_server::unanswered::Unanswered;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let unanswered = Unanswered::new();
/// let one = unanswered.one();
/// assert_eq!(unanswered.count(), 1);
/// drop(one);
/// unanswered.none().await;
/// # }
/// ```
#[derive(Clone)]
pub struct Unanswered(Arc<Count>);

struct Count {
    /// `SeqCst`, as [`Waiters`] ask for of what they wait on.
    count: AtomicUsize,
    changed: Waiters,
}

/// Something that is not answered, until this is dropped.
#[must_use = "it counts until this is dropped"]
pub struct Counted(Unanswered);

impl Unanswered {
    /// There is nothing yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "whoever keeps it makes it")]
    pub fn new() -> Self {
        Self(Arc::new(Count { count: AtomicUsize::new(0), changed: Waiters::new() }))
    }

    /// Something more is not answered, until what this returns is dropped.
    pub fn one(&self) -> Counted {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        Counted(self.clone())
    }

    /// How much is not answered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::SeqCst)
    }

    /// Resolves once everything is answered.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn none(&self) {
        self.0.changed.until(|| (self.count() == 0).then_some(())).await;
    }
}

/// No lock may be held: those who wait are told.
impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.0.changed.tell();
        }
    }
}

impl fmt::Debug for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unanswered").field(&self.count()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn who_waits_for_the_last_answer_hears_of_no_earlier_one() {
        let unanswered = Unanswered::new();
        let mut open: Vec<_> = (0..3).map(|_| unanswered.one()).collect();
        let mut context = Context::from_waker(Waker::noop());
        let mut none = pin!(unanswered.none());
        while let Some(one) = open.pop() {
            assert!(none.as_mut().poll(&mut context).is_pending(), "{unanswered:?}");
            drop(one);
            assert_eq!(unanswered.count(), open.len());
        }
        assert!(none.as_mut().poll(&mut context).is_ready());
    }
}
