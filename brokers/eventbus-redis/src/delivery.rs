//! Settling: what becomes of the deliveries that are handed out.
//!
//! Acks are noted in memory, and saved many at once: a crash in between repeats deliveries, and loses none. What has to be
//! there before the handler's answer counts, dead letters and parked retries, is awaited.

use crate::claim::{Claim, Noted, Settled, Settling};
use crate::script;
use crate::trouble::Trouble;
use crate::wire;
use eventbus_core::broker::{Begin, BrokerFuture, DeadLetter, Parked, Receipt, Settler};
use eventbus_core::log;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, foreign};
use jiff::Timestamp;
use redis::Value;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Settles the deliveries of a claim.
pub(crate) struct ClaimSettler(pub(crate) Arc<Claim>);

impl ClaimSettler {
    fn lost(&self) -> BrokerError {
        BrokerError::new(format!(
            "another process has the group `{}` on \"{}\" by now, or may have it, since this one did not reach the server for \
             longer than its `lease`",
            self.0.group, self.0.pattern
        ))
    }
}

impl Settler for ClaimSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        match self.0.settle(&receipt) {
            Settling::Done => BrokerFuture::ready(Ok(())),
            Settling::Lost => BrokerFuture::ready(Err(self.lost())),
            Settling::Asked(answer) => {
                let lost = self.lost();
                BrokerFuture::new(async move { answer.await.map_err(|_| lost) })
            }
        }
    }

    fn reject(&self, receipt: Receipt, dead_letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let Some((open, source, token)) = self.0.open(&receipt) else {
            let settled = self.0.is_settled(&receipt);
            return BrokerFuture::ready(if settled { Ok(()) } else { Err(self.lost()) });
        };
        let fields = match wire::write_dead_letter(&dead_letter) {
            Ok(fields) => fields,
            Err(error) => {
                let error = BrokerError::new("cannot write the dead letter").with_cause(error);
                return BrokerFuture::ready(Err(error));
            }
        };
        let (claim, lost) = (Arc::clone(&self.0), self.lost());
        let mut call = script::REJECT.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(token).arg(&claim.consumer).arg(&source.key);
        call.arg(if source.again { "1" } else { "0" })
            .arg(open.place.to_string())
            .arg(source.field(open.place));
        fields.texts().for_each(|text| _ = call.arg(text));
        BrokerFuture::new(async move {
            match claim.store.link.value("cannot store the dead letter", &call).await? {
                // The second time it was settled by the first.
                Value::Int(1 | 2) => {
                    claim.end_turn((open.source, open.place));
                    claim.forget(&receipt);
                    Ok(())
                }
                _ => Err(lost),
            }
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let Some((open, source, token)) = self.0.open(receipt) else {
            return BrokerFuture::ready(Err(self.lost()));
        };
        let (claim, lost) = (Arc::clone(&self.0), self.lost());
        let mut call = script::PARK.call(&claim.store.keys);
        call.arg(&claim.group).arg(claim.pattern.as_str()).arg(token).arg(&claim.consumer).arg(&source.key);
        call.arg(open.place.to_string())
            .arg(source.field(open.place))
            .arg(write_note(receipt.attempt, parked));
        // It is asked for even if the answer is lost.
        claim.note(receipt, Noted { attempt: receipt.attempt, parked: Some(parked), kept: true });
        BrokerFuture::new(async move {
            let noted = claim.store.link.value("cannot note the retry", &call).await;
            claim.end_turn((open.source, open.place));
            match noted? {
                Value::Int(1) => Ok(()),
                _ => Err(lost),
            }
        })
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        self.0.holds(receipt)
    }

    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        self.0.begin_attempt(receipt)
    }

    fn release(&self, receipt: Receipt) {
        self.0.put_back(receipt);
    }
}

impl fmt::Debug for ClaimSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A parked delivery as it is noted: its next attempt, when it failed first and last, and when it is due.
fn write_note(attempt: u32, parked: Parked) -> String {
    format!("{attempt} {} {} {}", parked.first_failed_at, parked.last_failed_at, parked.due)
}

/// Reads what was noted; none, where somebody else wrote it.
pub(crate) fn read_note(note: &str) -> Option<Noted> {
    let mut parts = note.split(' ');
    let attempt = parts.next()?.parse().ok()?;
    let mut time = || parts.next()?.parse::<Timestamp>().ok();
    let parked = Parked { first_failed_at: time()?, last_failed_at: time()?, due: time()? };
    Some(Noted { attempt, parked: Some(parked), kept: true })
}

impl Claim {
    /// Saves what was settled, all of it with one call. An error: it is saved later.
    pub(crate) async fn save(&self) -> Result<(), Trouble> {
        let mut settled = self.begin_save();
        if settled.is_empty() {
            self.end_save(Vec::new());
            return Ok(());
        }
        settled.sort_unstable_by_key(|settled| (settled.source, settled.place));
        let mut call = script::ACK.call(&self.store.keys);
        let first = {
            let state = self.state();
            call.arg(&self.group).arg(self.pattern.as_str()).arg(&state.token).arg(&self.consumer);
            for of_source in settled.chunk_by(|one, other| one.source == other.source) {
                let source = &state.sources[of_source[0].source];
                call.arg(&source.key).arg(source.fields());
                call.arg(if source.again { "1" } else { "0" }).arg(of_source.len());
                for settled in of_source {
                    match settled.noted {
                        true => call.arg(format!("+{}", settled.place)),
                        false => call.arg(settled.place.to_string()),
                    };
                }
            }
            self.first_token()
        };
        let saved = self.store.link.value("cannot settle deliveries", &call).await;
        let ours = self.first_token() == first;
        match saved {
            Ok(Value::Int(1)) => self.saved(settled, &HashSet::new()),
            // Where processes compete, others have these by now.
            Ok(Value::Array(lost)) => {
                let number =
                    |lost: Value| if let Value::Int(lost) = lost { usize::try_from(lost).ok() } else { None };
                self.saved(settled, &lost.into_iter().filter_map(number).collect());
            }
            Ok(_) => {
                self.end_save(Vec::new());
                foreign::tell("a waker", || drop(settled));
                if ours {
                    self.lose();
                }
            }
            Err(trouble) => {
                // What is of an earlier time is not saved any more.
                let (later, dropped) = if ours { (settled, Vec::new()) } else { (Vec::new(), settled) };
                self.end_save(later);
                foreign::tell("a waker", || drop(dropped));
                return Err(trouble);
            }
        }
        Ok(())
    }

    /// These are saved, but for the `lost` ones.
    fn saved(&self, settled: Vec<Settled>, lost: &HashSet<usize>) {
        self.end_save(Vec::new());
        if !lost.is_empty() {
            log::warn!(
                target: "eventbus", group = %printable(&self.group), pattern = %printable(&self.pattern), count = lost.len(),
                "deliveries were settled here that another process has by now, and handles once more"
            );
        }
        let noted = settled.iter().filter(|settled| settled.noted);
        noted.for_each(|settled| self.end_turn((settled.source, settled.place)));
        for (number, settled) in settled.into_iter().enumerate() {
            // Who is not told hears that it is lost.
            let Some(answer) = settled.answer else { continue };
            foreign::tell("a waker", || match lost.contains(&number) {
                true => drop(answer),
                false => _ = answer.send(()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_what_is_none_is_told_from_one() {
        let parked = Parked {
            first_failed_at: Timestamp::UNIX_EPOCH,
            last_failed_at: Timestamp::now(),
            due: Timestamp::MAX,
        };
        let noted = read_note(&write_note(3, parked)).unwrap();
        assert_eq!((noted.attempt, noted.parked), (3, Some(parked)));
        for text in ["", "3", "x y z w", "3 now now now"] {
            assert!(read_note(text).is_none(), "{text}");
        }
    }
}
