//! What is hidden from others for longer, and what is not ours any more since it was not.

use super::{Entry, Held, Token, Waiting};
use crate::batches::MOST;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Held {
    /// What SQS is to hide longer, and for how many seconds, in batches.
    pub(crate) fn next_extensions(&mut self, now: Instant) -> Vec<Vec<(Token, Arc<str>, i32)>> {
        let (visibility, turn) = (self.visibility, self.turn);
        let mut wanted = Vec::new();
        for (token, entry) in &mut self.entries {
            let wait = match (entry.due, turn) {
                _ if entry.away => continue,
                (Some(due), _) => due.saturating_duration_since(now),
                (None, Some((turn, _))) if turn == *token => visibility,
                (None, _) => Duration::ZERO,
            };
            if let Some(seconds) = entry.hidden.ask(wait, visibility, now) {
                wanted.push((*token, Arc::clone(&entry.handle), seconds));
            }
        }
        wanted.chunks(MOST).map(<[_]>::to_vec).collect()
    }

    /// SQS hides it for so long from when it was asked. None, where it was not done.
    pub(crate) fn extended(&mut self, token: Token, until: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.hidden.answered(until);
        if until.is_some()
            && let Some(waiting) = self.unsure.remove(&token)
        {
            self.at_hand.insert((true, waiting.offset, token), waiting);
        }
    }

    /// Drops what others may have got, and what follows it in its lane: the queue gives that out again behind it. What is
    /// dropped comes back.
    pub(crate) fn lapse(&mut self, now: Instant) -> Vec<Waiting> {
        // What is away by the time of its attempt is anybody's.
        self.entries.retain(|_, entry| !entry.away || entry.due.is_some_and(|due| now < due));
        let is_lapsed = |token: &Token, entry: &Entry| {
            entry.hidden.is_over(now) && !entry.settled && !entry.away && !self.unsure.contains_key(token)
        };
        let lapsed = self.entries.iter().filter(|(token, entry)| is_lapsed(token, entry));
        let lapsed: Vec<_> = lapsed.map(|(token, _)| *token).collect();
        self.lose(&lapsed)
    }

    /// These are not ours any more, and with them goes what is behind them in their lanes. What is dropped comes back.
    pub(crate) fn lose(&mut self, tokens: &[Token]) -> Vec<Waiting> {
        // What is settled may just be deleted, and SQS hides nothing that is gone: it takes nothing along.
        let is_open = |token: &&Token| self.entries.get(token).is_some_and(|entry| !entry.settled);
        let tokens: Vec<_> = tokens.iter().filter(is_open).copied().collect();
        let mut lanes: HashMap<u64, Token> = HashMap::new();
        for token in &tokens {
            if let Some(lane) = self.entries.get(token).and_then(|entry| entry.lane) {
                lanes.entry(lane).and_modify(|first| *first = *token.min(first)).or_insert(*token);
            }
        }
        let is_behind = |token: Token, entry: &Entry| {
            let first = entry.lane.and_then(|lane| lanes.get(&lane));
            !entry.settled && first.is_some_and(|first| *first < token)
        };
        let behind = self.entries.iter().filter(|(token, entry)| is_behind(**token, entry));
        let gone: BTreeSet<_> = behind.map(|(token, _)| *token).chain(tokens).collect();
        let mut dropped = Vec::new();
        for token in gone {
            if let Some(entry) = self.entries.remove(&token) {
                let places = [false, true].map(|came| (came, entry.offset, token));
                dropped.extend(places.iter().filter_map(|place| self.at_hand.remove(place)));
                dropped.extend(self.unsure.remove(&token));
            }
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::tests::{VISIBILITY, arrival, offsets};

    #[test]
    fn what_others_may_have_is_not_settled_and_takes_its_lane_along() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        held.arrive(arrival(1, Some(7)), now, now);
        let later = now + Duration::from_secs(10);
        for (offset, lane) in [(2, 7), (3, 8)] {
            held.arrive(arrival(offset, Some(lane)), later, later);
        }
        let first = held.take(1)[0].0;
        let end = now + VISIBILITY;
        assert!(held.holds(first, end - Duration::from_millis(1)) && !held.holds(first, end));
        assert!(!held.settle(first, end));
        let dropped: Vec<_> = held.lapse(end).iter().map(|waiting| waiting.offset).collect();
        assert_eq!(dropped, [2]);
        assert_eq!(offsets(&held.take(9)), [3]);
        assert!(!held.holds(first, now), "it is forgotten");
    }

    #[test]
    fn what_is_held_is_hidden_longer_until_its_next_attempt() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in 0..12 {
            held.arrive(arrival(offset, None), now, now);
        }
        assert!(held.next_extensions(now + Duration::from_secs(5)).is_empty(), "it is early");
        let parked = held.take(1)[0].0;
        assert!(held.park(parked, now + Duration::from_secs(100), now));
        let at = now + Duration::from_secs(10);
        let batches = held.next_extensions(at);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [10, 2]);
        assert!(held.next_extensions(at).is_empty(), "it is on its way");
        for (token, _, seconds) in batches.concat() {
            assert_eq!(seconds, if token == parked { 120 } else { 30 });
            held.extended(token, (token != parked).then(|| at + VISIBILITY));
        }
        let again = held.next_extensions(at + Duration::from_secs(1));
        assert_eq!(again.concat().iter().map(|(token, ..)| *token).collect::<Vec<_>>(), [parked]);
        held.take(20);
        assert_eq!(held.lapse(now + VISIBILITY).len(), 0, "the parked one is in hand");
        assert!(!held.holds(parked, now));
    }

    #[test]
    fn an_answer_that_was_long_on_its_way_is_handed_out_once_its_events_are_hidden_again() {
        let (mut held, asked) = (Held::new(VISIBILITY), Instant::now());
        // Of what was asked for so long ago most of the time may be over, or all of it.
        let now = asked + VISIBILITY + Duration::from_secs(5);
        for (offset, lane) in [(1, 7), (2, 7), (3, 8), (4, 9)] {
            held.arrive(arrival(offset, Some(lane)), asked, now);
        }
        assert_eq!(
            (held.at_hand(), held.ahead(), held.take(9).len()),
            (0, 4, 0),
            "somebody else may have them"
        );
        assert!(held.lapse(now).is_empty(), "it is not known yet");
        let batch = held.next_extensions(now).concat();
        assert_eq!(batch.len(), 4);
        let until = now + VISIBILITY;
        // Somebody has the first: what is behind it in its lane comes again behind it.
        for (token, ..) in &batch[1..3] {
            held.extended(*token, Some(until));
        }
        held.extended(batch[0].0, None);
        held.extended(batch[3].0, None);
        let dropped: Vec<_> = held.lose(&[batch[0].0]).iter().map(|waiting| waiting.offset).collect();
        assert_eq!(dropped, [1, 2]);
        let taken = held.take(9);
        assert_eq!(offsets(&taken), [3]);
        assert!(held.holds(taken[0].0, now) && held.left(taken[0].0, now) == VISIBILITY);
        let again = held.next_extensions(now).concat();
        assert_eq!(again.len(), 1, "what was not answered is asked for again");
        assert_eq!(held.give_back().len(), 1, "and given back at the end");
    }

    #[test]
    fn an_answer_that_was_waited_for_counts_from_when_it_was_asked_for() {
        let (mut held, asked) = (Held::new(VISIBILITY), Instant::now());
        let now = asked + Duration::from_secs(20);
        held.arrive(arrival(1, None), asked, now);
        let token = held.take(1)[0].0;
        assert_eq!(held.left(token, now), Duration::from_secs(10));
        assert_eq!(held.next_extensions(now).concat().len(), 1, "it is hidden longer at once");
        assert!(!held.holds(token, asked + VISIBILITY));
    }
}
