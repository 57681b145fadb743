//! The tasks of a broker, which end with it.

use eventbus_core::lock::{Lock, Rank};
use eventbus_core::printable::printable;
use eventbus_core::{foreign, log};
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
    all: Lock<All>,
}

#[derive(Debug, Default)]
struct All {
    tasks: Vec<AbortHandle>,
    /// They were told to end, and so is each that is begun later.
    ended: bool,
}

impl Tasks {
    /// There are none yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "whoever keeps it makes it")]
    pub fn new() -> Self {
        Self { runtime: Handle::current(), all: Lock::new(Rank::LEAF, All::default()) }
    }

    /// Begins a task in the background. Where its runtime has ended, or after an [`abort`](Self::abort), the task is dropped.
    ///
    /// One that panics is dropped as well, with an error line. Whoever waits for it learns of either by what the task was
    /// given to drop, as by a [`Feed`](crate::replays::Feed).
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = async move {
            if let Err(panicked) = foreign::run("a task of a broker", || task).await {
                log::error!(
                    target: "eventbus", panic = %printable(panicked.into_text()),
                    "a task of a broker has panicked, and does its work no longer; connect again where this stays so"
                );
            }
        };
        let task = self.runtime.spawn(task).abort_handle();
        {
            let mut all = self.all.lock();
            if !all.ended {
                all.tasks.retain(|task| !task.is_finished());
                all.tasks.push(task);
                return;
            }
        }
        task.abort();
    }

    /// Waits for something until a time, by the clock of their runtime: whoever waits may be on none.
    ///
    /// # Cancel safety
    /// As that of what is waited for.
    pub fn until<F: Future>(&self, deadline: Instant, awaited: F) -> Timeout<F> {
        let _on_it = self.runtime.enter();
        timeout_at(deadline.into(), awaited)
    }

    /// Tells all of them to end, wherever they wait, and those that are begun from here on.
    pub fn abort(&self) {
        let tasks = {
            let mut all = self.all.lock();
            all.ended = true;
            std::mem::take(&mut all.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::sync::oneshot;

    /// A task that never ends, and what tells of its end.
    fn endless() -> (impl Future<Output = ()> + Send + 'static, oneshot::Receiver<()>) {
        let (held, dropped) = oneshot::channel::<()>();
        let task = async move {
            let _held = held;
            pending().await
        };
        (task, dropped)
    }

    #[tokio::test]
    async fn whether_a_task_is_begun_before_the_end_or_after_it_it_ends() {
        let tasks = Tasks::new();
        let ((before, before_is_gone), (after, after_is_gone)) = (endless(), endless());
        tasks.spawn(before);
        tasks.abort();
        assert!(before_is_gone.await.is_err());
        tasks.spawn(after);
        assert!(after_is_gone.await.is_err());
    }

    #[tokio::test]
    async fn a_task_that_panics_is_dropped_and_takes_no_other_with_it() {
        let (tasks, (told, heard)) = (Tasks::new(), oneshot::channel::<()>());
        tasks.spawn(async move {
            let _told = told;
            panic!("at a task");
        });
        assert!(heard.await.is_err());
        let (done, is_done) = oneshot::channel();
        tasks.spawn(async move { done.send(()).unwrap() });
        is_done.await.unwrap();
    }
}
