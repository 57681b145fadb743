//! The dead letters of the in-process broker.

use super::Outstanding;
use super::queue::Waiting;
use super::routes::Routes;
use crate::broker::{BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters};
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::printable::printable;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The latest dead letters, in memory.
pub(super) struct MemoryDeadLetters {
    capacity: usize,
    kept: Mutex<Kept>,
    routes: Arc<RwLock<Routes>>,
    outstanding: Arc<Outstanding>,
}

#[derive(Default)]
struct Kept {
    last_id: u64,
    letters: BTreeMap<DeadLetterId, Arc<DeadLetter>>,
}

impl MemoryDeadLetters {
    pub(super) fn new(capacity: usize, routes: Arc<RwLock<Routes>>, outstanding: Arc<Outstanding>) -> Self {
        Self { capacity, kept: Mutex::default(), routes, outstanding }
    }

    pub(super) fn keep(&self, dead_letter: DeadLetter) {
        let mut kept = self.lock();
        kept.last_id += 1;
        let id = DeadLetterId(kept.last_id);
        kept.letters.insert(id, Arc::new(dead_letter));
        if kept.letters.len() > self.capacity
            && let Some((id, letter)) = kept.letters.pop_first()
        {
            tracing::error!(
                target: "eventbus", id = %printable(id), topic = %printable(letter.envelope.topic()),
                group = %printable(&letter.group), event = %printable(letter.envelope.id()), capacity = self.capacity,
                "the oldest dead letter is dropped to make room; raise `dead_letter_capacity`, or use a durable broker"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn republish_now(&self, id: DeadLetterId, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        // The lock is held throughout, so that two calls at once deliver the event once.
        let mut kept = self.lock();
        let Some(letter) = kept.letters.get(&id) else { return Ok(false) };
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = routes.of_group(&letter.group, letter.envelope.topic()) else {
            return Err(BrokerError::new(format!(
                "cannot re-publish dead letter {id}: the group `{}` does not listen on \"{}\" any more; \
                 start a subscription of that group first",
                letter.group,
                letter.envelope.topic(),
            )));
        };
        let envelope = match payload {
            Some(payload) => Arc::new(Envelope::clone(&letter.envelope).with_payload(payload)),
            None => Arc::clone(&letter.envelope),
        };
        self.outstanding.add(1);
        queue.push_again(Waiting { envelope, offset: letter.offset, attempt: 1 });
        kept.letters.remove(&id);
        Ok(true)
    }
}

impl DeadLetters for MemoryDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let kept = self.lock();
        let wanted = kept.letters.iter().filter(|(id, letter)| query.matches(**id, letter));
        let letters = wanted.map(|(id, letter)| (*id, Arc::clone(letter))).take(query.limit).collect();
        BrokerFuture::ready(Ok(letters))
    }

    fn republish(&self, id: DeadLetterId, payload: Option<Bytes>) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(self.republish_now(id, payload))
    }

    fn purge(&self, id: DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(self.lock().letters.remove(&id).is_some()))
    }
}
