//! What a subscription has of the server: at hand, with its reader, and settled but not known to be so. A plain value
//! without a lock, a clock or a connection.

use async_nats::subject::Subject;
use eventbus_core::Envelope;
use eventbus_core::broker::Parked;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A delivery that waits for the reader.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// None: it has its place, and was left to the server, since there was no room for it.
    pub(crate) envelope: Option<Arc<Envelope>>,
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
    /// What of it is here, while it is.
    payload: Weak<Envelope>,
    /// It was left to the server.
    left: bool,
    /// Its note is looked for.
    looked_up: bool,
}

/// What a handler had as everything was lost to another process. Its payload is here as long as the handler has it.
#[derive(Debug)]
struct Stray {
    epoch: u64,
    which: Which,
    reply: Subject,
    noted: bool,
    size: usize,
    payload: Weak<Envelope>,
}

impl Stray {
    fn is(&self, epoch: u64, sequence: u64) -> bool {
        self.epoch == epoch && self.which.sequence == sequence
    }
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
    /// How many bytes the messages of those have together, but for what was left to the server.
    bytes: usize,
    /// How many were left to the server.
    left: usize,
    strays: Vec<Stray>,
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

    /// How many bytes of messages are here.
    pub(crate) fn bytes(&mut self) -> usize {
        self.strays.retain(|stray| stray.payload.strong_count() > 0);
        self.bytes + self.strays.iter().map(|stray| stray.size).sum::<usize>()
    }

    fn take_out(&mut self, sequence: u64) -> Option<Held> {
        let held = self.held.remove(&sequence)?;
        self.looked_up -= usize::from(held.looked_up);
        if held.left {
            self.left -= 1;
        } else {
            self.bytes -= held.size;
        }
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

    /// The same of what was handed out in that epoch, which may have ended since.
    pub(crate) fn stored_in(&self, epoch: u64, sequence: u64) -> Option<Timestamp> {
        let stray =
            || self.strays.iter().find(|stray| stray.is(epoch, sequence)).map(|stray| stray.which.stored);
        self.stored(sequence).or_else(stray)
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
        let reply = reply.clone();
        let payload = Weak::new();
        let held =
            Held { reply, stored, beat: now, noted: false, size, payload, left: false, looked_up: again };
        self.held.insert(sequence, held);
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
        // A handler that had it before may have settled it meanwhile.
        let Some(held) = self.held.get_mut(&waiting.sequence).filter(|held| held.looked_up) else {
            return false;
        };
        (held.looked_up, held.noted) = (false, noted);
        self.looked_up -= 1;
        self.put(waiting);
        true
    }

    /// Puts a delivery in its place before the reader.
    pub(crate) fn put(&mut self, waiting: Waiting) {
        if let (Some(held), Some(envelope)) = (self.held.get_mut(&waiting.sequence), &waiting.envelope) {
            held.payload = Arc::downgrade(envelope);
        }
        if self.at_hand.back().is_none_or(|last| last.sequence < waiting.sequence) {
            return self.at_hand.push_back(waiting);
        }
        let place = self.at_hand.partition_point(|other| other.sequence < waiting.sequence);
        self.at_hand.insert(place, waiting);
    }

    /// Hands out at most so many, of those before the first that was left to the server.
    pub(crate) fn take(&mut self, limit: usize) -> impl Iterator<Item = (Arc<Envelope>, Waiting)> + '_ {
        let count = match self.left {
            _ if self.waits => 0,
            0 => limit.min(self.at_hand.len()),
            _ => self.at_hand.iter().take(limit).take_while(|waiting| waiting.envelope.is_some()).count(),
        };
        self.at_hand.drain(..count).filter_map(|mut waiting| Some((waiting.envelope.take()?, waiting)))
    }

    /// Whether there is something to hand out.
    pub(crate) fn has_some(&self) -> bool {
        !self.waits && self.at_hand.front().is_some_and(|waiting| waiting.envelope.is_some())
    }

    /// Leaves payloads to the server until there are no more bytes here than that, or only one that waits: those that are
    /// handed out last. They keep their places.
    pub(crate) fn leave(&mut self, most: usize) -> Vec<Arc<Envelope>> {
        let (mut left, mut bytes) = (Vec::new(), self.bytes());
        for waiting in self.at_hand.iter_mut().skip(1).rev() {
            if bytes <= most {
                break;
            }
            if let (Some(envelope), Some(held)) =
                (waiting.envelope.take(), self.held.get_mut(&waiting.sequence))
            {
                held.left = true;
                (self.left, self.bytes, bytes) = (self.left + 1, self.bytes - held.size, bytes - held.size);
                left.push(envelope);
            }
        }
        left
    }

    /// Whether something was left to the server.
    pub(crate) fn has_left(&self) -> bool {
        self.left > 0
    }

    /// What is to be asked of the server next, of what was left to it: where there is room for it by now, or for nothing
    /// else.
    pub(crate) fn missing(&mut self, most: usize) -> Option<Which> {
        if self.left == 0 || self.waits {
            return None;
        }
        let bytes = self.bytes();
        let (at, sequence) = (self.at_hand.iter().enumerate())
            .find(|(_, waiting)| waiting.envelope.is_none())
            .map(|(at, waiting)| (at, waiting.sequence))?;
        let held = self.held.get(&sequence)?;
        let is_only_one = at == 0 && self.handed_out() == 0;
        let has_room = bytes + held.size <= most || is_only_one;
        has_room.then_some(Which { sequence, stored: held.stored })
    }

    /// What was left to the server is here again, for something of that epoch.
    pub(crate) fn restore(
        &mut self,
        epoch: u64,
        sequence: u64,
        envelope: Arc<Envelope>,
    ) -> Result<(), Arc<Envelope>> {
        let at = self.at_hand.binary_search_by_key(&sequence, |waiting| waiting.sequence);
        match (at, self.held.get_mut(&sequence)) {
            (Ok(at), Some(held)) if epoch == self.epoch && held.left => {
                (held.left, held.payload) = (false, Arc::downgrade(&envelope));
                (self.left, self.bytes) = (self.left - 1, self.bytes + held.size);
                self.at_hand[at].envelope = Some(envelope);
                Ok(())
            }
            _ => Err(envelope),
        }
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
        let at_hand = std::mem::take(&mut self.at_hand);
        at_hand.iter().for_each(|waiting| drop(self.held.remove(&waiting.sequence)));
        let (epoch, handed_out) = (self.epoch, self.held.drain());
        let strays = handed_out.map(|(sequence, held)| {
            let which = Which { sequence, stored: held.stored };
            let Held { reply, noted, size, payload, .. } = held;
            Stray { epoch, which, reply, noted, size, payload }
        });
        self.strays.extend(strays.filter(|stray| stray.payload.strong_count() > 0));
        self.epoch += 1;
        (self.bytes, self.left) = (0, 0);
        self.looked_up = 0;
        self.waits = pauses;
        at_hand
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

    /// Settles what the reader has of that epoch; its ack is remembered until the server is known to have it. None: it is
    /// not held.
    pub(crate) fn settle(&mut self, epoch: u64, sequence: u64) -> Option<Settled> {
        let Some(held) = self.take_out(sequence) else {
            let at = self.strays.iter().position(|stray| stray.is(epoch, sequence))?;
            let Stray { which, reply, noted, .. } = self.strays.swap_remove(at);
            self.acked.push_back(Acked { which, reply: reply.clone(), sent: false });
            self.unsent += 1;
            return Some(Settled { reply, noted });
        };
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

    /// Lets go of what the reader does not have, in order, to be delivered elsewhere; without an event, where its note is
    /// looked for.
    pub(crate) fn let_go(&mut self) -> Vec<(Subject, Option<Waiting>)> {
        let looked_up = self.held.iter().filter(|(_, held)| held.looked_up);
        let looked_up = looked_up.map(|(sequence, _)| (*sequence, None));
        let mut waiting: BTreeMap<_, _> = looked_up.collect();
        let at_hand = std::mem::take(&mut self.at_hand);
        waiting.extend(at_hand.into_iter().map(|one| (one.sequence, Some(one))));
        let gone = waiting.into_iter();
        gone.filter_map(|(sequence, one)| Some((self.take_out(sequence)?.reply, one))).collect()
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
        Waiting { envelope: Some(Arc::new(envelope)), sequence, attempt: 1, parked: None }
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
        intake.take(limit).map(|(_, one)| one.sequence).collect()
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
    fn what_is_settled_while_its_note_is_looked_for_counts_no_more() {
        let mut intake = Intake::default();
        arrive(&mut intake, 5, false);
        let (envelope, _) = intake.take(1).next().unwrap();
        intake.lose(false);
        assert_eq!(arrive(&mut intake, 5, true), Arrival::Again);
        assert_eq!((intake.at_hand(), intake.handed_out()), (1, 0));
        assert!(intake.settle(0, 5).is_some(), "the handler was called under the former lease");
        assert_eq!((intake.at_hand(), intake.handed_out(), intake.held()), (0, 0, 0));
        assert!(!intake.found(1, waiting(5), false));
        assert_eq!((intake.at_hand(), intake.handed_out()), (0, 0));
        drop(envelope);
    }

    #[test]
    fn at_the_end_what_waits_for_its_note_is_let_go_as_well() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 3, false);
        arrive(&mut intake, 2, true);
        assert_eq!(taken(&mut intake, 1), [1]);
        let gone: Vec<_> = intake.let_go().into_iter().map(|(reply, one)| (reply, one.is_some())).collect();
        assert_eq!(gone, [(reply("r2"), false), (reply("r3"), true)]);
        assert_eq!((intake.at_hand(), intake.handed_out()), (0, 1));
        assert!(!intake.found(0, waiting(2), false), "it is somebody else's");
    }

    #[test]
    fn what_is_held_or_settled_here_is_not_delivered_once_more() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        taken(&mut intake, 1);
        assert_eq!(intake.arrive(event(1), 10, &reply("newer"), true, Instant::now()), Arrival::Known);
        let settled = intake.settle(0, 1).unwrap();
        assert_eq!(settled.reply.as_str(), "newer");
        assert!(intake.settle(0, 1).is_none());
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
            intake.settle(0, sequence);
            assert_eq!(intake.last_ack(), None, "one is not sent");
            intake.ack_was_sent(sequence);
        }
        let (number, last) = intake.last_ack().unwrap();
        assert_eq!((number, last.as_str()), (2, "r3"));
        intake.settle(0, 4);
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
            intake.settle(0, sequence);
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
        assert!(intake.has_all(4) && intake.settle(0, 1).is_some());
        intake.go_on();
        assert_eq!(taken(&mut intake, 9), [2, 3, 4]);
    }

    #[test]
    fn what_has_no_room_keeps_its_place_and_nothing_newer_goes_before_it() {
        let mut intake = Intake::default();
        for sequence in 1..=6 {
            arrive(&mut intake, sequence, false);
        }
        let first: Vec<_> = intake.take(1).collect();
        assert_eq!(intake.leave(60).len(), 0, "there is room for all");
        assert_eq!((intake.leave(35).len(), intake.bytes(), intake.held()), (3, 30, 6));
        assert_eq!(intake.missing(35), None, "there is no room for it");
        arrive(&mut intake, 7, false);
        assert_eq!((taken(&mut intake, 9), taken(&mut intake, 9)), (vec![2, 3], vec![]));
        assert!(!intake.has_some() && intake.has_left());
        assert_eq!(intake.missing(35), None);
        for sequence in [1, 2, 3] {
            intake.settle(0, sequence);
        }
        assert_eq!(intake.missing(35), Some(event(4)));
        assert!(intake.restore(1, 4, waiting(4).envelope.unwrap()).is_err(), "that was another epoch");
        for sequence in [4, 5, 6] {
            assert!(intake.restore(0, sequence, waiting(sequence).envelope.unwrap()).is_ok());
        }
        assert!(intake.restore(0, 5, waiting(5).envelope.unwrap()).is_err(), "it is here");
        assert_eq!((intake.bytes(), taken(&mut intake, 9)), (40, vec![4, 5, 6, 7]));
        drop(first);
    }

    #[test]
    fn one_event_always_has_room() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        assert_eq!((intake.leave(0).len(), taken(&mut intake, 9)), (1, vec![1]));
        assert_eq!(intake.missing(5), None, "a handler has one");
        intake.settle(0, 1);
        assert_eq!(intake.missing(5), Some(event(2)));
        // What is settled or lost meanwhile is not waited for.
        assert!(intake.release(2).is_some() && !intake.has_left() && intake.bytes() == 0);
        arrive(&mut intake, 3, false);
        arrive(&mut intake, 4, false);
        intake.leave(0);
        intake.lose(false);
        assert!(!intake.has_left() && intake.bytes() == 0);
    }

    #[test]
    fn what_a_handler_has_takes_room_and_may_be_settled_though_it_was_lost() {
        let mut intake = Intake::default();
        for sequence in 1..=3 {
            arrive(&mut intake, sequence, false);
        }
        let had: Vec<_> = intake.take(2).collect();
        intake.lose(false);
        assert_eq!((intake.bytes(), intake.held()), (20, 0));
        assert!(intake.settle(1, 1).is_none(), "it was handed out earlier");
        assert_eq!(intake.stored_in(0, 1), Some(event(1).stored));
        assert_eq!(intake.settle(0, 1).unwrap().reply, reply("r1"));
        assert_eq!((intake.settle(0, 1).is_none(), intake.unsent_acks()), (true, vec![reply("r1")]));
        drop(had);
        assert!(intake.bytes() == 0 && intake.settle(0, 2).is_none());
    }

    #[test]
    fn what_is_lost_is_held_no_more() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        taken(&mut intake, 1);
        assert_eq!(intake.lose(false).len(), 1);
        assert!(intake.settle(0, 1).is_none() && intake.held() == 0 && intake.epoch() == 1);
        assert_eq!(intake.unconfirmed(), 0);
    }

    #[test]
    fn of_a_stream_that_is_gone_nothing_is_settled_in_the_next_one() {
        let mut intake = Intake::default();
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        taken(&mut intake, 2);
        intake.settle(0, 2);
        intake.begin_anew();
        assert_eq!((intake.unconfirmed(), intake.held(), intake.last_ack()), (0, 0, None));
        assert!(!intake.is_of_this_stream(0) && intake.is_of_this_stream(intake.epoch()));
        assert_eq!(arrive(&mut intake, 1, false), Arrival::New);
        assert_eq!(arrive(&mut intake, 2, true), Arrival::Again, "it is another event");
        intake.confirm_acks(0);
        assert!(intake.settle(1, 1).is_some());
        intake.ack_was_sent(1);
        assert_eq!(intake.last_ack().map(|(number, _)| number), Some(1), "numbers of acks go on");
    }

    #[test]
    fn an_event_of_another_stream_is_not_taken_for_the_one_of_its_number() {
        let (mut intake, now) = (Intake::default(), Instant::now());
        arrive(&mut intake, 1, false);
        arrive(&mut intake, 2, false);
        taken(&mut intake, 2);
        intake.settle(0, 2);
        assert!(intake.unsent_acks() == [reply("r2")]);
        for sequence in [1, 2] {
            let arrival = intake.arrive(other(sequence), 10, &reply("new"), true, now);
            assert_eq!(arrival, Arrival::OfAnotherStream, "{sequence}");
        }
        assert!(intake.unsent_acks().is_empty(), "nothing is said of it");
        assert_eq!(intake.settle(0, 1).unwrap().reply, reply("r1"));
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
        let gone: Vec<_> = intake.let_go().into_iter().filter_map(|(_, one)| Some(one?.sequence)).collect();
        assert_eq!((gone, intake.handed_out(), intake.bytes()), (vec![2, 3], 1, 10));
        assert_eq!(intake.some_reply(), Some(reply("r1")));
        assert!(intake.release(1).is_some() && intake.held() == 0 && intake.bytes() == 0);
    }
}
