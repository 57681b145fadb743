//! Subscriptions: who reads which events, and how far a group has come.

use crate::broker::Store;
use crate::delivery::{Noted, Opened, Saved, Saving, Unfinished, Which};
use crate::lease;
use crate::reader::{self, Batch, Names};
use crate::tail::Caught;
use crate::wire::Stored;
use eventbus_core::broker::{
    Deliveries, Offset, Parked, Receipt, Received, Settler, Start, SubscribeRequest,
};
use eventbus_core::{BrokerError, Envelope, Pattern};
use rusqlite::{Connection, OptionalExtension};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle;

/// With fewer events at hand than this, more are read ahead.
const READ_AHEAD: usize = reader::EVENTS;
/// With more bytes of payload at hand than this, no more are read ahead.
const READ_AHEAD_BYTES: usize = 4 << 20;
/// With more bytes of payload handed out than this, no more are handed out until some are settled.
const OPEN_BYTES: usize = 64 << 20;
/// How many events are taken from the tail at once.
const FROM_TAIL: usize = 256;
/// How many settled deliveries may wait to be saved: so many are delivered again after a crash, at most.
const UNSAVED: usize = 1_024;

/// A group on a pattern, as this process sees it.
pub(crate) struct Subscription {
    this: Weak<Self>,
    pub(crate) store: Arc<Store>,
    pub(crate) group: String,
    pub(crate) pattern: Pattern,
    start: Start,
    /// Its place among the subscriptions of this process.
    pub(crate) number: u64,
    runtime: Handle,
    state: Mutex<State>,
    /// Counts how often the group was taken over; deliveries of an earlier time are no longer ours.
    epoch: AtomicU64,
    /// Until when the lease holds, in milliseconds since the store was opened.
    held_until: AtomicU64,
    /// Some delivery was not handled because the lease was over.
    pub(crate) refused: AtomicBool,
}

/// What changes while a subscription is open.
pub(crate) struct State {
    /// Its row, once it has one.
    pub(crate) row: Option<i64>,
    /// Whether the lease is ours.
    pub(crate) active: bool,
    /// Whether nobody reads any more.
    ended: bool,
    waker: Option<Waker>,
    /// The reader is to be woken once the lock is released.
    pub(crate) ring: bool,
    error: Option<BrokerError>,

    /// Everything up to here was read: it is at hand, open, or not ours.
    position: i64,
    /// There may be events behind `position`.
    behind: bool,
    /// How often somebody said so.
    called: u64,
    fetching: bool,
    at_hand: VecDeque<Waiting>,
    at_hand_bytes: usize,

    /// Everything up to here was handed out, or is not ours.
    pub(crate) handed: i64,
    /// What was handed out and is not settled, and what was unfinished when the group was taken over.
    pub(crate) open: BTreeMap<i64, Opened>,
    /// The payloads of what was handed out.
    open_bytes: usize,
    /// The reader waits until some of it is settled.
    pub(crate) stalled: bool,
    /// The highest place that was settled.
    pub(crate) settled: i64,
    /// How many deliveries were settled since the last save.
    pub(crate) unsaved: usize,
    /// Something is to be saved.
    pub(crate) dirty: bool,
    pub(crate) saved: Saved,
    /// More was published again than is taken at once.
    more_republished: bool,
    /// Who waits until what was noted is saved.
    pub(crate) waiting: Vec<tokio::sync::oneshot::Sender<Result<(), BrokerError>>>,
}

/// A delivery that is at hand.
struct Waiting {
    offset: i64,
    envelope: Arc<Envelope>,
    attempt: u32,
    parked: Option<Parked>,
}

impl Waiting {
    fn size(&self) -> usize {
        self.envelope.payload().map_or(0, |payload| payload.len())
    }
}

impl Subscription {
    pub(crate) fn new(store: Arc<Store>, request: SubscribeRequest) -> Arc<Self> {
        let SubscribeRequest { group, pattern, start } = request;
        let number = store.next_number();
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            store,
            group,
            pattern,
            start,
            number,
            runtime: Handle::current(),
            state: Mutex::new(State::new()),
            epoch: AtomicU64::new(0),
            held_until: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes the reader if that is called for: outside of the lock, since the reader holds
    /// a lock of its own while it asks.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let waker = if std::mem::take(&mut state.ring) { state.waker.take() } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        result
    }

    pub(crate) fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether deliveries of `epoch` are ours to handle.
    pub(crate) fn is_held(&self, epoch: u64) -> bool {
        epoch == self.epoch() && self.store.clock() < self.held_until.load(Ordering::Acquire)
    }

    /// The lease was extended until `until`, in milliseconds since the store was opened.
    pub(crate) fn hold_until(&self, until: u64) {
        self.held_until.store(until, Ordering::Release);
    }

    pub(crate) fn owner(&self) -> String {
        self.store.process.owner(self.number)
    }

    /// Makes sure that the group has its row, and takes it over if it is free.
    pub(crate) fn begin(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        let begin = match self.start {
            Start::Earliest => 0,
            _ => reader::head(connection)?,
        };
        let row = match self.find_row(connection)? {
            Some(row) => row,
            None => {
                connection
                    .prepare_cached(
                        "insert into subscription (\"group\", pattern, cursor, reached) values (?1, ?2, ?3, ?3)",
                    )?
                    .execute((&self.group, self.pattern.as_str(), begin))?;
                connection.last_insert_rowid()
            }
        };
        self.lock().row = Some(row);
        self.take_over(connection, names)
    }

    /// The row of this group and pattern; or else the one with the lowest cursor among those of the group whose
    /// patterns overlap with it. A program has no two of them, so the pattern of the subscription was changed.
    fn find_row(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        let mut statement = connection
            .prepare_cached("select id, pattern from subscription where \"group\" = ?1 order by cursor")?;
        let mut rows = statement.query([&self.group])?;
        let mut overlapping = None;
        while let Some(row) = rows.next()? {
            let pattern = row.get_ref(1)?.as_str()?;
            if pattern == self.pattern.as_str() {
                return row.get(0).map(Some);
            }
            if overlapping.is_none() && Pattern::new(pattern).is_ok_and(|other| other.overlaps(&self.pattern))
            {
                overlapping = Some(row.get(0)?);
            }
        }
        Ok(overlapping)
    }

    /// Gives the row our pattern, where it has an earlier one, and drops what is not on it, as well as rows with other
    /// earlier patterns.
    fn adopt(&self, connection: &Connection, row: i64) -> rusqlite::Result<()> {
        let adopted = connection
            .prepare_cached("update subscription set pattern = ?2 where id = ?1 and pattern <> ?2")?
            .execute((row, self.pattern.as_str()))?;
        if adopted > 0 {
            self.drop_overlapping(connection, row)?;
            let topics = serde_json::json!(reader::topics(connection, &self.pattern)?).to_string();
            connection.execute(
                "delete from delivery where subscription = ?1 and offset not in \
                 (select e.offset from event e where e.offset = delivery.offset \
                 and e.topic in (select value from json_each(?2)))",
                (row, topics),
            )?;
            tracing::info!(
                target: "eventbus", group = %self.group, pattern = %self.pattern,
                "the pattern of the group was changed; it goes on from its cursor"
            );
        }
        Ok(())
    }

    fn drop_overlapping(&self, connection: &Connection, kept: i64) -> rusqlite::Result<()> {
        let mut statement = connection
            .prepare_cached("select id, pattern from subscription where \"group\" = ?1 and id <> ?2")?;
        let mut rows = statement.query((&self.group, kept))?;
        while let Some(row) = rows.next()? {
            let pattern = Pattern::new(row.get_ref(1)?.as_str()?);
            if pattern.is_ok_and(|other| other.overlaps(&self.pattern)) {
                connection.execute("delete from subscription where id = ?1", [row.get::<_, i64>(0)?])?;
            }
        }
        Ok(())
    }

    /// Takes the group over, if nobody handles it.
    pub(crate) fn take_over(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        if self.lock().row.is_none() || !self.is_free(connection)? {
            return Ok(());
        }
        self.take(connection, names)
    }

    /// Begins again from what is saved: some deliveries were dropped while the lease was over, and nobody else has
    /// taken the group meanwhile.
    pub(crate) fn begin_again(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        // What is settled is not to be repeated.
        let Some(saving) = Saving::of(self) else { return self.take(connection, names) };
        if saving.write(connection)? { self.take(connection, names) } else { Ok(()) }
    }

    fn take(self: &Arc<Self>, connection: &Connection, names: &mut Names) -> rusqlite::Result<()> {
        let Some(row) = self.lock().row else { return Ok(()) };
        let found = connection
            .prepare_cached("select cursor, reached, intact from subscription where id = ?1")?
            .query_row([row], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, bool>(2)?))
            })
            .optional()?;
        // Somebody has removed the group while we waited for it.
        let Some((cursor, reached, intact)) = found else { return self.begin(connection, names) };
        if !intact || cursor > reached || reached > reader::head(connection)? {
            return Err(self.damaged());
        }
        let lease = self.store.settings.lease;
        let until = self.store.clock() + u64::try_from(lease.as_millis()).unwrap_or(u64::MAX / 2);
        let leased_until = lease::now() + i64::try_from(lease.as_millis()).unwrap_or(i64::MAX / 2);
        connection
            .prepare_cached("update subscription set owner = ?2, leased_until = ?3 where id = ?1")?
            .execute((row, self.owner(), leased_until))?;
        self.adopt(connection, row)?;
        let unfinished = Unfinished::read(connection, names, row, Which::All)?;
        self.hold_until(until);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.refused.store(false, Ordering::Release);
        self.change(|state| {
            state.forget();
            state.active = true;
            (state.position, state.handed, state.settled) = (reached, reached, reached);
            state.saved = Saved { cursor, reached, rows: BTreeMap::new() };
            state.more_republished = false;
            self.take_in_unfinished(state, unfinished);
            state.call();
        });
        Ok(())
    }

    /// The row of the group is not what was written.
    fn damaged(&self) -> rusqlite::Error {
        let message = format!(
            "in the log `{}`, how far the group `{}` has come is damaged; `seek` it to where it is to go on",
            self.store.settings.path.display(),
            self.group
        );
        tracing::error!(target: "eventbus", "{message}");
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        rusqlite::Error::SqliteFailure(code, Some(message))
    }

    /// Whether nobody handles the group.
    pub(crate) fn is_free(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let owner = connection
            .prepare_cached("select owner, leased_until from subscription where id = ?1")?
            .query_row([self.lock().row], |row| Ok((row.get::<_, Option<String>>(0)?, row.get(1)?)))
            .optional()?;
        Ok(match owner {
            Some((Some(owner), leased_until)) => self.store.is_free(&owner, leased_until),
            _ => true,
        })
    }

    /// The lease is somebody else's: nothing here is ours any more.
    pub(crate) fn lose(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.lock().forget();
        tracing::warn!(
            target: "eventbus", group = %self.group,
            "another process has taken the group over, since this one did not answer for longer than its lease"
        );
    }

    /// The dead letter of the event at `offset` was published again.
    pub(crate) fn take_republished(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
        offset: i64,
    ) -> rusqlite::Result<()> {
        let row = {
            let mut state = self.lock();
            state.more_republished |= state.republished() >= READ_AHEAD;
            state.row.filter(|_| state.active && !state.more_republished)
        };
        let Some(row) = row else { return Ok(()) };
        let unfinished = Unfinished::read(connection, names, row, Which::At(offset))?;
        self.change(|state| self.take_in_unfinished(state, unfinished));
        Ok(())
    }

    /// Looks for dead letters that were published again, by other processes or more than were taken at once.
    pub(crate) fn find_republished(
        self: &Arc<Self>,
        connection: &Connection,
        names: &mut Names,
    ) -> rusqlite::Result<()> {
        let (row, limit) = {
            let state = self.lock();
            let (true, Some(row)) = (state.active, state.row) else { return Ok(()) };
            (row, state.republished() + READ_AHEAD)
        };
        let unfinished = Unfinished::read(connection, names, row, Which::Republished(limit))?;
        self.change(|state| {
            state.more_republished = unfinished.len() == limit;
            self.take_in_unfinished(state, unfinished);
        });
        Ok(())
    }

    /// Whether more was published again than is known here, and there is room for it.
    pub(crate) fn wants_republished(&self) -> bool {
        let state = self.lock();
        state.more_republished && state.republished() < READ_AHEAD / 2
    }

    /// Opens the deliveries that have a row and are not known yet.
    fn take_in_unfinished(self: &Arc<Self>, state: &mut State, unfinished: Vec<Unfinished>) {
        state.ring |= !unfinished.is_empty();
        for Unfinished { event, noted, mended } in unfinished {
            let offset = event.offset;
            if !state.open.contains_key(&offset) && state.saved.rows.insert(offset, noted).is_none() {
                let opened = Opened { noted, mended, ..Opened::FIRST };
                state.open.insert(offset, opened);
                self.take_in(state, event, noted);
            }
        }
    }

    /// There may be events behind what was read.
    pub(crate) fn call(&self) {
        self.change(State::call);
    }

    /// Moves a subscription that has read everything on behind events of others, up to `head`. `true`: that is to be
    /// saved.
    pub(crate) fn skip_to(&self, head: i64) -> bool {
        let mut state = self.lock();
        if !state.active || state.behind || state.fetching || !state.at_hand.is_empty() {
            return false;
        }
        let end = state.position.max(head);
        (state.position, state.handed) = (end, end);
        let unsaved = state.open.is_empty() && state.saved.cursor < end;
        state.dirty |= unsaved;
        unsaved
    }

    /// Saves what is settled, and leaves the group to whoever comes next.
    fn leave(self: &Arc<Self>) {
        let subscription = Arc::clone(self);
        drop(self.store.writes.run(move |work| {
            subscription.store.remove(subscription.number);
            if !subscription.is_active() {
                return Ok(());
            }
            subscription.lock().dirty = true;
            if let Some(saving) = Saving::of(&subscription) {
                saving.write(work.connection)?;
            }
            work.connection
                .prepare_cached("update subscription set owner = null where owner = ?1")?
                .execute([subscription.owner()])?;
            subscription.epoch.fetch_add(1, Ordering::AcqRel);
            subscription.lock().forget();
            Ok(())
        }));
    }

    /// Whether nothing is left to do, as far as this process knows.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.lock();
        let reading = state.behind || state.fetching || !state.at_hand.is_empty();
        state.active && !reading && state.open.is_empty() && !state.dirty
    }

    pub(crate) fn is_active(&self) -> bool {
        self.lock().active
    }

    /// Makes sure that something is at hand, if there is anything: from the tail, or out of the file.
    fn refill(self: &Arc<Self>, state: &mut State) {
        let enough = state.at_hand.len() >= READ_AHEAD || state.at_hand_bytes >= READ_AHEAD_BYTES;
        if !state.behind || state.fetching || enough {
            return;
        }
        let caught = self.store.tail().after(state.position, &self.pattern, FROM_TAIL);
        if let Some(caught) = caught {
            if state.at_hand.is_empty() {
                state.catch_up(caught);
            }
            return;
        }
        state.fetching = true;
        let (position, called, epoch) = (state.position, state.called, self.epoch());
        let subscription = Arc::clone(self);
        self.runtime.spawn(async move {
            let pattern = subscription.pattern.clone();
            let batch = subscription
                .store
                .readers
                .read(move |reader| reader.read_after(&pattern, position, None))
                .await;
            subscription.fetched(batch, called, epoch);
        });
    }

    fn fetched(self: &Arc<Self>, batch: Result<Batch, BrokerError>, called: u64, epoch: u64) {
        self.change(|state| {
            if epoch != self.epoch() {
                return;
            }
            state.fetching = false;
            match batch {
                Ok(Batch { events, position, complete }) => {
                    state.position = position;
                    state.behind = !complete || state.called != called;
                    for event in events {
                        self.take_in(state, event, Noted::FIRST);
                    }
                }
                Err(error) => state.error = Some(error),
            }
            state.ring = true;
        });
        self.store.saved.notify_waiters();
    }

    /// Puts an event at hand that was read.
    fn take_in(self: &Arc<Self>, state: &mut State, event: Stored, noted: Noted) {
        let Stored { offset, envelope, intact } = event;
        let envelope = Arc::new(envelope);
        if intact {
            let Noted { attempt, parked, .. } = noted;
            return state.put_at_hand(Waiting { offset, envelope, attempt, parked });
        }
        state.open.entry(offset).or_insert(Opened::FIRST);
        self.give_up_damaged(offset, envelope, noted.attempt);
    }

    /// Puts a delivery at hand again that was handed out before.
    pub(crate) fn put_back(&self, receipt: Receipt, parked: Option<Parked>) {
        let Receipt { envelope, offset, attempt, token } = receipt;
        let offset = place(offset);
        self.change(|state| {
            let Some(opened) = state.open.get_mut(&offset) else { return };
            if token == self.epoch() && !state.ended {
                // It is handed out again later, and counted then.
                let size = std::mem::take(&mut opened.size);
                state.open_bytes -= size;
                state.put_at_hand(Waiting { offset, envelope, attempt, parked });
                state.ring = true;
            }
        });
    }
}

impl State {
    fn new() -> Self {
        Self {
            row: None,
            active: false,
            ended: false,
            waker: None,
            ring: false,
            error: None,
            position: 0,
            behind: true,
            called: 0,
            fetching: false,
            at_hand: VecDeque::new(),
            at_hand_bytes: 0,
            handed: 0,
            open: BTreeMap::new(),
            open_bytes: 0,
            stalled: false,
            settled: 0,
            unsaved: 0,
            dirty: false,
            saved: Saved::default(),
            more_republished: false,
            waiting: Vec::new(),
        }
    }

    /// How many deliveries are known that were published again.
    fn republished(&self) -> usize {
        self.saved.rows.values().filter(|noted| noted.republished).count()
    }

    fn call(&mut self) {
        self.behind = true;
        self.called += 1;
        self.ring = true;
    }

    /// Nothing that was read or handed out is ours.
    fn forget(&mut self) {
        self.active = false;
        self.fetching = false;
        self.at_hand.clear();
        self.open.clear();
        self.waiting.clear();
        (self.at_hand_bytes, self.open_bytes) = (0, 0);
        (self.unsaved, self.dirty) = (0, false);
    }

    /// In the order of the log, since earlier events of a key go first.
    fn put_at_hand(&mut self, waiting: Waiting) {
        let place = match self.at_hand.back() {
            Some(last) if last.offset >= waiting.offset => {
                self.at_hand.partition_point(|other| other.offset < waiting.offset)
            }
            _ => self.at_hand.len(),
        };
        if self.at_hand.get(place).is_none_or(|other| other.offset != waiting.offset) {
            self.at_hand_bytes += waiting.size();
            self.at_hand.insert(place, waiting);
        }
    }

    /// Takes what was just published.
    fn catch_up(&mut self, caught: Caught) {
        self.position = caught.position;
        self.behind = !caught.complete;
        for (offset, envelope) in caught.events {
            self.put_at_hand(Waiting { offset, envelope, attempt: 1, parked: None });
        }
    }

    /// Takes a delivery out of those that are open.
    pub(crate) fn close(&mut self, offset: i64) -> Option<Opened> {
        let opened = self.open.remove(&offset)?;
        self.open_bytes -= opened.size;
        self.ring |= std::mem::take(&mut self.stalled);
        Some(opened)
    }

    fn hand_out(&mut self, waiting: Waiting, settler: &Arc<dyn Settler>, epoch: u64) -> Received {
        let size = waiting.size();
        let Waiting { offset, envelope, attempt, parked } = waiting;
        self.open.entry(offset).or_insert(Opened::FIRST).size = size;
        self.at_hand_bytes -= size;
        self.open_bytes += size;
        self.handed = self.handed.max(offset);
        let receipt = Receipt { envelope, offset: offset_of(offset), attempt, token: epoch };
        Received { receipt, replayed: false, parked, settler: Arc::clone(settler) }
    }
}

/// The reader of a subscription.
pub(crate) struct SqliteDeliveries {
    subscription: Arc<Subscription>,
    settler: Arc<dyn Settler>,
}

impl SqliteDeliveries {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        let settler = Arc::clone(&subscription) as Arc<dyn Settler>;
        Self { subscription, settler }
    }
}

impl Deliveries for SqliteDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let subscription = &self.subscription;
        let mut state = subscription.lock();
        if let Some(error) = state.error.take() {
            return Poll::Ready(Err(error));
        }
        if state.active && state.unsaved < UNSAVED {
            subscription.refill(&mut state);
            let epoch = subscription.epoch();
            let before = into.len();
            while into.len() - before < limit && (state.open_bytes < OPEN_BYTES || state.open.is_empty()) {
                let Some(waiting) = state.at_hand.pop_front() else { break };
                into.push(state.hand_out(waiting, &self.settler, epoch));
            }
            let count = into.len() - before;
            state.stalled = !state.at_hand.is_empty() && state.open_bytes >= OPEN_BYTES;
            if state.at_hand.is_empty() && state.handed < state.position {
                state.handed = state.position;
            }
            if count > 0 {
                subscription.refill(&mut state);
                return Poll::Ready(Ok(()));
            }
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for SqliteDeliveries {
    /// Leaves the group to whoever comes next.
    fn drop(&mut self) {
        let mut state = self.subscription.lock();
        state.ended = true;
        state.at_hand.clear();
        drop(state);
        self.subscription.leave();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("group", &self.group)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

/// A place in the file as an offset of the contract.
pub(crate) fn offset_of(place: i64) -> Offset {
    Offset::new(u128::try_from(place).unwrap_or_default())
}

/// An offset of the contract as a place in the file.
pub(crate) fn place(offset: Offset) -> i64 {
    i64::try_from(offset.get()).unwrap_or(i64::MAX)
}
