//! What a subscription has of the server: at hand, with its reader, and settled but not known to be so. A plain value
//! without a lock, a clock or a connection.

use async_nats::subject::Subject;
use eventbus_core::Envelope;
use eventbus_core::broker::Parked;
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A delivery that waits for the reader.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) sequence: u64,
    pub(crate) attempt: u32,
    pub(crate) parked: Option<Parked>,
}

/// Which event it is. Another stream of the same name has the same places for other events, stored at other times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Which {
    pub(crate) sequence: u64,
    /// When the server stored it.
    pub(crate) stored: Timestamp,
}

/// A delivery that is not settled, wherever it is.
#[derive(Debug)]
struct Held {
    reply: Subject,
    stored: Timestamp,
    /// When the server was told last that it is worked on.
    beat: Instant,
    /// Something of it is in the bucket.
    noted: bool,
    /// How many bytes its message has.
    size: usize,
}

/// An ack that the server is not known to have.
#[derive(Debug)]
struct Acked {
    which: Which,
    reply: Subject,
    sent: bool,
}

/// What to do about a message that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is new: it goes to the reader.
    New,
    /// It was delivered before, to somebody: look first whether something was noted of it.
    Again,
    /// It is here already.
    Known,
    /// It was settled here: its ack is sent once more.
    Settled,
    /// What is here under its number is another event: the stream is not the one that it was.
    OfAnotherStream,
}

/// What was settled.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) reply: Subject,
    pub(crate) noted: bool,
}

/// All of that.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    /// Counts how often everything was lost to another process. What was handed out earlier is no longer ours.
    epoch: u64,
    /// The first epoch of this stream: what was handed out before is of one that is gone, and had the same numbers.
    first_epoch: u64,
    /// In the order of the stream, so what was given back goes first.
    at_hand: VecDeque<Waiting>,
    held: HashMap<u64, Held>,
    /// How many bytes the messages of those have together.
    bytes: usize,
    acked: VecDeque<Acked>,
    /// How many of those are to be sent.
    unsent: usize,
    /// The number of the first of them.
    first_ack: u64,
    /// Nothing is handed out: something that is older is not here yet.
    waits: bool,
    /// How many came whose note is looked for.
    looked_up: usize,
}

impl Intake {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many wait for the reader or for their notes.
    pub(crate) fn at_hand(&self) -> usize {
        self.at_hand.len() + self.looked_up
    }

    /// How many are not settled.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// How many of those the reader has.
    pub(crate) fn handed_out(&self) -> usize {
        self.held.len() - self.at_hand()
    }

    /// How many bytes the messages have that are not settled.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn take_out(&mut self, sequence: u64) -> Option<Held> {
        let held = self.held.remove(&sequence)?;
        self.bytes -= held.size;
        Some(held)
    }

    /// The first place of what is not settled.
    pub(crate) fn lowest(&self) -> Option<u64> {
        self.held.keys().min().copied()
    }

    pub(crate) fn holds(&self, sequence: u64) -> bool {
        self.held.contains_key(&sequence)
    }

    /// When the server stored what is not settled.
    pub(crate) fn stored(&self, sequence: u64) -> Option<Timestamp> {
        self.held.get(&sequence).map(|held| held.stored)
    }

    /// A message came; `again`: it was delivered before, here or elsewhere.
    pub(crate) fn arrive(
        &mut self,
        which: Which,
        size: usize,
        reply: &Subject,
        again: bool,
        now: Instant,
    ) -> Arrival {
        let Which { sequence, stored } = which;
        if let Some(held) = self.held.get_mut(&sequence) {
            if held.stored != stored {
                return Arrival::OfAnotherStream;
            }
            held.reply = reply.clone();
            held.beat = now;
            return Arrival::Known;
        }
        if again && let Some(acked) = self.acked.iter_mut().find(|acked| acked.which.sequence == sequence) {
            if acked.which != which {
                return Arrival::OfAnotherStream;
            }
            acked.reply = reply.clone();
            self.unsent += usize::from(std::mem::replace(&mut acked.sent, false));
            return Arrival::Settled;
        }
        self.held.insert(sequence, Held { reply: reply.clone(), stored, beat: now, noted: false, size });
        self.bytes += size;
        if again {
            self.looked_up += 1;
            Arrival::Again
        } else {
            Arrival::New
        }
    }

    /// What was looked for is found, or is known not to be there, for a message of that epoch.
    pub(crate) fn found(&mut self, epoch: u64, waiting: Waiting, noted: bool) -> bool {
        if epoch != self.epoch {
            return false;
        }
        self.looked_up = self.looked_up.saturating_sub(1);
        let Some(held) = self.held.get_mut(&waiting.sequence) else { return false };
        held.noted = noted;
        self.put(waiting);
        true
    }

    /// Puts a delivery in its place before the reader.
    pub(crate) fn put(&mut self, waiting: Waiting) {
        if self.at_hand.back().is_none_or(|last| last.sequence < waiting.sequence) {
            return self.at_hand.push_back(waiting);
        }
        let place = self.at_hand.partition_point(|other| other.sequence < waiting.sequence);
        self.at_hand.insert(place, waiting);
    }

    /// Hands out at most so many.
    pub(crate) fn take(&mut self, limit: usize) -> std::collections::vec_deque::Drain<'_, Waiting> {
        let count = if self.waits { 0 } else { limit.min(self.at_hand.len()) };
        self.at_hand.drain(..count)
    }

    /// Whether there is something to hand out.
    pub(crate) fn has_some(&self) -> bool {
        !self.waits && !self.at_hand.is_empty()
    }

    /// Nothing more is handed out until everything is here that is open.
    pub(crate) fn wait_for_all(&mut self) {
        self.waits = true;
    }

    /// It has everything that was open elsewhere.
    pub(crate) fn go_on(&mut self) {
        self.waits = false;
    }

    /// Whether everything that the server counts as open is here.
    pub(crate) fn has_all(&self, open_at_server: usize) -> bool {
        self.looked_up == 0 && open_at_server <= self.held.len()
    }

    /// Another process may have everything that is here. If `pauses`, nothing is handed out until it is known what that
    /// left open.
    pub(crate) fn lose(&mut self, pauses: bool) -> VecDeque<Waiting> {
        self.epoch += 1;
        self.held.clear();
        self.bytes = 0;
        self.looked_up = 0;
        self.waits = pauses;
        std::mem::take(&mut self.at_hand)
    }

    /// The stream is another one by now, which has the same numbers for other events: nothing is kept of the former.
    pub(crate) fn begin_anew(&mut self) -> VecDeque<Waiting> {
        let lost = self.lose(false);
        self.first_epoch = self.epoch;
        self.first_ack += self.acked.len() as u64;
        self.acked.clear();
        self.unsent = 0;
        lost
    }

    /// Whether what was handed out in that epoch is of this stream.
    pub(crate) fn is_of_this_stream(&self, epoch: u64) -> bool {
        epoch >= self.first_epoch
    }

    /// Something of a delivery was noted in the bucket.
    pub(crate) fn note(&mut self, sequence: u64) {
        if let Some(held) = self.held.get_mut(&sequence) {
            held.noted = true;
        }
    }

    /// Settles what the reader has; its ack is remembered until the server is known to have it. None: it is not held.
    pub(crate) fn settle(&mut self, sequence: u64) -> Option<Settled> {
        let held = self.take_out(sequence)?;
        // A copy may have come while a handler had it.
        if let Ok(at) = self.at_hand.binary_search_by_key(&sequence, |waiting| waiting.sequence) {
            self.at_hand.remove(at);
        }
        let which = Which { sequence, stored: held.stored };
        self.acked.push_back(Acked { which, reply: held.reply.clone(), sent: false });
        self.unsent += 1;
        Some(Settled { reply: held.reply, noted: held.noted })
    }

    /// The latest ack was sent.
    pub(crate) fn ack_was_sent(&mut self, sequence: u64) {
        if let Some(acked) = self.acked.iter_mut().rev().find(|acked| acked.which.sequence == sequence) {
            self.unsent -= usize::from(!std::mem::replace(&mut acked.sent, true));
        }
    }

    /// Acks that are to be sent; they count as sent from now on.
    pub(crate) fn unsent_acks(&mut self) -> Vec<Subject> {
        let mut unsent = Vec::with_capacity(self.unsent);
        // Those that are to be sent are mostly the latest, behind many that wait for their confirmation.
        for acked in self.acked.iter_mut().rev().filter(|acked| !acked.sent).take(self.unsent) {
            acked.sent = true;
            unsent.push(acked.reply.clone());
        }
        self.unsent = 0;
        unsent.reverse();
        unsent
    }

    /// What was sent on an earlier connection may be lost.
    pub(crate) fn doubt_acks(&mut self) {
        self.acked.iter_mut().for_each(|acked| acked.sent = false);
        self.unsent = self.acked.len();
    }

    /// The latest ack, and its number: once the server has confirmed it, it has all before it. None, where there is
    /// nothing to confirm, or something is not sent.
    pub(crate) fn last_ack(&self) -> Option<(u64, Subject)> {
        let last = self.acked.back().filter(|_| self.unsent == 0)?;
        Some((self.first_ack + self.acked.len() as u64 - 1, last.reply.clone()))
    }

    /// The server has all acks up to this number.
    pub(crate) fn confirm_acks(&mut self, number: u64) {
        while self.first_ack <= number
            && let Some(acked) = self.acked.pop_front()
        {
            self.first_ack += 1;
            self.unsent -= usize::from(!acked.sent);
        }
    }

    /// How many acks the server is not known to have.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.acked.len()
    }

    /// What the server is to be told of: it is worked on, and was not heard of for so long.
    pub(crate) fn beats(&mut self, age: Duration, now: Instant) -> Vec<Subject> {
        let due = self.held.values_mut().filter(|held| now.saturating_duration_since(held.beat) >= age);
        due.map(|held| {
            held.beat = now;
            held.reply.clone()
        })
        .collect()
    }

    /// Lets go of what the reader does not have, in order, to be delivered elsewhere.
    pub(crate) fn let_go(&mut self) -> Vec<(Subject, Waiting)> {
        let waiting = std::mem::take(&mut self.at_hand);
        let gone = waiting.into_iter().filter_map(|one| Some((self.take_out(one.sequence)?.reply, one)));
        gone.collect()
    }

    /// The reply subject of one that is not settled: one that the reader does not have, where there is such a one.
    pub(crate) fn some_reply(&self) -> Option<Subject> {
        let sequence = self.at_hand.front().map(|waiting| waiting.sequence).or_else(|| self.lowest())?;
        self.held.get(&sequence).map(|held| held.reply.clone())
    }

    /// Lets go of one.
    pub(crate) fn release(&mut self, sequence: u64) -> Option<Subject> {
        self.take_out(sequence).map(|held| held.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::Topic;

    fn waiting(sequence: u64) -> Waiting {
        let envelope = Envelope::from_json(Topic::from_static("a.b"), &sequence).unwrap();
        Waiting { envelope: Arc::new(envelope), sequence, attempt: 1, parked: None }
    }

    fn reply(text: &str) -> Subject {
        Subject::from(text)
    }

    /// An event of the first stream.
    fn event(sequence: u64) -> Which {
        Which { sequence, stored: Timestamp::UNIX_EPOCH }
    }

    /// The event of that number of another stream.
    fn other(sequence: u64) -> Which {
        Which { sequence, stored: Timestamp::from_second(1).unwrap() }
    }

    fn arrive(intake: &mut Intake, sequence: u64, again: bool) -> Arrival {
        let reply = reply(&format!("r{sequence}"));
        let arrival = intake.arrive(event(sequence), 10, &reply, again, Instant::now());
        if arrival == Arrival::New {
            intake.put(waiting(sequence));
        }
        arrival
    }

    fn taken(intake: &mut Intake, limit: usize) -> Vec<u64> {
        intake.take(limit).map(|one| one.sequence).collect()
    }

    #[test]
    fn what_is_given_back_and_what_comes_again_goes_first_in_the_order_of_the_stream() {
        let mut intake = Intake::default();
        for sequence in [3, 5, 8] {
            assert_eq!(arrive(&mut intake, sequence, false), Arrival::New);
        }
        assert_eq!(taken(&mut intake, 2), [3, 5]);
        assert_eq!(arrive(&mut intake, 4, true), Arrival::Again);
        assert!(intake.found(0, waiting(4), false));
        intake.put(waiting(3));
        assert_eq!(taken(&mut intake, 9), [3, 4, 8]);
        assert_eq!((intake.held(), intake.handed_out()), (4, 4));
    }

    #[test]
    fn what_is_held_or_settled_here_is_not_delivered_once_more() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        taken(&mut intake, 1);
        assert_eq!(intake.arrive(event(1), 10, &reply("newer"), true, Instant::now()), Arrival::Known);
        let settled = intake.settle(1).unwrap();
        assert_eq!(settled.reply.as_str(), "newer");
        assert!(intake.settle(1).is_none());
        intake.ack_was_sent(1);
        assert!(intake.unsent_acks().is_empty());
        assert_eq!(intake.arrive(event(1), 10, &reply("newest"), true, Instant::now()), Arrival::Settled);
        assert_eq!(intake.unsent_acks(), [reply("newest")]);
        let (number, _) = intake.last_ack().unwrap();
        intake.confirm_acks(number);
        assert_eq!(intake.unconfirmed(), 0);
        assert_eq!(
            arrive(&mut intake, 1, true),
            Arrival::Again,
            "the server has the ack, and delivers it all the same"
        );
    }

    #[test]
    fn acks_are_sent_again_on_another_connection_until_the_server_has_them() {
        let mut intake = Intake::default();
        for sequence in 1..=4 {
            arrive(&mut intake, sequence, false);
        }
        taken(&mut intake, 4);
        for sequence in 1..=3 {
            intake.settle(sequence);
            assert_eq!(intake.last_ack(), None, "one is not sent");
            intake.ack_was_sent(sequence);
        }
        let (number, last) = intake.last_ack().unwrap();
        assert_eq!((number, last.as_str()), (2, "r3"));
        intake.settle(4);
        intake.confirm_acks(number);
        assert_eq!(intake.unconfirmed(), 1);
        intake.doubt_acks();
        assert_eq!(intake.unsent_acks(), [reply("r4")]);
        assert_eq!(intake.last_ack().unwrap().0, 3);
    }

    #[test]
    fn of_many_acks_those_that_are_to_be_sent_are_found_in_their_order() {
        let mut intake = Intake::default();
        for sequence in 1..=9 {
            arrive(&mut intake, sequence, false);
        }
        taken(&mut intake, 9);
        for sequence in 1..=9 {
            intake.settle(sequence);
            if sequence % 3 != 0 {
                intake.ack_was_sent(sequence);
            }
        }
        assert_eq!(intake.unsent_acks(), [reply("r3"), reply("r6"), reply("r9")]);
        assert!(intake.unsent_acks().is_empty() && intake.last_ack().is_some());
        intake.doubt_acks();
        intake.confirm_acks(7);
        assert_eq!(intake.unsent_acks(), [reply("r9")], "the server has the others");
    }

    #[test]
    fn nothing_is_handed_out_until_all_that_was_open_elsewhere_is_here() {
        let mut intake = Intake::default();
        intake.lose(true);
        arrive(&mut intake, 9, false);
        assert!(taken(&mut intake, 9).is_empty() && !intake.has_all(2));
        arrive(&mut intake, 7, true);
        assert!(!intake.has_all(2), "its note is looked for");
        assert!(!intake.found(0, waiting(7), false), "that was another epoch");
        assert!(intake.found(1, waiting(7), false) && intake.has_all(2));
        intake.go_on();
        assert_eq!(taken(&mut intake, 9), [7, 9]);
    }

    #[test]
    fn what_was_lost_on_its_way_is_waited_for_and_what_is_handed_out_stays_so() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        assert_eq!(taken(&mut intake, 9), [1]);
        intake.wait_for_all();
        arrive(&mut intake, 4, false);
        assert!(taken(&mut intake, 9).is_empty() && !intake.has_all(4) && intake.epoch() == 0);
        for sequence in [3, 2] {
            arrive(&mut intake, sequence, true);
            assert!(intake.found(0, waiting(sequence), false));
        }
        assert!(intake.has_all(4) && intake.settle(1).is_some());
        intake.go_on();
        assert_eq!(taken(&mut intake, 9), [2, 3, 4]);
    }

    #[test]
    fn what_is_lost_is_held_no_more() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        taken(&mut intake, 1);
        assert_eq!(intake.lose(false).len(), 1);
        assert!(intake.settle(1).is_none() && intake.held() == 0 && intake.epoch() == 1);
        assert_eq!(intake.unconfirmed(), 0);
    }

    #[test]
    fn of_a_stream_that_is_gone_nothing_is_settled_in_the_next_one() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        taken(&mut intake, 2);
        intake.settle(2);
        intake.begin_anew();
        assert_eq!((intake.unconfirmed(), intake.held(), intake.last_ack()), (0, 0, None));
        assert!(!intake.is_of_this_stream(0) && intake.is_of_this_stream(intake.epoch()));
        assert_eq!(arrive(&mut intake, 1, false), Arrival::New);
        assert_eq!(arrive(&mut intake, 2, true), Arrival::Again, "it is another event");
        intake.confirm_acks(0);
        assert!(intake.settle(1).is_some());
        intake.ack_was_sent(1);
        assert_eq!(intake.last_ack().map(|(number, _)| number), Some(1), "numbers of acks go on");
    }

    #[test]
    fn an_event_of_another_stream_is_not_taken_for_the_one_of_its_number() {
        let (mut intake, now) = (Intake::default(), Instant::now());
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        taken(&mut intake, 2);
        intake.settle(2);
        assert!(intake.unsent_acks() == [reply("r2")]);
        for sequence in [1, 2] {
            let arrival = intake.arrive(other(sequence), 10, &reply("new"), true, now);
            assert_eq!(arrival, Arrival::OfAnotherStream, "{sequence}");
        }
        assert!(intake.unsent_acks().is_empty(), "nothing is said of it");
        assert_eq!(intake.settle(1).unwrap().reply, reply("r1"));
        assert_eq!(intake.arrive(other(3), 10, &reply("new"), false, now), Arrival::New);
        assert_eq!(intake.stored(3), Some(other(3).stored));
    }

    #[test]
    fn what_was_not_heard_of_for_a_while_is_due_and_then_not() {
        let (mut intake, now, age) = (Intake::default(), Instant::now(), Duration::from_secs(1));
        intake.arrive(event(1), 10, &reply("a"), false, now);
        assert!(intake.beats(age, now).is_empty());
        assert_eq!(intake.beats(age, now + age), [reply("a")]);
        assert!(intake.beats(age, now + age).is_empty());
    }

    #[test]
    fn what_the_reader_does_not_have_is_let_go_in_order() {
        let mut intake = Intake::default();
        for sequence in [1, 2, 3] {
            arrive(&mut intake, sequence, false);
        }
        taken(&mut intake, 1);
        assert_eq!(intake.some_reply(), Some(reply("r2")), "the first that no handler has");
        let gone: Vec<_> = intake.let_go().into_iter().map(|(_, one)| one.sequence).collect();
        assert_eq!((gone, intake.handed_out(), intake.bytes()), (vec![2, 3], 1, 10));
        assert_eq!(intake.some_reply(), Some(reply("r1")));
        assert!(intake.release(1).is_some() && intake.held() == 0 && intake.bytes() == 0);
    }
}
