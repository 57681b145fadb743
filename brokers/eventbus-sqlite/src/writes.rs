//! What waits for the writer: events, jobs and saves, from whoever has something to write.

use crate::broker::Store;
use crate::claim::Claim;
use crate::lease::Lease;
use crate::let_go::let_go;
use crate::reader::NamesByNumber;
use crate::wire::Record;
use eventbus_core::broker::BrokerFuture;
use eventbus_core::lock::{Lock, Locked, Rank};
use eventbus_core::waiters::Waiters;
use eventbus_core::{BrokerError, PublishError, foreign};
use rusqlite::Connection;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem::{replace, take};
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, OnceLock};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How many subscriptions are saved in one transaction, and how many where publishers wait for it: whoever publishes
/// does not wait until a thousand subscriptions are saved.
const SAVES: usize = 64;
const SAVES_BESIDE_PUBLISHES: usize = 16;
/// How long acks wait for others.
const SOON: Duration = Duration::from_millis(2);
/// How long to wait after a transaction failed, before acks are saved again.
pub(crate) const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What waits for the writer.
pub(crate) struct Writes {
    queue: Lock<Queue>,
    bell: Condvar,
    closing_since: OnceLock<Instant>,
    /// How the writer has ended.
    end: OnceLock<Result<(), String>>,
    ended: Waiters,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) publishes: Vec<Waiting>,
    pub(crate) jobs: Vec<Job>,
    /// Subscriptions that have something to save; some may be here twice.
    pub(crate) unsaved: VecDeque<Arc<Claim>>,
    /// When to save at the latest.
    save_at: Option<Instant>,
    /// The writer is to end.
    pub(crate) closing: bool,
    closed: bool,
    /// The writer has ended.
    over: bool,
    writer_sleeps: bool,
}

/// Events whose publishers wait.
pub(crate) enum Waiting {
    One(Record, oneshot::Sender<Result<(), PublishError>>),
    Many(Vec<Record>, oneshot::Sender<Vec<Result<(), PublishError>>>),
}

/// Something else to write. None: the transaction had failed before its turn.
pub(crate) type Job = Box<dyn FnOnce(Option<&mut Work<'_>>) -> Answer + Send>;
/// What is called once the transaction was committed or rolled back.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), &BrokerError>) + Send>;

/// How soon a save is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Now,
    Soon,
    AfterFailure,
}

/// What a job works with.
pub(crate) struct Work<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) names: &'a mut NamesByNumber,
    /// The subscriptions of this process that have taken a group over in this transaction. They do not know yet.
    pub(crate) taken: Vec<u64>,
    /// What has rolled the whole transaction back.
    pub(crate) broken: Option<rusqlite::Error>,
}

impl Work<'_> {
    /// Whether a group with this owner may be taken over or moved.
    pub(crate) fn is_free(&self, store: &Store, owner: &str, lease: Lease) -> bool {
        let taken = store.process.number(owner).is_some_and(|number| self.taken.contains(&number));
        !taken && store.is_free(owner, lease)
    }
}

impl Default for Writes {
    fn default() -> Self {
        let queue = Lock::new(Rank::BROKER_LAST, Queue::default());
        Self {
            queue,
            bell: Condvar::new(),
            closing_since: OnceLock::new(),
            end: OnceLock::new(),
            ended: Waiters::new(),
        }
    }
}

impl Writes {
    /// Publishes; `Err` gives it back, since the log is closed.
    pub(crate) fn publish(&self, waiting: Waiting) -> Result<(), Waiting> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(waiting);
        }
        queue.publishes.push(waiting);
        self.ring(queue);
        Ok(())
    }

    /// Runs a job inside of a transaction; what it answers counts once that is committed. A job that fails leaves
    /// nothing behind.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> BrokerFuture<Result<T, BrokerError>> {
        self.run_then(job, |answer| answer)
    }

    /// Runs a job inside of a transaction, and once that is committed, `apply` with what the job returned, on the
    /// writer's thread and in the order of jobs. A job changes nothing in memory: what it changed is what it returns.
    /// If it fails, or the transaction does, that is dropped, and whoever waits gets the error.
    pub(crate) fn run_then<T: Send + 'static, R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<T> + Send + 'static,
        apply: impl FnOnce(T) -> R + Send + 'static,
    ) -> BrokerFuture<Result<R, BrokerError>> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |work| {
            let result = work.map(|work| in_savepoint(work, job));
            Box::new(move |committed| {
                let result = match (committed, result) {
                    (Ok(()), Some(Ok(changed))) => Ok(apply(changed)),
                    (Ok(()), Some(Err(error))) => {
                        Err(BrokerError::new("the log was not changed").with_cause(error))
                    }
                    (Ok(()), None) => Err(closed()),
                    (Err(error), _) => Err(BrokerError::new(error.to_string())),
                };
                tell(answer, result);
            })
        });
        let mut queue = self.queue.lock();
        if !queue.closed {
            queue.jobs.push(job);
        }
        self.ring(queue);
        BrokerFuture::new(async move { answered.await.unwrap_or_else(|_| Err(closed())) })
    }

    /// Saves how far a subscription has come.
    pub(crate) fn save(&self, claim: Arc<Claim>, when: When) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return drop(queue);
        }
        queue.unsaved.push_back(claim);
        let wait = match when {
            When::Now => Duration::ZERO,
            When::Soon => SOON,
            When::AfterFailure => AFTER_FAILURE,
        };
        let at = Instant::now() + wait;
        if queue.save_at.is_none_or(|earlier| at < earlier) {
            queue.save_at = Some(at);
            self.ring(queue);
        }
    }

    /// Lets the writer look around.
    pub(crate) fn wake(&self) {
        let mut queue = self.queue.lock();
        queue.save_at = Some(Instant::now());
        self.ring(queue);
    }

    /// Ends the writer, after what waits now.
    pub(crate) fn close(&self) {
        self.closing_since.get_or_init(Instant::now);
        let mut queue = self.queue.lock();
        queue.closing = !queue.closed;
        self.ring(queue);
    }

    /// Resolves once the writer has ended; tells whether all was written.
    pub(crate) async fn ended(&self) -> Result<(), BrokerError> {
        self.ended.until(|| self.end.get().cloned()).await.map_err(BrokerError::new)
    }

    /// Waits for an answer that the writer gives, or the last one that it has given; none where it has ended without.
    pub(crate) async fn answered<T>(&self, mut answered: oneshot::Receiver<T>) -> Option<T> {
        let mut ended = pin!(self.ended());
        poll_fn(|context| match Pin::new(&mut answered).poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer.ok()),
            // It may have answered in between.
            Poll::Pending => ended.as_mut().poll(context).map(|_| answered.try_recv().ok()),
        })
        .await
    }

    /// Why nobody writes any more, once that is so.
    pub(crate) fn over(&self) -> Option<BrokerError> {
        let end = self.end.get().cloned();
        end.map(|end| end.map_or_else(BrokerError::new, |()| closed()))
    }

    /// The writer has ended.
    pub(crate) fn end(&self, result: Result<(), BrokerError>) {
        // A panic on the way there is how it has ended.
        let _ = self.end.set(result.map_err(|error| error.to_string()));
        self.ended.tell();
    }

    /// Whether nobody writes any more.
    pub(crate) fn are_over(&self) -> bool {
        self.queue.lock().over
    }

    /// Whether publishers wait.
    pub(crate) fn are_awaited(&self) -> bool {
        !self.queue.lock().publishes.is_empty()
    }

    /// How long ago the log was told to close.
    pub(crate) fn closing_for(&self) -> Option<Duration> {
        self.closing_since.get().map(Instant::elapsed)
    }

    /// Refuses everything from now on, and what waits.
    pub(crate) fn abandon(&self) {
        let mut queue = self.queue.lock();
        let waiting = take(&mut *queue);
        (queue.closed, queue.over) = (true, true);
        drop(queue);
        waiting.publishes.into_iter().for_each(Waiting::let_go);
    }

    /// Wakes the writer if it sleeps: one that is at work looks at the queue before it sleeps.
    fn ring(&self, mut queue: Locked<'_, Queue>) {
        let sleeps = take(&mut queue.writer_sleeps);
        drop(queue);
        if sleeps {
            self.bell.notify_one();
        }
    }

    /// Waits for something to do, for at most `pause`. Of many saves, the first ones are taken; in the end, all.
    pub(crate) fn take(&self, pause: Option<Duration>) -> Queue {
        let look_again = pause.map(|pause| Instant::now() + pause);
        let mut queue = self.queue.lock();
        loop {
            let now = Instant::now();
            let due = queue.save_at.is_some_and(|at| at <= now) || look_again.is_some_and(|at| at <= now);
            queue.writer_sleeps = false;
            if due || !queue.publishes.is_empty() || !queue.jobs.is_empty() || queue.closing {
                return queue.take();
            }
            queue.writer_sleeps = true;
            let wake_at = [queue.save_at, look_again].into_iter().flatten().min();
            queue = queue.wait(&self.bell, wake_at.map(|at| at.saturating_duration_since(now)));
        }
    }
}

impl Queue {
    fn take(&mut self) -> Self {
        let enough = match (self.closing, self.publishes.is_empty()) {
            (true, _) => usize::MAX,
            (false, true) => SAVES,
            (false, false) => SAVES_BESIDE_PUBLISHES,
        };
        let enough = enough.min(self.unsaved.len());
        let first = self.unsaved.drain(..enough).collect();
        let later = replace(&mut self.unsaved, first);
        let save_at = (!later.is_empty()).then(Instant::now);
        let closed = self.closing;
        replace(self, Self { unsaved: later, save_at, closed, ..Self::default() })
    }
}

impl Waiting {
    /// Nobody is answered.
    fn let_go(self) {
        match self {
            Self::One(record, _) => let_go(record.envelope),
            Self::Many(records, _) => records.into_iter().for_each(|record| let_go(record.envelope)),
        }
    }

    pub(crate) fn records(&self) -> &[Record] {
        match self {
            Self::One(record, _) => std::slice::from_ref(record),
            Self::Many(records, _) => records,
        }
    }
}

/// Runs a part of a transaction that can fail by itself. Some errors take the whole transaction with them; then the
/// work is [broken](Work::broken).
pub(crate) fn in_savepoint<T>(
    work: &mut Work<'_>,
    part: impl FnOnce(&mut Work<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let connection = work.connection;
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    let result = run("savepoint part").and_then(|_| {
        let result = part(work)?;
        run("release part")?;
        Ok(result)
    });
    result.inspect_err(|error| {
        let undone = connection.execute_batch("rollback to part; release part");
        if undone.is_err() || connection.is_autocommit() {
            let error = error.sqlite_error().copied();
            let error = error.unwrap_or(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT));
            work.broken = Some(rusqlite::Error::SqliteFailure(error, None));
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SqliteBroker;
    use crate::faults::request;
    use eventbus_core::broker::Broker;

    #[tokio::test]
    async fn a_publish_waits_for_few_saves_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        let mut readers = Vec::new();
        for number in 0..2 * SAVES {
            readers.push(broker.subscribe(request(&format!("g{number}"))).await.unwrap());
        }
        let claims = broker.store().claims();
        let mut queue = Queue { unsaved: claims.iter().cloned().collect(), ..Queue::default() };
        let numbers = |claims: &VecDeque<Arc<Claim>>| claims.iter().map(|one| one.number).collect::<Vec<_>>();
        let all = numbers(&queue.unsaved);
        let mut taken = Vec::new();
        let (waiting, _publisher) = oneshot::channel();
        queue.publishes.push(Waiting::Many(Vec::new(), waiting));
        for (enough, is_last) in [(SAVES_BESIDE_PUBLISHES, false), (SAVES, false), (SAVES, true)] {
            let now = queue.take();
            assert!(now.unsaved.len() <= enough, "{} are more than {enough}", now.unsaved.len());
            // What is left is saved at once, and never forgotten.
            assert_eq!((queue.unsaved.is_empty(), queue.save_at.is_none()), (is_last, is_last));
            taken.append(&mut numbers(&now.unsaved));
        }
        assert_eq!(taken, all, "in the order in which they came");
        // Whoever closes the log waits for all of it.
        let mut queue =
            Queue { unsaved: claims.iter().cloned().collect(), closing: true, ..Queue::default() };
        assert_eq!(numbers(&queue.take().unsaved), all);
        assert!(queue.closed && queue.unsaved.is_empty());
    }
}
