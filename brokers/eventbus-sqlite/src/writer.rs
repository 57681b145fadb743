//! The writer: one thread owns the connection that writes, and takes whatever waits into one transaction.
//!
//! A publish that finds nobody before it is written at once; while that is synced, others gather and share the next
//! transaction. Acks alone wait a moment for others, since nobody waits for them.

use crate::broker::Store;
use crate::publish::{self, Insert};
use crate::reader::{Names, head};
use crate::saving::Saving;
use crate::schema::{explain, save_wal, tidy_up_in_the_end};
use crate::subscription::Subscription;
use crate::wire::Record;
use crate::writes::{Answer, Job, Publishing, Queue, Save, WAKER, Work, tell};
use crate::{lease::Lease, retention};
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, PublishError, Topic, foreign};
use jiff::Timestamp;
use rusqlite::Connection;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often idle subscriptions are moved on, and groups that others left are looked for.
const HOUSEKEEPING: Duration = Duration::from_millis(250);

/// The one who writes.
pub(crate) struct Writer {
    store: Arc<Store>,
    connection: Connection,
    names: Names,
    numbers: publish::Names,
    /// Which subscriptions listen on a topic, and of which generation of subscriptions that is told.
    routes: (u64, HashMap<Topic, Vec<Arc<Subscription>>>),
    /// The place of the latest event.
    head: i64,
    data_version: i64,
    synced: Option<bool>,
    /// What the write-ahead log held was saved after the log had gone.
    saved_gone: bool,
    failed: bool,
    look_at: Instant,
    renew_at: Instant,
    housekeeping_at: Instant,
    retention_at: Instant,
    retention: retention::Pass,
}

impl Writer {
    /// Starts the writer on a thread of its own.
    pub(crate) fn start(store: Arc<Store>, connection: Connection) -> Result<(), BrokerError> {
        let path = store.settings.path.clone();
        let now = Instant::now();
        let mut writer = Self {
            head: head(&connection).map_err(|error| explain(&path, error))?,
            data_version: 0,
            store,
            connection,
            names: Names::default(),
            numbers: publish::Names::default(),
            routes: Default::default(),
            synced: None,
            saved_gone: false,
            failed: false,
            look_at: now,
            renew_at: now,
            housekeeping_at: now,
            retention_at: now,
            retention: retention::Pass::default(),
        };
        writer.data_version = writer.read_data_version().map_err(|error| explain(&path, error))?;
        writer.store.set_head(writer.head);
        std::thread::Builder::new().name("eventbus-sqlite".to_owned()).spawn(move || writer.work()).map_err(
            |error| BrokerError::new("cannot start the thread that writes the log").with_source(error),
        )?;
        Ok(())
    }

    fn work(mut self) {
        loop {
            let mut queue = self.store.writes.take(self.pause());
            let closing = queue.closing.take();
            self.transact(queue);
            if let Some(done) = closing {
                self.finish();
                // The last connection that closes tidies the file up.
                drop(self);
                tell(done, ());
                return;
            }
            let now = Instant::now();
            if now >= self.look_at {
                self.look_at = now + self.store.settings.poll_interval;
                if let Err(error) = self.look_around(now) {
                    let error = explain(&self.store.settings.path, error);
                    tracing::warn!(target: "eventbus", error = %printable(error), "cannot look after the log; trying again");
                }
            }
        }
    }

    /// How long to wait at most, before looking around.
    fn pause(&self) -> Option<Duration> {
        let settings = &self.store.settings;
        let watching = self.store.is_watched().then_some(settings.poll_interval);
        let keeping = (!retention::is_forever(&settings.retention))
            .then(|| self.retention_at.saturating_duration_since(Instant::now()));
        [watching, keeping].into_iter().flatten().min()
    }

    /// Writes what waits in one transaction, and answers.
    fn transact(&mut self, queue: Queue) {
        let Queue { publishes, mut jobs, dirty, .. } = queue;
        if publishes.is_empty()
            && jobs.is_empty()
            && !dirty.iter().any(|subscription| subscription.lock().dirty)
        {
            return;
        }
        let mut outcome = Outcome::default();
        let failed = match self.store.file.check() {
            Ok(()) => self
                .try_transact(&publishes, &mut jobs, dirty, &mut outcome)
                .err()
                .map(|error| explain(&self.store.settings.path, error)),
            Err(gone) => Some(gone),
        };
        self.failed = failed.is_some();
        if let Some(error) = &failed {
            tracing::error!(target: "eventbus", error = %printable(error), "nothing of a transaction was written");
            // It may have been rolled back already.
            let _ = self.connection.execute_batch("rollback");
            self.numbers = publish::Names::default();
            // It may have failed before it came to them.
            for subscription in self.store.subscriptions().iter().filter(|one| one.lock().dirty) {
                self.store.writes.save(Arc::clone(subscription), Save::AfterFailure);
            }
        } else {
            self.announce(&publishes, &outcome);
        }
        let committed = || failed.as_ref().map_or(Ok(()), Err);
        for lost in outcome.lost {
            lost.lose();
        }
        for saving in outcome.savings {
            let subscription = Arc::clone(&saving.subscription);
            saving.finish(committed());
            if subscription.wants_republished() {
                let finding = Arc::clone(&subscription);
                drop(
                    self.store.writes.run(move |work| finding.find_republished(work.connection, work.names)),
                );
            }
            if subscription.lock().dirty {
                self.store
                    .writes
                    .save(subscription, if self.failed { Save::AfterFailure } else { Save::Soon });
            }
        }
        foreign::tell(WAKER, || self.store.saved.notify_waiters());
        let never_run = jobs.into_iter().map(|job| job(None));
        for answer in outcome.answers.into_iter().chain(never_run) {
            answer(committed());
        }
        // Stored in a file that nobody finds is not stored.
        let failed = failed.or_else(|| self.store.file.check().err());
        answer(publishes, outcome.stored, failed.as_ref());
    }

    fn try_transact(
        &mut self,
        publishes: &[Publishing],
        jobs: &mut Vec<Job>,
        dirty: Vec<Arc<Subscription>>,
        outcome: &mut Outcome,
    ) -> rusqlite::Result<()> {
        self.sync_at_commit(!publishes.is_empty())?;
        self.connection.execute_batch("begin immediate")?;
        let found = head(&self.connection)?;
        outcome.overtaken = found != self.head;
        let mut last = found;
        let mut insert = Insert::new(&self.connection, &mut self.numbers, Timestamp::now())?;
        for record in publishes.iter().flat_map(Publishing::records) {
            let stored = match insert.write(last + 1, record) {
                Ok(true) => {
                    last += 1;
                    Ok(Some(last))
                }
                Ok(false) => Ok(None),
                Err(error) if publish::is_of_one(&error) => Err(error.to_string()),
                Err(error) => return Err(error),
            };
            outcome.stored.push(stored);
        }
        drop(insert);
        let mut work = Work { connection: &self.connection, names: &mut self.names, dirty };
        for job in jobs.drain(..) {
            outcome.answers.push(job(Some(&mut work)));
        }
        // A save is the difference to the one before, so there is one of each.
        let mut dirty = work.dirty;
        dirty.sort_unstable_by_key(|subscription| subscription.number);
        dirty.dedup_by_key(|subscription| subscription.number);
        for subscription in dirty {
            let Some(saving) = Saving::of(&subscription) else { continue };
            let ours = saving.write(&self.connection);
            if let Ok(false) = ours {
                outcome.lost.push(subscription);
            }
            outcome.savings.push(saving);
            ours?;
        }
        self.connection.execute_batch("commit")?;
        self.head = last;
        Ok(())
    }

    /// Only events need to be synced: what a power cut may take of the rest is done again.
    fn sync_at_commit(&mut self, publishes: bool) -> rusqlite::Result<()> {
        if self.synced != Some(publishes) {
            let mode = self.store.settings.durability.synchronous();
            let mode = if publishes || mode == "off" { mode } else { "normal" };
            self.connection.pragma_update(None, "synchronous", mode)?;
            self.synced = Some(publishes);
        }
        Ok(())
    }

    /// Tells the subscriptions of this process what was stored.
    fn announce(&mut self, publishes: &[Publishing], outcome: &Outcome) {
        let subscriptions = self.store.subscriptions();
        if !subscriptions.is_empty() {
            let mut tail = self.store.tail();
            for (record, stored) in publishes.iter().flat_map(Publishing::records).zip(&outcome.stored) {
                if let Ok(Some(offset)) = stored {
                    tail.push(*offset, Arc::clone(&record.envelope), record.payload.len());
                }
            }
        }
        self.store.set_head(self.head);
        if outcome.overtaken {
            return subscriptions.iter().for_each(|subscription| subscription.call());
        }
        let generation = self.store.generation();
        if self.routes.0 != generation {
            self.routes = (generation, HashMap::new());
        }
        let mut called: Vec<u64> = Vec::new();
        for record in publishes.iter().flat_map(Publishing::records) {
            let topic = record.envelope.topic();
            if !self.routes.1.contains_key(topic) {
                let listening =
                    subscriptions.iter().filter(|one| one.pattern.matches(topic.as_str())).cloned();
                self.routes.1.insert(topic.clone(), listening.collect());
            }
            for subscription in &self.routes.1[topic] {
                if !called.contains(&subscription.number) {
                    called.push(subscription.number);
                    subscription.call();
                }
            }
        }
    }

    /// Looks for what others have written, keeps leases, and moves idle subscriptions on.
    fn look_around(&mut self, now: Instant) -> rusqlite::Result<()> {
        if self.store.file.check().is_err() {
            return self.save_what_is_gone();
        }
        if std::mem::take(&mut self.saved_gone) {
            tidy_up_in_the_end(&self.connection, true)?;
        }
        let subscriptions = self.store.subscriptions();
        let version = self.read_data_version()?;
        if version != self.data_version {
            self.data_version = version;
            self.store.tail().clear();
            self.head = head(&self.connection)?;
            self.store.set_head(self.head);
            for subscription in subscriptions.iter() {
                subscription.find_republished(&self.connection, &mut self.names)?;
                subscription.call();
            }
        }
        if !subscriptions.is_empty() && now >= self.renew_at {
            self.renew_at = now + self.store.settings.lease / 3;
            self.renew(&subscriptions)?;
        }
        if now >= self.housekeeping_at {
            self.housekeeping_at = now + HOUSEKEEPING;
            for subscription in subscriptions.iter() {
                if subscription.is_active() {
                    if subscription.skip_to(self.head) {
                        self.store.writes.save(Arc::clone(subscription), Save::Soon);
                    }
                } else if subscription.is_free(&self.connection)? {
                    let taking = Arc::clone(subscription);
                    drop(self.store.writes.run(move |work| taking.take_over(work.connection, work.names)));
                }
            }
        }
        if !retention::is_forever(&self.store.settings.retention) && now >= self.retention_at {
            let more = self.retention.go_on(&self.connection, &self.store.settings.retention)?;
            self.retention_at =
                now + if more { Duration::ZERO } else { self.store.settings.retention_interval };
        }
        Ok(())
    }

    /// The log is no longer where it was opened: what was acknowledged goes with the file, wherever it is.
    fn save_what_is_gone(&mut self) -> rusqlite::Result<()> {
        if self.saved_gone {
            return Ok(());
        }
        tidy_up_in_the_end(&self.connection, false)?;
        if self.store.file.can_save() {
            save_wal(&mut self.connection)?;
        }
        self.saved_gone = true;
        Ok(())
    }

    /// Says that this process goes on, and learns what others have taken meanwhile.
    fn renew(&mut self, subscriptions: &[Arc<Subscription>]) -> rusqlite::Result<()> {
        let store = Arc::clone(&self.store);
        let given = Lease::of(store.settings.lease);
        let until = store.clock().saturating_add(given.length.unsigned_abs());
        if let Err(error) = store.process.stay() {
            tracing::warn!(
                target: "eventbus", error = %printable(error),
                "cannot lock a file beside the log; if this process ends, others wait until its lease is over"
            );
        }
        self.sync_at_commit(false)?;
        self.connection
            .prepare_cached("update subscription set leased_until = ?2 where owner glob ?1")?
            .execute((store.process.owners(), given.until))?;
        for subscription in subscriptions.iter().filter(|subscription| subscription.is_active()) {
            let ours: bool = self
                .connection
                .prepare_cached("select count(*) from subscription where owner = ?1")?
                .query_row([subscription.owner()], |row| row.get(0))?;
            if !ours {
                subscription.lose();
            } else if subscription.refused.swap(false, std::sync::atomic::Ordering::AcqRel) {
                let again = Arc::clone(subscription);
                drop(self.store.writes.run(move |work| again.begin_again(work.connection, work.names)));
            } else {
                subscription.hold_until(until);
            }
        }
        Ok(())
    }

    /// Leaves every group, and the file as if nobody had been here.
    fn finish(&mut self) {
        let subscriptions = self.store.subscriptions();
        for subscription in subscriptions.iter() {
            subscription.skip_to(self.head);
        }
        let mut last = Queue::default();
        last.dirty = subscriptions.to_vec();
        self.transact(last);
        let owners = self.store.process.owners();
        let left = match self.store.file.check() {
            Ok(()) => {
                self.connection.execute("update subscription set owner = null where owner glob ?1", [owners])
            }
            Err(_) => self.save_what_is_gone().map(|()| 0),
        };
        self.store.file.close();
        self.store.readers.close();
        match left {
            // SQLite removes the write-ahead log after this.
            Ok(_) => self.store.process.leave(),
            Err(error) => tracing::warn!(
                target: "eventbus", error = %printable(explain(&self.store.settings.path, error)),
                "groups were not left; another process takes them over once this one has ended"
            ),
        }
    }

    fn read_data_version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("pragma data_version")?.query_row([], |row| row.get(0))
    }
}

impl Drop for Writer {
    /// Nobody writes any more, not even where this is a panic: whoever waits is told.
    fn drop(&mut self) {
        self.store.writes.abandon();
    }
}

/// What became of what a transaction holds.
#[derive(Default)]
struct Outcome {
    /// Each event's place; none where it was there already.
    stored: Vec<Result<Option<i64>, String>>,
    answers: Vec<Answer>,
    savings: Vec<Saving>,
    lost: Vec<Arc<Subscription>>,
    /// Another process has stored events meanwhile.
    overtaken: bool,
}

/// Answers the publishers.
fn answer(
    publishes: Vec<Publishing>,
    stored: Vec<Result<Option<i64>, String>>,
    failed: Option<&BrokerError>,
) {
    let mut stored = stored.into_iter();
    let mut answer = |record: &Record| {
        let problem = match (failed, stored.next()) {
            (Some(error), _) => error.to_string(),
            (None, Some(Ok(_))) => return Ok(()),
            (None, Some(Err(problem))) => problem,
            (None, None) => "the event was not written".to_owned(),
        };
        Err(PublishError::Broker { topic: record.envelope.topic().to_string(), source: problem.into() })
    };
    for publishing in publishes {
        match publishing {
            Publishing::One(record, waiting) => tell(waiting, answer(&record)),
            Publishing::Many(records, waiting) => {
                tell(waiting, records.iter().map(&mut answer).collect());
            }
        }
    }
}
