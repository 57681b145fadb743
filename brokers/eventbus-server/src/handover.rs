//! What the task of a subscription hands over to whoever reads it, and how the two learn of each other's end.
//!
//! A broker with a server has a task or a thread for each subscription, which puts deliveries at hand, and a reader that
//! takes them in [`Deliveries::poll_receive`](eventbus_core::broker::Deliveries::poll_receive). What they share is kept
//! in a [`Handover`]: the broker's own part, whatever it is, and beside it what is the same for all.
//!
//! | | who says it | who looks at it |
//! |---|---|---|
//! | a failure | the task, by [`fail`](Handover::fail) | the reader, once nothing is at hand |
//! | nobody reads any more | the reader as it is dropped, by [`close`](Handover::close) | the task, which settles what is open and ends |
//! | nothing is waited for | the broker as it is closed, by [`end`](Handover::end) | the task, which ends soon |
//! | the task has ended | the task, by [`finish`](Handover::finish) | whoever waits for [`finished`](Handover::finished) |

use eventbus_core::lock::{Lock, Locked, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, foreign};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll, Waker};

/// What a broker keeps of a subscription for its reader.
pub trait AtHand {
    /// Whether something is at hand that may be handed out.
    fn has_some(&self) -> bool;
}

/// What a subscription's task, its reader and its settler share: `S` is the broker's own part of it.
///
/// ```
/// use eventbus_core::lock::Rank;
/// use eventbus_server::handover::{AtHand, Handover};
/// use std::collections::VecDeque;
/// use std::task::{Context, Poll, Waker};
///
/// #[derive(Default)]
/// struct Queue(VecDeque<u32>);
///
/// impl AtHand for Queue {
///     fn has_some(&self) -> bool {
///         !self.0.is_empty()
///     }
/// }
///
/// let queue = Handover::new(Rank::BROKER, Queue::default());
/// let context = Context::from_waker(Waker::noop());
/// let read = || queue.poll_take(&context, |queue| queue.0.pop_front()).map(Result::unwrap);
///
/// assert_eq!(read(), Poll::Pending);
/// // The task puts something at hand, which wakes the reader.
/// queue.change(|queue| queue.0.push_back(7));
/// assert_eq!(read(), Poll::Ready(Some(Some(7))));
/// // The broker is closed: there is no more.
/// queue.end();
/// assert_eq!(read(), Poll::Ready(None));
/// ```
pub struct Handover<S> {
    shared: Lock<Shared<S>>,
    changed: Waiters,
}

/// The broker's own part of a [`Handover`] under its lock, and what has become of the two sides.
pub struct Shared<S> {
    own: S,
    waker: Option<Waker>,
    failed: Option<BrokerError>,
    closed: bool,
    ends: bool,
    finished: bool,
}

impl<S: AtHand> Handover<S> {
    /// Somebody reads, and the task runs; the lock has this rank.
    pub fn new(rank: Rank, own: S) -> Self {
        let shared = Shared { own, waker: None, failed: None, closed: false, ends: false, finished: false };
        Self { shared: Lock::new(rank, shared), changed: Waiters::new() }
    }

    /// Waits for the lock. Whoever puts something at hand under it [wakes](Self::wake) the reader after it.
    pub fn lock(&self) -> Locked<'_, Shared<S>> {
        self.shared.lock()
    }

    /// Changes the shared part, and wakes the reader where there is something for it then. What `change` returns is
    /// dropped, if it is, without the lock.
    pub fn change<T>(&self, change: impl FnOnce(&mut Shared<S>) -> T) -> T {
        let (changed, waker) = {
            let mut shared = self.lock();
            (change(&mut shared), shared.waker_for_some())
        };
        wake(waker);
        changed
    }

    /// Wakes the reader where there is something for it.
    pub fn wake(&self) {
        self.change(|_| ());
    }

    /// What a reader does as it is polled: it takes what is at hand, else is told of a failure, else of the end, which
    /// is `None`, else is woken once there is any of these. After a [`close`](Self::close) nothing is taken.
    ///
    /// # Errors
    /// What the task has [told](Self::fail), once.
    pub fn poll_take<T>(
        &self,
        context: &Context<'_>,
        take: impl FnOnce(&mut S) -> T,
    ) -> Poll<Result<Option<T>, BrokerError>> {
        let mut waker = None;
        loop {
            let mut shared = self.lock();
            if !shared.closed && shared.own.has_some() {
                return Poll::Ready(Ok(Some(take(&mut shared.own))));
            }
            if let Some(failed) = shared.failed.take() {
                return Poll::Ready(Err(failed));
            }
            if shared.closed {
                return Poll::Ready(Ok(None));
            }
            let Some(waker) = waker.take() else {
                // To copy a waker is to call code of others.
                drop(shared);
                waker = Some(context.waker().clone());
                continue;
            };
            let former = shared.waker.replace(waker);
            drop(shared);
            drop(former);
            return Poll::Pending;
        }
    }

    /// The reader is to know that something is wrong. It takes what is at hand before that.
    pub fn fail(&self, error: BrokerError) {
        drop(self.change(|shared| shared.failed.replace(error)));
        self.changed.tell();
    }

    /// Nobody reads any more.
    pub fn close(&self) {
        self.change(|shared| shared.closed = true);
    }

    /// The broker is closed: nobody reads any more, and nothing is waited for.
    pub fn end(&self) {
        self.change(|shared| (shared.closed, shared.ends) = (true, true));
    }

    /// The task has ended, by itself or from outside: whoever reads, or waits for that, is not to wait any more.
    pub fn finish(&self) {
        self.change(|shared| (shared.closed, shared.ends, shared.finished) = (true, true, true));
        self.changed.tell();
    }

    /// Resolves once the task has ended.
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn finished(&self) {
        self.until(|shared| shared.finished.then_some(())).await;
    }

    /// Resolves with what `look` finds, once it finds something: it looks at once, and whenever something was
    /// [told](Self::tell).
    ///
    /// # Cancel safety
    /// Dropped, it waits no more.
    pub async fn until<T>(&self, mut look: impl FnMut(&mut Shared<S>) -> Option<T>) -> T {
        self.changed.until(|| look(&mut self.lock())).await
    }

    /// Lets those look again who [wait](Self::until) for something that has changed by now.
    pub fn tell(&self) {
        self.changed.tell();
    }
}

impl<S> Shared<S> {
    /// Whether nobody reads any more.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether nothing is waited for, since the broker is closed.
    pub const fn ends(&self) -> bool {
        self.ends
    }

    /// Whether the task has ended.
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// What the reader would be told of, for whoever waits in its place.
    pub const fn take_failure(&mut self) -> Option<BrokerError> {
        self.failed.take()
    }
}

impl<S: AtHand> Shared<S> {
    fn waker_for_some(&mut self) -> Option<Waker> {
        let has_some = self.closed || self.failed.is_some() || self.own.has_some();
        if has_some { self.waker.take() } else { None }
    }
}

impl<S> Deref for Shared<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.own
    }
}

impl<S> DerefMut for Shared<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.own
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        foreign::tell("a waker", || waker.wake());
    }
}

impl<S> fmt::Debug for Handover<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.shared.lock();
        f.debug_struct("Handover")
            .field("closed", &shared.closed)
            .field("ends", &shared.ends)
            .field("finished", &shared.finished)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Queue(VecDeque<u8>);

    impl AtHand for Queue {
        fn has_some(&self) -> bool {
            !self.0.is_empty()
        }
    }

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn queue() -> Handover<Queue> {
        Handover::new(Rank::BROKER, Queue::default())
    }

    fn read(queue: &Handover<Queue>, waker: &Waker) -> Poll<Result<Option<Option<u8>>, String>> {
        let read = queue.poll_take(&Context::from_waker(waker), |queue| queue.0.pop_front());
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn a_reader_takes_what_is_at_hand_then_hears_of_a_failure_then_of_the_end() {
        let queue = queue();
        queue.change(|queue| queue.0.extend([1, 2]));
        queue.fail(BrokerError::new("cut"));
        for expected in [Ok(Some(Some(1))), Ok(Some(Some(2))), Err("cut".to_owned())] {
            assert_eq!(read(&queue, Waker::noop()), Poll::Ready(expected));
        }
        assert_eq!(read(&queue, Waker::noop()), Poll::Pending, "a failure is told once");
        queue.change(|queue| queue.0.push_back(3));
        queue.close();
        assert_eq!(read(&queue, Waker::noop()), Poll::Ready(Ok(None)), "nothing is handed out after the end");
        assert!(queue.lock().is_closed() && !queue.lock().ends());
    }

    #[test]
    fn a_reader_that_waits_is_woken_once_and_only_for_something() {
        type Told = fn(&Handover<Queue>);
        let tells: [(&str, Told); 5] = [
            ("at hand", |queue| queue.change(|queue| queue.0.push_back(1))),
            ("failed", |queue| queue.fail(BrokerError::new("cut"))),
            ("closed", Handover::close),
            ("ends", Handover::end),
            ("finished", Handover::finish),
        ];
        for (told, tell) in tells {
            let (queue, calls) = (queue(), Arc::new(Calls::default()));
            let waker = Waker::from(Arc::clone(&calls));
            assert!(read(&queue, &waker).is_pending());
            queue.wake();
            queue.tell();
            assert_eq!(calls.0.load(Ordering::Relaxed), 0, "there is nothing yet");
            tell(&queue);
            tell(&queue);
            assert_eq!(calls.0.load(Ordering::Relaxed), 1, "{told}");
            assert!(read(&queue, &waker).is_ready(), "{told}");
        }
    }

    #[test]
    fn whoever_waits_for_the_task_hears_of_its_end_only() {
        let queue = queue();
        let mut context = Context::from_waker(Waker::noop());
        let mut finished = pin!(queue.finished());
        let mut failed = pin!(queue.until(|queue| queue.take_failure()));
        assert!(finished.as_mut().poll(&mut context).is_pending());
        assert!(failed.as_mut().poll(&mut context).is_pending());
        queue.end();
        queue.fail(BrokerError::new("cut"));
        assert!(finished.as_mut().poll(&mut context).is_pending(), "it still settles what is open");
        let Poll::Ready(error) = failed.as_mut().poll(&mut context) else { panic!("nobody was told") };
        assert_eq!(error.to_string(), "cut");
        queue.finish();
        assert!(finished.as_mut().poll(&mut context).is_ready() && queue.lock().is_finished());
    }
}
