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
use lapin::Channel;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
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

/// A dead letter that was taken out of its queue for a while.
struct Taken {
    id: DeadLetterId,
    tag: u64,
    /// None, where it is none of ours.
    letter: Option<(Arc<DeadLetter>, String)>,
}

/// A look at one queue. Where it is cut off, the end of its channel gives everything back.
struct Look {
    channel: Channel,
    lock: String,
    all: Vec<Taken>,
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
            let Some(look) = store.take(&id).await.map_err(explain)? else { return Ok(false) };
            let purged = look.remove(&id).await;
            look.end().await;
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
            let Some(mut look) = self.look(&group).await? else { continue };
            for Taken { id, letter, .. } in std::mem::take(&mut look.all) {
                let letter = letter.filter(|(letter, _)| query.matches(&id, letter));
                found.extend(letter.map(|(letter, _)| (id, letter)));
            }
            look.end().await;
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
            look.end().await;
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
        let mut look = Look { channel, lock, all: Vec::new() };
        let taken = look.take(&queue, group).await;
        if taken.is_ok() && !look.all.is_empty() {
            return Ok(Some(look));
        }
        match taken {
            Ok(()) => look.end().await,
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
        let Some(look) = found else { return Ok(false) };
        let published = self.publish_again(&look, id, payload).await;
        look.end().await;
        published
    }

    /// Sends an event to the one queue whose group has given it up, and removes its dead letter.
    async fn publish_again(
        &self,
        look: &Look,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> Result<bool, BrokerError> {
        let letter = look.all.iter().find(|taken| taken.id == *id).and_then(|taken| taken.letter.as_ref());
        let Some((letter, queue)) = letter else { return Ok(false) };
        let mut envelope = (*letter.envelope).clone();
        if let Some(payload) = payload {
            envelope = envelope.with_payload(payload);
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
        self.outlet.send(queue, envelope.topic().as_str(), written).await.map_err(cannot)?;
        let removed = look.remove(id).await;
        removed.map_err(|trouble| trouble.explain("remove the dead letter, which was published again"))
    }
}

impl Look {
    async fn take(&mut self, queue: &str, group: &str) -> Result<(), Trouble> {
        // What the server says of a queue that is slow to answer is not to be believed; a message comes from the queue itself.
        let first = call(self.channel.basic_get(queue.into(), BasicGetOptions::default())).await?;
        let Some(BasicGetMessage { delivery, message_count: others }) = first else { return Ok(()) };
        self.add(queue, group, delivery);
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
        for _ in 0..others {
            // What another program has taken out meanwhile does not come.
            let Ok(letter) = tokio::time::timeout(NEXT, letters.next()).await else { break };
            let letter = letter.ok_or_else(|| Trouble::passing("the server has ended the look"))??;
            self.add(queue, group, letter);
        }
        Ok(())
    }

    fn add(&mut self, queue: &str, group: &str, delivery: Delivery) {
        let tag = delivery.delivery_tag;
        let message = message(delivery);
        let read = wire::read_dead_letter(&message, group);
        let id = match &read {
            Some(ReadLetter { name: Some(name), .. }) => DeadLetterId::new(name),
            Some(ReadLetter { letter, mark, .. }) => DeadLetterId::new(dropped_name(queue, letter, mark)),
            None => DeadLetterId::new(letter_name(queue, &tag.to_string())),
        };
        let letter = read.map(|ReadLetter { letter, queue, .. }| (Arc::new(letter), queue));
        self.all.push(Taken { id, tag, letter });
    }

    /// Removes one from its queue. False, where it is not there.
    async fn remove(&self, id: &DeadLetterId) -> Result<bool, Trouble> {
        let Some(taken) = self.all.iter().find(|taken| taken.id == *id) else { return Ok(false) };
        call(self.channel.basic_ack(taken.tag, BasicAckOptions::default())).await?;
        Ok(true)
    }

    /// Gives back what was taken, and lets others look.
    async fn end(self) {
        let options = BasicNackOptions { multiple: true, requeue: true };
        // 0 stands for all. The end of the channel gives them back as well.
        let _ = call(self.channel.basic_nack(0, options)).await;
        unlock(&self.channel, &self.lock).await;
        close(&self.channel).await;
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
