//! Settlement: what becomes of a subscription's open deliveries.
//!
//! Acks are noted in memory and saved a moment later, many at once: a crash in between repeats deliveries, and loses
//! none. What has to be there before the handler's answer counts, dead letters and parked retries, is awaited.

use crate::dead_letters;
use crate::saving::Noted;
use crate::subscribe::{offset_of, place};
use crate::subscription::{State, Subscription};
use crate::writes::{AFTER_FAILURE, Save};
use eventbus_core::broker::{BrokerFuture, DeadLetter, FailureKind, Parked, Receipt, Settler};
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, Envelope};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;

/// With so many settled deliveries unsaved, saving does not wait any longer.
const SAVE_NOW: usize = 512;

/// A delivery that is not settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) noted: Noted,
    /// Its payload is not that of the event: it was mended before it was published again.
    pub(crate) mended: bool,
    /// Its dead letter is being written; once that is done, it is settled.
    pub(crate) leaving: bool,
    /// The size of its payload, while it is handed out.
    pub(crate) size: usize,
}

impl Opened {
    pub(crate) const FIRST: Self = Self { noted: Noted::FIRST, mended: false, leaving: false, size: 0 };
}

impl Settler for Subscription {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        if receipt.token != self.epoch() {
            return BrokerFuture::ready(Err(self.lost()));
        }
        if self.store.file.is_gone()
            && let Err(gone) = self.store.file.check()
        {
            // It cannot be saved; once the log is back, the group begins again from what is.
            self.refused.store(true, Ordering::Release);
            return BrokerFuture::ready(Err(gone));
        }
        if let Some(save) = self.change(|state| state.settle(place(receipt.offset))) {
            self.save(save);
        }
        BrokerFuture::ready(Ok(()))
    }

    fn nack(&self, mut receipt: Receipt, delay: Duration) -> BrokerFuture<Result<(), BrokerError>> {
        receipt.attempt = receipt.attempt.saturating_add(1);
        let now = Timestamp::now();
        let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
        let parked = Parked {
            first_failed_at: now,
            last_failed_at: now,
            due: now.checked_add(delay).unwrap_or(Timestamp::MAX),
        };
        let noted = self.park(&receipt, parked);
        self.put_back(receipt, Some(parked));
        noted
    }

    fn reject(&self, receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        if receipt.token != self.epoch() {
            return BrokerFuture::ready(Err(self.lost()));
        }
        let Some(subscription) = self.this() else { return BrokerFuture::ready(Err(self.lost())) };
        let first_failed_at = dead_letter.first_failed_at;
        let given_up = subscription.give_up(place(receipt.offset), dead_letter);
        BrokerFuture::new(async move {
            let given_up = given_up.await;
            if given_up.is_err() {
                // It is not settled, so it is delivered again, when there may be room on the disk.
                let now = Timestamp::now();
                let due = now.checked_add(AFTER_FAILURE).unwrap_or(now);
                subscription.put_back(receipt, Some(Parked { first_failed_at, last_failed_at: now, due }));
            }
            given_up
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            let opened = state.open.get_mut(&place(receipt.offset)).filter(|_| receipt.token == self.epoch());
            let Some(opened) = opened else { return BrokerFuture::ready(Err(self.lost())) };
            opened.noted.attempt = receipt.attempt;
            opened.noted.parked = Some(parked);
            state.dirty = true;
            state.waiting.push(answer);
        }
        self.save(Save::Now);
        let lost = self.lost();
        BrokerFuture::new(async move { answered.await.unwrap_or(Err(lost)) })
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        let held = self.is_held(receipt.token);
        // Deliveries of an earlier time were at hand again when the group was taken over.
        if !held && receipt.token == self.epoch() {
            self.refused.store(true, Ordering::Release);
        }
        held
    }

    fn release(&self, receipt: Receipt) {
        let parked = self.lock().open.get(&place(receipt.offset)).and_then(|opened| opened.noted.parked);
        self.put_back(receipt, parked);
    }
}

impl Subscription {
    /// The row of an event is not what was written: the group gets a dead letter instead of the event.
    pub(crate) fn give_up_damaged(self: &Arc<Self>, offset: i64, envelope: Arc<Envelope>, attempt: u32) {
        tracing::error!(
            target: "eventbus", group = %printable(&self.group), offset, topic = %printable(envelope.topic()),
            "an event in the log is damaged: its checksum is wrong; it becomes a dead letter"
        );
        let now = Timestamp::now();
        let letter = DeadLetter {
            envelope,
            group: self.group.clone(),
            handler: String::new(),
            kind: FailureKind::Damaged,
            reason:
                "the checksum of the event's row is wrong: the file was damaged; compare it with a backup"
                    .to_owned(),
            attempts: attempt - 1,
            first_failed_at: now,
            last_failed_at: now,
            offset: offset_of(offset),
        };
        // Nobody waits for the answer: if it is not written now, the event is read again after a restart.
        drop(self.give_up(offset, letter));
    }

    /// Writes a dead letter, and settles its delivery in the same transaction.
    fn give_up(self: &Arc<Self>, offset: i64, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let subscription = Arc::clone(self);
        let epoch = self.epoch();
        let answered = self.store.writes.run(move |work| {
            let opened = subscription.lock().open.get(&offset).copied();
            let Some(opened) = opened.filter(|_| epoch == subscription.epoch()) else {
                return Ok(Err(subscription.lost()));
            };
            dead_letters::insert(work.connection, offset, &letter, opened.mended)?;
            let mut state = subscription.lock();
            state.open.insert(offset, Opened { leaving: true, ..opened });
            state.dirty = true;
            drop(state);
            work.save(&subscription);
            Ok(Ok(()))
        });
        BrokerFuture::new(async move { answered.await.flatten() })
    }

    /// Asks for a save.
    fn save(&self, save: Save) {
        if let Some(subscription) = self.this() {
            self.store.writes.save(subscription, save);
        }
    }

    fn lost(&self) -> BrokerError {
        BrokerError::new(format!(
            "the lease of the group `{}` was over; another process may have it",
            self.group
        ))
    }
}

impl State {
    /// Notes that the delivery at `offset` is settled, and tells whether to save.
    fn settle(&mut self, offset: i64) -> Option<Save> {
        if let Some(opened) = self.close(offset)
            && !opened.noted.republished
        {
            self.settled = self.settled.max(offset);
        }
        self.unsaved += 1;
        let first = !std::mem::replace(&mut self.dirty, true);
        match self.unsaved {
            SAVE_NOW => Some(Save::Now),
            _ => first.then_some(Save::Soon),
        }
    }
}
