//! Those who wait until something is so, and those who tell them.
//!
//! A waker is code of others. tokio's `Notify::notify_waiters`, `watch` and `Semaphore::close` call several in one
//! loop, the last one under a lock: one that panics leaves those behind it asleep, and unwinds whoever told them. Here
//! each is called by itself, with no lock held, and its panic costs a line. What only one can wait for, as for the answer
//! of a `oneshot`, needs no more than a [`foreign::tell`](crate::foreign::tell) around it.
//!
//! `models/` runs this file under every order of its steps that shuttle finds.

use crate::foreign::Wakers;
use crate::line::Line;
use crate::lock::assert_none_held;
use std::future::poll_fn;
use std::task::{Context, Poll};

/// Those who wait for one thing.
pub struct Waiters(Line);

impl Waiters {
    /// Nobody waits yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "whoever keeps it makes it")]
    pub fn new() -> Self {
        Self(Line::new())
    }

    /// Resolves with what `look` finds, once it finds something: it looks now, and whenever it is [told](Self::tell) to.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        let mut place = InLine { line: &self.0, number: None };
        poll_fn(|context| {
            // From here on nothing that is told is missed; some may have been told already.
            place.enter(context);
            look().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Lets them look again. What they look for is brought about before this; no lock may be held.
    #[inline]
    pub fn tell(&self) {
        let called = self.0.call();
        if !called.is_empty() {
            assert_none_held("a waker");
            let mut wakers = Wakers::default();
            wakers.extend(called);
            wakers.wake();
        }
    }
}

/// A place in the line; dropped, it is left.
struct InLine<'a> {
    line: &'a Line,
    number: Option<u64>,
}

impl InLine<'_> {
    fn enter(&mut self, context: &Context<'_>) {
        self.number = Some(self.line.enter(self.number, context.waker().clone()));
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.line.leave(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    /// Counts how often it was woken, and panics then.
    #[derive(Default)]
    struct Alarm(AtomicUsize);

    impl Wake for Alarm {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic!("at a waker");
        }
    }

    #[test]
    fn a_waker_that_panics_leaves_nobody_asleep() {
        let (waiters, is_so) = (Waiters::new(), AtomicBool::new(false));
        let alarms: [Arc<Alarm>; 3] = Default::default();
        let wait = || Box::pin(waiters.until(|| is_so.load(Ordering::SeqCst).then_some(())));
        let mut waiting: Vec<_> =
            alarms.iter().map(|alarm| (wait(), Waker::from(Arc::clone(alarm)))).collect();
        for (waits, waker) in &mut waiting {
            assert!(waits.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        waiting.pop();
        is_so.store(true, Ordering::SeqCst);
        waiters.tell();
        let woken = alarms.map(|alarm| alarm.0.load(Ordering::SeqCst));
        assert_eq!(woken, [1, 1, 0], "each that still waits is woken once");
        for (waits, waker) in &mut waiting {
            assert!(waits.as_mut().poll(&mut Context::from_waker(waker)).is_ready());
        }
    }

    #[test]
    fn what_is_so_already_is_not_waited_for() {
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(pin!(Waiters::new().until(|| Some(7))).poll(&mut context), Poll::Ready(7));
    }
}
