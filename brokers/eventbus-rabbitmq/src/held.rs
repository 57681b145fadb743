//! What a subscription has of its queue on one channel: what is at hand, what was handed out, what is settled and not acked
//! yet. A plain value without a lock, a clock or a task.

use crate::acks::{Ack, Tag, Unacked};
use eventbus_core::Envelope;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

/// The number of a delivery here. One that comes again has another one.
pub(crate) type Token = u64;
/// By this an event is known that comes again.
pub(crate) type Identity = u128;

/// How many events are remembered that were settled, in each of two halves.
const REMEMBERED: usize = 16_384;

/// A delivery that came.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) tag: Tag,
    pub(crate) identity: Identity,
    /// The server says that somebody had it before.
    pub(crate) redelivered: bool,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) attempt: u32,
}

/// What waits for the reader.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) attempt: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    tag: Tag,
    identity: Identity,
}

/// All deliveries of the present channel.
#[derive(Debug, Default)]
pub(crate) struct Held {
    next: Token,
    /// Deliveries with an earlier number came by an earlier channel.
    first: Token,
    entries: BTreeMap<Token, Entry>,
    at_hand: BTreeMap<Token, Waiting>,
    unacked: Unacked,
    settled: Remembered,
}

impl Held {
    /// A delivery came. False: it was settled here before, and is to be acked only.
    pub(crate) fn arrive(&mut self, arrival: Arrival, now: Instant) -> bool {
        let Arrival { tag, identity, redelivered, envelope, attempt } = arrival;
        self.unacked.open(tag);
        if redelivered && self.settled.has(identity) {
            self.unacked.settle(tag, now);
            return false;
        }
        self.next += 1;
        self.entries.insert(self.next, Entry { tag, identity });
        self.at_hand.insert(self.next, Waiting { envelope, attempt });
        true
    }

    /// Takes what is at hand, in the order in which it came.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<(Token, Waiting)> {
        let mut taken = Vec::with_capacity(limit.min(self.at_hand.len()));
        while taken.len() < limit
            && let Some(next) = self.at_hand.pop_first()
        {
            taken.push(next);
        }
        taken
    }

    /// Puts back what was handed out. What is not held any more comes back, to be dropped.
    pub(crate) fn put_back(&mut self, token: Token, waiting: Waiting) -> Option<Waiting> {
        if self.holds(token) { self.at_hand.insert(token, waiting) } else { Some(waiting) }
    }

    pub(crate) fn holds(&self, token: Token) -> bool {
        self.entries.contains_key(&token)
    }

    /// It is done, and is to be acked. No, where it is not ours any more; what was settled already is so.
    pub(crate) fn settle(&mut self, token: Token, now: Instant) -> bool {
        match self.entries.remove(&token) {
            Some(Entry { tag, identity }) => {
                self.unacked.settle(tag, now);
                self.settled.remember(identity);
                true
            }
            None => token > self.first && token <= self.next,
        }
    }

    /// What it is known by when it comes again, while it is held.
    pub(crate) fn identity(&self, token: Token) -> Option<Identity> {
        self.entries.get(&token).map(|entry| entry.identity)
    }

    /// It is done, though its channel has gone before it could be acked: it comes again, and is to be acked then.
    pub(crate) fn remember(&mut self, identity: Identity) {
        self.settled.remember(identity);
    }

    /// What is to be acked now.
    pub(crate) fn next_acks(&mut self, now: Instant) -> Vec<Ack> {
        self.unacked.next(now)
    }

    /// All that is settled is acked, however little of it stands together.
    pub(crate) fn last_acks(&mut self) -> Vec<Ack> {
        self.unacked.all()
    }

    /// When acks are due that wait for what came before them.
    pub(crate) fn acks_due(&self) -> Option<Instant> {
        self.unacked.due()
    }

    /// The channel is gone: the server gives everything of it to whoever asks, maybe to us. What was at hand is to be
    /// dropped.
    pub(crate) fn lose(&mut self) -> Vec<Waiting> {
        self.first = self.next;
        self.entries.clear();
        self.unacked = Unacked::default();
        std::mem::take(&mut self.at_hand).into_values().collect()
    }

    /// Takes out what nobody has in hand, with its tags, to be given back to the queue.
    pub(crate) fn give_back(&mut self) -> Vec<(Tag, Waiting)> {
        let at_hand = std::mem::take(&mut self.at_hand);
        at_hand
            .into_iter()
            .filter_map(|(token, waiting)| {
                let entry = self.entries.remove(&token)?;
                self.unacked.forget(entry.tag);
                Some((entry.tag, waiting))
            })
            .collect()
    }

    pub(crate) fn at_hand(&self) -> usize {
        self.at_hand.len()
    }

    /// How many deliveries are not settled.
    pub(crate) fn open(&self) -> usize {
        self.entries.len()
    }

    /// How many of them somebody has.
    pub(crate) fn in_hand(&self) -> usize {
        self.entries.len() - self.at_hand.len()
    }

    /// Whether an ack was sent for everything that is settled.
    pub(crate) fn is_acked(&self) -> bool {
        self.unconfirmed() == 0
    }

    /// How many acks are to be sent.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.unacked.unsent()
    }
}

/// Events that were settled, the latest of them.
#[derive(Debug, Default)]
struct Remembered {
    latest: HashSet<Identity>,
    before: HashSet<Identity>,
}

impl Remembered {
    fn remember(&mut self, identity: Identity) {
        if self.latest.len() >= REMEMBERED {
            self.before = std::mem::take(&mut self.latest);
        }
        self.latest.insert(identity);
    }

    fn has(&self, identity: Identity) -> bool {
        self.latest.contains(&identity) || self.before.contains(&identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acks::APART;
    use eventbus_core::Topic;
    use std::collections::BTreeSet;
    use std::time::Duration;

    #[test]
    fn what_was_stored_elsewhere_as_its_channel_went_is_only_acked_when_it_comes_again() {
        let (mut held, now) = (held(1..=1), Instant::now());
        let (token, _) = held.take(1).remove(0);
        let identity = held.identity(token).unwrap();
        held.lose();
        assert!(!held.settle(token, now), "it is not ours any more");
        assert_eq!(held.identity(token), None);
        held.remember(identity);
        assert!(!held.arrive(Arrival { redelivered: true, ..arrival(1) }, now));
        assert_eq!((held.next_acks(now), held.open()), (vec![one(1)], 0));
    }

    fn arrival(tag: Tag) -> Arrival {
        let envelope = Arc::new(Envelope::from_json(Topic::from_static("a.b"), &tag).unwrap());
        Arrival { tag, identity: tag.into(), redelivered: false, envelope, attempt: 1 }
    }

    fn held(tags: std::ops::RangeInclusive<Tag>) -> Held {
        let mut held = Held::default();
        tags.for_each(|tag| assert!(held.arrive(arrival(tag), Instant::now())));
        held
    }

    fn one(tag: Tag) -> Ack {
        Ack { tag, multiple: false }
    }

    fn up_to(tag: Tag) -> Ack {
        Ack { tag, multiple: true }
    }

    #[test]
    fn an_ack_for_many_goes_up_to_the_first_that_is_open() {
        let (mut held, now) = (held(1..=5), Instant::now());
        held.take(5);
        [1, 2, 4, 5].into_iter().for_each(|token| assert!(held.settle(token, now)));
        assert_eq!(held.next_acks(now), [up_to(2)]);
        assert_eq!(held.next_acks(now), [], "4 and 5 wait for 3");
        held.settle(3, now);
        assert_eq!(held.next_acks(now), [up_to(5)]);
        assert!(held.is_acked() && held.open() == 0);
    }

    #[test]
    fn what_is_finished_beyond_one_that_is_open_for_long_is_acked_apart_and_never_named_again() {
        let (mut held, now) = (held(1..=5), Instant::now());
        held.take(5);
        [2, 4].into_iter().for_each(|token| assert!(held.settle(token, now)));
        assert_eq!(held.next_acks(now), []);
        assert_eq!(held.acks_due(), Some(now + APART));
        assert_eq!(held.next_acks(now + APART), [one(2), one(4)]);
        [1, 3].into_iter().for_each(|token| assert!(held.settle(token, now)));
        assert_eq!(held.next_acks(now), [up_to(3)], "4 is acked, so the server does not know it");
        held.settle(5, now);
        assert_eq!(held.next_acks(now), [one(5)]);
    }

    #[test]
    fn a_lot_that_is_finished_does_not_wait() {
        let (mut held, now) = (held(1..=400), Instant::now());
        held.take(400);
        (2..=300).for_each(|token| assert!(held.settle(token, now)));
        assert_eq!(held.next_acks(now).len(), 299);
    }

    #[test]
    fn what_was_given_back_comes_before_what_waits_in_its_order() {
        let mut held = held(1..=4);
        let mut taken = held.take(2);
        while let Some((token, waiting)) = taken.pop() {
            assert!(held.put_back(token, waiting).is_none());
        }
        assert_eq!(held.take(9).into_iter().map(|(token, _)| token).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn nothing_of_an_earlier_channel_is_settled_and_what_is_settled_stays_so() {
        let (mut held, now) = (held(1..=3), Instant::now());
        let taken = held.take(2);
        assert!(held.settle(1, now) && held.settle(1, now), "twice is once");
        assert_eq!(held.lose().len(), 1, "one was at hand");
        assert!(!held.holds(2) && !held.settle(2, now) && !held.settle(1, now));
        for (token, waiting) in taken {
            assert!(held.put_back(token, waiting).is_some());
        }
        assert_eq!((held.next_acks(now), held.open(), held.at_hand()), (vec![], 0, 0));
        // The tags of another channel begin anew.
        assert!(held.arrive(Arrival { redelivered: true, ..arrival(2) }, now));
        assert!(
            !held.arrive(Arrival { tag: 1, identity: 1, redelivered: true, ..arrival(1) }, now),
            "it was settled here"
        );
        assert!(
            held.arrive(Arrival { tag: 3, identity: 1, redelivered: false, ..arrival(1) }, now),
            "it was published again"
        );
        assert_eq!(held.next_acks(now), [one(1)]);
    }

    #[test]
    fn what_nobody_has_is_given_back_and_the_rest_is_acked_as_ever() {
        let (mut held, now) = (held(1..=4), Instant::now());
        held.take(2);
        assert_eq!(held.give_back().into_iter().map(|(tag, _)| tag).collect::<Vec<_>>(), [3, 4]);
        assert_eq!((held.in_hand(), held.at_hand()), (2, 0));
        [1, 2].into_iter().for_each(|token| assert!(held.settle(token, now)));
        assert_eq!(held.next_acks(now), [up_to(2)]);
    }

    /// What the server knows: the tags that are not acked. It ends the channel where an ack names another one.
    #[test]
    fn no_order_of_settling_names_a_tag_twice_or_acks_what_is_open() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..300 {
            let (mut held, mut now) = (Held::default(), Instant::now());
            let (mut server, mut open) = (BTreeSet::new(), BTreeSet::new());
            let mut next = 0;
            for _ in 0..200 {
                match random.u8(..5) {
                    0 | 1 => {
                        next += 1;
                        assert!(held.arrive(arrival(next), now));
                        server.insert(next);
                        open.insert(next);
                        held.take(1);
                    }
                    2 | 3 => {
                        let tags: Vec<_> = open.iter().copied().collect();
                        if let Some(tag) = random.choice(tags) {
                            assert!(held.settle(tag, now));
                            open.remove(&tag);
                        }
                    }
                    _ => {
                        now += Duration::from_millis(random.u64(..80));
                        for Ack { tag, multiple } in held.next_acks(now) {
                            assert!(server.remove(&tag), "{tag} is not there");
                            if multiple {
                                server.retain(|other| *other > tag);
                            }
                            assert!(open.is_subset(&server), "what is open was acked");
                        }
                    }
                }
            }
            for Ack { tag, multiple } in held.last_acks() {
                assert!(server.remove(&tag));
                if multiple {
                    server.retain(|other| *other > tag);
                }
            }
            assert_eq!(server, open, "everything else is acked");
        }
    }
}
