//! The home of a bus: the runtime on which it was connected, and on which its handlers run.
//!
//! A runtime that has ended takes tasks and drops them without a word. So a task of ours lives there for as long as
//! the bus, and says when it is dropped.

use crate::error::{Error, Result, StartupError};
use crate::foreign;
use crate::publisher::Outlet;
use crate::waiters::Waiters;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{EnterGuard, Handle};
use tokio::task::AbortHandle;

pub(super) struct Home {
    runtime: Option<Handle>,
    state: Arc<State>,
    resident: Option<AbortHandle>,
}

struct State {
    ended: AtomicBool,
    /// Something is to be handled here: a bus that only publishes needs no runtime.
    inhabited: AtomicBool,
    /// Weak: the broker ends with the bus, and not when the runtime has found the time to drop the task.
    outlet: Weak<Outlet>,
    told: Waiters,
}

impl Home {
    /// The current runtime, if there is one.
    pub(super) fn here(outlet: &Arc<Outlet>) -> Self {
        let state = Arc::new(State {
            ended: AtomicBool::new(false),
            inhabited: AtomicBool::new(false),
            outlet: Arc::downgrade(outlet),
            told: Waiters::new(),
        });
        let runtime = Handle::try_current().ok();
        let resident = runtime.as_ref().map(|runtime| {
            let resident = Resident(Arc::clone(&state));
            let task = runtime.spawn(async move {
                let _resident = resident;
                std::future::pending::<()>().await;
            });
            task.abort_handle()
        });
        Self { runtime, state, resident }
    }

    /// Enters the runtime, to begin something that is to be handled there.
    pub(super) fn enter(&self) -> Result<EnterGuard<'_>> {
        let runtime = self.runtime.as_ref().ok_or_else(|| {
            let mistake = "the bus was connected outside of a tokio runtime, and its handlers need one; connect it \
                           inside of `#[eventbus::main]`, `#[tokio::main]` or `Runtime::block_on`";
            StartupError::new(vec![mistake.to_owned()])
        })?;
        self.state.inhabited.store(true, Ordering::SeqCst);
        if self.state.ended.load(Ordering::SeqCst) {
            let mistake = "the tokio runtime on which the bus was connected has ended, and its handlers with it; \
                           connect the bus on a runtime that lasts as long as the bus is used";
            return Err(StartupError::new(vec![mistake.to_owned()]).into());
        }
        Ok(runtime.enter())
    }
}

/// Finds out before anything is begun whether a call is made where it can wait.
pub(super) fn needs_runtime(call: &'static str) -> Result<()> {
    Handle::try_current().map_err(|_outside| Error::NoRuntime { call })?;
    needs_timers(call)
}

/// Finds out whether the runtime around a call, where there is one, has timers.
pub(super) fn needs_timers(call: &'static str) -> Result<()> {
    if Handle::try_current().is_err() {
        return Ok(());
    }
    foreign::timer(Duration::ZERO).map(drop).ok_or(Error::NoTimers { call })
}

impl Home {
    /// Awaits `future` as if it were awaited on the runtime of this bus, wherever it is.
    pub(super) async fn inside<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        let mut future = pin!(future);
        poll_fn(|context| match self.enter() {
            Ok(_entered) => future.as_mut().poll(context).map(Ok),
            Err(error) => Poll::Ready(Err(error)),
        })
        .await
    }

    /// Leaves a task on this runtime, which drops it at once where it has ended.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Resolves once nothing can be handled here any more, since the runtime has ended.
    pub(super) async fn ended(&self) {
        let State { ended, inhabited, told, .. } = &*self.state;
        let over = || ended.load(Ordering::SeqCst) && inhabited.load(Ordering::SeqCst);
        told.until(|| over().then_some(())).await;
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // The bus leaves, and not the runtime.
        self.state.inhabited.store(false, Ordering::SeqCst);
        if let Some(resident) = &self.resident {
            resident.abort();
        }
    }
}

/// Lives in the runtime.
struct Resident(Arc<State>);

impl Drop for Resident {
    fn drop(&mut self) {
        let State { ended, inhabited, outlet, told } = &*self.0;
        ended.store(true, Ordering::SeqCst);
        if inhabited.load(Ordering::SeqCst)
            && let Some(outlet) = outlet.upgrade()
        {
            outlet.strand();
        }
        told.tell();
    }
}
