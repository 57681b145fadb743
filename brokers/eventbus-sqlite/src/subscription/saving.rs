//! Saving: what there is to write of a subscription, and what becomes of it when that is committed or not.
//!
//! Dead letters are part of the save that settles their deliveries: both are stored, or neither.

use super::at_hand::Waiting;
use super::letters::LettersSave;
use super::rows::{self, Noted};
use super::{Subscription, Waits, suspects};
use crate::dead_letters;
use crate::offsets::place;
use crate::writes::{AFTER_FAILURE, When};
use eventbus_core::BrokerError;
use eventbus_core::broker::{self, DeadLetter, Offset, Parked, Receipt};
use jiff::Timestamp;
use rusqlite::Connection;
use std::sync::Arc;

/// A delivery that is given up: once its dead letter is stored, it is settled.
pub(super) struct Leaving {
    pub(super) offset: Offset,
    pub(super) republished: bool,
    /// Whether its payload is another than the event's.
    pub(super) mended: bool,
    pub(super) letter: DeadLetter,
    /// What was handed out; none where it was not, since it is damaged.
    pub(super) receipt: Option<Receipt>,
    pub(super) answer: Option<Waits>,
}

impl Leaving {
    /// The delivery that was to be given up, and could not be: it is tried again when there may be room on the disk.
    fn again(&self, receipt: Receipt, attempt: u32) -> Waiting {
        let now = Timestamp::now();
        let due = now.checked_add(AFTER_FAILURE).unwrap_or(now);
        let first_failed_at = self.letter.first_failed_at;
        let parked = Some(Parked { first_failed_at, last_failed_at: now, due });
        let noted = Noted { attempt, parked, mended: self.mended };
        Waiting::again(receipt, noted)
    }
}

/// One save of a subscription: the difference between what is and what was saved last. Dropping it means that it was
/// not committed: then nothing of it counts as saved, and it is tried again.
pub(crate) struct Saving {
    subscription: Arc<Subscription>,
    row: i64,
    epoch: u64,
    // None once it is over.
    parts: Option<Parts>,
}

struct Parts {
    progress: Option<broker::Save<Noted>>,
    letters: LettersSave,
    leaving: Vec<Leaving>,
    waiting: Vec<Waits>,
    /// Which attempts have ended that were noted.
    ended: Vec<i64>,
}

impl Saving {
    /// What there is to save; none if nothing has changed, or another save is under way.
    pub(crate) fn of(subscription: &Arc<Subscription>) -> Option<Self> {
        subscription.change(|state| {
            state.listed = false;
            let row = state.row.filter(|_| state.active && !state.saving)?;
            let leaving = std::mem::take(&mut state.leaving);
            let waiting = std::mem::take(&mut state.waiting);
            let (again, own): (Vec<_>, Vec<_>) = leaving.iter().partition(|leaving| leaving.republished);
            let own: Vec<Offset> = own.iter().map(|leaving| leaving.offset).collect();
            let again: Vec<i64> = again.iter().map(|leaving| place(leaving.offset)).collect();
            let (progress, letters) = (state.progress.begin_save(&own), state.letters.begin_save(&again));
            let ended = state.suspects.begin_save();
            if progress.is_none()
                && letters.is_empty()
                && leaving.is_empty()
                && waiting.is_empty()
                && ended.is_empty()
            {
                return None;
            }
            state.saving = true;
            let (subscription, epoch) = (Arc::clone(subscription), subscription.held.epoch());
            Some(Self {
                subscription,
                row,
                epoch,
                parts: Some(Parts { progress, letters, leaving, waiting, ended }),
            })
        })
    }

    pub(crate) fn subscription(&self) -> &Arc<Subscription> {
        &self.subscription
    }

    /// Writes it. `false`: the group is somebody else's by now, and nothing was written.
    pub(crate) fn write(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let Some(parts) = &self.parts else { return Ok(true) };
        let Parts { progress, letters, leaving, ended, .. } = parts;
        if !rows::write(connection, self.row, &self.subscription.owner(), progress.as_ref())? {
            return Ok(false);
        }
        rows::delete(connection, self.row, true, letters.gone.iter().copied())?;
        rows::upsert(connection, self.row, letters.changed.iter().copied())?;
        suspects::delete(connection, self.row, ended)?;
        for Leaving { offset, letter, mended, .. } in leaving {
            suspects::delete(connection, self.row, &[place(*offset)])?;
            dead_letters::insert(connection, place(*offset), letter, *mended)?;
        }
        Ok(true)
    }

    /// It was committed; or not, with the error. `Ok(false)`: somebody else has the group.
    pub(crate) fn finish(mut self, committed: Result<bool, &BrokerError>) {
        self.end(committed);
    }

    fn end(&mut self, committed: Result<bool, &BrokerError>) {
        let Some(Parts { progress, letters, leaving, waiting, ended }) = self.parts.take() else { return };
        let subscription = &self.subscription;
        let saved = matches!(committed, Ok(true));
        let answer = || match committed {
            Ok(true) => Ok(()),
            Ok(false) => Err(subscription.lost()),
            Err(error) => Err(BrokerError::new(error.to_string())),
        };
        let save = subscription.change(|state| {
            let ours = self.epoch == subscription.held.epoch();
            if ours {
                state.saving = false;
                if let Some(progress) = progress {
                    state.progress.end_save(progress, saved);
                }
                state.letters.end_save(letters, saved);
                if !saved {
                    state.suspects.put_back(ended);
                }
                // There is room for others.
                state.after.ring = true;
            }
            for mut leaving in leaving {
                match leaving.receipt.take() {
                    Some(receipt) if ours && !saved => {
                        let attempt = state.suspects.uncounted(&receipt);
                        state.put_back(leaving.again(receipt, attempt));
                    }
                    Some(receipt) => {
                        if ours {
                            state.suspects.forget(place(receipt.offset));
                            state.give_back(&receipt.envelope);
                        }
                        state.after.dropped.push(receipt.envelope);
                    }
                    // Nobody else tries it again.
                    None if ours && !saved => {
                        state.leaving.push(leaving);
                        continue;
                    }
                    None => {}
                }
                state.after.answers.extend(leaving.answer.map(|waits| (waits, answer())));
                state.after.dropped.push(leaving.letter.envelope);
            }
            state.after.answers.extend(waiting.into_iter().map(|waits| (waits, answer())));
            match committed {
                _ if !ours || !state.has_unsaved() => None,
                Ok(_) => state.list(When::Soon),
                Err(_) => {
                    state.listed = true;
                    Some(When::AfterFailure)
                }
            }
        });
        subscription.save(save);
        if matches!(committed, Ok(false)) {
            subscription.lose(self.epoch);
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if self.parts.is_some() {
            self.end(Err(&BrokerError::new("the transaction was rolled back; it is tried again")));
        }
    }
}
