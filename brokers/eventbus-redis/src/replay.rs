//! Replay: reading the history with a cursor that is thrown away.

use crate::broker::Store;
use crate::entry;
use crate::history::Walk;
use crate::link::Pause;
use crate::place::Place;
use crate::trouble::Trouble;
use crate::wire;
use eventbus_core::broker::{
    BrokerFuture, Offset, Replay, ReplayFrom, ReplayRequest, ReplayUntil, Replayable,
};
use eventbus_core::{BrokerError, Pattern};
use eventbus_server::replays::Feed;
use jiff::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;

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
        let (feed, deliveries) = Feed::new();
        let reading = Reading { store: self, group, pattern, mended, live, from, until, feed };
        tokio::spawn(reading.run());
        let latest = (latest > Place::START).then(|| Offset::from(latest));
        Ok(Replay { deliveries: Box::new(deliveries), events, latest })
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
    feed: Feed,
}

impl Reading {
    async fn run(mut self) {
        let mut pause = Pause::default();
        while !self.feed.is_closed() {
            let read = match self.read().await {
                Ok(()) if self.live => {
                    pause.reset();
                    self.follow().await
                }
                Ok(()) => return self.feed.complete(),
                Err(error) => Err(error),
            };
            match read {
                Ok(()) => {}
                Err(error) if self.store.link.is_closed() => return self.feed.break_off(error),
                Err(error) => self.feed.pause(&self.group, &error, pause.next()).await,
            }
        }
    }

    /// Reads to the end, and notes how far it came.
    async fn read(&mut self) -> Result<(), BrokerError> {
        let mut walk = self.store.walk(&self.pattern, self.from, self.until, false).await?;
        while !self.feed.is_closed() {
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
            if !self.feed.put(place.into(), Arc::new(envelope)).await {
                break;
            }
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
                () = self.feed.closed() => {}
            }
        }
        self.until = self.store.latest().await?;
        Ok(())
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
