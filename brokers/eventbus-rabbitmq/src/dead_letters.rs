//! Dead letters: a queue for each group. A queue lists nothing, so whoever looks takes all, looks, and gives them back.

use crate::connection::{LOCKED, Link, NOT_FOUND, Trouble, call};
use crate::delivery::letter_name;
use crate::directory::Directory;
use crate::names::hash;
use crate::publish::Outlet;
use crate::subscribe::message;
use crate::topology::close;
use crate::wire::{self, ReadLetter};
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters,
};
use eventbus_server::connection::pause_before;
use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::Channel;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long the next dead letter may take to come, of those that the queue counts.
const NEXT: Duration = Duration::from_secs(5);
/// How long another process may look at the same queue.
const PATIENCE: Duration = Duration::from_secs(30);

/// The store of dead letters.
#[derive(Clone)]
pub(crate) struct RabbitMqDeadLetters(Arc<Store>);

struct Store {
    link: Arc<Link>,
    outlet: Arc<Outlet>,
    directory: Arc<Directory>,
    /// Two that look at once would hide from each other what they see.
    looks: Mutex<()>,
}

/// What was given back so often is written anew instead: a policy may limit deliveries, and beyond its limit the server drops
/// what is in a queue of dead letters.
const WORN: u32 = 2;

/// A dead letter that was taken out of its queue for a while.
struct Taken {
    id: DeadLetterId,
    tag: u64,
    /// How often it was given back.
    returns: u32,
    /// It says itself what it is called.
    named: bool,
    /// None, where it is none of ours.
    letter: Option<(Arc<DeadLetter>, String)>,
}

/// A look at one queue. Where it is cut off, the end of its channel gives everything back.
struct Look {
    channel: Channel,
    queue: String,
    lock: String,
    /// What takes the second and those behind it.
    consumer: Option<ShortString>,
    all: Vec<Taken>,
    /// What is there once more, since whoever wrote it anew ended before it had removed it.
    copies: Vec<u64>,
}

impl RabbitMqDeadLetters {
    pub(crate) fn new(link: Arc<Link>, outlet: Arc<Outlet>, directory: Arc<Directory>) -> Self {
        Self(Arc::new(Store { link, outlet, directory, looks: Mutex::new(()) }))
    }

    /// How many dead letters a group has.
    pub(crate) async fn count(&self, group: &str) -> Result<u64, Trouble> {
        match self.0.link.count(&self.0.link.names().dead(group)).await {
            Ok(count) => Ok(count.ready),
            Err(trouble) if trouble.is(NOT_FOUND) => Ok(0),
            Err(trouble) => Err(trouble),
        }
    }
}

impl DeadLetters for RabbitMqDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let store = Arc::clone(&self.0);
        to_its_end(async move {
            let found = store.find(&query).await;
            found.map_err(|trouble| trouble.explain("look at the dead letters"))
        })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (store, id) = (Arc::clone(&self.0), id.clone());
        to_its_end(async move { store.republish(&id, payload).await })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let (store, id) = (Arc::clone(&self.0), id.clone());
        to_its_end(async move {
            let _alone = store.looks.lock().await;
            let explain = |trouble: Trouble| trouble.explain(format_args!("purge the dead letter {id}"));
            let Some(mut look) = store.take(&id).await.map_err(explain)? else { return Ok(false) };
            let purged = look.remove(&id).await;
            store.end(look).await;
            purged.map_err(explain)
        })
    }
}

/// Looks on where the caller has given it up, so that others need not wait for the end of this process.
fn to_its_end<T: Send + 'static>(
    look: impl Future<Output = Result<T, BrokerError>> + Send + 'static,
) -> BrokerFuture<Result<T, BrokerError>> {
    BrokerFuture::new(async move {
        let ended = tokio::spawn(look).await;
        ended.unwrap_or_else(|error| {
            Err(BrokerError::new("the look at the dead letters has not come to its end").with_cause(error))
        })
    })
}

impl Store {
    async fn find(&self, query: &DeadLetterQuery) -> Result<DeadLetterList, Trouble> {
        let groups = match &query.group {
            Some(group) => vec![group.clone()],
            None => self.directory.groups().await?.into_keys().collect(),
        };
        let _alone = self.looks.lock().await;
        let mut found = Vec::new();
        for group in groups {
            let Some(look) = self.look(&group).await? else { continue };
            for Taken { id, letter, .. } in &look.all {
                let letter = letter.as_ref().filter(|(letter, _)| query.matches(id, letter));
                found.extend(letter.map(|(letter, _)| (id.clone(), Arc::clone(letter))));
            }
            self.end(look).await;
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.truncate(query.limit);
        Ok(found)
    }

    /// A look at the queue that has this dead letter.
    async fn take(&self, id: &DeadLetterId) -> Result<Option<Look>, Trouble> {
        let Some(mark) = id.as_str().split('-').nth(1) else { return Ok(None) };
        for group in self.directory.groups().await?.into_keys() {
            if format!("{:016x}", hash(&[&self.link.names().dead(&group)])) != mark {
                continue;
            }
            let Some(look) = self.look(&group).await? else { continue };
            if look.all.iter().any(|taken| taken.id == *id) {
                return Ok(Some(look));
            }
            self.end(look).await;
        }
        Ok(None)
    }

    /// Takes all dead letters of a group. None, where there is none.
    async fn look(&self, group: &str) -> Result<Option<Look>, Trouble> {
        let queue = self.link.names().dead(group);
        let lock = self.lock(&queue).await?;
        let channel = match self.link.channel().await {
            Ok(channel) => channel,
            Err(trouble) => {
                self.unlock(&lock).await;
                return Err(trouble);
            }
        };
        let mut look = Look { channel, queue, lock, consumer: None, all: Vec::new(), copies: Vec::new() };
        let taken = look.take(group).await;
        if taken.is_ok() && !look.all.is_empty() {
            return Ok(Some(look));
        }
        match taken {
            Ok(()) => self.end(look).await,
            Err(_) => {
                // Its channel has ended with most errors, but not where an answer was late: then it takes letters yet.
                close(&look.channel).await;
                self.unlock(&look.lock).await;
            }
        }
        match taken {
            Err(trouble) if !trouble.is(NOT_FOUND) => Err(trouble),
            _ => Ok(None),
        }
    }

    /// Keeps other processes from looking at the same time, until it is removed or this connection ends.
    async fn lock(&self, queue: &str) -> Result<String, Trouble> {
        let lock = format!("{}:look:{:016x}", self.link.settings.exchange, hash(&[queue]));
        let begun = Instant::now();
        for attempt in 1.. {
            let channel = self.link.channel().await?;
            let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            match call(channel.queue_declare(lock.as_str().into(), options, FieldTable::default())).await {
                Ok(_) => {
                    close(&channel).await;
                    break;
                }
                Err(trouble) if trouble.is(LOCKED) && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(pause_before(attempt + 1)).await;
                }
                Err(trouble) if trouble.is(LOCKED) => {
                    return Err(Trouble {
                        said: format!(
                            "another process looks at `{queue}` since {PATIENCE:?}; try again later"
                        ),
                        ..trouble
                    });
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(lock)
    }

    /// Gives back what was taken, and lets others look.
    async fn end(&self, look: Look) {
        for copy in &look.copies {
            let _ = look.ack(*copy).await;
        }
        let worn = look.all.iter().filter(|taken| taken.returns >= WORN);
        let written = join_all(worn.map(|taken| self.write_anew(&look, taken)));
        // What is not written by then stays as it is.
        let _ = tokio::time::timeout(NEXT, written).await;
        // It would get again what is given back, and each delivery counts.
        if let Some(consumer) = look.consumer {
            let _ = call(look.channel.basic_cancel(consumer, BasicCancelOptions::default())).await;
        }
        let options = BasicNackOptions { multiple: true, requeue: true };
        // 0 stands for all. The end of the channel gives them back as well.
        let _ = call(look.channel.basic_nack(0, options)).await;
        unlock(&look.channel, &look.lock).await;
        close(&look.channel).await;
    }

    /// Puts a dead letter behind the others as if nobody had looked at it yet.
    async fn write_anew(&self, look: &Look, Taken { id, tag, letter, .. }: &Taken) {
        let Some((letter, queue)) = letter else { return };
        let Ok(written) = wire::write_dead_letter(letter, id.as_str(), queue) else { return };
        if self.outlet.send(&look.queue, letter.envelope.topic().as_str(), written).await.is_ok() {
            let _ = look.ack(*tag).await;
        }
    }

    async fn unlock(&self, lock: &str) {
        if let Ok(channel) = self.link.channel().await {
            unlock(&channel, lock).await;
            close(&channel).await;
        }
    }

    async fn republish(&self, id: &DeadLetterId, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        let _alone = self.looks.lock().await;
        let found = self.take(id).await;
        let found = found.map_err(|trouble| trouble.explain(format_args!("find the dead letter {id}")))?;
        let Some(mut look) = found else { return Ok(false) };
        let published = self.publish_again(&mut look, id, payload).await;
        self.end(look).await;
        published
    }

    /// Sends an event to the one queue whose group has given it up, and removes its dead letter.
    async fn publish_again(
        &self,
        look: &mut Look,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> Result<bool, BrokerError> {
        let letter = look.all.iter().find(|taken| taken.id == *id).and_then(|taken| taken.letter.as_ref());
        let Some((letter, queue)) = letter else { return Ok(false) };
        let mut envelope = (*letter.envelope).clone();
        if let Some(payload) = &payload {
            envelope = envelope.with_payload(payload.clone());
        }
        let cannot = |error| {
            let group = &letter.group;
            let said = format!(
                "cannot publish the dead letter {id} again to the group `{group}`, which has to listen on \"{}\" still",
                envelope.topic()
            );
            BrokerError::new(said).with_cause(error)
        };
        let size = envelope.payload().map_or(0, Bytes::len);
        envelope.check_size(size, self.outlet.max_payload()).map_err(cannot)?;
        let written = wire::write_again(&envelope, id.as_str(), 1).map_err(cannot)?;
        if let Some(payload) = payload.filter(|_| self.link.settings.streams) {
            // Replays to the group have it from then on.
            let note = wire::write_note(Some((&envelope, &letter.group, payload)));
            let sent = self.outlet.send(&self.link.names().events(), envelope.topic().as_str(), note).await;
            sent.map_err(cannot)?;
        }
        self.outlet.send(queue, envelope.topic().as_str(), written).await.map_err(cannot)?;
        let removed = look.remove(id).await;
        removed.map_err(|trouble| trouble.explain("remove the dead letter, which was published again"))
    }
}

impl Look {
    async fn take(&mut self, group: &str) -> Result<(), Trouble> {
        let queue = self.queue.clone();
        let queue = queue.as_str();
        // What the server says of a queue that is slow to answer is not to be believed; a message comes from the queue itself.
        let first = call(self.channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        let Some(BasicGetMessage { delivery, message_count: others }) = first else { return Ok(()) };
        self.add(group, delivery);
        if others == 0 {
            return Ok(());
        }
        let consuming = self.channel.basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut letters = call(consuming).await?;
        self.consumer = Some(letters.tag());
        for _ in 0..others {
            // What another program has taken out meanwhile does not come.
            let Ok(letter) = tokio::time::timeout(NEXT, letters.next()).await else { break };
            let letter = letter.ok_or_else(|| Trouble::passing("the server has ended the look"))??;
            self.add(group, letter);
        }
        Ok(())
    }

    fn add(&mut self, group: &str, delivery: Delivery) {
        let (tag, queue) = (delivery.delivery_tag, self.queue.as_str());
        let message = message(delivery);
        let read = wire::read_dead_letter(&message, group);
        let id = match &read {
            Some(ReadLetter { name: Some(name), .. }) => DeadLetterId::new(name),
            Some(ReadLetter { letter, mark, .. }) => DeadLetterId::new(dropped_name(queue, letter, mark)),
            None => DeadLetterId::new(letter_name(queue, &tag.to_string())),
        };
        let named = read.as_ref().is_some_and(|read| read.name.is_some());
        let is_copy = |taken: &Taken| taken.id == id && (named || taken.named);
        if self.all.iter().any(is_copy) {
            return self.copies.push(tag);
        }
        let letter = read.map(|ReadLetter { letter, queue, .. }| (Arc::new(letter), queue));
        self.all.push(Taken { id, tag, returns: message.returns(), named, letter });
    }

    /// Removes one from its queue. False, where it is not there.
    async fn remove(&mut self, id: &DeadLetterId) -> Result<bool, Trouble> {
        let Some(place) = self.all.iter().position(|taken| taken.id == *id) else { return Ok(false) };
        self.ack(self.all[place].tag).await?;
        self.all.remove(place);
        Ok(true)
    }

    async fn ack(&self, tag: u64) -> Result<(), Trouble> {
        call(self.channel.basic_ack(tag, BasicAckOptions::default())).await
    }
}

async fn unlock(channel: &Channel, lock: &str) {
    let _ = call(channel.queue_delete(lock.into(), QueueDeleteOptions::default())).await;
}

/// The name of what the server itself has moved: the same whenever it is read.
fn dropped_name(queue: &str, letter: &DeadLetter, mark: &str) -> String {
    let micros = u128::try_from(letter.last_failed_at.as_microsecond()).unwrap_or_default();
    format!("{micros}-{:016x}-{:016x}", hash(&[queue]), hash(&[letter.envelope.topic().as_str(), mark]))
}
