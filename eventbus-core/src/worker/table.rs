//! The table of lanes: which delivery may be handled now.
//!
//! Deliveries with one key share a lane. A lane has one delivery open, from its admission until it is settled, so that
//! the next one waits while it is handled or parked for a retry; deliveries without a key wait for nobody. A batch may
//! have several of a lane open: those that follow each other, in their order, until all of them are settled.
//!
//! The table knows neither locks nor clocks nor brokers: what it holds is a `T`.

use crate::event::Key;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// The lanes of one subscription.
pub(super) struct LaneTable<T> {
    /// What may be handled now.
    ready: VecDeque<T>,
    /// The lanes that have a delivery open.
    lanes: HashMap<Key, Lane<T>>,
    /// What waits for its next attempt; its lane stays closed.
    parked: HashMap<u64, T>,
    last_parked: u64,
    /// How many wait in lanes.
    waiting: usize,
    /// How many were taken and are neither parked nor settled.
    handled: usize,
    /// The number of the batch that is being gathered.
    batch: u64,
    /// The lanes of that batch from which more may join it.
    joining: VecDeque<Key>,
}

struct Lane<T> {
    /// How many are ready, handled, or parked.
    open: usize,
    /// The last batch that took from it.
    batch: u64,
    /// What failed while others that were handled with it were open, by the order of admission.
    failed: BTreeMap<u64, T>,
    waiting: VecDeque<T>,
}

impl<T> LaneTable<T> {
    pub(super) fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            parked: HashMap::new(),
            last_parked: 0,
            waiting: 0,
            handled: 0,
            batch: 1,
            joining: VecDeque::new(),
        }
    }

    /// Takes in a delivery: behind those of its key that are not settled.
    #[inline]
    pub(super) fn admit(&mut self, key: Option<Key>, delivery: T) {
        if let Some(key) = key {
            if let Some(lane) = self.lanes.get_mut(&key) {
                self.waiting += 1;
                if lane.batch == self.batch && lane.waiting.is_empty() {
                    self.joining.push_back(key);
                }
                return lane.waiting.push_back(delivery);
            }
            self.lanes.insert(key, Lane::new());
        }
        self.ready.push_back(delivery);
    }

    /// Takes what may be handled now. It is open until [`settled`](Self::settled) is told, and may be
    /// [parked](Self::park) meanwhile.
    #[inline]
    pub(super) fn take(&mut self) -> Option<T> {
        let delivery = self.ready.pop_front()?;
        self.handled += 1;
        Some(delivery)
    }

    /// Lets what follows a delivery of `key` join the batch that is being gathered, of which that one is a member.
    pub(super) fn let_join(&mut self, key: &Key) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.batch = self.batch;
            if !lane.waiting.is_empty() {
                self.joining.push_back(key.clone());
            }
        }
    }

    /// Takes what follows a member of the batch that is being gathered, if it `may_join`: lane by lane in turn.
    pub(super) fn take_joining(&mut self, may_join: impl Fn(&T) -> bool) -> Option<T> {
        while let Some(key) = self.joining.pop_front() {
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            if let Some(next) = lane.waiting.pop_front_if(|next| may_join(next)) {
                lane.open += 1;
                self.waiting -= 1;
                self.handled += 1;
                if !lane.waiting.is_empty() {
                    self.joining.push_back(key);
                }
                return Some(next);
            }
        }
        None
    }

    /// The batch is complete: nothing joins it any more.
    pub(super) fn close_batch(&mut self) {
        self.batch += 1;
        self.joining.clear();
    }

    /// Keeps a delivery that was taken until its next attempt; its lane stays closed, nothing else waits. The answer
    /// is by what [`unpark`](Self::unpark) finds it. None: others of its lane that were handled with it are open, so
    /// it waits for them; it comes before what was behind them, by the `order` of admission.
    pub(super) fn park(&mut self, key: Option<&Key>, order: u64, delivery: T) -> Option<u64> {
        self.handled -= 1;
        if let Some(lane) = key.and_then(|key| self.lanes.get_mut(key))
            && (lane.open > 1 || !lane.failed.is_empty())
        {
            lane.failed.insert(order, delivery);
            self.waiting += 1;
            self.close_one(key);
            return None;
        }
        self.last_parked += 1;
        self.parked.insert(self.last_parked, delivery);
        Some(self.last_parked)
    }

    /// The next attempt is due: it goes first. `false`: it is not parked here any more.
    pub(super) fn unpark(&mut self, parked: u64) -> bool {
        let delivery = self.parked.remove(&parked);
        let found = delivery.is_some();
        delivery.into_iter().for_each(|delivery| self.ready.push_front(delivery));
        found
    }

    /// A delivery that was taken is settled, or is not ours any more: the next one of its lane may be handled.
    #[inline]
    pub(super) fn settled(&mut self, key: Option<&Key>) {
        self.handled -= 1;
        self.close_one(key);
    }

    /// One fewer is open in a lane; after the last one, the next may be handled.
    #[inline]
    fn close_one(&mut self, key: Option<&Key>) {
        let Some(key) = key else { return };
        // After the table was cleared there is none.
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.open -= 1;
        if lane.open > 0 {
            return;
        }
        while let Some((_, failed)) = lane.failed.pop_last() {
            lane.waiting.push_front(failed);
        }
        match lane.waiting.pop_front() {
            Some(next) => {
                lane.open = 1;
                // The batch that is being gathered may have had it; what comes now is not of that batch.
                lane.batch = 0;
                self.waiting -= 1;
                self.ready.push_back(next);
            }
            None => drop(self.lanes.remove(key)),
        }
    }

    /// Gives away everything that is not being handled.
    pub(super) fn clear(&mut self) -> Vec<T> {
        self.waiting = 0;
        self.joining.clear();
        let ready = std::mem::take(&mut self.ready).into_iter();
        let parked = std::mem::take(&mut self.parked).into_values();
        let lanes = std::mem::take(&mut self.lanes).into_values();
        ready
            .chain(parked)
            .chain(lanes.flat_map(|lane| lane.failed.into_values().chain(lane.waiting)))
            .collect()
    }

    /// Whether something may be handled now.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many were taken and are neither parked nor settled.
    pub(super) fn handled(&self) -> usize {
        self.handled
    }

    /// How many are ready or being handled.
    pub(super) fn active(&self) -> usize {
        self.ready.len() + self.handled
    }

    /// How many are held back: behind others of their lane, or until their next attempt.
    pub(super) fn held_back(&self) -> usize {
        self.waiting + self.parked.len()
    }

    /// How many wait for their next attempt.
    pub(super) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// How many are not settled.
    pub(super) fn held(&self) -> usize {
        self.active() + self.held_back()
    }
}

impl<T> Lane<T> {
    /// A lane whose first delivery is open.
    fn new() -> Self {
        Self { open: 1, batch: 0, failed: BTreeMap::new(), waiting: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A delivery of these tests: its key, and its place in the order of publishing.
    type Numbered = (Option<Key>, u64);

    fn a() -> Option<Key> {
        Some(Key::new("a"))
    }

    /// Admits deliveries with these keys, `-` for none, numbered from 0.
    fn table(keys: &str) -> LaneTable<Numbered> {
        let mut table = LaneTable::new();
        for (number, key) in keys.chars().enumerate() {
            admit(&mut table, key, number as u64);
        }
        table
    }

    fn admit(table: &mut LaneTable<Numbered>, key: char, number: u64) {
        let key = (key != '-').then(|| Key::new(key));
        table.admit(key.clone(), (key, number));
    }

    fn take(table: &mut LaneTable<Numbered>) -> Option<u64> {
        table.take().map(|(_, number)| number)
    }

    fn take_all(table: &mut LaneTable<Numbered>) -> Vec<u64> {
        std::iter::from_fn(|| take(table)).collect()
    }

    /// Gathers a batch.
    fn batch(table: &mut LaneTable<Numbered>, size: usize) -> Vec<Numbered> {
        let mut members = Vec::new();
        while members.len() < size {
            if let Some(first) = table.take() {
                first.0.iter().for_each(|key| table.let_join(key));
                members.push(first);
            } else if let Some(next) = table.take_joining(|_| true) {
                members.push(next);
            } else {
                break;
            }
        }
        table.close_batch();
        members
    }

    fn numbers(members: &[Numbered]) -> Vec<u64> {
        members.iter().map(|(_, number)| *number).collect()
    }

    #[test]
    fn deliveries_of_one_key_come_one_after_the_other_and_the_others_at_once() {
        let mut table = table("aa-ba");
        assert_eq!(take_all(&mut table), [0, 2, 3]);
        assert_eq!((table.handled(), table.active(), table.held_back(), table.held()), (3, 3, 2, 5));
        table.settled(a().as_ref());
        assert_eq!(take_all(&mut table), [1]);
    }

    #[test]
    fn a_parked_delivery_keeps_its_lane_closed_and_comes_first_when_it_is_due() {
        let mut table = table("aabc");
        let first = table.take().unwrap();
        let parked = table.park(a().as_ref(), 0, first).unwrap();
        assert_eq!(take(&mut table), Some(2));
        assert!(table.unpark(parked));
        assert!(!table.unpark(parked), "it is not there twice");
        assert_eq!(take_all(&mut table), [0, 3]);
        assert_eq!(table.held(), 4);
    }

    #[test]
    fn what_is_cleared_is_everything_that_is_not_being_handled() {
        let mut table = table("aa-b");
        let first = table.take().unwrap();
        table.park(a().as_ref(), 0, first);
        assert_eq!(take(&mut table), Some(2));
        let mut given_away = numbers(&table.clear());
        given_away.sort_unstable();
        assert_eq!(given_away, [0, 1, 3]);
        assert_eq!((table.held(), table.handled(), table.has_ready()), (1, 1, false));
        table.settled(None);
        assert_eq!(table.held(), 0);
    }

    #[test]
    fn a_batch_takes_what_follows_of_a_key_in_its_order_and_no_other_batch_does_meanwhile() {
        let mut table = table("aabaab");
        let first = batch(&mut table, 4);
        assert_eq!(numbers(&first), [0, 2, 1, 5]);
        admit(&mut table, 'a', 6);
        admit(&mut table, 'c', 7);
        assert_eq!(numbers(&batch(&mut table, 4)), [7], "the lanes of the first batch are closed");
        first[..3].iter().for_each(|(key, _)| table.settled(key.as_ref()));
        assert_eq!(numbers(&batch(&mut table, 2)), [3, 4], "both of `a` are settled, one of `b` is not");
    }

    #[test]
    fn what_comes_while_a_batch_is_gathered_joins_it() {
        let mut table = table("a");
        let (key, _) = table.take().unwrap();
        table.let_join(key.as_ref().unwrap());
        assert!(table.take_joining(|_| true).is_none());
        admit(&mut table, 'a', 1);
        admit(&mut table, 'a', 2);
        assert!(
            table.take_joining(|(_, number)| *number > 1).is_none(),
            "not what may not join, nor past it"
        );
        table.close_batch();
        assert!(table.take_joining(|_| true).is_none());
    }

    #[test]
    fn members_of_one_key_that_failed_together_come_again_in_their_order_before_what_is_behind() {
        let mut table = table("aaaa");
        let members = batch(&mut table, 3);
        admit(&mut table, 'a', 4);
        // They fail in another order than that of their publishing.
        for member in [2, 0] {
            assert_eq!(table.park(a().as_ref(), member as u64, members[member].clone()), None);
        }
        assert!(!table.has_ready());
        table.settled(a().as_ref());
        assert_eq!(take(&mut table), Some(0));
        assert_eq!(table.park(a().as_ref(), 0, (a(), 0)), Some(1), "it is open alone");
        assert!(table.unpark(1));
        assert_eq!(numbers(&batch(&mut table, 9)), [0, 2, 3, 4]);
    }

    #[test]
    fn whatever_happens_a_batch_takes_the_first_of_a_key_that_are_not_settled_and_no_other_batch_does() {
        for seed in 0..400 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut table, size) = (LaneTable::new(), random.usize(1..5));
            let (mut admitted, mut handled, mut parked) = (0, Vec::<Vec<Numbered>>::new(), Vec::new());
            let mut unsettled: BTreeMap<Option<Key>, BTreeSet<u64>> = BTreeMap::new();
            while admitted < 200 || table.held() > 0 {
                match random.u8(0..8) {
                    0..3 if admitted < 200 => {
                        let key = ['a', 'b', 'c', '-'][random.usize(0..4)];
                        admit(&mut table, key, admitted);
                        unsettled.entry((key != '-').then(|| Key::new(key))).or_default().insert(admitted);
                        admitted += 1;
                    }
                    0..5 => {
                        let members = batch(&mut table, size);
                        let mut by_key: BTreeMap<Key, Vec<u64>> = BTreeMap::new();
                        for (key, number) in members.iter().cloned() {
                            key.into_iter().for_each(|key| by_key.entry(key).or_default().push(number));
                        }
                        for (key, numbers) in by_key {
                            let first = unsettled[&Some(key)].iter().take(numbers.len()).copied();
                            assert!(numbers.iter().copied().eq(first), "seed {seed}: {numbers:?}");
                        }
                        handled.extend((!members.is_empty()).then_some(members));
                    }
                    5 if !parked.is_empty() => {
                        assert!(table.unpark(parked.swap_remove(random.usize(0..parked.len()))));
                    }
                    _ if !handled.is_empty() => {
                        // The members of a batch are settled in any order, and some fail.
                        let batch = random.usize(0..handled.len());
                        let member = random.usize(0..handled[batch].len());
                        let (key, number) = handled[batch].swap_remove(member);
                        handled.retain(|members| !members.is_empty());
                        if random.u8(0..4) == 0 {
                            parked.extend(table.park(key.as_ref(), number, (key.clone(), number)));
                        } else {
                            table.settled(key.as_ref());
                            assert!(
                                unsettled.entry(key).or_default().remove(&number),
                                "seed {seed}: {number} twice"
                            );
                        }
                    }
                    _ => {}
                }
                assert_eq!(table.handled(), handled.iter().map(Vec::len).sum::<usize>(), "seed {seed}");
                assert_eq!(table.held(), unsettled.values().map(BTreeSet::len).sum::<usize>(), "seed {seed}");
            }
            assert_eq!(admitted, 200);
            assert!(table.lanes.is_empty(), "lanes of keys that have nothing are dropped, seed {seed}");
        }
    }
}
