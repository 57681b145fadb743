//! What a subscription has of its queue on one channel: what is at hand, what was handed out, what is settled and not acked
//! yet. A plain value without a lock, a clock or a task.

use crate::acks::{Ack, Tag, Unacked};
use crate::names::hash;
use eventbus_core::Envelope;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The number of a delivery here. One that comes again has another one.
pub(crate) type Token = u64;
/// By this an event is known that comes again.
pub(crate) type Identity = u128;

/// How long an end waits for what is settled and has yet to come again for its ack.
const RETURN: Duration = Duration::from_secs(1);
/// How many events are remembered that were settled, in each of two halves.
const REMEMBERED: usize = 16_384;

/// A delivery that came.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) tag: Tag,
    pub(crate) identity: Identity,
    /// By this it is known again that was given back to be delivered once more: what has no name of its own has another
    /// identity then.
    pub(crate) mark: Identity,
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
    /// None, while it is on its way back.
    tag: Option<Tag>,
    identity: Identity,
    mark: Identity,
    /// What its key is, where it has one.
    key: Option<u64>,
    /// When it came last.
    since: Instant,
    /// A handler may have it.
    begun: bool,
}

/// How long a delivery may be held before it is renewed, and whether another process may get it then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) time: Duration,
    /// What is given back may go to others. So it is not held meanwhile, and what a handler has is not given back.
    pub(crate) shared: bool,
}

impl Lease {
    /// Whether a delivery can be given back, to come again.
    fn allows(self, entry: &Entry) -> bool {
        entry.tag.is_some() && !(self.shared && entry.begun)
    }
}

/// All deliveries of the present channel.
///
/// The server counts how long a delivery is out, whoever waits for what: a reader, a retry, another one of its key. So what
/// is held for long is *renewed*: given back to the queue, which sends it again at once, with a tag of its own, and known
/// here for what it is. Whoever has it notices nothing.
#[derive(Debug)]
pub(crate) struct Held {
    lease: Lease,
    /// When to look for what is held for long.
    renews: Option<Instant>,
    /// What is on its way back, by its mark, in its order. Some of it may have been settled meanwhile.
    returning: HashMap<Identity, VecDeque<Token>>,
    renewed: Option<Instant>,
    next: Token,
    /// Deliveries with an earlier number came by an earlier channel.
    first: Token,
    entries: BTreeMap<Token, Entry>,
    at_hand: BTreeMap<Token, Waiting>,
    unacked: Unacked,
    settled: Remembered,
}

impl Held {
    pub(crate) fn new(lease: Lease) -> Self {
        Self {
            lease,
            renews: None,
            returning: HashMap::new(),
            renewed: None,
            next: 0,
            first: 0,
            entries: BTreeMap::new(),
            at_hand: BTreeMap::new(),
            unacked: Unacked::default(),
            settled: Remembered::default(),
        }
    }

    /// A delivery came. False: it is nothing new, and where it was settled here before it is to be acked only.
    pub(crate) fn arrive(&mut self, arrival: Arrival, now: Instant) -> bool {
        let Arrival { tag, identity, mark, redelivered, envelope, attempt } = arrival;
        self.unacked.open(tag);
        if redelivered && let Some(token) = self.returned(mark) {
            match self.entries.get_mut(&token) {
                Some(entry) => (entry.tag, entry.since) = (Some(tag), now),
                None => self.unacked.settle(tag, now),
            }
            self.plan(now);
            return false;
        }
        if redelivered && self.settled.has(identity) {
            self.unacked.settle(tag, now);
            return false;
        }
        self.next += 1;
        let key = envelope.key().map(|key| hash(&[key]));
        let entry = Entry { tag: Some(tag), identity, mark, key, since: now, begun: false };
        self.entries.insert(self.next, entry);
        self.at_hand.insert(self.next, Waiting { envelope, attempt });
        self.plan(now);
        true
    }

    /// Something is held since then.
    fn plan(&mut self, since: Instant) {
        let at = since + self.lease.time;
        self.renews = Some(self.renews.map_or(at, |renews| renews.min(at)));
    }

    /// What has come back with this mark: the first that was given back.
    fn returned(&mut self, mark: Identity) -> Option<Token> {
        let token = *self.returning.get(&mark)?.front()?;
        self.forget_return(mark, token);
        Some(token)
    }

    fn forget_return(&mut self, mark: Identity, token: Token) {
        if let Some(tokens) = self.returning.get_mut(&mark) {
            tokens.retain(|other| *other != token);
            if tokens.is_empty() {
                self.returning.remove(&mark);
            }
        }
    }

    /// What is to be given back now, so that it comes again. With what is held for long goes what else there is of its key:
    /// on a takeover the server sends what was out in the order of its latest deliveries.
    pub(crate) fn renew(&mut self, now: Instant) -> Vec<Tag> {
        if self.renews.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let lease = self.lease;
        let is_late = |entry: &Entry| lease.allows(entry) && entry.since + lease.time <= now;
        let late = self.entries.values().filter(|entry| is_late(entry));
        let keys: HashSet<u64> = late.filter_map(|entry| entry.key).collect();
        let mut tags = Vec::new();
        for (token, entry) in &mut self.entries {
            let goes = is_late(entry) || entry.key.is_some_and(|key| keys.contains(&key));
            if goes
                && lease.allows(entry)
                && let Some(tag) = entry.tag.take()
            {
                self.unacked.forget(tag);
                self.returning.entry(entry.mark).or_default().push_back(*token);
                tags.push(tag);
            }
        }
        if !tags.is_empty() {
            self.renewed = Some(now);
        }
        let others = self.entries.values().filter(|entry| lease.allows(entry));
        self.renews = others.map(|entry| entry.since + lease.time).min();
        tags
    }

    /// When something is to be renewed.
    pub(crate) fn renewal_due(&self) -> Option<Instant> {
        self.renews
    }

    /// How many were settled on their way back, and are acked as they come.
    fn unreturned(&self) -> usize {
        let returning = self.returning.values().flatten();
        returning.filter(|token| !self.entries.contains_key(token)).count()
    }

    /// How long an end is to wait for them, should they come.
    pub(crate) fn returns_until(&self, now: Instant) -> Option<Instant> {
        let until = self.renewed? + RETURN;
        (until > now && self.unreturned() > 0).then_some(until)
    }

    /// A handler is about to get it. No, while others may have it.
    pub(crate) fn begin(&mut self, token: Token) -> bool {
        if !self.lease.shared {
            return true;
        }
        let Some(entry) = self.entries.get_mut(&token) else { return true };
        entry.begun = entry.tag.is_some();
        entry.begun
    }

    /// No handler has it any more, and it waits.
    pub(crate) fn rest(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.begun = false;
        let since = entry.since;
        self.plan(since);
    }

    /// Others may have it: it is not ours, and comes as another one if it comes.
    fn drop_shared(&mut self, token: Token) {
        let Some(Entry { tag: None, mark, .. }) = self.entries.get(&token).copied() else { return };
        if self.lease.shared {
            self.entries.remove(&token);
            self.forget_return(mark, token);
        }
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
        if !self.holds(token) {
            return Some(waiting);
        }
        self.rest(token);
        self.at_hand.insert(token, waiting)
    }

    pub(crate) fn holds(&mut self, token: Token) -> bool {
        self.drop_shared(token);
        self.entries.contains_key(&token)
    }

    /// It is done, and is to be acked. No, where it is not ours any more; what was settled already is so.
    pub(crate) fn settle(&mut self, token: Token, now: Instant) -> bool {
        if let Some(Entry { tag: None, .. }) = self.entries.get(&token)
            && self.lease.shared
        {
            self.drop_shared(token);
            return false;
        }
        match self.entries.remove(&token) {
            Some(Entry { tag, identity, .. }) => {
                // Without one it is on its way back, and is acked as it comes.
                if let Some(tag) = tag {
                    self.unacked.settle(tag, now);
                }
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
        self.returning.clear();
        (self.renews, self.renewed) = (None, None);
        self.unacked = Unacked::default();
        std::mem::take(&mut self.at_hand).into_values().collect()
    }

    /// Takes out what nobody has in hand, with its tags, to be given back to the queue.
    pub(crate) fn give_back(&mut self) -> Vec<(Tag, Waiting)> {
        let at_hand = std::mem::take(&mut self.at_hand);
        at_hand
            .into_iter()
            .filter_map(|(token, waiting)| {
                let Entry { tag, mark, .. } = self.entries.remove(&token)?;
                self.forget_return(mark, token);
                self.unacked.forget(tag?);
                Some((tag?, waiting))
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
        self.unacked.unsent() + self.unreturned()
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
        Arrival { tag, identity: tag.into(), mark: tag.into(), redelivered: false, envelope, attempt: 1 }
    }

    fn held(tags: std::ops::RangeInclusive<Tag>) -> Held {
        held_for(Lease { time: Duration::from_secs(3_600), shared: false }, tags)
    }

    fn held_for(lease: Lease, tags: std::ops::RangeInclusive<Tag>) -> Held {
        let mut held = Held::new(lease);
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
            let (mut held, mut now) = (Held::new(LEASE), Instant::now());
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
    const LEASE: Lease = Lease { time: Duration::from_secs(9), shared: false };

    /// The same delivery once more, as the server sends it after it was given back.
    fn again(tag: Tag, before: Tag) -> Arrival {
        Arrival { tag, redelivered: true, ..arrival(before) }
    }

    #[test]
    fn what_is_held_for_long_goes_back_and_comes_again_without_its_holder_noticing() {
        let (mut held, begun) = (Held::new(LEASE), Instant::now());
        assert!(held.arrive(arrival(1), begun));
        assert_eq!(held.renewal_due(), Some(begun + LEASE.time));
        assert!(held.arrive(arrival(2), begun + LEASE.time / 2));
        held.take(1);
        let late = begun + LEASE.time;
        assert_eq!(held.renew(late - Duration::from_millis(1)), [0; 0]);
        assert_eq!(held.renew(late), [1]);
        assert_eq!(held.renew(late), [0; 0], "it is on its way");
        assert!(held.holds(1));
        assert!(!held.arrive(again(3, 1), late), "it is nothing new");
        assert_eq!((held.open(), held.at_hand()), (2, 1));
        assert_eq!(held.renew(begun + LEASE.time * 3 / 2), [2], "the second is late by now");
        assert!(held.settle(1, late));
        assert_eq!(held.next_acks(late), [one(3)], "its tag is the new one");
    }

    #[test]
    fn what_is_settled_on_its_way_back_is_acked_as_it_comes() {
        let (mut held, begun) = (Held::new(LEASE), Instant::now());
        // It has no name of its own, so its identity is another one each time.
        assert!(held.arrive(arrival(1), begun));
        held.take(1);
        let late = begun + LEASE.time;
        assert_eq!(held.renew(late), [1]);
        assert!(held.settle(1, late));
        assert_eq!((held.next_acks(late), held.is_acked()), (vec![], false));
        assert_eq!(held.returns_until(late), Some(late + RETURN));
        assert_eq!(held.returns_until(late + RETURN), None, "it may never come");
        assert!(!held.arrive(Arrival { identity: 77, ..again(2, 1) }, late));
        assert_eq!(held.next_acks(late), [one(2)]);
        assert!(held.is_acked() && held.returns_until(late).is_none());
    }

    #[test]
    fn what_else_is_held_of_a_key_goes_with_it_in_its_order() {
        let (mut held, begun) = (Held::new(LEASE), Instant::now());
        let keyed = |tag: Tag, key: &str| {
            let envelope = Envelope::clone(&arrival(tag).envelope).with_key(key);
            Arrival { envelope: Arc::new(envelope), ..arrival(tag) }
        };
        for (tag, key) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
            let came = if tag == 1 { begun } else { begun + Duration::from_secs(1) };
            held.arrive(keyed(tag, key), came);
        }
        assert_eq!(held.renew(begun + LEASE.time), [1, 3]);
    }

    #[test]
    fn where_others_may_get_it_what_a_handler_has_stays_and_what_is_away_is_not_held() {
        let lease = Lease { shared: true, ..LEASE };
        let (mut held, late) = (held_for(lease, 1..=4), Instant::now() + LEASE.time);
        held.take(3);
        assert!(held.begin(1));
        assert_eq!(held.renew(late), [2, 3, 4]);
        assert!(held.holds(1) && held.settle(1, late));
        assert!(!held.begin(2), "somebody else may have it");
        assert!(!held.holds(2) && held.open() == 2);
        assert!(held.arrive(again(5, 2), late), "it is another one by now");
        assert!(!held.arrive(again(6, 3), late) && held.begin(3), "nobody had asked");
        assert_eq!(held.give_back().len(), 1, "one of the two at hand is away");
        assert!(held.arrive(again(7, 4), late));
        held.rest(3);
        assert_eq!(held.renew(late + LEASE.time), [6, 7]);
    }
}
