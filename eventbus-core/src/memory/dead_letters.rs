//! The dead letters of the in-process broker.

use super::Outstanding;
use super::history::History;
use super::queue::Waiting;
use super::routes::Routes;
use crate::broker::{BrokerFuture, DeadLetter, DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetters};
use crate::envelope::Envelope;
use crate::error::BrokerError;
use crate::lock::{Lock, Rank, SharedLock};
use crate::log;
use crate::printable::printable;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The latest dead letters, in memory.
pub(super) struct MemoryDeadLetters {
    capacity: usize,
    kept: Lock<Kept>,
    routes: Arc<SharedLock<Routes>>,
    outstanding: Arc<Outstanding>,
    history: Option<Arc<History>>,
}

#[derive(Default)]
struct Kept {
    last_id: u64,
    letters: BTreeMap<DeadLetterId, Arc<DeadLetter>>,
}

impl MemoryDeadLetters {
    pub(super) fn new(
        capacity: usize,
        routes: Arc<SharedLock<Routes>>,
        outstanding: Arc<Outstanding>,
        history: Option<Arc<History>>,
    ) -> Self {
        Self { capacity, kept: Lock::new(Rank::BROKER_LAST, Kept::default()), routes, outstanding, history }
    }

    pub(super) fn keep(&self, dead_letter: DeadLetter) {
        let oldest = {
            let mut kept = self.kept.lock();
            kept.last_id += 1;
            let id = DeadLetterId::from(kept.last_id);
            kept.letters.insert(id, Arc::new(dead_letter));
            if kept.letters.len() > self.capacity { kept.letters.pop_first() } else { None }
        };
        if let Some((id, letter)) = oldest {
            log::error!(
                target: "eventbus", id = %printable(id), topic = %printable(letter.envelope.topic()),
                group = %printable(&letter.group), event = %printable(letter.envelope.id()), capacity = self.capacity,
                "the oldest dead letter is dropped to make room; raise `dead_letter_capacity`, or use a durable broker"
            );
        }
    }

    fn republish_now(&self, id: &DeadLetterId, payload: Option<Bytes>) -> Result<bool, BrokerError> {
        // It is taken out first, so that two calls at once deliver the event once.
        let Some(letter) = self.take(id) else { return Ok(false) };
        let payload_is_another = payload.is_some();
        let envelope = match payload {
            Some(payload) => Arc::new(Envelope::clone(&letter.envelope).with_payload(payload)),
            None => Arc::clone(&letter.envelope),
        };
        let mended = payload_is_another.then(|| Arc::clone(&envelope));
        let queue = self.routes.read().of_group(&letter.group, letter.envelope.topic());
        self.outstanding.add(1);
        let waiting = Waiting { envelope, offset: letter.offset, attempt: 1 };
        // A queue whose last reader has just left takes nothing, as one that is not there.
        if queue.is_some_and(|queue| queue.push_once_more(waiting)) {
            drop(mended.and_then(|mended| self.mend(&letter, &mended)));
            return Ok(true);
        }
        self.outstanding.remove(1);
        let error = BrokerError::new(format!(
            "cannot re-publish dead letter {id}: the group `{}` does not listen on \"{}\" any more; \
             start a subscription of that group first",
            letter.group,
            letter.envelope.topic(),
        ));
        self.kept.lock().letters.insert(id.clone(), letter);
        Err(error)
    }

    /// What delivers the event to its group again has the mended payload from now on. The answer is what it had before.
    fn mend(&self, letter: &DeadLetter, mended: &Arc<Envelope>) -> Option<Arc<Envelope>> {
        self.history.as_ref()?.lock().mend(&letter.group, letter.offset, mended)
    }

    fn take(&self, id: &DeadLetterId) -> Option<Arc<DeadLetter>> {
        self.kept.lock().letters.remove(id)
    }
}

impl DeadLetters for MemoryDeadLetters {
    fn find(&self, query: DeadLetterQuery) -> BrokerFuture<Result<DeadLetterList, BrokerError>> {
        let kept = self.kept.lock();
        let wanted = kept.letters.iter().filter(|(id, letter)| query.matches(id, letter));
        let letters = wanted.map(|(id, letter)| (id.clone(), Arc::clone(letter))).take(query.limit).collect();
        BrokerFuture::ready(Ok(letters))
    }

    fn republish(
        &self,
        id: &DeadLetterId,
        payload: Option<Bytes>,
    ) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(self.republish_now(id, payload))
    }

    fn purge(&self, id: &DeadLetterId) -> BrokerFuture<Result<bool, BrokerError>> {
        BrokerFuture::ready(Ok(self.take(id).is_some()))
    }
}
