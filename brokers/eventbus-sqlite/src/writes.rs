//! What waits for the writer: events, jobs and saves, from whoever has something to write.

use crate::reader::Names;
use crate::subscription::Subscription;
use crate::wire::Record;
use eventbus_core::broker::BrokerFuture;
use eventbus_core::{BrokerError, PublishError, foreign};
use rusqlite::Connection;
use std::mem::take;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long acks wait for others.
const SOON: Duration = Duration::from_millis(2);
/// How long to wait after a transaction failed, before acks are saved again.
pub(crate) const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What waits for the writer.
#[derive(Default)]
pub(crate) struct Writes {
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) publishes: Vec<Publishing>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) dirty: Vec<Arc<Subscription>>,
    /// When to save at the latest.
    save_at: Option<Instant>,
    pub(crate) closing: Option<oneshot::Sender<()>>,
    closed: bool,
    writer_sleeps: bool,
}

/// Events whose publishers wait.
pub(crate) enum Publishing {
    One(Record, oneshot::Sender<Result<(), PublishError>>),
    Many(Vec<Record>, oneshot::Sender<Vec<Result<(), PublishError>>>),
}

/// Something else to write. None: the transaction had failed before its turn.
pub(crate) type Job = Box<dyn FnOnce(Option<&mut Work<'_>>) -> Answer + Send>;
/// What is called when the transaction is over.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), &BrokerError>) + Send>;

/// How soon a save is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Save {
    Now,
    Soon,
    AfterFailure,
}

/// What a job works with.
pub(crate) struct Work<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) names: &'a mut Names,
    pub(crate) dirty: Vec<Arc<Subscription>>,
}

impl Work<'_> {
    /// Saves the subscription in this transaction, too.
    pub(crate) fn save(&mut self, subscription: &Arc<Subscription>) {
        self.dirty.push(Arc::clone(subscription));
    }
}

impl Writes {
    /// Publishes; `Err` gives it back, since the log is closed.
    pub(crate) fn publish(&self, publishing: Publishing) -> Result<(), Publishing> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(publishing);
        }
        queue.publishes.push(publishing);
        self.ring(queue);
        Ok(())
    }

    /// Runs a job inside of a transaction; what it answers counts once that is committed. A job that fails leaves
    /// nothing behind.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> BrokerFuture<Result<T, BrokerError>> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |work| {
            let result = work.map(|work| in_savepoint(work, job));
            Box::new(move |committed| {
                let result = match (committed, result) {
                    (Ok(()), Some(result)) => {
                        result.map_err(|error| BrokerError::new(error.to_string()).with_source(error))
                    }
                    (Ok(()), None) => Err(closed()),
                    (Err(error), _) => Err(BrokerError::new(error.to_string())),
                };
                tell(answer, result);
            })
        });
        let mut queue = self.lock();
        if !queue.closed {
            queue.jobs.push(job);
        }
        self.ring(queue);
        BrokerFuture::new(async move { answered.await.unwrap_or_else(|_| Err(closed())) })
    }

    /// Saves how far a subscription has come.
    pub(crate) fn save(&self, subscription: Arc<Subscription>, save: Save) {
        let mut queue = self.lock();
        queue.dirty.push(subscription);
        let wait = match save {
            Save::Now => Duration::ZERO,
            Save::Soon => SOON,
            Save::AfterFailure => AFTER_FAILURE,
        };
        let at = Instant::now() + wait;
        if queue.save_at.is_none_or(|earlier| at < earlier) {
            queue.save_at = Some(at);
            self.ring(queue);
        }
    }

    /// Lets the writer look around.
    pub(crate) fn wake(&self) {
        let mut queue = self.lock();
        queue.save_at = Some(Instant::now());
        self.ring(queue);
    }

    /// Ends the writer, after what waits now.
    pub(crate) fn close(&self) -> oneshot::Receiver<()> {
        let (done, closed) = oneshot::channel();
        let mut queue = self.lock();
        if !queue.closed {
            queue.closing = Some(done);
        }
        self.ring(queue);
        closed
    }

    /// Refuses everything from now on, and what waits.
    pub(crate) fn abandon(&self) {
        let waiting = take(&mut *self.lock());
        self.lock().closed = true;
        drop(waiting);
    }

    /// Wakes the writer if it sleeps: one that is at work looks at the queue before it sleeps.
    fn ring(&self, mut queue: MutexGuard<'_, Queue>) {
        let sleeps = std::mem::take(&mut queue.writer_sleeps);
        drop(queue);
        if sleeps {
            self.bell.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, for at most `pause`.
    pub(crate) fn take(&self, pause: Option<Duration>) -> Queue {
        let look_again = pause.map(|pause| Instant::now() + pause);
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let due = queue.save_at.is_some_and(|at| at <= now) || look_again.is_some_and(|at| at <= now);
            queue.writer_sleeps = false;
            if due || !queue.publishes.is_empty() || !queue.jobs.is_empty() || queue.closing.is_some() {
                let closing = queue.closing.is_some();
                let taken = take(&mut *queue);
                queue.closed = closing;
                return taken;
            }
            queue.writer_sleeps = true;
            let wake_at = [queue.save_at, look_again].into_iter().flatten().min();
            queue = match wake_at {
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    self.bell.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Publishing {
    pub(crate) fn records(&self) -> &[Record] {
        match self {
            Self::One(record, _) => std::slice::from_ref(record),
            Self::Many(records, _) => records,
        }
    }
}

/// Runs a part of a transaction that can fail by itself.
fn in_savepoint<T>(
    work: &mut Work<'_>,
    part: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    work.connection.execute_batch("savepoint job")?;
    let result = part(work);
    let end = if result.is_ok() { "release job" } else { "rollback to job; release job" };
    let ended = work.connection.execute_batch(end);
    let result = result?;
    ended?;
    Ok(result)
}

/// How a waker is called in an error line. The thread that writes wakes whoever waits for it, in what runtime or
/// executor ever, and must not end for it.
pub(crate) const WAKER: &str = "a waker";

/// Answers whoever waits, who may have been cancelled.
pub(crate) fn tell<T>(waiting: oneshot::Sender<T>, answer: T) {
    foreign::tell(WAKER, || drop(waiting.send(answer)));
}

pub(crate) fn closed() -> BrokerError {
    BrokerError::new("the log is closed; open it again")
}
