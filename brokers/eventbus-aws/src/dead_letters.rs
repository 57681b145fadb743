//! Dead letters: a queue for each group. SQS lists nothing, so whoever looks takes all, looks, and gives them back.

use crate::batches::MOST;
use crate::calls::with_texts;
use crate::connection::{CALL, Link, Trouble};
use crate::delivery::attributes;
use crate::names::{Role, last_part};
use crate::wire::{self, ContentMode};
use aws_sdk_sqs::types::{ChangeMessageVisibilityBatchRequestEntry, Message, MessageSystemAttributeName};
use bytes::Bytes;
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters,
};
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// For how long a look hides a dead letter from other looks, where it cannot give it back. While it goes on it hides what
/// it has for longer, so that it meets nothing twice.
const HIDDEN: Duration = Duration::from_secs(30);
/// How long a queue is asked whether there is more. Only a call that waits looks at every part of a queue.
const MORE: Duration = Duration::from_secs(1);
/// How many queues are looked at side by side: most are empty, and each is waited for.
const QUEUES: usize = 8;
/// How many dead letters of one queue a look takes at most.
const LOOKED_AT: usize = 10_000;

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

/// Whether somebody still waits for a look.
struct Awaited(Arc<AtomicBool>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl AwsDeadLetters {
    /// Looks in a task of its own: dropped in the middle, it gives back what it has taken. One look at a time.
    fn look<T, F>(
        &self,
        look: impl FnOnce(Arc<Link>, Arc<AtomicBool>) -> F + Send + 'static,
    ) -> BrokerFuture<Result<T, BrokerError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BrokerError>> + Send + 'static,
    {
        let (link, looks) = (Arc::clone(&self.link), Arc::clone(&self.looks));
        BrokerFuture::new(async move {
            let awaited = Arc::new(AtomicBool::new(true));
            let until_then = Awaited(Arc::clone(&awaited));
            let task = tokio::spawn(async move {
                let _alone = looks.lock().await;
                look(link, awaited).await
            });
            let result = task.await;
            drop(until_then);
            result
                .unwrap_or_else(|error| Err(BrokerError::new("the look was not finished").with_cause(error)))
        })
    }
}

impl DeadLetters for AwsDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        self.look(async move |link, awaited| {
            let found = link.find_dead_letters(&Arc::new(query), &awaited).await;
            found.map_err(|trouble| trouble.explain("look at the dead letters"))
        })
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        let id = id.clone();
        self.look(async move |link, awaited| {
            let taken = link.take_dead_letter(&id, &awaited).await;
            match taken.map_err(|trouble| trouble.explain(format_args!("find the dead letter {id}")))? {
                Some(taken) => link.republish(taken, payload).await,
                None => Ok(false),
            }
        })
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        let id = id.clone();
        self.look(async move |link, awaited| {
            let explain = |trouble: Trouble| trouble.explain(format_args!("purge the dead letter {id}"));
            let taken = link.take_dead_letter(&id, &awaited).await.map_err(explain)?;
            let Some(taken) = taken else { return Ok(false) };
            link.delete_dead_letter(&taken).await.map_err(explain)?;
            Ok(true)
        })
    }
}

/// What a look has taken out of a queue: by what SQS knows each, and until when it is hidden.
type Hand = BTreeMap<DeadLetterId, (String, Instant)>;

/// The dead letters that a look was for.
type Found = BTreeMap<DeadLetterId, Arc<DeadLetter>>;

/// Keeps so many. A queue has no order, so the first ones may come last.
fn first_ones(found: &mut Found, limit: usize) {
    while found.len() > limit {
        found.pop_last();
    }
}

/// The part of a queue's name that tells it from others, which is a part of the names of its dead letters.
fn mark(queue: &str) -> &str {
    last_part(queue).rsplit('-').next().unwrap_or_default()
}

impl Link {
    async fn find_dead_letters(
        self: &Arc<Self>,
        query: &Arc<DeadLetterQuery>,
        awaited: &Arc<AtomicBool>,
    ) -> Result<DeadLetterList, Trouble> {
        let queues = match &query.group {
            Some(group) => self.queue_url(&self.settings.names.dead(group)).await?.into_iter().collect(),
            None => self.queues(Role::Dead).await?,
        };
        let mut queues = queues.into_iter();
        let (mut looks, mut found, mut troubled) = (JoinSet::new(), BTreeMap::new(), None);
        loop {
            while looks.len() < QUEUES
                && troubled.is_none()
                && let Some(queue) = queues.next()
            {
                let (link, query, awaited) = (Arc::clone(self), Arc::clone(query), Arc::clone(awaited));
                looks.spawn(async move { link.find_in(&queue, &query, &awaited).await });
            }
            // Also after one has failed: each gives back what it has taken.
            match looks.join_next().await {
                Some(Ok(Ok(of_one))) => found.extend(of_one),
                Some(Ok(Err(trouble))) => troubled = Some(trouble),
                Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
                None => break,
            }
            first_ones(&mut found, query.limit);
        }
        match troubled {
            Some(trouble) => Err(trouble),
            None => Ok(found.into_iter().collect()),
        }
    }

    /// Those in one queue.
    async fn find_in(
        &self,
        queue: &str,
        query: &DeadLetterQuery,
        awaited: &AtomicBool,
    ) -> Result<Found, Trouble> {
        let mut found = Found::new();
        let hand = self.look_at(queue, awaited, |taken| {
            let letter = taken.letter.filter(|(letter, _)| query.matches(&taken.id, letter));
            if let Some((letter, _)) = letter {
                found.insert(taken.id, Arc::new(letter));
                first_ones(&mut found, query.limit);
            }
            false
        });
        self.give_back(queue, &hand.await?).await;
        Ok(found)
    }

    /// Takes one out of its queue, and leaves the others there.
    async fn take_dead_letter(
        &self,
        id: &DeadLetterId,
        awaited: &AtomicBool,
    ) -> Result<Option<Taken>, Trouble> {
        let Some(wanted) = id.as_str().split('-').nth(1) else { return Ok(None) };
        for queue in self.queues(Role::Dead).await? {
            if mark(&queue) != wanted {
                continue;
            }
            let mut found = None;
            let look = self.look_at(&queue, awaited, |taken| {
                if taken.id == *id {
                    found = Some(taken);
                }
                found.is_some()
            });
            let mut hand = look.await?;
            let looked_at = hand.len();
            hand.remove(id);
            self.give_back(&queue, &hand).await;
            if found.is_none() && looked_at >= LOOKED_AT {
                return Err(Trouble::Refused {
                    code: "too many".to_owned(),
                    message: format!(
                        "it is not among the {looked_at} that were looked at, and the queue `{}` has more; purge some of it",
                        last_part(&queue)
                    ),
                });
            }
            return Ok(found);
        }
        Ok(None)
    }

    /// Takes what a queue has, each once, until `each` says that it is enough, and hides it from others meanwhile.
    async fn look_at(
        &self,
        queue: &str,
        awaited: &AtomicBool,
        mut each: impl FnMut(Taken) -> bool,
    ) -> Result<Hand, Trouble> {
        let mut hand = Hand::new();
        loop {
            self.hide_longer(queue, &mut hand).await;
            let asked = Instant::now();
            let received = if awaited.load(Ordering::Acquire) {
                self.receive(queue, MORE, HIDDEN, MOST, None).await
            } else {
                Err(Trouble::Slow("nobody waits for it any more".to_owned()))
            };
            let messages = match received {
                Ok(messages) => messages,
                Err(trouble) => {
                    self.give_back(queue, &hand).await;
                    // Somebody has removed the queue.
                    return if trouble.is_gone() { Ok(Hand::new()) } else { Err(trouble) };
                }
            };
            let (mut is_new, mut enough) = (false, false);
            for taken in messages.iter().filter_map(|message| self.taken(queue, message)) {
                let hidden = (taken.handle.clone(), asked + HIDDEN);
                // What comes a second time goes by its later handle.
                if hand.insert(taken.id.clone(), hidden).is_none() {
                    is_new = true;
                    enough = enough || each(taken);
                }
            }
            if enough || !is_new {
                return Ok(hand);
            }
            if hand.len() >= LOOKED_AT {
                log::warn!(
                    target: "eventbus", queue = %printable(last_part(queue)), count = hand.len(),
                    "there may be more dead letters than were looked at; publish them again, or purge some"
                );
                return Ok(hand);
            }
        }
    }

    /// Hides for longer what would come again soon.
    async fn hide_longer(&self, queue: &str, hand: &mut Hand) {
        let soon = Instant::now() + HIDDEN / 2;
        let mut due: Vec<_> =
            hand.iter_mut().filter(|(_, (_, until))| *until < soon).map(|(_, one)| one).collect();
        for batch in due.chunks_mut(MOST) {
            let asked = Instant::now();
            let handles: Vec<_> = batch.iter().map(|(handle, _)| handle.as_str()).collect();
            if self.hide_dead_letters(queue, &handles, HIDDEN).await.is_ok() {
                batch.iter_mut().for_each(|(_, until)| *until = asked + HIDDEN);
            }
        }
    }

    async fn hide_dead_letters(
        &self,
        queue: &str,
        handles: &[&str],
        hidden: Duration,
    ) -> Result<(), Trouble> {
        let seconds = i32::try_from(hidden.as_secs()).unwrap_or(i32::MAX);
        let entries = handles.iter().enumerate().map(|(number, handle)| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(number.to_string());
            let entry = entry.receipt_handle(*handle).visibility_timeout(seconds);
            entry.build().expect("it has an id and a handle")
        });
        let call = self.sqs.change_message_visibility_batch().queue_url(queue);
        let call = call.set_entries(Some(entries.collect()));
        self.call(CALL, call.send()).await.map(drop)
    }

    fn taken(&self, queue: &str, message: &Message) -> Option<Taken> {
        let system = message.attributes.as_ref();
        let sent = system.and_then(|system| system.get(&MessageSystemAttributeName::SentTimestamp));
        let sent = sent.and_then(|sent| sent.parse::<u128>().ok()).unwrap_or_default();
        let id = DeadLetterId::new(format!("{sent}-{}-{}", mark(queue), message.message_id.as_deref()?));
        let letter = with_texts(message, sent, None, wire::read_dead_letter);
        // The queues of both kinds are listed together.
        let fifo = self.settings.names.fifo;
        let letter = letter.filter(|(_, source)| source.ends_with(".fifo") == fifo);
        Some(Taken { id, queue: queue.to_owned(), handle: message.receipt_handle.clone()?, letter })
    }

    async fn give_back(&self, queue: &str, hand: &Hand) {
        let handles: Vec<_> = hand.values().map(|(handle, _)| handle.as_str()).collect();
        for batch in handles.chunks(MOST) {
            if let Err(trouble) = self.hide_dead_letters(queue, batch, Duration::ZERO).await {
                log::warn!(
                    target: "eventbus", queue = %printable(last_part(queue)), error = %printable(trouble),
                    "dead letters that were looked at cannot be given back, so nobody sees them for {HIDDEN:?}"
                );
            }
        }
    }

    async fn give_one_back(&self, taken: Taken) {
        let hand = Hand::from([(taken.id, (taken.handle, Instant::now()))]);
        self.give_back(&taken.queue, &hand).await;
    }

    async fn delete_dead_letter(&self, taken: &Taken) -> Result<(), Trouble> {
        let call = self.sqs.delete_message().queue_url(&taken.queue).receipt_handle(&taken.handle);
        self.call(CALL, call.send()).await.map(drop)
    }

    async fn republish(&self, taken: Taken, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        let Some((letter, source)) = &taken.letter else {
            self.give_one_back(taken).await;
            return Ok(false);
        };
        let sent = self.send_again(letter, source, &taken.id, payload).await;
        if let Err(error) = sent {
            self.give_one_back(taken).await;
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
        call = call.set_message_attributes(attributes(&written));
        if self.settings.names.fifo {
            // Cut in the middle, it is sent again under the same id.
            let id = format!("again-{:016x}-{id}", crate::names::hash(&[&written.body]));
            call = call.message_group_id(wire::message_group(&envelope)).message_deduplication_id(id);
        }
        self.call(CALL, call.send()).await.map(drop).map_err(explain)
    }
}
