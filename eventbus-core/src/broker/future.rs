//! The future that a broker answers with.

use crate::foreign::Kept;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// An answer that may be there already, so that a broker without I/O allocates nothing.
///
/// ```
/// use eventbus_core::broker::BrokerFuture;
///
/// let at_once = BrokerFuture::ready(7);
/// let later = BrokerFuture::new(async { 7 });
/// ```
#[must_use = "futures do nothing unless you `.await` them"]
pub struct BrokerFuture<T>(Repr<T>);

enum Repr<T> {
    Ready(Option<T>),
    /// Dropped by whoever waits, which is not to be hurt by what its destructor does.
    Boxed(Kept<Pin<Box<dyn Future<Output = T> + Send>>>),
}

impl<T> BrokerFuture<T> {
    /// An answer that is there.
    pub const fn ready(answer: T) -> Self {
        Self(Repr::Ready(Some(answer)))
    }

    /// An answer that takes a while.
    pub fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Repr::Boxed(Kept::new(Box::pin(future))))
    }

    /// The answer, where it is there already.
    ///
    /// # Errors
    /// The future, where its answer takes a while.
    #[inline]
    pub(crate) fn at_once(self) -> Result<T, Self> {
        match self.0 {
            Repr::Ready(Some(answer)) => Ok(answer),
            later => Err(Self(later)),
        }
    }
}

// The boxed future is pinned by its box, and an answer is moved out, never pinned.
impl<T> Unpin for BrokerFuture<T> {}

impl<T> Future for BrokerFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Repr::Ready(answer) => Poll::Ready(answer.take().expect("polled after it was ready")),
            Repr::Boxed(future) => future.as_mut().poll(context),
        }
    }
}

impl<T> fmt::Debug for BrokerFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Repr::Ready(_) => "BrokerFuture(ready)",
            Repr::Boxed(_) => "BrokerFuture(pending)",
        })
    }
}
