//! The task by which a client by itself reads.

use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The task, and what tells it to end.
#[derive(Clone)]
pub(crate) struct Reader {
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    leaving: watch::Sender<bool>,
}

/// The task's end of that.
pub(crate) struct Leaving(watch::Receiver<bool>);

impl Leaving {
    pub(crate) fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once it is told.
    pub(crate) async fn told(mut self) {
        self.0.wait_for(|leaving| *leaving).await.expect("the other end is there");
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self { task: Arc::default(), leaving: watch::Sender::new(false) }
    }
}

impl Reader {
    /// Begins a task. It ends once it is told to leave and has acked what was handled.
    pub(crate) fn begin<T: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Leaving) -> T) {
        let task = tokio::spawn(task(Leaving(self.leaving.subscribe())));
        *self.task.lock().unwrap() = Some(task);
    }

    /// Tells the task to leave, and waits for its end.
    pub(crate) async fn end(&self) {
        self.leaving.send_replace(true);
        let task = self.task.lock().unwrap().take();
        if let Some(task) = task {
            task.await.unwrap();
        }
    }
}
