//! What a subscription has of its queue: what is at hand, what was handed out, what is settled and not deleted yet, and
//! until when SQS hides each from others. A plain value without a lock, a clock or a task.

use crate::batches::MOST;
use crate::hidden::Hidden;
use eventbus_core::Envelope;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Whether a handler may begin with what SQS has delivered several times, and what nobody has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has come once or twice.
    Any,
    /// It has the turn. Hidden for so many seconds, it comes back after a crash behind those that wait for their turns.
    Taken(i32),
    /// Another one has it.
    Waits,
    /// It is given up.
    TooOften,
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

/// What comes for this time takes turns. A process that ends once makes nothing slow: what it had comes for the second time.
const SUSPECT: u32 = 3;
/// So long one that has the turn keeps the others waiting.
const TURN: Duration = Duration::from_secs(2);

/// What comes back so short before its attempt is due is not taken for what has waited for that.
const LATE: Duration = Duration::from_secs(1);

/// Of the time for which a message is hidden, the last part, in which no handler begins.
pub(crate) const SPARE: f64 = 0.2;

/// A receipt to be named to SQS.
pub(crate) type Named = (Token, Arc<str>);

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

    /// Whether it is one that was given back while it waits for its attempt, and that it comes back in time. Then it goes on
    /// waiting, as if it had never been away.
    fn comes_back(&mut self, arrival: &Arrival, hidden: Hidden, now: Instant) -> bool {
        let mut away = self.entries.iter_mut().filter(|(_, entry)| entry.away);
        let Some((token, entry)) = away.find(|(_, entry)| entry.id == arrival.id) else { return false };
        if entry.due.is_none_or(|due| due <= now + LATE) {
            // It may have been asked for meanwhile, and not been here.
            let token = *token;
            self.entries.remove(&token);
            return false;
        }
        (entry.hidden, entry.away, entry.delivered) = (hidden, false, arrival.attempt);
        entry.handle = arrival.handle.as_str().into();
        true
    }

    /// Whether a handler may begin with a message that SQS may deliver so often, at most. What it has delivered again and
    /// again may have ended the process that had it, and so may whatever else was there: they take turns, and the one that
    /// has its turn is hidden for longer. So after the next crash the others come first, and what comes alone, again and again, is to blame.
    pub(crate) fn turn(&mut self, token: Token, most: u32, now: Instant) -> Turn {
        let Some(entry) = self.entries.get(&token) else { return Turn::Any };
        if entry.delivered < SUSPECT {
            return Turn::Any;
        }
        if entry.delivered > most && !entry.follows {
            return Turn::TooOften;
        }
        let is_taken = self.turn.is_some_and(|(other, since)| {
            let open = self.entries.get(&other).is_some_and(|entry| entry.due.is_none());
            other != token && open && now < since + TURN
        });
        if is_taken {
            return Turn::Waits;
        }
        self.turn = Some((token, now));
        let mut hidden = self.visibility * 2;
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.due = None;
            hidden = hidden.min(entry.hidden.most(now));
        }
        Turn::Taken(i32::try_from(hidden.as_secs().max(1)).unwrap_or(i32::MAX))
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

    /// Gives the queue back what waits for its attempt longer than SQS hides it, in batches: it comes again, and is hidden
    /// for as long once more. What is behind it in its lane goes with it, and comes again behind it. What is dropped comes
    /// back.
    pub(crate) fn next_returns(&mut self, now: Instant) -> (Vec<Vec<Named>>, Vec<Waiting>) {
        let mut returned: Vec<Named> = Vec::new();
        let mut behind = Vec::new();
        let far = self.entries.iter().filter(|(_, entry)| {
            let due = entry.due.filter(|due| *due > now + LATE && !entry.settled && !entry.away);
            due.is_some_and(|due| entry.hidden.ends_before(due, self.visibility, now))
        });
        let far: Vec<_> = far.map(|(token, _)| *token).collect();
        for token in &far {
            let Some(entry) = self.entries.get_mut(token) else { continue };
            entry.away = true;
            entry.hidden.end(now);
            returned.push((*token, Arc::clone(&entry.handle)));
            let Some(lane) = entry.lane else { continue };
            behind.extend(
                self.entries
                    .iter()
                    .filter(|(other, entry)| {
                        **other > *token && entry.lane == Some(lane) && !entry.settled && !entry.away
                    })
                    .map(|(other, entry)| (*other, Arc::clone(&entry.handle))),
            );
        }
        returned.extend(behind.iter().cloned());
        let behind: Vec<_> = behind.into_iter().map(|(token, _)| token).collect();
        let dropped = self.lose(&behind);
        (returned.chunks(MOST).map(<[_]>::to_vec).collect(), dropped)
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
        let (id, handle) = (format!("m{offset}"), format!("h{offset}"));
        Arrival { id, handle, offset, lane, envelope, attempt: 1 }
    }

    fn offsets(taken: &[(Token, Waiting)]) -> Vec<u128> {
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
    fn what_waits_longer_than_sqs_hides_it_is_given_back_and_goes_on_waiting_when_it_comes_again() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let (mut held, begun) = (Held::new(VISIBILITY), Instant::now());
        held.arrive(arrival(1, None), begun, begun);
        let token = held.take(1)[0].0;
        let due = begun + HOUR * 30;
        assert!(held.park(token, due, begun));
        let (mut now, mut returns) = (begun, 0);
        while now < due {
            now += VISIBILITY / 12;
            for (token, _, seconds) in held.next_extensions(now).concat() {
                held.extended(token, Some(now + Duration::from_secs(seconds.unsigned_abs().into())));
            }
            let (batches, dropped) = held.next_returns(now);
            assert!(dropped.is_empty() && held.lapse(now).is_empty());
            if !batches.is_empty() {
                returns += 1;
                assert_eq!(batches.concat().len(), 1);
                assert!(!held.holds(token, now), "anybody may have it");
                let asked = now + Duration::from_secs(1);
                let again = Arrival { handle: format!("again{returns}"), attempt: 2, ..arrival(1, None) };
                held.arrive(again, asked, asked);
                now = asked;
            }
            assert!(held.holds(token, now), "after {:?}", now - begun);
            assert_eq!((held.at_hand(), held.count()), (0, 1), "nobody gets it before it is due");
        }
        assert_eq!(returns, 2);
        assert!(held.settle(token, now));
        assert_eq!(&*held.next_deletes()[0].1, "again2", "by the last delivery");
    }

    #[test]
    fn what_was_given_back_and_does_not_come_in_time_is_anybodys_and_a_delivery_of_its_own_when_it_comes() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let (mut held, begun) = (Held::new(VISIBILITY), Instant::now());
        for offset in [1, 2, 3] {
            held.arrive(arrival(offset, Some(7)), begun, begun);
        }
        let token = held.take(1)[0].0;
        let due = begun + HOUR * 12 + Duration::from_secs(10);
        assert!(held.park(token, due, begun));
        let soon = begun + Duration::from_secs(15);
        for (token, _, seconds) in held.next_extensions(soon).concat() {
            // Those behind it are hidden as long as it.
            let _ = seconds;
            held.extended(token, Some(begun + HOUR * 12));
        }
        let end = begun + HOUR * 12 - Duration::from_secs(5);
        let (batches, dropped) = held.next_returns(end);
        assert_eq!((batches.concat().len(), dropped.len(), held.count()), (3, 2, 1), "its lane goes with it");
        assert!(held.lapse(due - LATE).is_empty() && held.count() == 1);
        held.arrive(arrival(1, Some(7)), due - LATE, due - LATE);
        assert_eq!((held.at_hand(), held.count()), (1, 1), "it comes too late, and is new");
        let again = held.take(1)[0].0;
        assert!(!held.holds(token, due) && held.holds(again, due));
        assert!(held.put_back(token, waiting()).is_some(), "it is forgotten");
    }

    #[test]
    fn what_is_hidden_for_hours_from_the_beginning_is_not_given_back_before_they_are_over() {
        let (mut held, begun) = (Held::new(Duration::from_secs(12 * 3_600)), Instant::now());
        held.arrive(arrival(1, None), begun, begun);
        let token = held.take(1)[0].0;
        assert!(held.park(token, begun + Duration::from_secs(60), begun));
        assert!(held.next_extensions(begun).is_empty() && held.next_returns(begun).0.is_empty());
    }

    fn waiting() -> Waiting {
        let Arrival { envelope, offset, attempt, .. } = arrival(1, None);
        Waiting { envelope, offset, attempt }
    }

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

    fn delivered(offset: u128, lane: Option<u64>, attempt: u32) -> Arrival {
        Arrival { attempt, ..arrival(offset, lane) }
    }

    #[test]
    fn what_came_before_takes_turns_and_is_hidden_longer_while_it_has_its_own() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for (offset, attempt) in [(1, 2), (2, 3), (3, 3), (4, 9)] {
            held.arrive(delivered(offset, None, attempt), now, now);
        }
        let tokens: Vec<_> = held.take(9).iter().map(|(token, _)| *token).collect();
        let mut turn = |at: usize, now| held.turn(tokens[at], 8, now);
        assert_eq!(turn(0, now), Turn::Any);
        assert_eq!((turn(1, now), turn(2, now)), (Turn::Taken(60), Turn::Waits));
        assert_eq!(turn(1, now), Turn::Taken(60), "its next attempt");
        assert_eq!(turn(3, now), Turn::TooOften);
        assert_eq!(turn(2, now + TURN), Turn::Taken(60), "a long handler keeps nobody waiting for ever");
        assert_eq!(turn(1, now + TURN), Turn::Waits);
        let settled = held.settle(tokens[2], now);
        assert!(settled && held.turn(tokens[1], 8, now + TURN) == Turn::Waits, "until it is deleted");
        let deletes = held.next_deletes();
        held.deleted(&deletes, &HashSet::new());
        assert_eq!(held.turn(tokens[1], 8, now + TURN), Turn::Taken(60));
        assert!(held.park(tokens[1], now + VISIBILITY, now));
        assert_eq!(
            held.turn(tokens[3], 9, now + TURN),
            Turn::Taken(60),
            "what waits for a retry has no turn"
        );
    }

    #[test]
    fn what_was_only_behind_another_in_its_lane_is_not_given_up() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in [1, 2] {
            held.arrive(delivered(offset, Some(7), 9), now, now);
        }
        let tokens: Vec<_> = held.take(9).iter().map(|(token, _)| *token).collect();
        assert_eq!(held.turn(tokens[0], 8, now), Turn::TooOften);
        assert_eq!(held.turn(tokens[1], 8, now), Turn::Taken(60));
    }
}
