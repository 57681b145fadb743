//! Replay: reading the history with a cursor that is thrown away.

use crate::broker::Store;
use crate::claim::size;
use crate::entry;
use crate::history::Walk;
use crate::link::Pause;
use crate::place::Place;
use crate::trouble::Trouble;
use crate::wire;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, Deliveries, Offset, Receipt, Received, Replay, ReplayFrom, ReplayRequest,
    ReplayUntil, Replayable, Settler,
};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, Pattern, foreign};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;

/// How far a replay reads ahead.
const AHEAD: usize = 256;
const AHEAD_BYTES: usize = 3 << 20;

/// One replay.
struct Reel {
    state: Lock<ReelState>,
    /// Rings for the task that reads: there is room, or nobody reads any more.
    bell: Notify,
}

struct ReelState {
    at_hand: BTreeMap<Place, Arc<Envelope>>,
    bytes: usize,
    complete: bool,
    ended: bool,
    waker: Option<Waker>,
    error: Option<BrokerError>,
}

impl Store {
    /// The place of the latest event; the start, where there is none.
    pub(crate) async fn latest(&self) -> Result<Place, BrokerError> {
        let call = crate::script::LATEST.call(&self.keys);
        let latest = self.link.value("cannot find the latest event", &call).await?;
        Ok(entry::place_of(&latest).unwrap_or_default())
    }

    pub(crate) async fn walk(
        &self,
        pattern: &Pattern,
        from: Place,
        to: Place,
        backwards: bool,
    ) -> Result<Walk, BrokerError> {
        let topics = self.topics(pattern).await?.into_iter();
        Ok(Walk::new(&self.link, topics.map(|topic| (self.keys.topic(&topic), topic)), from, to, backwards))
    }

    /// The place of the first event on a pattern that happened at `time` or later.
    async fn place_of_time(
        &self,
        pattern: &Pattern,
        time: Timestamp,
        latest: Place,
    ) -> Result<Place, BrokerError> {
        let mut walk = self.walk(pattern, Place::START, latest, false).await?;
        while let Some((topic, entry)) = walk.next().await? {
            let place = entry.place;
            if wire::read(topic, place, entry.fields).time() >= time {
                return Ok(place);
            }
        }
        Ok(latest.next())
    }

    /// Resolves once there is an event behind `place` on a pattern, or a new topic, most likely; at once, if it cannot be
    /// waited for.
    pub(crate) async fn wait_behind(&self, pattern: &Pattern, place: Place) -> Result<(), BrokerError> {
        let topics = self.topics(pattern).await?;
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(1_000).arg("STREAMS");
        topics.iter().for_each(|topic| _ = command.arg(self.keys.topic(topic)));
        command.arg(self.keys.news());
        topics.iter().for_each(|_| _ = command.arg(place.to_string()));
        command.arg("$");
        let (_, mut connection) = self.link.locator.connect(crate::locate::Purpose::Waiting).await?;
        let limit = std::time::Duration::from_secs(1) + self.settings.response_timeout;
        match tokio::time::timeout(limit, connection.send_packed_command(&command)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Trouble::of("cannot wait for events", &error).into()),
            Err(_) => Err(Trouble::late("cannot wait for events").into()),
        }
    }

    async fn replay(self: Arc<Self>, request: ReplayRequest) -> Result<Replay, BrokerError> {
        let ReplayRequest { group, pattern, from, until } = request;
        let latest = self.latest().await?;
        let from = match from {
            ReplayFrom::Offset(offset) => Place::from(offset),
            ReplayFrom::After(offset) => Place::from(offset).next(),
            ReplayFrom::Time(time) => self.place_of_time(&pattern, time, latest).await?,
            _ => Place::START,
        };
        let live = until == ReplayUntil::Live;
        let until = match until {
            ReplayUntil::Offset(offset) => Place::from(offset).min(latest),
            ReplayUntil::Time(time) => self.place_of_time(&pattern, time, latest).await?.before(),
            _ => latest,
        };
        let mut events = 0;
        if from <= until {
            for topic in self.topics(&pattern).await? {
                events += self.count(&self.keys.topic(&topic), from, until).await?;
            }
        }
        let mended = redis::cmd("HKEYS").arg(self.keys.mended(&group)).clone();
        let mended: HashSet<String> = self.link.ask("cannot read mended payloads", &mended).await?;
        let state = ReelState {
            at_hand: BTreeMap::new(),
            bytes: 0,
            complete: false,
            ended: false,
            waker: None,
            error: None,
        };
        let reel = Arc::new(Reel { state: Lock::new(Rank::BROKER, state), bell: Notify::new() });
        let reading =
            Reading { store: self, group, pattern, mended, live, from, until, reel: Arc::clone(&reel) };
        tokio::spawn(reading.run());
        let settler = Arc::clone(&reel) as Arc<dyn Settler>;
        let latest = (latest > Place::START).then(|| Offset::from(latest));
        Ok(Replay { deliveries: Box::new(ReelDeliveries { reel, settler }), events, latest })
    }
}

/// The task that reads for a replay.
struct Reading {
    store: Arc<Store>,
    /// Whose mended payloads are delivered.
    group: String,
    pattern: Pattern,
    mended: HashSet<String>,
    live: bool,
    from: Place,
    until: Place,
    reel: Arc<Reel>,
}

impl Reading {
    async fn run(mut self) {
        let mut pause = Pause::default();
        while !self.reel.is_ended() {
            match self.read().await {
                Ok(()) if self.live => {
                    pause.reset();
                    if let Err(error) = self.follow().await {
                        self.reel.fail(error);
                        tokio::time::sleep(pause.next()).await;
                    }
                }
                Ok(()) => return self.reel.complete(),
                Err(error) => {
                    self.reel.fail(error);
                    tokio::time::sleep(pause.next()).await;
                }
            }
        }
    }

    /// Reads to the end, and notes how far it came.
    async fn read(&mut self) -> Result<(), BrokerError> {
        let mut walk = self.store.walk(&self.pattern, self.from, self.until, false).await?;
        while !self.reel.is_ended() {
            let Some((topic, entry)) = walk.next().await? else {
                self.from = self.from.max(self.until.next());
                return Ok(());
            };
            let place = entry.place;
            let field = format!("{topic}/{place}");
            let mut envelope = wire::read(topic, place, entry.fields);
            if self.mended.contains(&field) {
                let command = redis::cmd("HGET").arg(self.store.keys.mended(&self.group)).arg(field).clone();
                let payload = self.store.link.value("cannot read a mended payload", &command).await?;
                if let Some(payload) = entry::bytes(payload) {
                    envelope = envelope.with_payload(payload.into());
                }
            }
            self.reel.put(place, envelope).await;
            self.from = place.next();
        }
        Ok(())
    }

    /// Waits for what is published.
    async fn follow(&mut self) -> Result<(), BrokerError> {
        let latest = self.store.latest().await?;
        if latest < self.from {
            tokio::select! {
                waited = self.store.wait_behind(&self.pattern, self.from.before()) => waited?,
                () = self.reel.ended() => {}
            }
        }
        self.until = self.store.latest().await?;
        Ok(())
    }
}

impl Reel {
    fn is_ended(&self) -> bool {
        self.state.lock().ended
    }

    async fn ended(&self) {
        while !self.is_ended() {
            self.bell.notified().await;
        }
    }

    /// Puts an event at hand, once there is room.
    async fn put(&self, place: Place, envelope: Envelope) {
        loop {
            {
                let state = self.state.lock();
                if state.ended || (state.at_hand.len() < AHEAD && state.bytes < AHEAD_BYTES) {
                    break;
                }
            }
            self.bell.notified().await;
        }
        self.change(|state| {
            if !state.ended {
                state.bytes += size(&envelope);
                state.at_hand.insert(place, Arc::new(envelope));
            }
        });
    }

    fn complete(&self) {
        self.change(|state| state.complete = true);
    }

    fn fail(&self, error: BrokerError) {
        self.change(|state| state.error = Some(error));
    }

    /// Changes the state and wakes the reader, without the lock.
    fn change(&self, change: impl FnOnce(&mut ReelState)) {
        let waker = {
            let mut state = self.state.lock();
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            foreign::tell("a waker", || waker.wake());
        }
    }
}

/// The reader of a replay.
struct ReelDeliveries {
    reel: Arc<Reel>,
    settler: Arc<dyn Settler>,
}

impl Deliveries for ReelDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        // A waker is code of others, and is neither cloned nor dropped under the lock.
        let waker = context.waker().clone();
        let before = into.len();
        let (error, ended, earlier);
        {
            let mut state = self.reel.state.lock();
            error = state.error.take();
            while into.len() - before < limit && error.is_none() {
                let Some((place, envelope)) = state.at_hand.pop_first() else { break };
                state.bytes -= size(&envelope);
                let receipt = Receipt { envelope, offset: place.into(), attempt: 1, token: 0 };
                let settler = Arc::clone(&self.settler);
                into.push(Received { receipt, replayed: true, parked: None, alone: false, settler });
            }
            ended = state.complete && state.at_hand.is_empty();
            let wait = into.len() == before && !ended && error.is_none();
            earlier = if wait { state.waker.replace(waker) } else { Some(waker) };
        }
        drop(earlier);
        if into.len() > before {
            foreign::tell("a waker", || self.reel.bell.notify_one());
        }
        match error {
            Some(error) => Poll::Ready(Err(error)),
            None if into.len() > before || ended => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl Drop for ReelDeliveries {
    fn drop(&mut self) {
        let dropped = {
            let mut state = self.reel.state.lock();
            state.ended = true;
            (std::mem::take(&mut state.at_hand), state.waker.take())
        };
        drop(dropped);
        foreign::tell("a waker", || self.reel.bell.notify_one());
    }
}

impl Settler for Reel {
    fn ack(&self, _receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    /// Not called by a bus: what fails in a replay is in its report.
    fn reject(&self, _receipt: Receipt, _dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(Ok(()))
    }

    fn release(&self, receipt: Receipt) {
        self.change(|state| {
            if !state.ended {
                state.bytes += size(&receipt.envelope);
                state.at_hand.insert(Place::from(receipt.offset), receipt.envelope);
            }
        });
    }
}

impl fmt::Debug for Reel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reel").finish_non_exhaustive()
    }
}

/// The history of a broker.
pub(crate) struct RedisReplays(pub(crate) Arc<Store>);

impl Replayable for RedisReplays {
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>> {
        let store = Arc::clone(&self.0);
        BrokerFuture::new(async move { store.replay(request).await })
    }
}
