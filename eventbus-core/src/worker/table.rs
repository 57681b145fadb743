//! The table of lanes: which delivery may be handled now.
//!
//! Deliveries with one key share a lane. A lane has at most one delivery open, from its admission until it is
//! settled, so that the next one waits while it is handled or parked for a retry; deliveries without a key wait
//! for nobody. The table knows neither locks nor clocks nor brokers: what it holds is a `T`.

use crate::event::Key;
use std::collections::{HashMap, VecDeque};

/// The lanes of one subscription.
pub(super) struct LaneTable<T> {
    /// What may be handled now.
    ready: VecDeque<T>,
    /// The lanes that have a delivery open, and what waits behind it.
    lanes: HashMap<Key, VecDeque<T>>,
    /// What waits for its next attempt; its lane stays closed.
    parked: HashMap<u64, T>,
    last_parked: u64,
    /// How many wait in lanes.
    waiting: usize,
    /// How many were taken and are neither parked nor settled.
    handled: usize,
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
        }
    }

    /// Takes in a delivery: behind those of its key that are not settled.
    pub(super) fn admit(&mut self, key: Option<Key>, delivery: T) {
        if let Some(key) = key {
            if let Some(lane) = self.lanes.get_mut(&key) {
                self.waiting += 1;
                return lane.push_back(delivery);
            }
            self.lanes.insert(key, VecDeque::new());
        }
        self.ready.push_back(delivery);
    }

    /// Takes what may be handled now. It is open until [`settled`](Self::settled) is told, and may be
    /// [parked](Self::park) meanwhile.
    pub(super) fn take(&mut self) -> Option<T> {
        let delivery = self.ready.pop_front()?;
        self.handled += 1;
        Some(delivery)
    }

    /// Keeps a delivery that was taken until its next attempt; its lane stays closed, nothing else waits. The answer
    /// is by what [`unpark`](Self::unpark) finds it.
    pub(super) fn park(&mut self, delivery: T) -> u64 {
        self.handled -= 1;
        self.last_parked += 1;
        self.parked.insert(self.last_parked, delivery);
        self.last_parked
    }

    /// The next attempt is due: it goes first. `false`: it is not parked here any more.
    pub(super) fn unpark(&mut self, parked: u64) -> bool {
        let delivery = self.parked.remove(&parked);
        let found = delivery.is_some();
        delivery.into_iter().for_each(|delivery| self.ready.push_front(delivery));
        found
    }

    /// A delivery that was taken is settled, or is not ours any more: the next one of its lane may be handled.
    pub(super) fn settled(&mut self, key: Option<&Key>) {
        self.handled -= 1;
        let Some(key) = key else { return };
        // After the lanes were cleared there is none.
        let Some(lane) = self.lanes.get_mut(key) else { return };
        match lane.pop_front() {
            Some(next) => {
                self.waiting -= 1;
                self.ready.push_back(next);
            }
            None => drop(self.lanes.remove(key)),
        }
    }

    /// Gives away everything that is not being handled.
    pub(super) fn clear(&mut self) -> Vec<T> {
        self.waiting = 0;
        let ready = std::mem::take(&mut self.ready).into_iter();
        let parked = std::mem::take(&mut self.parked).into_values();
        let lanes = std::mem::take(&mut self.lanes).into_values().flatten();
        ready.chain(parked).chain(lanes).collect()
    }

    /// Whether something may be handled now.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many were taken and are neither parked nor settled.
    pub(super) fn handled(&self) -> usize {
        self.handled
    }

    /// How many are ready, waiting, parked, and being handled.
    pub(super) fn held(&self) -> usize {
        self.ready.len() + self.waiting + self.parked.len() + self.handled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A delivery of these tests: its key, and its place in the order of publishing.
    type Numbered = (Option<Key>, u64);

    fn key_of(text: &str) -> Key {
        Key::new(text)
    }

    fn admit(table: &mut LaneTable<Numbered>, key: Option<&str>, number: u64) {
        let key = key.map(key_of);
        table.admit(key.clone(), (key, number));
    }

    fn take(table: &mut LaneTable<Numbered>) -> Option<u64> {
        table.take().map(|(_, number)| number)
    }

    #[test]
    fn deliveries_of_one_key_come_one_after_the_other_and_the_others_at_once() {
        let mut table = LaneTable::new();
        for (number, key) in [Some("a"), Some("a"), None, Some("b"), Some("a")].into_iter().enumerate() {
            admit(&mut table, key, number as u64);
        }
        let at_once = [take(&mut table), take(&mut table), take(&mut table), take(&mut table)];
        assert_eq!(at_once, [Some(0), Some(2), Some(3), None]);
        assert_eq!((table.handled(), table.held()), (3, 5));
        table.settled(Some(&key_of("a")));
        assert_eq!((take(&mut table), take(&mut table)), (Some(1), None));
    }

    #[test]
    fn a_parked_delivery_keeps_its_lane_closed_and_comes_first_when_it_is_due() {
        let mut table = LaneTable::new();
        for (number, key) in [Some("a"), Some("a"), Some("b"), Some("c")].into_iter().enumerate() {
            admit(&mut table, key, number as u64);
        }
        let first = table.take().unwrap();
        let parked = table.park(first);
        assert_eq!(take(&mut table), Some(2));
        assert!(table.unpark(parked));
        assert!(!table.unpark(parked), "it is not there twice");
        assert_eq!((take(&mut table), take(&mut table), take(&mut table)), (Some(0), Some(3), None));
        assert_eq!(table.held(), 4);
    }

    #[test]
    fn what_is_cleared_is_everything_that_is_not_being_handled() {
        let mut table = LaneTable::new();
        for (number, key) in [Some("a"), Some("a"), None, Some("b")].into_iter().enumerate() {
            admit(&mut table, key, number as u64);
        }
        let first = table.take().unwrap();
        table.park(first);
        assert_eq!(take(&mut table), Some(2));
        let mut given_away: Vec<_> = table.clear().into_iter().map(|(_, number)| number).collect();
        given_away.sort_unstable();
        assert_eq!(given_away, [0, 1, 3]);
        assert_eq!((table.held(), table.handled(), table.has_ready()), (1, 1, false));
        table.settled(None);
        assert_eq!(table.held(), 0);
    }

    #[test]
    fn whatever_happens_each_delivery_is_settled_once_and_those_of_a_key_in_their_order() {
        for seed in 0..400 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut table = LaneTable::new();
            let (mut admitted, mut open, mut parked) = (0, Vec::new(), Vec::new());
            let mut settled: HashMap<Option<Key>, Vec<u64>> = HashMap::new();
            while admitted < 200 || table.held() > 0 {
                match random.u8(0..8) {
                    0..3 if admitted < 200 => {
                        let key = ["a", "b", "c", ""][random.usize(0..4)];
                        admit(&mut table, Some(key).filter(|key| !key.is_empty()), admitted);
                        admitted += 1;
                    }
                    0..5 => open.extend(table.take()),
                    5 if !open.is_empty() => {
                        let taken = open.swap_remove(random.usize(0..open.len()));
                        parked.push(table.park(taken));
                    }
                    6 if !parked.is_empty() => {
                        assert!(table.unpark(parked.swap_remove(random.usize(0..parked.len()))));
                    }
                    _ if !open.is_empty() => {
                        let (key, number) = open.swap_remove(random.usize(0..open.len()));
                        table.settled(key.as_ref());
                        settled.entry(key).or_default().push(number);
                    }
                    _ => {}
                }
                assert_eq!(table.handled(), open.len(), "seed {seed}");
                let settled: usize = settled.values().map(Vec::len).sum();
                assert_eq!(table.held() + settled, admitted as usize, "seed {seed}");
                let keys: Vec<_> = open.iter().filter_map(|(key, _)| key.as_ref()).collect();
                let distinct: std::collections::HashSet<_> = keys.iter().collect();
                assert_eq!(keys.len(), distinct.len(), "two of one key at once, seed {seed}");
            }
            for (key, numbers) in settled {
                assert!(key.is_none() || numbers.is_sorted(), "seed {seed}: {key:?} {numbers:?}");
            }
            assert!(table.lanes.is_empty(), "lanes of keys that have nothing are dropped, seed {seed}");
        }
    }
}
