//! What a subscription has of its partitions: how far each has come, what is at hand, what was handed out, and what is to be
//! committed. A plain value without a lock, a clock or a task.

use crate::committed::{self, Note};
use crate::place::Origin;
use eventbus_core::Envelope;
use eventbus_core::broker::{Offset, Parked, Progress, Save, Saved};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The number of a receipt here. An event that is handed out again after its partition was lost has another one.
pub(crate) type Token = u64;
/// A Kafka topic and one of its partitions.
pub(crate) type Partition = (Arc<str>, i32);

/// An event that came.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) envelope: Arc<Envelope>,
    /// Where it was published, which is elsewhere for one that was published again.
    pub(crate) origin: Origin,
    /// How much memory it takes, about.
    pub(crate) size: usize,
}

/// What waits for the reader.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) offset: Offset,
    pub(crate) attempt: u32,
    pub(crate) parked: Option<Parked>,
}

#[derive(Debug)]
struct Entry {
    partition: Partition,
    at: u64,
    origin: Origin,
    size: usize,
    /// A handler has it.
    begun: bool,
    /// Its note was too long to be committed.
    unnoted: bool,
    /// It is settled with the commit that is on its way.
    answered: bool,
    /// It was given back meanwhile.
    given_back: Option<Waiting>,
}

#[derive(Debug)]
struct Part {
    /// Another one each time that the subscription gets the partition.
    times: u64,
    progress: Progress<Note>,
    /// Nothing before comes of the same topic.
    next: u64,
    /// What is open; without a token, as long as it was not read again.
    open: BTreeMap<u64, Option<Token>>,
    /// Where that is.
    unread: BTreeSet<u64>,
    /// The latest time of its records.
    time: u64,
    /// It is being given away: nothing of it is begun any more.
    leaving: bool,
}

/// Where something waits: what was given back is before what has just come, in the order of its offsets.
type Turn = (bool, u128, Token);

/// All that is not settled.
#[derive(Debug, Default)]
pub(crate) struct Held {
    next: Token,
    times: u64,
    parts: HashMap<Partition, Part>,
    entries: HashMap<Token, Entry>,
    at_hand: BTreeMap<Turn, Waiting>,
    /// How much memory that takes which is at hand.
    bytes: usize,
    /// How many notes were made, and how many of them are committed.
    noted: u64,
    committed: u64,
}

/// What is to be committed, of each partition in which something has changed.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) parts: Vec<CommitPart>,
    /// What is settled with it.
    answered: Vec<Token>,
    /// How many notes it has.
    noted: u64,
}

#[derive(Debug)]
pub(crate) struct CommitPart {
    pub(crate) partition: Partition,
    /// The first offset that is not finished.
    pub(crate) cursor: u64,
    pub(crate) text: String,
    cut_at: Option<Offset>,
    times: u64,
    save: Save<Note>,
}

fn place(at: u64) -> Offset {
    Offset::new(at.into())
}

fn number(at: Offset) -> u64 {
    u64::try_from(at.get()).unwrap_or(u64::MAX)
}

impl Commit {
    /// The partitions that something is committed of.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.parts.iter().map(|part| part.partition.clone())
    }

    /// Whether anything of these partitions is in it.
    pub(crate) fn has_some_of(&self, partitions: &[Partition]) -> bool {
        self.parts.iter().any(|part| partitions.contains(&part.partition))
    }
}

impl Held {
    /// The subscription has a partition from now on, with what was committed of it.
    pub(crate) fn assign(&mut self, partition: Partition, saved: Saved<Note>) {
        self.times += 1;
        let next = number(saved.cursor);
        let unread: BTreeSet<_> = saved.notes.keys().map(|at| number(*at)).collect();
        let open = unread.iter().map(|at| (*at, None)).collect();
        let progress = Progress::resume(saved);
        let part = Part { times: self.times, progress, next, open, unread, time: 0, leaving: false };
        self.parts.insert(partition, part);
    }

    /// Whether a partition is the subscription's, and stays so.
    pub(crate) fn has(&self, partition: &Partition) -> bool {
        self.parts.get(partition).is_some_and(|part| !part.leaving)
    }

    /// Whether any partition is the subscription's.
    pub(crate) fn has_some(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The record at an offset came, in its order. `make` reads it, where it is neither finished nor handed out; what it
    /// gives nothing for is not the subscription's.
    pub(crate) fn arrive(
        &mut self,
        partition: &Partition,
        at: u64,
        make: impl FnOnce(u64) -> Option<Arrival>,
    ) {
        let Some(part) = self.parts.get_mut(partition).filter(|part| !part.leaving) else { return };
        if at < part.next {
            // The client goes back where it finds nothing that it has asked for: the topic was made anew, and what was known
            // is of the former one. (Or servers have lost the end of it: then all of it is delivered again.)
            let tokens: Vec<_> = part.open.values().flatten().copied().collect();
            self.forget(&tokens);
            self.assign(
                partition.clone(),
                Saved { cursor: place(at), reached: place(at), notes: BTreeMap::new() },
            );
        }
        let Some(part) = self.parts.get_mut(partition) else { return };
        part.next = at + 1;
        // What was open before it and did not come is not there any more.
        while let Some(gone) = part.unread.first().copied().filter(|gone| *gone < at) {
            part.unread.remove(&gone);
            part.open.remove(&gone);
            part.progress.settle(place(gone));
        }
        part.unread.remove(&at);
        let note = part.open.get(&at).and_then(|_| part.progress.get(place(at)).copied());
        let note = note.unwrap_or(Note::FIRST);
        if !part.open.contains_key(&at) && !part.progress.open(place(at), note) {
            // It is finished.
            return;
        }
        let Some(arrival) = make(part.time) else {
            part.open.remove(&at);
            part.progress.settle(place(at));
            return;
        };
        part.time = part.time.max(arrival.origin.time);
        self.next += 1;
        part.open.insert(at, Some(self.next));
        let Arrival { envelope, origin, size } = arrival;
        let offset = Offset::from(origin.place());
        let partition = partition.clone();
        self.entries.insert(
            self.next,
            Entry {
                partition,
                at,
                origin,
                size,
                begun: false,
                unnoted: false,
                answered: false,
                given_back: None,
            },
        );
        self.bytes += size;
        let waiting = Waiting { envelope, offset, attempt: note.attempt, parked: note.parked };
        self.at_hand.insert((true, self.next.into(), self.next), waiting);
    }

    /// How many wait for the reader, and how much memory they take.
    pub(crate) fn at_hand(&self) -> (usize, usize) {
        (self.at_hand.len(), self.bytes)
    }

    /// Whether nothing is unsettled.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.parts.values().all(|part| part.open.is_empty())
    }

    /// Whether nothing is in anybody's hands.
    pub(crate) fn is_idle(&self) -> bool {
        self.entries.len() == self.at_hand.len()
    }

    /// Takes what is at hand.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<(Token, Waiting)> {
        let mut taken = Vec::with_capacity(limit.min(self.at_hand.len()));
        while taken.len() < limit
            && let Some(((.., token), waiting)) = self.at_hand.pop_first()
        {
            self.bytes -= self.entries.get(&token).map_or(0, |entry| entry.size);
            taken.push((token, waiting));
        }
        taken
    }

    /// Puts back what was handed out. What is not held any more comes back, to be dropped.
    pub(crate) fn put_back(&mut self, token: Token, waiting: Waiting) -> Option<Waiting> {
        let Some(entry) = self.entries.get_mut(&token) else { return Some(waiting) };
        let Some(part) = self.parts.get_mut(&entry.partition) else { return Some(waiting) };
        entry.begun = false;
        if entry.answered {
            // Nobody gets it before it is known whether it is settled.
            return entry.given_back.replace(waiting);
        }
        let at = place(entry.at);
        // An attempt that was made counts, wherever the next one is.
        if part.progress.get(at).is_some_and(|note| note.attempt != waiting.attempt) {
            part.progress.note(at, Note { attempt: waiting.attempt, parked: None });
            self.noted += 1;
        }
        self.bytes += entry.size;
        self.at_hand.insert((false, waiting.offset.get(), token), waiting)
    }

    /// Takes everything that nobody has in hand away from the reader: it is read again by whoever has the partition next.
    pub(crate) fn give_back(&mut self) -> Vec<Waiting> {
        let tokens: Vec<_> = self.at_hand.keys().map(|(.., token)| *token).collect();
        for token in &tokens {
            self.entries.remove(token);
        }
        self.bytes = 0;
        std::mem::take(&mut self.at_hand).into_values().collect()
    }

    /// Whether a delivery may still be handled here.
    pub(crate) fn holds(&self, token: Token) -> bool {
        self.entries.get(&token).is_some_and(|entry| self.has(&entry.partition))
    }

    /// Whether it is open here, be it in a partition that is given away.
    pub(crate) fn is_open(&self, token: Token) -> bool {
        self.entries.contains_key(&token)
    }

    /// A handler gets it. No, where it may not be handled here any more.
    pub(crate) fn begin(&mut self, token: Token) -> bool {
        let holds = self.holds(token);
        if let Some(entry) = self.entries.get_mut(&token).filter(|_| holds) {
            entry.begun = true;
        }
        holds
    }

    /// Where an event was published.
    pub(crate) fn origin(&self, token: Token) -> Option<&Origin> {
        self.entries.get(&token).map(|entry| &entry.origin)
    }

    /// It is done. No, where it is somebody else's by now.
    pub(crate) fn settle(&mut self, token: Token) -> bool {
        let Some(entry) = self.entries.remove(&token) else { return false };
        let Some(part) = self.parts.get_mut(&entry.partition) else { return false };
        part.open.remove(&entry.at);
        part.progress.settle(place(entry.at))
    }

    /// It waits for its next attempt. The number of the note; none, where it is somebody else's by now.
    pub(crate) fn park(&mut self, token: Token, attempt: u32, parked: Parked) -> Option<u64> {
        let entry = self.entries.get_mut(&token)?;
        let part = self.parts.get_mut(&entry.partition)?;
        entry.begun = false;
        part.progress.note(place(entry.at), Note { attempt, parked: Some(parked) });
        self.noted += 1;
        Some(self.noted)
    }

    /// What became of a note: it is committed, or cannot be. None, as long as that is open.
    pub(crate) fn is_noted(&self, token: Token, note: u64) -> Option<Noted> {
        match self.entries.get(&token) {
            // Settled meanwhile, or lost.
            None => Some(Noted::Gone),
            Some(_) if self.committed < note => None,
            Some(entry) if entry.unnoted => Some(Noted::TooLong),
            Some(_) => Some(Noted::Yes),
        }
    }

    /// Whether a note waits to be committed.
    pub(crate) fn has_notes(&self) -> bool {
        self.committed < self.noted
    }

    /// Partitions are being given away: nothing of them is begun any more, and what is at hand of them goes.
    pub(crate) fn leave(&mut self, partitions: &[Partition]) -> Vec<Waiting> {
        for partition in partitions {
            if let Some(part) = self.parts.get_mut(partition) {
                part.leaving = true;
            }
        }
        let (parts, entries) = (&self.parts, &mut self.entries);
        let mut dropped = Vec::new();
        let mut freed = 0;
        self.at_hand.retain(|(.., token), waiting| {
            let Some(entry) = entries.get(token) else { return true };
            if !parts.get(&entry.partition).is_some_and(|part| part.leaving) {
                return true;
            }
            freed += entry.size;
            entries.remove(token);
            let envelope = Arc::clone(&waiting.envelope);
            dropped.push(Waiting { envelope, parked: None, ..*waiting });
            false
        });
        self.bytes -= freed;
        dropped
    }

    /// Whether no handler has anything of these partitions.
    pub(crate) fn is_drained(&self, partitions: &[Partition]) -> bool {
        !self.entries.values().any(|entry| entry.begun && partitions.contains(&entry.partition))
    }

    /// Whether everything that was done in these partitions is committed.
    pub(crate) fn is_committed(&self, partitions: &[Partition]) -> bool {
        let mut parts = partitions.iter().filter_map(|partition| self.parts.get(partition));
        parts.all(|part| part.progress.unsaved() == 0)
    }

    /// How much was settled or noted that is not committed.
    pub(crate) fn uncommitted(&self) -> usize {
        self.parts.values().map(|part| part.progress.unsaved()).sum()
    }

    /// Partitions are somebody else's from now on, with all that was held of them.
    pub(crate) fn remove(&mut self, partitions: &[Partition]) -> Vec<Waiting> {
        let dropped = self.leave(partitions);
        for partition in partitions {
            let Some(part) = self.parts.remove(partition) else { continue };
            let tokens: Vec<_> = part.open.into_values().flatten().collect();
            self.forget(&tokens);
        }
        dropped
    }

    /// Topics are not there any more.
    pub(crate) fn remove_topics(&mut self, topics: &[&str]) -> Vec<Waiting> {
        let partitions = self.parts.keys().filter(|(topic, _)| topics.contains(&&**topic));
        let partitions: Vec<_> = partitions.cloned().collect();
        self.remove(&partitions)
    }

    /// All partitions are somebody else's from now on.
    pub(crate) fn remove_all(&mut self) -> Vec<Waiting> {
        let partitions: Vec<_> = self.parts.keys().cloned().collect();
        self.remove(&partitions)
    }

    fn forget(&mut self, tokens: &[Token]) {
        for token in tokens {
            self.entries.remove(token);
        }
        if !tokens.is_empty() {
            // What is at hand of them would be handed out with a receipt that settles nothing; it is dropped there.
            let entries = &self.entries;
            self.at_hand.retain(|(.., token), _| entries.contains_key(token));
            self.bytes =
                self.at_hand.keys().filter_map(|(.., token)| entries.get(token)).map(|e| e.size).sum();
        }
    }

    /// What is to be committed; none, where nothing has changed. It goes back to [`end_commit`](Self::end_commit), before
    /// the next one begins.
    ///
    /// What is `answered` is settled with it, once it is taken.
    pub(crate) fn begin_commit(&mut self, longest_text: usize, answered: Vec<Token>) -> Option<Commit> {
        let mut settled: HashMap<Partition, BTreeSet<Offset>> = HashMap::new();
        for token in &answered {
            if let Some(entry) = self.entries.get_mut(token) {
                entry.answered = true;
                settled.entry(entry.partition.clone()).or_default().insert(place(entry.at));
            }
        }
        let mut parts = Vec::new();
        for (partition, part) in &mut self.parts {
            let by_it = settled.remove(partition).unwrap_or_default();
            let places: Vec<_> = by_it.iter().copied().collect();
            let Some(save) = part.progress.begin_save(&places) else { continue };
            let (cursor, reached) = (save.cursor(), save.reached());
            let open = part.open.keys().map(|at| place(*at));
            let open = open.filter(|at| *at < reached && !by_it.contains(at));
            let notes = open.filter_map(|at| Some((at, *part.progress.get(at)?))).collect();
            let written = committed::write(&Saved { cursor, reached, notes }, longest_text);
            parts.push(CommitPart {
                partition: partition.clone(),
                cursor: number(cursor),
                text: written.text,
                cut_at: written.cut_at,
                times: part.times,
                save,
            });
        }
        if parts.is_empty() {
            self.committed = self.noted;
            return None;
        }
        Some(Commit { parts, answered, noted: self.noted })
    }

    /// Ends a commit, of which the server has taken what `is_taken` says.
    pub(crate) fn end_commit(&mut self, commit: Commit, mut is_taken: impl FnMut(&Partition) -> bool) {
        let mut all = true;
        for CommitPart { partition, save, cut_at, times, .. } in commit.parts {
            let taken = is_taken(&partition);
            // It was lost meanwhile, and maybe given here again.
            let part = self.parts.get_mut(&partition).filter(|part| part.times == times);
            let Some(part) = part else { continue };
            all &= taken;
            part.progress.end_save(save, taken);
            if taken {
                let cut_at = cut_at.map_or(u64::MAX, number);
                for (at, token) in &part.open {
                    if let Some(entry) = token.and_then(|token| self.entries.get_mut(&token)) {
                        entry.unnoted = *at >= cut_at;
                    }
                }
            }
        }
        for token in commit.answered {
            // It may be lost by now.
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            entry.answered = false;
            if is_taken(&entry.partition) {
                if let Some(part) = self.parts.get_mut(&entry.partition) {
                    part.open.remove(&entry.at);
                }
                self.entries.remove(&token);
            } else if let Some(waiting) = entry.given_back.take() {
                // It is at hand, since it is no longer answered.
                drop(self.put_back(token, waiting));
            }
        }
        if all {
            self.committed = self.committed.max(commit.noted);
        }
    }
}

/// What became of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    Yes,
    /// More is open than fits beside an offset.
    TooLong,
    /// The delivery is settled, or somebody else's.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::committed::MAX_LENGTH;
    use eventbus_core::Topic;

    fn partition() -> Partition {
        ("order.placed".into(), 0)
    }

    fn arrive(held: &mut Held, at: u64) {
        held.arrive(&partition(), at, |time| {
            let envelope = Envelope::from_json(Topic::new("order.placed").unwrap(), &at).unwrap();
            let origin = Origin { topic: "order.placed".into(), partition: 0, offset: at, time };
            Some(Arrival { envelope: Arc::new(envelope), origin, size: 10 })
        });
    }

    fn settle_all(held: &mut Held) -> usize {
        let taken = held.take(usize::MAX);
        taken.iter().filter(|(token, _)| held.settle(*token)).count()
    }

    #[test]
    fn a_topic_that_was_made_anew_is_read_from_its_beginning_whatever_was_settled() {
        for former in 1..6 {
            let mut held = Held::default();
            held.assign(partition(), committed::read(place(0), ""));
            (0..former).for_each(|at| arrive(&mut held, at));
            assert_eq!(settle_all(&mut held), former as usize);
            let commit = held.begin_commit(MAX_LENGTH, Vec::new()).expect("something was settled");
            held.end_commit(commit, |_| true);
            (0..3).for_each(|at| arrive(&mut held, at));
            assert_eq!(settle_all(&mut held), 3, "after {former}");
            let commit = held.begin_commit(MAX_LENGTH, Vec::new()).expect("something was settled");
            assert_eq!(commit.parts[0].cursor, 3);
        }
    }

    #[test]
    fn what_is_open_of_a_former_topic_settles_nothing_of_the_one_that_was_made_anew() {
        let mut held = Held::default();
        held.assign(partition(), committed::read(place(0), ""));
        (0..3).for_each(|at| arrive(&mut held, at));
        let former = held.take(usize::MAX);
        (0..3).for_each(|at| arrive(&mut held, at));
        assert!(former.iter().all(|(token, _)| !held.settle(*token)));
        assert_eq!(settle_all(&mut held), 3);
    }

    #[test]
    fn nothing_of_a_partition_that_is_given_away_is_begun() {
        let mut held = Held::default();
        held.assign(partition(), committed::read(place(0), ""));
        (0..3).for_each(|at| arrive(&mut held, at));
        let tokens: Vec<_> = held.take(usize::MAX).into_iter().map(|(token, _)| token).collect();
        assert!(held.begin(tokens[0]));
        held.leave(&[partition()]);
        assert!(!held.begin(tokens[1]) && !held.is_drained(&[partition()]), "the first one is waited for");
        assert!(held.settle(tokens[0]));
        assert!(held.is_drained(&[partition()]), "and no other");
        held.remove(&[partition()]);
        assert!(!held.begin(tokens[2]));
    }

    #[test]
    fn what_is_answered_is_settled_with_its_commit_and_nobody_gets_it_before() {
        let mut held = Held::default();
        held.assign(partition(), committed::read(place(0), ""));
        (0..4).for_each(|at| arrive(&mut held, at));
        let mut taken = held.take(usize::MAX);
        assert!(taken.iter().all(|(token, _)| held.begin(*token)));
        let (answered, waiting) = taken.remove(1);
        assert!(held.settle(taken[0].0));
        let commit = held.begin_commit(MAX_LENGTH, vec![answered]).expect("something is settled");
        assert_eq!(commit.parts[0].cursor, 2);
        assert!(held.put_back(answered, waiting).is_none());
        assert!(held.take(usize::MAX).is_empty() && !held.is_idle(), "it may be settled by now");
        held.end_commit(commit, |_| false);
        let commit = held.begin_commit(MAX_LENGTH, Vec::new()).expect("one is settled");
        assert_eq!(commit.parts[0].cursor, 1, "it was not settled");
        held.end_commit(commit, |_| true);
        let again = held.take(usize::MAX);
        assert_eq!(again.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [answered]);
        let commit = held.begin_commit(MAX_LENGTH, vec![answered]).expect("something is settled");
        held.end_commit(commit, |_| true);
        assert!(!held.is_open(answered) && held.uncommitted() == 0);
        assert!(held.begin_commit(MAX_LENGTH, Vec::new()).is_none());
    }
}
