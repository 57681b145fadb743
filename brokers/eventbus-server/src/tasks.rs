//! The tasks of a broker, which end with it.

use eventbus_core::lock::{Lock, Rank};
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Timeout, timeout_at};

/// Tasks that are told to end together, all on the runtime on which this was made: whoever begins one may be on another
/// runtime, which ends before, or on none.
///
/// ```
/// use eventbus_server::tasks::Tasks;
/// use std::future::pending;
/// use tokio::sync::oneshot;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let tasks = Tasks::new();
/// let (held, dropped) = oneshot::channel::<()>();
/// tasks.spawn(async move {
///     let _held = held;
///     pending().await
/// });
/// tasks.abort();
/// assert!(dropped.await.is_err(), "the task is gone, with what it held");
/// # }
/// ```
#[derive(Debug)]
pub struct Tasks {
    runtime: Handle,
    all: Lock<Vec<AbortHandle>>,
}

impl Tasks {
    /// There are none yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "whoever keeps it makes it")]
    pub fn new() -> Self {
        Self { runtime: Handle::current(), all: Lock::new(Rank::LEAF, Vec::new()) }
    }

    /// Begins a task in the background. Where its runtime has ended, the task is dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.runtime.spawn(task).abort_handle();
        let mut tasks = self.all.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Waits for something until a time, by the clock of their runtime: whoever waits may be on none.
    ///
    /// # Cancel safety
    /// As that of what is waited for.
    pub fn until<F: Future>(&self, deadline: Instant, awaited: F) -> Timeout<F> {
        let _on_it = self.runtime.enter();
        timeout_at(deadline.into(), awaited)
    }

    /// Tells all of them to end, wherever they wait.
    pub fn abort(&self) {
        let tasks = std::mem::take(&mut *self.all.lock());
        tasks.iter().for_each(AbortHandle::abort);
    }
}
