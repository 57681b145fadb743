//! What a subscription has of its queue: what is at hand, what was handed out, what is settled and not deleted yet, and
//! until when SQS hides each from others. A plain value without a lock, a clock or a task.

use crate::batches::MOST;
use crate::config::LONGEST_HIDDEN;
use eventbus_core::Envelope;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number of a receipt here. A message that is received again has another one.
pub(crate) type Token = u64;

/// A message that came.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// By this SQS knows this delivery.
    pub(crate) handle: String,
    pub(crate) offset: u128,
    /// Its message group, as a hash. None, where there is no order.
    pub(crate) lane: Option<u64>,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) attempt: u32,
}

/// What waits for the reader.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) offset: u128,
    pub(crate) attempt: u32,
}

#[derive(Debug)]
struct Entry {
    handle: Arc<str>,
    offset: u128,
    lane: Option<u64>,
    /// Until then nobody else gets it.
    until: Instant,
    /// When its next attempt is due.
    due: Option<Instant>,
    settled: bool,
    /// SQS is being asked to hide it longer.
    extending: bool,
}

/// Where a message waits: what was given back is before what has just come, each in the order of its places.
type Place = (bool, u128, Token);

/// All messages that are not deleted.
#[derive(Debug)]
pub(crate) struct Held {
    visibility: Duration,
    next: Token,
    entries: BTreeMap<Token, Entry>,
    at_hand: BTreeMap<Place, Waiting>,
    settled: VecDeque<Token>,
    /// The lanes of which something is being deleted.
    deleting: HashSet<u64>,
}

/// A receipt to be named to SQS.
pub(crate) type Named = (Token, Arc<str>);

impl Held {
    pub(crate) fn new(visibility: Duration) -> Self {
        Self {
            visibility,
            next: 0,
            entries: BTreeMap::new(),
            at_hand: BTreeMap::new(),
            settled: VecDeque::new(),
            deleting: HashSet::new(),
        }
    }

    /// A message came, in answer to what was asked at that time.
    pub(crate) fn arrive(&mut self, arrival: Arrival, asked: Instant) {
        let Arrival { handle, offset, lane, envelope, attempt } = arrival;
        self.next += 1;
        let until = asked + self.visibility;
        let handle = handle.into();
        let entry = Entry { handle, offset, lane, until, due: None, settled: false, extending: false };
        self.entries.insert(self.next, entry);
        self.at_hand.insert((true, offset, self.next), Waiting { envelope, offset, attempt });
    }

    /// Takes what is at hand, in the order of its places.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<(Token, Waiting)> {
        let mut taken = Vec::with_capacity(limit.min(self.at_hand.len()));
        while taken.len() < limit
            && let Some(((.., token), waiting)) = self.at_hand.pop_first()
        {
            taken.push((token, waiting));
        }
        taken
    }

    /// Puts back what was handed out. What is not held any more comes back, to be dropped.
    pub(crate) fn put_back(&mut self, token: Token, waiting: Waiting) -> Option<Waiting> {
        match self.entries.get_mut(&token) {
            Some(entry) if !entry.settled => {
                entry.due = None;
                self.at_hand.insert((false, entry.offset, token), waiting)
            }
            _ => Some(waiting),
        }
    }

    pub(crate) fn holds(&self, token: Token, now: Instant) -> bool {
        self.entries.get(&token).is_some_and(|entry| now < entry.until)
    }

    /// For how long nobody else gets it.
    pub(crate) fn left(&self, token: Token, now: Instant) -> Duration {
        self.entries.get(&token).map_or(Duration::ZERO, |entry| entry.until.saturating_duration_since(now))
    }

    /// It is done, and is to be deleted. No, where it may be somebody else's.
    pub(crate) fn settle(&mut self, token: Token, now: Instant) -> bool {
        match self.entries.get_mut(&token) {
            Some(entry) if entry.settled => true,
            Some(entry) if now < entry.until => {
                entry.settled = true;
                self.settled.push_back(token);
                true
            }
            _ => false,
        }
    }

    /// It waits for its next attempt.
    pub(crate) fn park(&mut self, token: Token, due: Instant, now: Instant) -> bool {
        match self.entries.get_mut(&token) {
            Some(entry) if now < entry.until => {
                entry.due = Some(due);
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

    /// Drops what others may have got, and what follows it in its lane: the queue gives that out again behind it. What is
    /// dropped comes back.
    pub(crate) fn lapse(&mut self, now: Instant) -> Vec<Waiting> {
        let lapsed = |entry: &Entry| now >= entry.until && !entry.settled;
        let lanes: HashSet<_> =
            self.entries.values().filter(|entry| lapsed(entry)).filter_map(|entry| entry.lane).collect();
        let gone = |entry: &Entry| {
            !entry.settled && (now >= entry.until || entry.lane.is_some_and(|lane| lanes.contains(&lane)))
        };
        let gone: Vec<_> =
            self.entries.iter().filter(|(_, entry)| gone(entry)).map(|(token, _)| *token).collect();
        self.lose(&gone)
    }

    /// SQS says that these are not ours.
    pub(crate) fn lose(&mut self, tokens: &[Token]) -> Vec<Waiting> {
        let mut dropped = Vec::new();
        for token in tokens {
            if let Some(entry) = self.entries.remove(token) {
                let places = [false, true].map(|came| (came, entry.offset, *token));
                dropped.extend(places.iter().filter_map(|place| self.at_hand.remove(place)));
            }
        }
        dropped
    }

    /// What SQS is to hide longer, and for how many seconds, in batches.
    pub(crate) fn next_extensions(&mut self, now: Instant) -> Vec<Vec<(Token, Arc<str>, i32)>> {
        let (visibility, soon) = (self.visibility, self.visibility.mul_f64(2.0 / 3.0));
        let mut wanted = Vec::new();
        for (token, entry) in &mut self.entries {
            if entry.extending || entry.until.saturating_duration_since(now) > soon {
                continue;
            }
            entry.extending = true;
            let wait = entry.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now));
            let hidden = (wait + visibility).min(LONGEST_HIDDEN);
            // A part of a second is left out: it is hidden no longer than we think.
            wanted.push((
                *token,
                Arc::clone(&entry.handle),
                i32::try_from(hidden.as_secs()).unwrap_or(i32::MAX),
            ));
        }
        wanted.chunks(MOST).map(<[_]>::to_vec).collect()
    }

    /// SQS hides it for so long from when it was asked. None, where it was not done.
    pub(crate) fn extended(&mut self, token: Token, until: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.extending = false;
            entry.until = until.unwrap_or(entry.until);
        }
    }

    /// Takes out what nobody has in hand, to be given back to the queue.
    pub(crate) fn give_back(&mut self) -> Vec<Named> {
        let at_hand = std::mem::take(&mut self.at_hand);
        let tokens = at_hand.keys().map(|(.., token)| *token);
        tokens.filter_map(|token| Some((token, self.entries.remove(&token)?.handle))).collect()
    }

    pub(crate) fn at_hand(&self) -> usize {
        self.at_hand.len()
    }

    pub(crate) fn unconfirmed(&self) -> usize {
        self.entries.values().filter(|entry| entry.settled).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::Topic;

    const VISIBILITY: Duration = Duration::from_secs(30);

    fn arrival(offset: u128, lane: Option<u64>) -> Arrival {
        let envelope = Arc::new(Envelope::from_json(Topic::from_static("a.b"), &1).unwrap());
        Arrival { handle: format!("h{offset}"), offset, lane, envelope, attempt: 1 }
    }

    fn offsets(taken: &[(Token, Waiting)]) -> Vec<u128> {
        taken.iter().map(|(_, waiting)| waiting.offset).collect()
    }

    #[test]
    fn what_is_given_back_comes_before_what_waits() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in [2, 3, 4] {
            held.arrive(arrival(offset, None), now);
        }
        let mut taken = held.take(2);
        assert_eq!(offsets(&taken), [2, 3]);
        held.arrive(arrival(1, None), now);
        for (token, waiting) in taken.drain(..).rev() {
            assert!(held.put_back(token, waiting).is_none());
        }
        assert_eq!(offsets(&held.take(9)), [2, 3, 1, 4]);
    }

    #[test]
    fn what_others_may_have_is_not_settled_and_takes_its_lane_along() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        held.arrive(arrival(1, Some(7)), now);
        let later = now + Duration::from_secs(10);
        for (offset, lane) in [(2, 7), (3, 8)] {
            held.arrive(arrival(offset, Some(lane)), later);
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
            held.arrive(arrival(offset, None), now);
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
    fn deletes_go_ten_at_a_time_and_those_of_one_lane_one_after_the_other() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in 0..25 {
            held.arrive(arrival(offset, Some(u64::from(offset % 5 == 0))), now);
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

    #[test]
    fn what_is_given_back_to_the_queue_is_what_nobody_has_in_hand() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in 0..3 {
            held.arrive(arrival(offset, None), now);
        }
        let (token, waiting) = held.take(1).remove(0);
        assert_eq!(held.give_back().len(), 2);
        assert!(!held.is_empty() && held.holds(token, now));
        assert!(held.put_back(token, waiting).is_none());
        assert_eq!(held.give_back().len(), 1);
        assert!(held.is_empty());
    }
}
