//! Dead letters: a queue for each group. SQS lists nothing, so whoever looks takes all, looks, and gives them back.

use crate::batches::MOST;
use crate::connection::{CALL, GONE, Link, Trouble};
use crate::delivery::attributes;
use crate::names::{Role, last_part};
use crate::subscribe::with_texts;
use crate::wire::{self, ContentMode};
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, Message, MessageSystemAttributeName};
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters,
};
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// For how long a look hides a dead letter from other looks, where it cannot give it back.
const HIDDEN: Duration = Duration::from_secs(30);
/// How long a queue is asked whether there is more. Only a call that waits looks at every part of a queue.
const MORE: Duration = Duration::from_secs(1);

/// The store of dead letters.
pub(crate) struct AwsDeadLetters {
    pub(crate) link: Arc<Link>,
    /// Two that look at once would hide from each other what they see.
    pub(crate) looks: Arc<Mutex<()>>,
}

/// A dead letter that was taken out of its queue for a while.
struct Taken {
    id: DeadLetterId,
    queue: String,
    handle: String,
    /// None, where it is none of ours.
    letter: Option<(DeadLetter, String)>,
}

impl DeadLetters for AwsDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let (link, looks) = (Arc::clone(&self.link), Arc::clone(&self.looks));
        BrokerFuture::new(async move {
            let _alone = looks.lock().await;
            link.find_dead_letters(&query)
                .await
                .map_err(|trouble| trouble.explain("look at the dead letters"))
        })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let (link, looks, id) = (Arc::clone(&self.link), Arc::clone(&self.looks), id.clone());
        BrokerFuture::new(async move {
            let _alone = looks.lock().await;
            let taken = link.take_dead_letter(&id).await;
            match taken.map_err(|trouble| trouble.explain(format_args!("find the dead letter {id}")))? {
                Some(taken) => link.republish(taken, payload).await,
                None => Ok(false),
            }
        })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let (link, looks, id) = (Arc::clone(&self.link), Arc::clone(&self.looks), id.clone());
        BrokerFuture::new(async move {
            let _alone = looks.lock().await;
            let explain = |trouble: Trouble| trouble.explain(format_args!("purge the dead letter {id}"));
            let Some(taken) = link.take_dead_letter(&id).await.map_err(explain)? else { return Ok(false) };
            link.delete_dead_letter(&taken).await.map_err(explain)?;
            Ok(true)
        })
    }
}

/// The part of a queue's name that tells it from others, which is a part of the names of its dead letters.
fn mark(queue: &str) -> &str {
    last_part(queue).rsplit('-').next().unwrap_or_default()
}

impl Link {
    async fn find_dead_letters(&self, query: &DeadLetterQuery) -> Result<DeadLetterList, Trouble> {
        let queues = match &query.group {
            Some(group) => self.queue_url(&self.settings.names.dead(group)).await?.into_iter().collect(),
            None => self.queues(Role::Dead).await?,
        };
        let mut found = Vec::new();
        for queue in queues {
            let all = self.take_all(&queue, None).await?;
            self.give_back(&queue, &all).await;
            for Taken { id, letter, .. } in all {
                let letter = letter.filter(|(letter, _)| query.matches(&id, letter));
                found.extend(letter.map(|(letter, _)| (id, Arc::new(letter))));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.truncate(query.limit);
        Ok(found)
    }

    /// Takes one out of its queue, and leaves the others there.
    async fn take_dead_letter(&self, id: &DeadLetterId) -> Result<Option<Taken>, Trouble> {
        let Some(wanted) = id.as_str().split('-').nth(1) else { return Ok(None) };
        for queue in self.queues(Role::Dead).await? {
            if mark(&queue) != wanted {
                continue;
            }
            let mut all = self.take_all(&queue, Some(id)).await?;
            let found = all.iter().position(|taken| taken.id == *id).map(|at| all.swap_remove(at));
            self.give_back(&queue, &all).await;
            return Ok(found);
        }
        Ok(None)
    }

    /// Takes what a queue has, or until one is there.
    async fn take_all(&self, queue: &str, until: Option<&DeadLetterId>) -> Result<Vec<Taken>, Trouble> {
        let mut all: Vec<Taken> = Vec::new();
        loop {
            let messages = match self.receive(queue, MORE, HIDDEN).await {
                Ok(messages) => messages,
                Err(trouble) => {
                    self.give_back(queue, &all).await;
                    // Somebody has removed the queue.
                    return if trouble.is(GONE) { Ok(Vec::new()) } else { Err(trouble) };
                }
            };
            if messages.is_empty() {
                return Ok(all);
            }
            let before = all.len();
            all.extend(messages.iter().filter_map(|message| self.taken(queue, message)));
            if until.is_some_and(|until| all[before..].iter().any(|taken| taken.id == *until)) {
                return Ok(all);
            }
        }
    }

    fn taken(&self, queue: &str, message: &Message) -> Option<Taken> {
        let sent = message.attributes.as_ref()?.get(&MessageSystemAttributeName::SentTimestamp);
        let sent = sent.and_then(|sent| sent.parse::<u128>().ok()).unwrap_or_default();
        let id = DeadLetterId::new(format!("{sent}-{}-{}", mark(queue), message.message_id.as_deref()?));
        let letter = with_texts(message, sent, wire::read_dead_letter);
        // The queues of both kinds are listed together.
        let fifo = self.settings.names.fifo;
        let letter = letter.filter(|(_, source)| source.ends_with(".fifo") == fifo);
        Some(Taken { id, queue: queue.to_owned(), handle: message.receipt_handle.clone()?, letter })
    }

    async fn give_back(&self, queue: &str, all: &[Taken]) {
        for batch in all.chunks(MOST) {
            let entries = batch.iter().enumerate().map(|(number, taken)| {
                let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(number.to_string());
                let entry = entry.receipt_handle(&taken.handle).visibility_timeout(0);
                entry.build().expect("it has an id and a handle")
            });
            let call = self.sqs.change_message_visibility_batch().queue_url(queue);
            let call = call.set_entries(Some(entries.collect()));
            if let Err(trouble) = self.call(CALL, call.send()).await {
                log::warn!(
                    target: "eventbus", queue = %printable(last_part(queue)), error = %printable(trouble),
                    "dead letters that were looked at cannot be given back, so nobody sees them for {HIDDEN:?}"
                );
            }
        }
    }

    async fn delete_dead_letter(&self, taken: &Taken) -> Result<(), Trouble> {
        let call = self.sqs.delete_message().queue_url(&taken.queue).receipt_handle(&taken.handle);
        self.call(CALL, call.send()).await.map(drop)
    }

    async fn republish(&self, taken: Taken, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        let queue = taken.queue.clone();
        let Some((letter, source)) = &taken.letter else {
            self.give_back(&queue, &[taken]).await;
            return Ok(false);
        };
        let sent = self.send_again(letter, source, &taken.id, payload).await;
        if let Err(error) = sent {
            self.give_back(&queue, &[taken]).await;
            return Err(error);
        }
        let deleted = self.delete_dead_letter(&taken).await;
        deleted.map_err(|trouble| trouble.explain("remove the dead letter, which was published again"))?;
        Ok(true)
    }

    /// Sends an event to the one queue whose group has given it up.
    async fn send_again(
        &self,
        letter: &DeadLetter,
        source: &str,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> Result<(), BrokerError> {
        let explain = |trouble: Trouble| trouble.explain(format_args!("publish to the queue `{source}`"));
        let Some(url) = self.queue_url(source).await.map_err(explain)? else {
            return Err(BrokerError::new(format!(
                "the queue `{source}` of the group `{}`, which has given the event up, is gone; subscribe the group again",
                letter.group
            )));
        };
        let mut envelope = (*letter.envelope).clone();
        if let Some(payload) = payload {
            envelope = envelope.with_payload(payload);
        }
        let written = wire::write(&envelope, ContentMode::Binary);
        let written =
            written.map_err(|error| BrokerError::new("cannot write the event").with_cause(error))?;
        let mut call = self.sqs.send_message().queue_url(url).message_body(&written.body);
        call = call.set_message_attributes(Some(attributes(&written)));
        if self.settings.names.fifo {
            // Cut in the middle, it is sent again under the same id.
            let id = format!("again-{:016x}-{id}", crate::names::hash(&[&written.body]));
            call = call.message_group_id(wire::message_group(&envelope)).message_deduplication_id(id);
        }
        self.call(CALL, call.send()).await.map(drop).map_err(explain)
    }
}
