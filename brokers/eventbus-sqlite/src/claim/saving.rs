//! Saving: what there is to write of a subscription, and what becomes of it when that is committed or not.
//!
//! Dead letters are part of the save that settles their deliveries: both are stored, or neither.

use super::letters::LettersSave;
use super::rows::{self, Noted};
use super::{Claim, ClaimState, Waits, suspects};
use crate::dead_letters;
use crate::offsets::place;
use crate::writes::When;
use eventbus_core::BrokerError;
use eventbus_core::broker::{self, DeadLetter, Offset, Receipt, Settler};
use rusqlite::Connection;
use std::collections::BTreeSet;
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

/// Why something was not saved, for whoever waits for that.
pub(super) struct NotSaved {
    error: BrokerError,
    /// What was to be given up, and is not.
    unsettled: Option<Unsettled>,
}

impl NotSaved {
    /// The error; what was not settled is in the hands of whoever gets it.
    pub(super) fn into_error(self) -> BrokerError {
        let Self { error, unsettled } = self;
        if let Some(mut unsettled) = unsettled {
            unsettled.receipt = None;
        }
        error
    }
}

impl From<BrokerError> for NotSaved {
    fn from(error: BrokerError) -> Self {
        Self { error, unsettled: None }
    }
}

/// A delivery that could not be given up. If whoever asked for that does not wait any more, it is delivered again.
struct Unsettled {
    claim: Arc<Claim>,
    receipt: Option<Receipt>,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(receipt) = self.receipt.take() {
            self.claim.release(receipt);
        }
    }
}

/// One save of a claim: the difference between what is and what was saved last. Dropping it means that it was
/// not committed: then nothing of it counts as saved, and it is tried again.
pub(crate) struct Saving {
    claim: Arc<Claim>,
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
    pub(crate) fn of(claim: &Arc<Claim>) -> Option<Self> {
        claim.change(|state| {
            state.listed = false;
            let row = state.row.filter(|_| state.active && !state.saving)?;
            let leaving = state.take_leaving();
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
            let (claim, epoch) = (Arc::clone(claim), claim.held.epoch());
            Some(Self {
                claim,
                row,
                epoch,
                parts: Some(Parts { progress, letters, leaving, waiting, ended }),
            })
        })
    }

    pub(crate) fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }

    /// Writes it. `false`: the group is somebody else's by now, and nothing was written.
    pub(crate) fn write(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let Some(parts) = &self.parts else { return Ok(true) };
        let Parts { progress, letters, leaving, ended, .. } = parts;
        if !rows::write(connection, self.row, &self.claim.owner(), progress.as_ref())? {
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
        let claim = &self.claim;
        let saved = matches!(committed, Ok(true));
        let answer = || match committed {
            Ok(true) => Ok(()),
            Ok(false) => Err(claim.lost()),
            Err(error) => Err(BrokerError::new(error.to_string())),
        };
        let save = claim.change(|state| {
            let ours = self.epoch == claim.held.epoch();
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
                let mut unsettled = None;
                match leaving.receipt.take() {
                    // It stays open, in the hands of whoever asked.
                    Some(receipt) if ours && !saved => {
                        let claim = Arc::clone(claim);
                        unsettled = Some(Unsettled { claim, receipt: Some(receipt) });
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
                let answer = answer().map_err(|error| NotSaved { error, unsettled });
                state.after.answers.extend(leaving.answer.map(|waits| (waits, answer)));
                state.after.dropped.push(leaving.letter.envelope);
            }
            let waiting = waiting.into_iter().map(|waits| (waits, answer().map_err(NotSaved::from)));
            state.after.answers.extend(waiting);
            match committed {
                _ if !ours || !state.has_unsaved() => None,
                Ok(_) => state.list(When::Soon),
                Err(_) => {
                    state.listed = true;
                    Some(When::AfterFailure)
                }
            }
        });
        claim.save(save);
        if matches!(committed, Ok(false)) {
            claim.lose(self.epoch);
        }
    }
}

impl ClaimState {
    /// What the next save gives up. What is given up once more, since whoever asked has not heard the answer, gets the
    /// answer of that save.
    fn take_leaving(&mut self) -> Vec<Leaving> {
        let mut seen = BTreeSet::new();
        let (leaving, again): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(
            |Leaving { offset, republished, receipt, .. }| {
                let open = receipt.is_none() || self.noted(*offset, *republished).is_some();
                seen.insert((*offset, *republished)) && open
            },
        );
        for Leaving { letter, receipt, answer, .. } in again {
            self.waiting.extend(answer);
            self.after.dropped.extend(receipt.map(|receipt| receipt.envelope));
            self.after.dropped.push(letter.envelope);
        }
        leaving
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if self.parts.is_some() {
            self.end(Err(&BrokerError::new("the transaction was rolled back; it is tried again")));
        }
    }
}
