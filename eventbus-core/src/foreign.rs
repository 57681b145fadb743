//! Calls into code of others: handlers, extractors, layers, hooks, observers, destructors, codecs, brokers.
//!
//! Any of it may panic wherever it is called. Every such call goes through here, so that a panic is the failure of
//! one delivery or one publish and never that of a worker, and no lock is held meanwhile. One panic cannot be caught:
//! that of a destructor which runs because of another panic ends the process, by the rules of the language.

use crate::lock::assert_none_held;
use crate::log;
use crate::printable::printable;
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Sleep;

/// The text of a panic in code of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked(String);

/// Calls `code` of others; `called` names it where it is called under a lock.
///
/// # Errors
/// The text of its panic.
#[inline]
pub fn call<T>(called: &str, code: impl FnOnce() -> T) -> Result<T, Panicked> {
    assert_none_held(called);
    catch_unwind(AssertUnwindSafe(code)).map_err(Panicked::new)
}

/// Drops a value of others, whose destructor may panic.
///
/// # Errors
/// The text of its panic.
#[inline]
pub fn discard<T>(called: &str, value: T) -> Result<(), Panicked> {
    call(called, || drop(value))
}

/// Calls `code` of others whose panic changes nothing for anybody else: it becomes an error line.
#[inline]
pub fn tell(called: &str, code: impl FnOnce()) {
    if let Err(panicked) = call(called, code) {
        log::error!(
            target: "eventbus", panic = %printable(panicked.into_text()),
            "{} has panicked, which changes nothing for others", printable(called)
        );
    }
}

/// Writes a line of the log, which changes nothing for anybody where its subscriber panics: there is no place left to
/// tell of it. For the macros of `log.rs`.
#[inline]
pub fn log(write: impl FnOnce()) {
    let _ = call("the log", write);
}

/// A timer, where there is a runtime with timers around. That it has none, tokio says by a panic only.
pub(crate) fn timer(duration: Duration) -> Option<Sleep> {
    Handle::try_current().ok()?;
    call("tokio", || tokio::time::sleep(duration)).ok()
}

/// Runs a future of others: polls it, and drops it once it has answered.
///
/// # Errors
/// The text of its panic, wherever it comes: where the future is made, polled, or dropped.
pub async fn run<F: Future>(called: &'static str, make: impl FnOnce() -> F) -> Result<F::Output, Panicked> {
    let mut place = std::pin::pin!(None);
    let mut future = Running::new(called, make, place.as_mut());
    std::future::poll_fn(|context| match future.poll(context) {
        Ok(Poll::Ready(answer)) => Poll::Ready(Ok(answer)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

/// A future of others in its place; dropped before it is done, its destructor's panic becomes an error line.
pub(crate) struct Running<'a, F, M> {
    called: &'static str,
    /// What makes the future, until it is polled.
    make: Option<M>,
    place: Pin<&'a mut Option<F>>,
}

impl<'a, F: Future, M: FnOnce() -> F> Running<'a, F, M> {
    pub(crate) fn new(called: &'static str, make: M, place: Pin<&'a mut Option<F>>) -> Self {
        Self { called, make: Some(make), place }
    }

    /// Polls the future, and drops it once it has answered; after a panic there is nothing left of it. All of that is
    /// one call, since each costs.
    #[inline]
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Result<Poll<F::Output>, Panicked> {
        // It stands outside of the call, or it would be dropped by the unwinding where the future's destructor panics.
        let mut answer = None;
        let called = call(self.called, || {
            if let Some(make) = self.make.take() {
                self.place.set(Some(make()));
            }
            if let Some(future) = self.place.as_mut().as_pin_mut()
                && let Poll::Ready(ready) = future.poll(context)
            {
                answer = Some(ready);
                self.place.set(None);
            }
        });
        match called {
            Ok(()) => Ok(answer.map_or(Poll::Pending, Poll::Ready)),
            Err(panicked) => {
                // It was unwound; what other destructors add to that tells nothing new.
                let _ = (self.discard(), discard(self.called, answer));
                Err(panicked)
            }
        }
    }
}

impl<F, M> Running<'_, F, M> {
    /// Whether there is nothing left of the future.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.place.is_none()
    }

    /// Drops the future.
    pub(crate) fn discard(&mut self) -> Result<(), Panicked> {
        call(self.called, || self.place.set(None))
    }
}

impl<F, M> Drop for Running<'_, F, M> {
    #[inline]
    fn drop(&mut self) {
        if self.place.is_some() {
            tell(self.called, || self.place.set(None));
        }
    }
}

/// A value of others that is kept: wherever it is dropped, its destructor's panic becomes an error line.
#[derive(Clone)]
pub struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    /// Keeps `value`.
    pub const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Hands the value over.
    pub(crate) fn into_inner(mut self) -> T {
        self.0.take().expect(KEPT)
    }

    /// Drops the value, which is not to be used any more.
    ///
    /// # Errors
    /// The text of its destructor's panic.
    pub(crate) fn discard(&mut self, called: &str) -> Result<(), Panicked> {
        call(called, || self.0 = None)
    }
}

const KEPT: &str = "a kept value is there until it is dropped";

impl<T> Deref for Kept<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_ref().expect(KEPT)
    }
}

impl<T> DerefMut for Kept<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(KEPT)
    }
}

impl<T> Drop for Kept<T> {
    #[inline]
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() && self.0.is_some() {
            tell("a destructor", || self.0 = None);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Wakers that were found under a lock, to be called once none is held: what they run may take any lock.
#[derive(Default)]
#[must_use = "whoever waits is woken by `wake`"]
pub(crate) struct Wakers {
    // Almost always there is one, which needs no list.
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Wakers {
    pub(crate) fn add(&mut self, waker: Waker) {
        match &self.first {
            None => self.first = Some(waker),
            Some(_) => self.more.push(waker),
        }
    }

    /// Calls them all. One that panics is no reason to leave the others asleep.
    #[inline]
    pub(crate) fn wake(self) {
        // Without a first one there are no others.
        if let Some(first) = self.first {
            tell("a waker", || first.wake());
            for waker in self.more {
                tell("a waker", || waker.wake());
            }
        }
    }
}

impl Extend<Waker> for Wakers {
    fn extend<I: IntoIterator<Item = Waker>>(&mut self, wakers: I) {
        wakers.into_iter().for_each(|waker| self.add(waker));
    }
}

impl Panicked {
    #[cold]
    fn new(panic: Box<dyn Any + Send>) -> Self {
        let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (_, Some(text)) => text.clone(),
            _ => "a panic with a value that is no text".to_owned(),
        };
        // The value that was thrown is code of others as well. Whatever its destructor throws is let go of.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
        Self(text)
    }

    /// What the panic said.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.0)
    }
}

impl std::error::Error for Panicked {}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    fn panicked<T>(text: &str) -> Result<T, Panicked> {
        Err(Panicked(text.to_owned()))
    }

    /// Answers a future that never waits.
    fn answer<T>(future: impl Future<Output = T>) -> T {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn a_panic_becomes_its_text_whatever_is_thrown() {
        assert_eq!(call("a test", || 7), Ok(7));
        assert_eq!(call("a test", || panic!("number {}", 7)), panicked::<()>("number 7"));
        assert_eq!(discard("a test", Bomb), panicked("dropped"));
        let thrown = call("a test", || std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(thrown.into_text(), "a panic with a value that is no text");
    }

    #[test]
    fn a_future_may_panic_where_it_is_made_polled_or_dropped() {
        async fn answers() -> u8 {
            7
        }
        struct Armed(#[allow(dead_code, reason = "it is dropped")] Bomb);
        impl Future for Armed {
            type Output = u8;
            fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u8> {
                Poll::Ready(7)
            }
        }

        assert_eq!(answer(run("a test", answers)), Ok(7));
        let made = run("a test", || if true { panic!("made") } else { answers() });
        assert_eq!(answer(made), panicked("made"));
        assert_eq!(answer(run("a test", || async { panic!("polled") })), panicked::<u8>("polled"));
        assert_eq!(answer(run("a test", || Armed(Bomb))), panicked("dropped"));
        // Dropped before it has answered, it takes nobody with it.
        let mut waiting = Box::pin(run("a test", || async {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        }));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        drop(waiting);
    }

    #[test]
    fn a_kept_value_is_dropped_without_a_panic_even_while_another_one_unwinds() {
        drop(Kept::new(Bomb));
        let unwound = call("a test", || {
            let _kept = Kept::new(Bomb);
            panic!("the first");
        });
        assert_eq!(unwound, panicked::<()>("the first"));
    }
}
