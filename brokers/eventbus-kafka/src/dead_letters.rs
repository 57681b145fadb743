//! Dead letters: a compacted topic for each group, in which each has its name as its key. A tombstone removes one, in one
//! transaction with whatever is done with it.

use crate::connection::{CALL, Context, Link, blocking, cannot, client};
use crate::groups;
use crate::place::Origin;
use crate::publish::record as record_of;
use crate::records::{record, time_of};
use crate::scan::{Range, Scan};
use crate::subscribe::partitions_of;
use crate::topology::Topics;
use crate::wire::{self, Written};
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// So often an operation is begun anew after another process came between.
const TRIES: usize = 10;
/// A view that is older is made anew: a tombstone is kept for a day, so one could be missed.
const OLD: Duration = Duration::from_secs(60 * 60);

/// The store of dead letters.
#[derive(Clone)]
pub(crate) struct KafkaDeadLetters {
    pub(crate) link: Arc<Link>,
    pub(crate) topics: Arc<Topics>,
    /// The producers of transactions, one for each group's topic; of two that change one topic at once one fails.
    changing: Arc<Mutex<HashMap<String, Transactor>>>,
    /// Which there are, as far as topics were read.
    views: Arc<Mutex<HashMap<String, View>>>,
}

struct View {
    /// Everything before was read.
    read: i64,
    names: BTreeSet<String>,
    made: Instant,
}

/// A dead letter, and where it and its event are.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) topic: Arc<str>,
    pub(crate) letter: Arc<DeadLetter>,
    pub(crate) origin: Origin,
}

impl KafkaDeadLetters {
    pub(crate) fn new(link: Arc<Link>, topics: Arc<Topics>) -> Self {
        Self { link, topics, changing: Arc::default(), views: Arc::default() }
    }

    /// The topics that have dead letters: those of one group, or all.
    async fn stores(&self, group: Option<&str>) -> Result<Vec<Arc<str>>, BrokerError> {
        let look = self.link.look_for_topics(&self.topics).await;
        look.map_err(|error| cannot("look which topics there are", &error))?;
        let begin = self.link.dead_letters_begin();
        let only = group.map(|group| self.link.dead_letters_topic(group));
        let such = |name: &str| only.as_deref().map_or_else(|| name.starts_with(&begin), |only| name == only);
        Ok(self.topics.which(such).into_iter().map(|(name, _)| name).collect())
    }

    /// All dead letters of some topics.
    pub(crate) async fn all(
        &self,
        group: Option<&str>,
    ) -> Result<BTreeMap<DeadLetterId, Found>, BrokerError> {
        let stores = self.stores(group).await?;
        let (link, topics) = (Arc::clone(&self.link), Arc::clone(&self.topics));
        blocking(move || read_all(&link, &topics, &stores)).await
    }

    /// How many a group has.
    pub(crate) async fn count(&self, group: &str) -> Result<u64, BrokerError> {
        let topic = self.link.dead_letters_topic(group);
        let Some(partitions) = self.topics.partitions(&topic) else { return Ok(0) };
        let mut views = self.views.lock().await;
        let view = views.remove(&topic).filter(|view| view.made.elapsed() < OLD);
        let link = Arc::clone(&self.link);
        let name: Arc<str> = topic.as_str().into();
        let view = blocking(move || refreshed(&link, &name, partitions, view)).await?;
        let count = view.names.len() as u64;
        views.insert(topic, view);
        Ok(count)
    }

    /// Does something with a dead letter, which is removed by that. No, where it is not there.
    async fn change(&self, id: &DeadLetterId, payload: Option<Option<Bytes>>) -> Result<bool, BrokerError> {
        let mut changing = self.changing.lock().await;
        for _ in 0..TRIES {
            let Some(found) = self.all(None).await?.remove(id) else { return Ok(false) };
            let mut records = Vec::new();
            if let Some(payload) = &payload {
                let group = &found.letter.group;
                groups::listens(&self.link, group, found.letter.envelope.topic().as_str()).await?;
                self.link.has_again(&self.topics, group).await?;
                let mut envelope = (*found.letter.envelope).clone();
                if let Some(payload) = payload {
                    envelope = envelope.with_payload(payload.clone());
                }
                let written = wire::write_again(&envelope, &found.origin, payload.is_some());
                let written =
                    written.map_err(|error| BrokerError::new("cannot write the event").with_cause(error))?;
                records.push((self.link.again_topic(group), Some(written)));
            }
            let store = found.topic.to_string();
            records.push((store.clone(), None));
            let (link, producer, name) =
                (Arc::clone(&self.link), changing.remove(&store), id.as_str().to_owned());
            let transaction = store.clone();
            let (producer, done) =
                blocking(move || transact(&link, producer, &transaction, &name, &records)).await;
            if let Some(producer) = producer {
                changing.insert(store, producer);
            }
            match done {
                Ok(()) => {
                    self.gone(&found.letter.group, id).await?;
                    return Ok(true);
                }
                // Another process has changed it: look again.
                Err(error) if is_fenced(&error) => {}
                Err(error) => {
                    return Err(cannot(format_args!("change the dead letter {}", id_of(&error)), &error));
                }
            }
        }
        Err(BrokerError::new(format!("other processes change the dead letter {id} all the time; try again")))
    }

    /// Waits until nobody reads a dead letter any more that was removed: the server answers a commit before its mark is in
    /// each partition.
    async fn gone(&self, group: &str, id: &DeadLetterId) -> Result<(), BrokerError> {
        let until = Instant::now() + CALL;
        while self.all(Some(group)).await?.contains_key(id) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Moves all dead letters of a group to another one.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), BrokerError> {
        let mut changing = self.changing.lock().await;
        let all = self.all(Some(from)).await?;
        if all.is_empty() {
            return Ok(());
        }
        self.link.has_dead_letters(&self.topics, to).await?;
        let target = self.link.dead_letters_topic(to);
        for (id, found) in all {
            let mut letter = (*found.letter).clone();
            to.clone_into(&mut letter.group);
            let written = wire::write_dead_letter(&letter, &found.origin, id.as_str());
            let written =
                written.map_err(|error| BrokerError::new("cannot write a dead letter").with_cause(error))?;
            let store = found.topic.to_string();
            let records = vec![(target.clone(), Some(written)), (store.clone(), None)];
            let (link, producer, name) =
                (Arc::clone(&self.link), changing.remove(&store), id.as_str().to_owned());
            let transaction = store.clone();
            let (producer, done) =
                blocking(move || transact(&link, producer, &transaction, &name, &records)).await;
            if let Some(producer) = producer {
                changing.insert(store, producer);
            }
            done.map_err(|error| cannot(format_args!("move the dead letter {id}"), &error))?;
            self.gone(from, &id).await?;
        }
        Ok(())
    }

    /// Ends the producers.
    pub(crate) async fn close(&self) {
        let producers = std::mem::take(&mut *self.changing.lock().await);
        blocking(move || drop(producers)).await;
    }
}

fn id_of(error: &KafkaError) -> &'static str {
    match error {
        KafkaError::Transaction(_) => "in a transaction",
        _ => "in its topic",
    }
}

/// Reads what topics of dead letters have; what was removed is not among them.
fn read_all(
    link: &Link,
    topics: &Topics,
    stores: &[Arc<str>],
) -> Result<BTreeMap<DeadLetterId, Found>, BrokerError> {
    let stores = stores.iter().filter_map(|name| Some((Arc::clone(name), topics.partitions(name)?)));
    let ranges = link.everything(&partitions_of(&stores.collect::<Vec<_>>()))?;
    let mut found = BTreeMap::new();
    if ranges.iter().all(Range::is_empty) {
        return Ok(found);
    }
    let mut scan = Scan::committed(link, &ranges)?;
    while let Some(message) = scan.next()? {
        let Some(name) = message.key().and_then(|key| std::str::from_utf8(key).ok()) else { continue };
        let id = DeadLetterId::new(name);
        if message.payload().is_none() {
            // One that was moved to another group has its name there.
            if found.get(&id).is_some_and(|found: &Found| *found.topic == *message.topic()) {
                found.remove(&id);
            }
            continue;
        }
        if let Some((letter, origin)) = wire::read_dead_letter(record(&message), time_of(&message)) {
            found.insert(id, Found { topic: message.topic().into(), letter: Arc::new(letter), origin });
        }
    }
    Ok(found)
}

fn refreshed(
    link: &Link,
    topic: &Arc<str>,
    partitions: i32,
    view: Option<View>,
) -> Result<View, BrokerError> {
    let mut view = view.unwrap_or_else(|| View { read: 0, names: BTreeSet::new(), made: Instant::now() });
    let mut ranges = link.everything(&partitions_of(&[(Arc::clone(topic), partitions)]))?;
    let Some(range) = ranges.first_mut() else { return Ok(view) };
    if view.read > range.to {
        // The topic was made anew.
        (view.read, view.names) = (0, BTreeSet::new());
    }
    range.from = range.from.max(view.read);
    view.read = range.to;
    if ranges.iter().all(Range::is_empty) {
        return Ok(view);
    }
    let mut scan = Scan::committed(link, &ranges)?;
    while let Some(message) = scan.next()? {
        let Some(name) = message.key().and_then(|key| std::str::from_utf8(key).ok()) else { continue };
        if message.payload().is_none() {
            view.names.remove(name);
        } else if wire::read_dead_letter(record(&message), time_of(&message)).is_some() {
            view.names.insert(name.to_owned());
        }
    }
    Ok(view)
}

type Transactor = Arc<FutureProducer<Context>>;

/// Sends records and tombstones, all of them or none. The producer comes back, unless it is of no use any more.
fn transact(
    link: &Link,
    producer: Option<Transactor>,
    id: &str,
    name: &str,
    records: &[(String, Option<Written>)],
) -> (Option<Transactor>, KafkaResult<()>) {
    let producer = match producer.map_or_else(|| begun(link, id), Ok) {
        Ok(producer) => producer,
        Err(error) => return (None, Err(error)),
    };
    let send = || {
        producer.begin_transaction()?;
        for (topic, written) in records {
            match written {
                Some(written) => {
                    producer.send_result(record_of(topic, written)).map_err(|(error, _)| error)?
                }
                None => {
                    let tombstone = FutureRecord::<str, [u8]>::to(topic).key(name);
                    producer.send_result(tombstone).map_err(|(error, _)| error)?
                }
            };
        }
        producer.commit_transaction(CALL)
    };
    match send() {
        Ok(()) => (Some(producer), Ok(())),
        Err(error) => {
            // It is not used again; what it has not committed is given up by the server, or by the next one.
            let _ = producer.abort_transaction(CALL);
            (None, Err(error))
        }
    }
}

/// A producer whose transactions exclude those of every other one with its name.
fn begun(link: &Link, id: &str) -> KafkaResult<Transactor> {
    let mut config = link.settings.producer();
    config.set("transactional.id", format!("eventbus-{id}"));
    config.set("transaction.timeout.ms", "30000").set("message.timeout.ms", "20000");
    let producer: FutureProducer<Context> = client(&config, Context::new(&link.state))
        .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
    producer.init_transactions(CALL * 3)?;
    Ok(Arc::new(producer))
}

/// Whether another process has begun to change what this one was changing.
fn is_fenced(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
                | RDKafkaErrorCode::ConcurrentTransactions
                | RDKafkaErrorCode::Fatal
        )
    )
}

impl DeadLetters for KafkaDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let this = self.clone();
        BrokerFuture::new(async move {
            let all = this.all(query.group.as_deref()).await?;
            let such = all.into_iter().filter(|(id, found)| query.matches(id, &found.letter));
            Ok(such.take(query.limit).map(|(id, found)| (id, found.letter)).collect())
        })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, id) = (self.clone(), id.clone());
        BrokerFuture::new(async move { this.change(&id, Some(payload)).await })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let (this, id) = (self.clone(), id.clone());
        BrokerFuture::new(async move { this.change(&id, None).await })
    }
}
