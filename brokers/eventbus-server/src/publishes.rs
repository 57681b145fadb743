//! Publishes whose confirmation is awaited apart from their sending: which are open, which are to be sent again, and
//! which are given up.
//!
//! A plain value without a lock, a clock or a task, for a broker that knows an event again which is sent twice.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// The number of a publish. They rise in the order in which publishes were opened.
pub type Ticket = u64;

/// Publishes of one batch and one key, which are stored in their order or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// Which batch.
    pub batch: u64,
    /// Which key, as a hash.
    pub key: u64,
}

/// What is sent, and who waits for it.
#[derive(Debug)]
struct Open<M, A> {
    message: M,
    answer: A,
    order: Option<Order>,
    opened: Instant,
    /// When it was sent last; none, where it is to be sent.
    sent: Option<Instant>,
    /// How often it was sent without coming back: each time may have stored it.
    gone: usize,
    deadline: Instant,
}

/// All publishes that are neither confirmed nor refused: `M` is what is sent, `A` takes the answer.
#[derive(Debug)]
pub struct Publishes<M, A> {
    next: Ticket,
    open: BTreeMap<Ticket, Open<M, A>>,
    /// The latest that was confirmed of those that are stored in their order, as long as others of them are open.
    confirmed: HashMap<Order, Confirmed>,
}

#[derive(Debug, Default)]
struct Confirmed {
    latest: Option<Ticket>,
    open: usize,
}

/// What is to be done about publishes that were not confirmed in time.
#[derive(Debug)]
pub struct Overdue<M, A> {
    /// To be sent once more, in this order.
    pub again: Vec<(Ticket, M)>,
    /// Given up: whether they are stored is not known.
    pub given_up: Vec<A>,
}

impl<M, A> Default for Publishes<M, A> {
    fn default() -> Self {
        Self { next: 0, open: BTreeMap::new(), confirmed: HashMap::new() }
    }
}

impl<M: Clone, A> Publishes<M, A> {
    /// Opens a publish that is sent at once, or else when [`overdue`](Self::overdue) is looked for the next time. At
    /// `deadline` it is given up.
    pub fn open(
        &mut self,
        message: M,
        answer: A,
        order: Option<Order>,
        at_once: bool,
        [now, deadline]: [Instant; 2],
    ) -> Ticket {
        self.next += 1;
        if let Some(order) = order {
            self.confirmed.entry(order).or_default().open += 1;
        }
        self.open.insert(
            self.next,
            Open {
                message,
                answer,
                order,
                opened: now,
                sent: at_once.then_some(now),
                gone: at_once.into(),
                deadline,
            },
        );
        self.next
    }

    /// It is stored. Who is to be told; nobody, where it was answered before.
    pub fn confirm(&mut self, ticket: Ticket) -> Option<A> {
        self.answer(ticket, true)
    }

    /// It was refused, and is not stored. Who is to be told; nobody, where it was answered before.
    pub fn refuse(&mut self, ticket: Ticket) -> Option<A> {
        self.answer(ticket, false)
    }

    fn answer(&mut self, ticket: Ticket, confirmed: bool) -> Option<A> {
        let open = self.open.remove(&ticket)?;
        if let Some(order) = open.order {
            self.leave(order, confirmed.then_some(ticket));
        }
        Some(open.answer)
    }

    fn leave(&mut self, order: Order, confirmed: Option<Ticket>) {
        if let Some(others) = self.confirmed.get_mut(&order) {
            others.open -= 1;
            others.latest = others.latest.max(confirmed);
            if others.open == 0 {
                self.confirmed.remove(&order);
            }
        }
    }

    /// Refuses all whose message is such. Who is to be told, with the messages.
    pub fn refuse_where(&mut self, mut is_such: impl FnMut(&M) -> bool) -> Vec<(M, A)> {
        let found = self.open.iter().filter(|(_, open)| is_such(&open.message));
        let found: Vec<_> = found.map(|(ticket, open)| (*ticket, open.message.clone())).collect();
        found.into_iter().filter_map(|(ticket, message)| Some((message, self.refuse(ticket)?))).collect()
    }

    /// It was not taken, and is to be sent again. How long ago it was opened; none, where it is not open.
    pub fn return_to_sender(&mut self, ticket: Ticket, now: Instant) -> Option<Duration> {
        let open = self.open.get_mut(&ticket)?;
        open.sent = None;
        open.gone = open.gone.saturating_sub(1);
        Some(now.saturating_duration_since(open.opened))
    }

    /// Whether it was sent, and neither confirmed nor returned: it is not to be refused then.
    #[must_use]
    pub fn may_be_stored(&self, ticket: Ticket) -> bool {
        self.open.get(&ticket).is_some_and(|open| open.gone > 0)
    }

    /// What to do about those that are open and were not sent since `sent_before`. What was overtaken by a later one
    /// of its key is given up, since stored now it would stand behind that one; so is what is past its deadline.
    pub fn overdue(&mut self, now: Instant, sent_before: Instant) -> Overdue<M, A> {
        let (mut again, mut gone) = (Vec::new(), Vec::new());
        for (ticket, open) in &mut self.open {
            let overtaken = || {
                let latest = open.order.and_then(|order| self.confirmed.get(&order)?.latest);
                latest.is_some_and(|latest| latest > *ticket)
            };
            let is_due = open.sent.is_none_or(|sent| sent < sent_before);
            if now >= open.deadline || (is_due && overtaken()) {
                gone.push(*ticket);
            } else if is_due {
                open.sent = Some(now);
                open.gone += 1;
                again.push((*ticket, open.message.clone()));
            }
        }
        Overdue { again, given_up: gone.into_iter().filter_map(|ticket| self.refuse(ticket)).collect() }
    }

    /// What is past its deadline is given up, and nothing is sent.
    pub fn late(&mut self, now: Instant) -> Overdue<M, A> {
        let late = self.open.iter().filter(|(_, open)| now >= open.deadline).map(|(ticket, _)| *ticket);
        let late: Vec<_> = late.collect();
        let given_up = late.into_iter().filter_map(|ticket| self.refuse(ticket)).collect();
        Overdue { again: Vec::new(), given_up }
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Gives all of them up.
    pub fn give_up(&mut self) -> Vec<A> {
        self.confirmed.clear();
        std::mem::take(&mut self.open).into_values().map(|open| open.answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    fn ordered(key: u64) -> Option<Order> {
        Some(Order { batch: 1, key })
    }

    #[test]
    fn what_is_not_confirmed_is_sent_again_in_order_until_its_deadline() {
        let (begin, mut publishes) = (Instant::now(), Publishes::default());
        let tickets: Vec<_> = ["a", "b", "c"]
            .map(|name| publishes.open(name, name, None, true, [begin, begin + WAIT * 2]))
            .into();
        assert_eq!(publishes.confirm(tickets[1]), Some("b"));
        assert_eq!(publishes.confirm(tickets[1]), None, "it was answered");
        let later = begin + WAIT;
        assert!(publishes.overdue(later, begin).again.is_empty(), "they were not sent before");
        let overdue = publishes.overdue(later, later);
        assert_eq!(overdue.again, [(tickets[0], "a"), (tickets[2], "c")]);
        assert!(publishes.overdue(later, later).again.is_empty(), "they were sent just now");
        assert_eq!(publishes.return_to_sender(tickets[2], later), Some(WAIT));
        assert!(publishes.may_be_stored(tickets[2]), "it was sent twice, and came back once");
        assert_eq!(publishes.return_to_sender(tickets[2], later), Some(WAIT));
        assert!(!publishes.may_be_stored(tickets[2]));
        assert_eq!(publishes.overdue(later, begin).again, [(tickets[2], "c")]);
        assert_eq!(publishes.overdue(begin + WAIT * 2, begin).given_up, ["a", "c"]);
        assert!(publishes.is_empty() && publishes.confirm(tickets[0]).is_none());
    }

    #[test]
    fn what_a_later_event_of_its_key_has_overtaken_is_not_sent_again() {
        let (begin, mut publishes) = (Instant::now(), Publishes::default());
        let mut open = |name, order| publishes.open(name, name, order, true, [begin, begin + WAIT]);
        let [_first, _other, second, _third] =
            [("1", ordered(1)), ("other", ordered(2)), ("2", ordered(1)), ("3", ordered(1))]
                .map(|(name, order)| open(name, order));
        let _alone = open("alone", None);
        publishes.confirm(second);
        let now = begin + Duration::from_secs(1);
        let overdue = publishes.overdue(now, now);
        assert_eq!(overdue.given_up, ["1"]);
        assert_eq!(overdue.again.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["other", "3", "alone"]);
    }

    #[test]
    fn whatever_happens_each_is_answered_once_and_keys_stay_in_order() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut publishes = Publishes::<(u64, u64), (u64, u64)>::default();
            let mut now = Instant::now();
            let (mut opened, mut answered) = (0, Vec::new());
            // What the server has, in order, and what is on its way: it may be lost.
            let mut stored: Vec<(u64, u64)> = Vec::new();
            let mut flying: Vec<(Ticket, (u64, u64))> = Vec::new();
            for _ in 0..200 {
                now += Duration::from_millis(random.u64(..400));
                match random.u8(..5) {
                    0 | 1 => {
                        opened += 1;
                        let event = (random.u64(..3), opened);
                        let ticket = publishes.open(event, event, ordered(event.0), true, [now, now + WAIT]);
                        flying.push((ticket, event));
                    }
                    2 => flying.retain(|_| random.bool()),
                    3 => {
                        for (ticket, event) in flying.drain(..) {
                            if !stored.contains(&event) {
                                stored.push(event);
                            }
                            answered.extend(publishes.confirm(ticket));
                        }
                    }
                    // Nothing is on its way any more when it is looked for what is to be sent again.
                    _ => {
                        flying.clear();
                        let overdue = publishes.overdue(now, now);
                        answered.extend(overdue.given_up);
                        flying.extend(overdue.again);
                    }
                }
            }
            answered.extend(publishes.give_up());
            answered.sort_by_key(|event| event.1);
            assert_eq!(answered.len() as u64, opened, "seed {seed}");
            assert!(answered.windows(2).all(|two| two[0].1 < two[1].1), "seed {seed}");
            for key in 0..3 {
                let of_key: Vec<_> =
                    stored.iter().filter(|event| event.0 == key).map(|event| event.1).collect();
                assert!(of_key.is_sorted(), "seed {seed}: {of_key:?}");
            }
            assert!(publishes.confirmed.is_empty());
        }
    }
}
