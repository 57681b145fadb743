//! The tasks of a broker, which end with it.

use eventbus_core::lock::{Lock, Rank};
use tokio::task::AbortHandle;

/// Tasks that are told to end together.
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
pub struct Tasks(Lock<Vec<AbortHandle>>);

impl Tasks {
    /// There are none yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "whoever keeps it makes it")]
    pub fn new() -> Self {
        Self(Lock::new(Rank::LEAF, Vec::new()))
    }

    /// Begins a task in the background.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task).abort_handle();
        let mut tasks = self.0.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// Tells all of them to end, wherever they wait.
    pub fn abort(&self) {
        let tasks = std::mem::take(&mut *self.0.lock());
        tasks.iter().for_each(AbortHandle::abort);
    }
}
