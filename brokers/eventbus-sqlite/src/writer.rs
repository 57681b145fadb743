//! The writer: one thread owns the connection that writes, and takes whatever waits into one transaction.
//!
//! A publish that finds nobody before it is written at once; while that is synced, others gather and share the next
//! transaction. Acks alone wait a moment for others, since nobody waits for them.

mod chores;
mod patience;

use crate::broker::Store;
use crate::calls::Calls;
use crate::claim::{Claim, Saving};
use crate::let_go::{self, let_go};
use crate::publish::{self, Insert};
use crate::reader::{NamesByNumber, head};
use crate::retention;
use crate::schema::{explain, save_wal, tidy_up_in_the_end};
use crate::wire::Record;
use crate::writes::{Answer, Job, Queue, WAKER, Waiting, When, Work, in_savepoint, tell};
use chores::Chores;
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, PublishError, Topic, foreign};
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode};
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many readers are woken between two transactions, and how many where publishers wait.
const WAKES: usize = 64;
const WAKES_BESIDE_PUBLISHES: usize = 16;
/// How many subscriptions are saved without a sync: whoever publishes next waits until what they have written is on
/// the disk as well.
const SAVES_UNSYNCED: usize = 256;
/// Of so many events that another process has stored, it is asked who listens on them.
const ASKED: i64 = 1_024;

/// The one who writes.
pub(crate) struct Writer {
    store: Arc<Store>,
    connection: Connection,
    names: NamesByNumber,
    numbers: publish::NumbersByName,
    calls: Calls<Claim>,
    /// The place of the latest event.
    head: i64,
    data_version: i64,
    /// Whether commits are synced now.
    syncs: Option<bool>,
    /// How many subscriptions were saved since the last sync.
    unsynced: usize,
    /// What the write-ahead log held was saved after the log had gone.
    saved_gone: bool,
    chores: Chores,
    retention: retention::Pass,
}

/// What is to be written in one transaction.
#[derive(Default)]
struct Transaction {
    publishes: Vec<Waiting>,
    jobs: Vec<Job>,
    unsaved: Vec<Arc<Claim>>,
}

/// What a transaction has written.
#[derive(Default)]
struct Written {
    /// Each event's place; none where it was there already.
    stored: Vec<Result<Option<i64>, String>>,
    answers: Vec<Answer>,
    /// Each save, and whether it was written; `Ok(false)`: somebody else has the group.
    saves: Vec<(Saving, rusqlite::Result<bool>)>,
    /// The place of the latest event before, and after it.
    first: i64,
    last: i64,
}

/// Which part of a transaction has taken it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Culprit {
    Publishes,
    Job,
    Save,
    /// Its beginning, or its end where nothing of it can be there.
    Transaction,
    /// Its end, and what was written of it by then may be found after a crash.
    Commit,
}

/// Why the publishers of a transaction get an error.
#[derive(Clone, Copy)]
enum Unconfirmed<'a> {
    NotStored(&'a BrokerError),
    /// It may be stored, or come back.
    Unknown(&'a BrokerError),
}

impl Writer {
    /// Starts the writer on a thread of its own.
    pub(crate) fn start(store: Arc<Store>, connection: Connection) -> Result<(), BrokerError> {
        let path = store.settings.path.clone();
        let mut writer = Self {
            head: head(&connection).map_err(|error| explain(&path, error))?,
            data_version: 0,
            store,
            connection,
            names: NamesByNumber::default(),
            numbers: publish::NumbersByName::default(),
            calls: Calls::default(),
            syncs: None,
            unsynced: 0,
            saved_gone: false,
            chores: Chores::new(Instant::now()),
            retention: retention::Pass::default(),
        };
        writer.data_version = writer.read_data_version().map_err(|error| explain(&path, error))?;
        patience::of_writer(&mut writer.connection).map_err(|error| explain(&path, error))?;
        writer.store.set_head(writer.head);
        #[cfg(test)]
        if let Some(faults) = &writer.store.settings.faults {
            faults.install(&mut writer.connection).map_err(|error| explain(&path, error))?;
        }
        std::thread::Builder::new().name("eventbus-sqlite".to_owned()).spawn(move || writer.work()).map_err(
            |error| BrokerError::new("cannot start the thread that writes the log").with_cause(error),
        )?;
        Ok(())
    }

    fn work(mut self) {
        patience::depends_on(&self.store);
        let_go::never_here();
        loop {
            let_go::hand_over();
            let pause = if self.calls.is_empty() { self.pause() } else { Some(Duration::ZERO) };
            let Queue { publishes, jobs, unsaved, closing, .. } = self.store.writes.take(pause);
            let written = self.transact(Transaction { publishes, jobs, unsaved: unsaved.into() });
            if closing {
                self.wake(usize::MAX);
                let closed = written.and(self.finish()).map_err(|error| {
                    let message = "not everything was written before the log was closed; what was settled last is \
                                   delivered again";
                    BrokerError::new(message).with_cause(error)
                });
                let store = Arc::clone(&self.store);
                // The last connection that closes tidies the file up.
                drop(self);
                store.writes.end(closed);
                return store.tell_end();
            }
            let awaited = self.store.writes.are_awaited();
            self.wake(if awaited { WAKES_BESIDE_PUBLISHES } else { WAKES });
            self.look_around(Instant::now());
        }
    }

    /// Wakes readers that were called.
    fn wake(&mut self, limit: usize) {
        for waker in self.calls.next(limit) {
            foreign::tell(WAKER, || waker.wake());
        }
    }

    /// Writes what waits in one transaction, and answers. What a part of it takes down with it is written without that
    /// part; the error tells that not all was written.
    fn transact(&mut self, mut transaction: Transaction) -> Result<(), BrokerError> {
        // A save is the difference to the one before, so there is one of each.
        transaction.unsaved.sort_unstable_by_key(|claim| claim.number);
        transaction.unsaved.dedup_by_key(|claim| claim.number);
        let mut result = Ok(());
        while !transaction.is_empty() {
            let mut written = Written::default();
            let here = self.store.file.check();
            let (culprit, error) = match here.map(|()| self.write(&mut transaction, &mut written)) {
                Ok(Ok(())) => {
                    self.committed(transaction.publishes, written);
                    return result;
                }
                Ok(Err((culprit, error))) => {
                    let error = explain(&self.store.settings.path, error);
                    log::error!(target: "eventbus", error = %printable(&error), "nothing of a transaction was written");
                    (culprit, error)
                }
                // That the file is gone is in the log already, once.
                Err(gone) => (Culprit::Transaction, gone),
            };
            // It may have been rolled back already.
            let _ = self.connection.execute_batch("rollback");
            (self.names, self.numbers) = Default::default();
            if culprit == Culprit::Save
                && let Some((saving, _)) = written.saves.last()
            {
                let number = saving.claim().number;
                transaction.unsaved.retain(|claim| claim.number != number);
            }
            written.answers.into_iter().for_each(|answer| answer(Err(&error)));
            written.saves.into_iter().for_each(|(saving, _)| saving.finish(Err(&error)));
            let failed = match culprit {
                Culprit::Publishes => {
                    Transaction { publishes: take(&mut transaction.publishes), ..Transaction::default() }
                }
                Culprit::Job | Culprit::Save => Transaction::default(),
                Culprit::Transaction | Culprit::Commit => take(&mut transaction),
            };
            let unconfirmed = match culprit {
                Culprit::Commit => Unconfirmed::Unknown(&error),
                _ => Unconfirmed::NotStored(&error),
            };
            self.give_up(failed, &error, unconfirmed);
            result = Err(error);
        }
        result
    }

    /// None of it is written, as far as is known.
    fn give_up(&self, transaction: Transaction, error: &BrokerError, unconfirmed: Unconfirmed<'_>) {
        for job in transaction.jobs {
            job(None)(Err(error));
        }
        for claim in transaction.unsaved {
            self.store.writes.save(claim, When::AfterFailure);
        }
        answer(transaction.publishes, Vec::new(), Some(unconfirmed));
        self.store.saved.tell();
    }

    fn write(
        &mut self,
        transaction: &mut Transaction,
        written: &mut Written,
    ) -> Result<(), (Culprit, rusqlite::Error)> {
        let of_all = |error| (Culprit::Transaction, error);
        let unsynced = self.unsynced + transaction.unsaved.len();
        let sync = !transaction.publishes.is_empty() || unsynced > SAVES_UNSYNCED;
        self.sync_at_commit(sync).map_err(of_all)?;
        #[cfg(test)]
        if let Some(faults) = &self.store.settings.faults {
            faults.before_transaction(&self.connection).map_err(of_all)?;
        }
        self.begin().map_err(of_all)?;
        let found = head(&self.connection).map_err(of_all)?;
        (written.first, written.last) = (found, found);
        self.insert(&transaction.publishes, written).map_err(|error| (Culprit::Publishes, error))?;
        let mut work =
            Work { connection: &self.connection, names: &mut self.names, taken: Vec::new(), broken: None };
        let mut jobs = take(&mut transaction.jobs).into_iter();
        while let Some(job) = jobs.next() {
            written.answers.push(job(Some(&mut work)));
            if let Some(error) = work.broken.take() {
                transaction.jobs = jobs.collect();
                return Err((Culprit::Job, error));
            }
        }
        for claim in &transaction.unsaved {
            let Some(saving) = Saving::of(claim) else { continue };
            let saved = in_savepoint(&mut work, |work| saving.write(work.connection));
            written.saves.push((saving, saved));
            if let Some(error) = work.broken.take() {
                return Err((Culprit::Save, error));
            }
        }
        self.connection.execute_batch("commit").map_err(|error| match error.sqlite_error_code() {
            // A sync that fails says nothing of what has reached the disk.
            Some(ErrorCode::SystemIoFailure) => (Culprit::Commit, error),
            _ => of_all(error),
        })?;
        self.unsynced = if sync { 0 } else { unsynced };
        Ok(())
    }

    /// Begins a transaction. Where another program holds the file, that may take long, so all readers are woken first.
    fn begin(&mut self) -> rusqlite::Result<()> {
        let begin = |connection: &Connection| connection.execute_batch("begin immediate");
        if !self.calls.is_empty() {
            match patience::without(|| begin(&self.connection)) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                    self.wake(usize::MAX);
                }
                begun => return begun,
            }
        }
        begin(&self.connection)
    }

    fn insert(&mut self, publishes: &[Waiting], written: &mut Written) -> rusqlite::Result<()> {
        let mut insert = Insert::new(&self.connection, &mut self.numbers, Timestamp::now())?;
        for record in publishes.iter().flat_map(Waiting::records) {
            written.stored.push(match insert.write(written.last + 1, record) {
                Ok(true) => {
                    written.last += 1;
                    Ok(Some(written.last))
                }
                Ok(false) => match insert.is_another(record)? {
                    None => Ok(None),
                    Some(problem) => Err(problem),
                },
                Err(error) if publish::is_of_one(&error) => Err(error.to_string()),
                Err(error) => return Err(error),
            });
        }
        Ok(())
    }

    /// Applies what was committed: only now is it true.
    fn committed(&mut self, publishes: Vec<Waiting>, written: Written) {
        let others = (self.head, written.first);
        self.head = written.last;
        self.remember(others.0 != others.1, &publishes, &written);
        let mut topics: Vec<Topic> = Vec::new();
        for record in publishes.iter().flat_map(Waiting::records) {
            let topic = record.envelope.topic();
            if topics.last() != Some(topic) {
                topics.push(topic.clone());
            }
        }
        let Written { stored, answers, saves, .. } = written;
        self.store.set_calling(true);
        // Stored in a file that nobody finds is not confirmed; it is there once somebody puts the file back.
        let gone = self.store.file.check().err();
        answer(publishes, stored, gone.as_ref().map(Unconfirmed::Unknown));
        self.call(others, topics);
        self.store.set_head(self.head);
        self.store.set_calling(false);
        self.wake(WAKES_BESIDE_PUBLISHES);
        // In the order in which it was written.
        answers.into_iter().for_each(|answer| answer(Ok(())));
        for (saving, saved) in saves {
            let claim = Arc::clone(saving.claim());
            match saved {
                Ok(ours) => saving.finish(Ok(ours)),
                Err(error) => {
                    let error = explain(&self.store.settings.path, error);
                    log::error!(
                        target: "eventbus", group = %printable(&claim.group), error = %printable(&error),
                        "a group was not saved"
                    );
                    saving.finish(Err(&error));
                }
            }
            if claim.wants_republished() {
                claim.find_republished();
            }
        }
        self.store.saved.tell();
    }

    /// Only events need to be synced: what a power cut may take of the rest is done again. But a sync takes longer the
    /// more was written since the last one, whoever wrote it.
    fn sync_at_commit(&mut self, sync: bool) -> rusqlite::Result<()> {
        if self.syncs != Some(sync) {
            let mode = self.store.settings.durability.synchronous();
            let mode = if sync || mode == "off" { mode } else { "normal" };
            self.connection.pragma_update(None, "synchronous", mode)?;
            self.syncs = Some(sync);
        }
        Ok(())
    }

    /// Keeps what was stored for the subscriptions of this process. The tail ends with the latest event of the log, or
    /// is empty: whoever finds nothing behind its place there has read everything.
    fn remember(&self, overtaken: bool, publishes: &[Waiting], written: &Written) {
        let listening = !self.store.claims().is_empty();
        let mut tail = self.store.tail();
        let mut evicted = if overtaken || !listening { tail.clear() } else { Vec::new() };
        if listening {
            for (record, stored) in publishes.iter().flat_map(Waiting::records).zip(&written.stored) {
                if let Ok(Some(offset)) = stored {
                    evicted.extend(tail.push(*offset, Arc::clone(&record.envelope), record.size()));
                }
            }
        }
        drop(tail);
        evicted.into_iter().for_each(let_go);
    }

    /// Calls the subscriptions of this process that listen on `topics`, or on what other processes have stored between
    /// two places. Until that is done, nobody may skip anything.
    fn call(&mut self, (behind, until): (i64, i64), mut topics: Vec<Topic>) {
        let claims = self.store.claims();
        if claims.is_empty() {
            return;
        }
        let generation = self.store.generation();
        if behind != until {
            let found = match until - behind {
                1..=ASKED => self.names.topics_between(&self.connection, behind, until),
                _ => return self.calls.call_all(&claims),
            };
            match found {
                Ok(found) => topics.extend(found),
                Err(_) => return self.calls.call_all(&claims),
            }
        }
        self.calls.call(generation, &claims, &topics);
    }

    /// Leaves every group, and the file as if nobody had been here.
    fn finish(&mut self) -> Result<(), BrokerError> {
        let claims = self.store.claims();
        for claim in claims.iter() {
            claim.skip_to(self.head);
        }
        let saved = self.transact(Transaction { unsaved: claims.to_vec(), ..Transaction::default() });
        let owners = self.store.process.owners();
        let left = match self.store.file.check() {
            Ok(()) => {
                self.connection.execute("update subscription set owner = null where owner glob ?1", [owners])
            }
            Err(_) => self.save_what_is_gone().map(|()| 0),
        };
        // Nothing is handled any more here, since others may do that now.
        for claim in claims.iter() {
            claim.hold_until(0);
        }
        self.store.file.close();
        self.store.readers.close();
        let left = left.map_err(|error| explain(&self.store.settings.path, error));
        match &left {
            // SQLite removes the write-ahead log after this.
            Ok(_) => self.store.process.leave(),
            Err(error) => log::warn!(
                target: "eventbus", error = %printable(error),
                "groups were not left; another process takes them over once this one has ended"
            ),
        }
        saved.and(left.map(drop))
    }

    /// The log is no longer where it was opened: what was acknowledged goes with the file, wherever it is.
    fn save_what_is_gone(&mut self) -> rusqlite::Result<()> {
        if self.saved_gone {
            return Ok(());
        }
        tidy_up_in_the_end(&self.connection, false)?;
        if self.store.file.can_save() {
            let saved = save_wal(&mut self.connection);
            patience::of_writer(&mut self.connection)?;
            saved?;
        }
        self.saved_gone = true;
        Ok(())
    }

    fn read_data_version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("pragma data_version")?.query_row([], |row| row.get(0))
    }
}

impl Drop for Writer {
    /// Nobody writes any more, not even where this is a panic: whoever waits is told.
    fn drop(&mut self) {
        self.store.writes.abandon();
        let claims = self.store.claims();
        if std::thread::panicking() {
            let panicked = || {
                BrokerError::new(
                    "the thread that writes the log has panicked; start the program again, and report it",
                )
            };
            self.store.writes.end(Err(panicked()));
            for claim in claims.iter() {
                claim.fail(panicked());
            }
            self.store.tell_end();
        }
        // Those that end later see for themselves that nobody writes.
        for claim in claims.iter().filter(|claim| claim.has_ended()) {
            self.store.remove(claim.number);
        }
        let_go::hand_over();
    }
}

impl Transaction {
    fn is_empty(&self) -> bool {
        self.publishes.is_empty() && self.jobs.is_empty() && self.unsaved.is_empty()
    }
}

/// Answers the publishers.
fn answer(
    publishes: Vec<Waiting>,
    stored: Vec<Result<Option<i64>, String>>,
    failed: Option<Unconfirmed<'_>>,
) {
    let mut stored = stored.into_iter();
    let mut answer = |record: &Record| {
        let topic = record.envelope.topic().to_string();
        let problem = match (failed, stored.next()) {
            // It would not be there, whatever became of the others.
            (_, Some(Err(problem))) => problem,
            (Some(Unconfirmed::Unknown(error)), _) => {
                return Err(PublishError::Unconfirmed { topic, cause: error.to_string().into() });
            }
            (Some(Unconfirmed::NotStored(error)), _) => error.to_string(),
            (None, Some(Ok(_))) => return Ok(()),
            (None, None) => "the event was not written".to_owned(),
        };
        Err(PublishError::Broker { topic, cause: problem.into() })
    };
    for waiting in publishes {
        match waiting {
            Waiting::One(record, waits) => {
                tell(waits, answer(&record));
                let_go(record.envelope);
            }
            Waiting::Many(records, waits) => {
                tell(waits, records.iter().map(&mut answer).collect());
                records.into_iter().for_each(|record| let_go(record.envelope));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SAVES_UNSYNCED, WAKES};
    use crate::SqliteBroker;
    use crate::broker::Store;
    use crate::faults::request;
    use eventbus_core::broker::{
        Broker, Deliveries, Parked, Received, ReplayFrom, ReplayRequest, ReplayUntil,
    };
    use eventbus_core::{BrokerError, Envelope, Pattern, PublishError, Topic};
    use jiff::Timestamp;
    use rusqlite::Connection;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Wake, Waker};
    use std::time::{Duration, Instant};
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    #[tokio::test]
    async fn readers_learn_that_the_writer_has_panicked() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        let mut deliveries = broker.subscribe(request("g")).await.unwrap();
        let job = broker.store().writes.run(|_| -> rusqlite::Result<()> { panic!("on purpose") });
        job.await.unwrap_err();
        let mut received = Vec::new();
        let receiving = poll_fn(|context| deliveries.poll_receive(context, &mut received, 1));
        let error = receiving.await.unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
    }

    #[tokio::test]
    async fn to_close_a_log_whose_writer_has_panicked_is_an_error_however_often() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        broker.store().writes.run(|_| -> rusqlite::Result<()> { panic!("on purpose") }).await.unwrap_err();
        for _ in 0..2 {
            let error = broker.close().await.unwrap_err().to_string();
            assert!(error.contains("panicked"), "{error}");
        }
    }

    /// What waits for the writer of a log, which has an event that is not settled: each says whether it ended with an
    /// error.
    async fn all_that_wait(broker: &SqliteBroker) -> (Received, JoinSet<(&'static str, bool)>) {
        let mut deliveries = broker.subscribe(request("g")).await.unwrap();
        let envelope = Envelope::from_json(Topic::from_static("number.counted"), &1).unwrap();
        broker.publish(Arc::new(envelope)).await.unwrap();
        let received = receive(&mut *deliveries).await.unwrap().remove(0);
        let log = broker.audit_log().unwrap();
        let latest = log.latest().await.unwrap().unwrap();
        let live = ReplayRequest {
            group: "g".to_owned(),
            pattern: Pattern::new(">").unwrap(),
            from: ReplayFrom::After(latest),
            until: ReplayUntil::Live,
        };
        let mut replay = broker.replayable().unwrap().replay(live).await.unwrap();
        let (settled, waits) = (Broker::settled(broker).unwrap(), log.wait(Some(latest)));
        let mut all = JoinSet::new();
        all.spawn(async move { ("log", waits.await.is_err()) });
        all.spawn(async move { ("replay", receive(&mut *replay.deliveries).await.is_err()) });
        all.spawn(async move {
            settled.await;
            drop(deliveries);
            ("settled", false)
        });
        (received, all)
    }

    async fn receive(deliveries: &mut dyn Deliveries) -> Result<Vec<Received>, BrokerError> {
        let mut received = Vec::new();
        while received.is_empty() {
            poll_fn(|context| deliveries.poll_receive(context, &mut received, 1)).await?;
        }
        Ok(received)
    }

    /// Each ends, those with errors that have some.
    async fn end(mut all: JoinSet<(&'static str, bool)>) {
        while let Some(ended) = timeout(Duration::from_secs(20), all.join_next()).await.expect("each ends") {
            let (which, failed) = ended.unwrap();
            assert_eq!(failed, which != "settled", "{which}");
        }
    }

    fn tomorrow() -> Parked {
        let now = Timestamp::now();
        Parked { first_failed_at: now, last_failed_at: now, due: now + Duration::from_secs(86_400) }
    }

    #[tokio::test]
    async fn nobody_waits_for_a_writer_that_has_panicked() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        let (received, mut all) = all_that_wait(&broker).await;
        let (go, goes) = channel();
        let job = broker.store().writes.run(move |_| -> rusqlite::Result<()> {
            goes.recv().expect("it goes on");
            panic!("on purpose")
        });
        let Received { receipt, settler, .. } = received;
        let parked = settler.park(&receipt, tomorrow());
        all.spawn(async move { ("park", parked.await.is_err()) });
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        job.await.unwrap_err();
        end(all).await;
        let mut late = JoinSet::new();
        let (settled, parked) = (Broker::settled(&broker).unwrap(), settler.park(&receipt, tomorrow()));
        late.spawn(async move { ("park", parked.await.is_err()) });
        late.spawn(async move {
            settled.await;
            ("settled", false)
        });
        end(late).await;
    }

    #[tokio::test]
    async fn nobody_waits_for_a_log_that_was_closed() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        let (received, mut all) = all_that_wait(&broker).await;
        broker.close().await.unwrap();
        let parked = received.settler.park(&received.receipt, tomorrow());
        all.spawn(async move { ("park", parked.await.is_err()) });
        end(all).await;
    }

    #[tokio::test]
    async fn whoever_closes_a_log_waits_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        let (first, second) = (broker.close(), broker.close());
        first.await.unwrap();
        assert!(broker.store().writes.are_over());
        second.await.unwrap();
        broker.close().await.expect("to close it again is to close it once");
    }

    #[tokio::test]
    async fn an_event_that_was_stored_in_a_log_that_is_gone_is_unconfirmed_and_not_said_to_be_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (folder.path().join("log.db"), folder.path().join("moved.db"));
        let broker = SqliteBroker::open(&path).await.unwrap();
        let writes = &broker.store().writes;
        // While the writer is busy, what comes meanwhile gathers for its next transaction.
        let (go, goes) = channel();
        let gate = writes.run(move |_| {
            goes.recv().expect("it goes on");
            Ok(())
        });
        let envelope = Envelope::from_json(Topic::from_static("number.counted"), &1).unwrap();
        let stored = broker.publish(Arc::new(envelope));
        let (from, to) = (path.clone(), elsewhere.clone());
        let moved = writes.run(move |_| {
            std::fs::rename(from, to).unwrap();
            // Until that is seen.
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        });
        go.send(()).unwrap();
        gate.await.unwrap();
        let error = stored.await.unwrap_err();
        assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
        let _ = moved.await;
        std::fs::rename(elsewhere, &path).unwrap();
        let file = Connection::open(&path).unwrap();
        let events: u64 = file.query_row("select count(*) from event", [], |row| row.get(0)).unwrap();
        assert_eq!(events, 1, "it is there once the log is back");
    }

    /// Counts how often a reader was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_reader_is_woken_before_another_program_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db");
        let broker = SqliteBroker::open(&path).await.unwrap();
        let mut readers = Vec::new();
        for number in 0..4 * WAKES {
            readers.push(broker.subscribe(request(&format!("g{number}"))).await.unwrap());
        }
        for reader in &mut readers {
            let mut context = Context::from_waker(Waker::noop());
            assert!(reader.poll_receive(&mut context, &mut Vec::new(), 1).is_pending());
        }
        timeout(Duration::from_secs(20), Broker::settled(&broker).unwrap())
            .await
            .expect("there is nothing to read");
        let (store, writes) = (Arc::clone(broker.store()), &broker.store().writes);
        // Another program begins to write right after the event was stored.
        let ((held, holds), (go, goes)) = (channel(), channel());
        let gate = writes.run(move |_| {
            goes.recv().expect("it goes on");
            Ok(())
        });
        let hold = move |()| {
            let other = Connection::open(&path).unwrap();
            other.execute_batch("begin immediate").unwrap();
            held.send(other).unwrap();
            drop(store.writes.run(|_| Ok(())));
        };
        let envelope = Envelope::from_json(Topic::from_static("number.counted"), &1).unwrap();
        let stored = broker.publish(Arc::new(envelope));
        let other = writes.run_then(|_| Ok(()), hold);
        let wakers: Vec<_> = readers.iter().map(|_| Arc::new(Woken::default())).collect();
        for (reader, woken) in readers.iter_mut().zip(&wakers) {
            let waker = Waker::from(Arc::clone(woken));
            assert!(reader.poll_receive(&mut Context::from_waker(&waker), &mut Vec::new(), 1).is_pending());
        }
        go.send(()).unwrap();
        gate.await.unwrap();
        stored.await.unwrap();
        other.await.unwrap();
        let other = holds.recv().unwrap();
        let since = Instant::now();
        while wakers.iter().any(|woken| woken.0.load(Ordering::SeqCst) == 0) {
            assert!(since.elapsed() < Duration::from_secs(10), "some readers sleep while the writer waits");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.execute_batch("rollback").unwrap();
    }

    /// What one transaction finds: how many groups were saved before it, and whether its commit is synced.
    type Found = Arc<Mutex<Vec<(usize, bool)>>>;

    /// Looks in each transaction, from the next one until `count` groups are saved.
    fn look_at_each(store: &Arc<Store>, count: usize, found: &Found) {
        let (store_then, found) = (Arc::clone(store), Arc::clone(found));
        let look = |connection: &Connection| -> rusqlite::Result<(usize, bool)> {
            let saved =
                connection
                    .query_row("select count(*) from subscription where cursor > 0", [], |row| row.get(0))?;
            let mode: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
            Ok((saved, mode == 2))
        };
        drop(store.writes.run_then(
            move |work| look(work.connection),
            move |(saved, synced)| {
                found.lock().unwrap().push((saved, synced));
                if saved < count {
                    look_at_each(&store_then, count, &found);
                }
            },
        ));
    }

    /// So many groups settle an event, and nothing is published meanwhile. What each transaction finds.
    async fn saved_without_a_publish(groups: usize) -> Vec<(usize, bool)> {
        let folder = tempfile::tempdir().unwrap();
        let broker = SqliteBroker::open(folder.path().join("log.db")).await.unwrap();
        let mut readers = Vec::new();
        for number in 0..groups {
            readers.push(broker.subscribe(request(&format!("g{number}"))).await.unwrap());
        }
        let envelope = Envelope::from_json(Topic::from_static("number.counted"), &1).unwrap();
        broker.publish(Arc::new(envelope)).await.unwrap();
        let mut received = Vec::new();
        for reader in &mut readers {
            received.append(&mut receive(&mut **reader).await.unwrap());
        }
        let (store, found) = (broker.store(), Found::default());
        let (go, goes) = channel();
        let gate = store.writes.run(move |_| {
            goes.recv().expect("it goes on");
            Ok(())
        });
        for Received { receipt, settler, .. } in received {
            settler.ack(receipt).await.unwrap();
        }
        look_at_each(store, groups, &found);
        go.send(()).unwrap();
        gate.await.unwrap();
        let since = Instant::now();
        while found.lock().unwrap().last().is_none_or(|(saved, _)| *saved < groups) {
            assert!(since.elapsed() < Duration::from_secs(60), "{found:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::mem::take(&mut found.lock().unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_publish_syncs_what_few_subscriptions_have_saved_however_many_there_are() {
        let found = saved_without_a_publish(3 * SAVES_UNSYNCED / 2).await;
        let mut saved_at_sync = 0;
        let mut synced_before = false;
        for (saved, synced) in &found {
            if std::mem::replace(&mut synced_before, *synced) {
                saved_at_sync = *saved;
            }
            assert!(saved - saved_at_sync <= SAVES_UNSYNCED, "{found:?}");
        }
        // And no save of few is synced.
        let found = saved_without_a_publish(SAVES_UNSYNCED / 4).await;
        assert!(found.iter().all(|(_, synced)| !synced), "{found:?}");
    }
}
