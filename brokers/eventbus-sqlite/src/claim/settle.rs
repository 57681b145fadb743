//! Settlement: what becomes of a subscription's open deliveries.
//!
//! Acks are noted in memory and saved a moment later, many at once: a crash in between repeats deliveries, and loses
//! none. What has to be there before the handler's answer counts, dead letters and parked retries, is awaited.

use super::at_hand::{Origin, Waiting};
use super::receive::Token;
use super::rows::Noted;
use super::saving::{Leaving, NotSaved};
use super::{Claim, ClaimState, SAVE_NOW};
use crate::offsets::{offset_of, place, size};
use crate::writes::When;
use eventbus_core::BrokerError;
use eventbus_core::broker::{Begin, BrokerFuture, DeadLetter, FailureKind, Parked, Receipt, Settler};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What is said of an event whose row is not what was written.
pub(crate) const DAMAGED: &str =
    "the checksum of the event's row is wrong: the file was damaged; compare it with a backup";

impl Settler for Claim {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        if self.store.file.is_gone()
            && let Err(gone) = self.store.file.check()
        {
            // It cannot be saved; once the log is back, the group begins again from what is.
            self.held.refuse(Token::from(receipt.token).epoch);
            return BrokerFuture::ready(Err(gone));
        }
        let settled = self.change(|state| {
            let token = self.ours(&receipt)?;
            let settled = state.settle(&receipt, token);
            // If the process ends before that is saved, it does so beside this event.
            let soon = self.end_attempt(state, place(receipt.offset));
            Some(match settled {
                true if soon => state.list(When::Now),
                true => state.list_settled(),
                false => None,
            })
        });
        match settled {
            Some(save) => self.save(save),
            None => return BrokerFuture::ready(Err(self.lost())),
        }
        BrokerFuture::ready(Ok(()))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let (answer, answered) = oneshot::channel();
        // What is not to be stored is dropped without the lock.
        let refused = self.change(|state| {
            let offset = receipt.offset;
            let Some(Token { republished, .. }) = self.ours(&receipt) else {
                return Some((Err(()), receipt, letter, answer));
            };
            let Some(Noted { mended, .. }) = state.noted(offset, republished) else {
                // It is settled: whoever asks once more has not heard the answer.
                return Some((Ok(()), receipt, letter, answer));
            };
            self.store.turn().end(self.which(place(offset)));
            let (receipt, answer) = (Some(receipt), Some(answer));
            state.leaving.push(Leaving { offset, republished, mended, letter, receipt, answer });
            state.listed = true;
            None
        });
        match refused {
            None => self.saved(answered),
            Some((ours, ..)) => BrokerFuture::ready(ours.map_err(|()| self.lost())),
        }
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let (answer, answered) = oneshot::channel();
        let refused = self.change(|state| {
            let Some(token) = self.ours(receipt) else { return Some(answer) };
            if !state.note(receipt, token, parked) {
                return Some(answer);
            }
            self.end_attempt(state, place(receipt.offset));
            state.waiting.push(answer);
            state.listed = true;
            None
        });
        if refused.is_some() {
            return BrokerFuture::ready(Err(self.lost()));
        }
        self.saved(answered)
    }

    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        self.note_attempt(receipt)
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        // What a handler does could not be saved while the log is gone.
        let now = if self.store.file.is_gone() { u64::MAX } else { self.store.clock() };
        self.held.allows(Token::from(receipt.token).epoch, now)
    }

    fn release(&self, receipt: Receipt) {
        self.change(|state| {
            let token = self.ours(&receipt);
            let noted = token.and_then(|token| state.noted(receipt.offset, token.republished));
            match noted {
                Some(noted) => {
                    let at = place(receipt.offset);
                    self.store.turn().end(self.which(at));
                    let attempt = state.suspects.uncounted(at, receipt.attempt);
                    state.put_back(Waiting::again(receipt, Noted { attempt, ..noted }));
                }
                None => state.after.dropped.push(receipt.envelope),
            }
        });
    }
}

impl Claim {
    /// Saves now, and answers what became of that.
    fn saved(
        &self,
        answered: oneshot::Receiver<Result<(), NotSaved>>,
    ) -> BrokerFuture<Result<(), BrokerError>> {
        self.save(Some(When::Now));
        let (store, lost) = (Arc::clone(&self.store), self.lost());
        BrokerFuture::new(async move {
            match store.writes.answered(answered).await {
                Some(answer) => answer.map_err(NotSaved::into_error),
                None => Err(store.writes.over().unwrap_or(lost)),
            }
        })
    }

    /// An attempt at the event at `at` has ended, and with it the process has not. `true`: that is to be saved at once.
    fn end_attempt(&self, state: &mut ClaimState, at: i64) -> bool {
        let suspect = state.suspects.clear(at);
        if suspect {
            self.store.turn().end(self.which(at));
        }
        suspect
    }

    /// What the token of a delivery says, if it is of this epoch. Epochs change under the lock of the state.
    pub(super) fn ours(&self, receipt: &Receipt) -> Option<Token> {
        let token = Token::from(receipt.token);
        (token.epoch == self.held.epoch()).then_some(token)
    }

    /// The row of an event is not what was written: the group gets a dead letter instead of the event.
    pub(super) fn give_up_damaged(&self, state: &mut ClaimState, waiting: Waiting) {
        let Waiting { offset, envelope, noted: Noted { attempt, mended, .. }, origin, .. } = waiting;
        let now = Timestamp::now();
        let letter = DeadLetter {
            envelope,
            group: self.group.clone(),
            handler: String::new(),
            kind: FailureKind::Damaged,
            reason: DAMAGED.to_owned(),
            attempts: attempt.saturating_sub(1),
            first_failed_at: now,
            last_failed_at: now,
            offset: offset_of(offset),
        };
        let (offset, republished) = (letter.offset, origin == Origin::Letter);
        state.leaving.push(Leaving { offset, republished, mended, letter, receipt: None, answer: None });
        state.listed = true;
    }
}

impl Waiting {
    /// A delivery that was handed out, once more.
    pub(super) fn again(receipt: Receipt, noted: Noted) -> Self {
        let Receipt { envelope, offset, token, .. } = receipt;
        let origin = if Token::from(token).republished { Origin::Letter } else { Origin::Open };
        Self { offset: place(offset), size: size(&envelope), envelope, noted, origin, intact: true }
    }
}

impl ClaimState {
    /// Settles a delivery that was handed out. `false`: it is not open here.
    fn settle(&mut self, receipt: &Receipt, token: Token) -> bool {
        let settled = match token.republished {
            true => self.letters.settle(place(receipt.offset)),
            false => self.progress.settle(receipt.offset),
        };
        if settled {
            self.give_back(&receipt.envelope);
        }
        settled
    }

    /// Something was settled; tells whether the writer is to hear of it.
    fn list_settled(&mut self) -> Option<When> {
        let many = self.unsaved() == SAVE_NOW;
        self.list(if many { When::Now } else { When::Soon })
    }

    /// Notes that a delivery is tried again. `false`: it is not open here.
    fn note(&mut self, receipt: &Receipt, token: Token, parked: Parked) -> bool {
        let Receipt { offset, attempt, .. } = *receipt;
        let Some(noted) = self.noted(offset, token.republished) else { return false };
        let noted = Noted { attempt, parked: Some(parked), ..noted };
        match token.republished {
            true => self.letters.note(place(offset), noted),
            false => self.progress.note(offset, noted),
        }
    }
}
