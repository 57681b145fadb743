//! What a subscription has of its queue: what is at hand, what was handed out, what is settled and not deleted yet, and
//! until when SQS hides each from others. A plain value without a lock, a clock or a task.

mod away;
mod deletes;
mod hiding;
mod turn;

use crate::hidden::Hidden;
use eventbus_core::Envelope;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use turn::Turn;

/// The number of a receipt here. A message that is received again has another one.
pub(crate) type Token = u64;

/// A message that came.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// By this SQS knows the message, however often it delivers it.
    pub(crate) id: String,
    /// By this SQS knows this delivery.
    pub(crate) handle: String,
    pub(crate) offset: u128,
    /// Its message group, as a hash. None, where there is no order.
    pub(crate) lane: Option<u64>,
    pub(crate) envelope: Arc<Envelope>,
    /// How often SQS has delivered it.
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
    id: String,
    handle: Arc<str>,
    offset: u128,
    lane: Option<u64>,
    hidden: Hidden,
    /// When its next attempt is due.
    due: Option<Instant>,
    /// It waits for that longer than SQS hides it, so the queue has it again, which gives it out once more.
    away: bool,
    settled: bool,
    /// How often SQS has delivered it.
    delivered: u32,
    /// Something of its lane was here as it came: no handler can have had it.
    follows: bool,
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
    /// What came so late that it may be hidden no more: it waits until SQS has hidden it again.
    unsure: BTreeMap<Token, Waiting>,
    /// The one of those that came again with which a handler has begun, and when.
    turn: Option<(Token, Instant)>,
    settled: VecDeque<Token>,
    /// The lanes of which something is being deleted.
    deleting: HashSet<u64>,
}

/// A receipt to be named to SQS.
pub(crate) type Named = (Token, Arc<str>);

/// Of the time for which a message is hidden, the last part, in which no handler begins.
pub(crate) const SPARE: f64 = 0.2;

impl Held {
    pub(crate) fn new(visibility: Duration) -> Self {
        Self {
            visibility,
            next: 0,
            entries: BTreeMap::new(),
            at_hand: BTreeMap::new(),
            unsure: BTreeMap::new(),
            turn: None,
            settled: VecDeque::new(),
            deleting: HashSet::new(),
        }
    }

    /// A message came, in answer to what was asked at that time. Since when SQS hides it is not known: no earlier than it was
    /// asked, whatever that has waited for, so it counts from then. Where little of that is left, nobody gets it before SQS
    /// has hidden it [longer](Self::next_extensions).
    pub(crate) fn arrive(&mut self, arrival: Arrival, asked: Instant, now: Instant) {
        let hidden = Hidden::new(asked, self.visibility);
        if self.comes_back(&arrival, hidden, now) {
            return;
        }
        let Arrival { id, handle, offset, lane, envelope, attempt } = arrival;
        self.next += 1;
        let token = self.next;
        let follows = lane.is_some() && self.entries.values().any(|entry| entry.lane == lane);
        let entry = Entry {
            id,
            handle: handle.into(),
            offset,
            lane,
            hidden,
            due: None,
            away: false,
            settled: false,
            delivered: attempt,
            follows,
        };
        self.entries.insert(token, entry);
        let waiting = Waiting { envelope, offset, attempt };
        if hidden.left(now) < self.visibility.mul_f64(SPARE) {
            self.unsure.insert(token, waiting);
        } else {
            self.at_hand.insert((true, offset, token), waiting);
        }
    }

    /// By what SQS knows it.
    pub(crate) fn handle(&self, token: Token) -> Option<Arc<str>> {
        self.entries.get(&token).map(|entry| Arc::clone(&entry.handle))
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
        self.turn.take_if(|(turn, _)| *turn == token);
        match self.entries.get_mut(&token) {
            Some(entry) if entry.away => {
                self.entries.remove(&token);
                Some(waiting)
            }
            Some(entry) if !entry.settled => {
                entry.due = None;
                self.at_hand.insert((false, entry.offset, token), waiting)
            }
            _ => Some(waiting),
        }
    }

    pub(crate) fn holds(&self, token: Token, now: Instant) -> bool {
        self.entries.get(&token).is_some_and(|entry| !entry.hidden.is_over(now))
    }

    /// For how long nobody else gets it.
    pub(crate) fn left(&self, token: Token, now: Instant) -> Duration {
        self.entries.get(&token).map_or(Duration::ZERO, |entry| entry.hidden.left(now))
    }

    /// It waits for its next attempt.
    pub(crate) fn park(&mut self, token: Token, due: Instant, now: Instant) -> bool {
        match self.entries.get_mut(&token) {
            Some(entry) if !entry.hidden.is_over(now) => {
                entry.due = Some(due);
                true
            }
            _ => false,
        }
    }

    /// Takes out what nobody has in hand, to be given back to the queue.
    pub(crate) fn give_back(&mut self) -> Vec<Named> {
        let (at_hand, unsure) = (std::mem::take(&mut self.at_hand), std::mem::take(&mut self.unsure));
        let tokens = at_hand.keys().map(|(.., token)| *token).chain(unsure.into_keys());
        tokens.filter_map(|token| Some((token, self.entries.remove(&token)?.handle))).collect()
    }

    pub(crate) fn at_hand(&self) -> usize {
        self.at_hand.len()
    }

    /// How many wait for a handler here, also those that nobody may have yet.
    pub(crate) fn ahead(&self) -> usize {
        self.at_hand.len() + self.unsure.len()
    }

    /// How many are not deleted.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use eventbus_core::Topic;

    pub(super) const VISIBILITY: Duration = Duration::from_secs(30);

    pub(super) fn arrival(offset: u128, lane: Option<u64>) -> Arrival {
        let envelope = Arc::new(Envelope::from_json(Topic::from_static("a.b"), &1).unwrap());
        let (id, handle) = (format!("m{offset}"), format!("h{offset}"));
        Arrival { id, handle, offset, lane, envelope, attempt: 1 }
    }

    pub(super) fn offsets(taken: &[(Token, Waiting)]) -> Vec<u128> {
        taken.iter().map(|(_, waiting)| waiting.offset).collect()
    }

    #[test]
    fn what_is_given_back_comes_before_what_waits() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in [2, 3, 4] {
            held.arrive(arrival(offset, None), now, now);
        }
        let mut taken = held.take(2);
        assert_eq!(offsets(&taken), [2, 3]);
        held.arrive(arrival(1, None), now, now);
        for (token, waiting) in taken.drain(..).rev() {
            assert!(held.put_back(token, waiting).is_none());
        }
        assert_eq!(offsets(&held.take(9)), [2, 3, 1, 4]);
    }

    #[test]
    fn what_is_given_back_to_the_queue_is_what_nobody_has_in_hand() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in 0..3 {
            held.arrive(arrival(offset, None), now, now);
        }
        let (token, waiting) = held.take(1).remove(0);
        assert_eq!(held.give_back().len(), 2);
        assert!(!held.is_empty() && held.holds(token, now));
        assert!(held.put_back(token, waiting).is_none());
        assert_eq!(held.give_back().len(), 1);
        assert!(held.is_empty());
    }
}
