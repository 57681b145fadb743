//! What is settled, and is deleted from the queue in batches, in order in each lane.

use super::{Held, Named, Token};
use crate::batches::MOST;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

impl Held {
    /// It is done, and is to be deleted. No, where it may be somebody else's.
    pub(crate) fn settle(&mut self, token: Token, now: Instant) -> bool {
        match self.entries.get_mut(&token) {
            Some(entry) if entry.settled => true,
            Some(entry) if !entry.hidden.is_over(now) => {
                entry.settled = true;
                self.settled.push_back(token);
                true
            }
            _ => false,
        }
    }

    /// What is to be deleted with one call. Of one lane nothing is asked for while an answer is awaited, so that what is
    /// settled later is not deleted earlier.
    pub(crate) fn next_deletes(&mut self) -> Vec<Named> {
        let (mut batch, mut left) = (Vec::new(), VecDeque::new());
        let mut lanes = HashSet::new();
        while let Some(token) = self.settled.pop_front() {
            let Some(entry) = self.entries.get(&token) else { continue };
            let is_busy = entry.lane.is_some_and(|lane| self.deleting.contains(&lane));
            if batch.len() == MOST || is_busy {
                left.push_back(token);
                // The rest is looked at with the next batch.
                if batch.len() == MOST {
                    break;
                }
                continue;
            }
            lanes.extend(entry.lane);
            batch.push((token, Arc::clone(&entry.handle)));
        }
        left.append(&mut self.settled);
        self.settled = left;
        self.deleting.extend(lanes);
        batch
    }

    /// SQS has answered about these: those that are `again` to be deleted, the others are gone.
    pub(crate) fn deleted(&mut self, batch: &[Named], again: &HashSet<Token>) {
        for (token, _) in batch.iter().rev() {
            if let Some(lane) = self.entries.get(token).and_then(|entry| entry.lane) {
                self.deleting.remove(&lane);
            }
            if again.contains(token) {
                self.settled.push_front(*token);
            } else {
                self.entries.remove(token);
            }
        }
    }

    pub(crate) fn unconfirmed(&self) -> usize {
        self.entries.values().filter(|entry| entry.settled).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::tests::{VISIBILITY, arrival};

    #[test]
    fn what_is_settled_takes_nothing_along_where_it_cannot_be_hidden_longer() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in [1, 2] {
            held.arrive(arrival(offset, Some(7)), now, now);
        }
        let tokens: Vec<_> = held.take(2).iter().map(|(token, _)| *token).collect();
        assert!(held.settle(tokens[0], now));
        let batch = held.next_deletes();
        // It is gone by now, so SQS does not hide it, and says so before it says that it is deleted.
        assert!(held.lose(&[tokens[0]]).is_empty());
        assert!(held.holds(tokens[1], now), "what follows it is ours");
        held.deleted(&batch, &HashSet::new());
        assert!(held.settle(tokens[1], now) && held.count() == 1);
    }

    #[test]
    fn deletes_go_ten_at_a_time_and_those_of_one_lane_one_after_the_other() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in 0..25 {
            held.arrive(arrival(offset, Some(u64::from(offset % 5 == 0))), now, now);
        }
        for (token, _) in held.take(25) {
            assert!(held.settle(token, now) && held.settle(token, now));
        }
        let first = held.next_deletes();
        assert_eq!(first.len(), 10);
        assert!(held.next_deletes().is_empty(), "both lanes wait");
        let again = HashSet::from([first[3].0]);
        held.deleted(&first, &again);
        let second = held.next_deletes();
        assert_eq!((second.len(), second[0].0), (10, first[3].0));
        held.deleted(&second, &HashSet::new());
        let third = held.next_deletes();
        assert_eq!(third.len(), 6);
        assert_eq!(held.unconfirmed(), 6);
        held.deleted(&third, &HashSet::new());
        assert!(held.is_empty());
    }
}
