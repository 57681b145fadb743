//! Events that may have ended the process, for brokers that find out which one it was: what is known of them, and whose
//! turn it is. Plain values: the broker keeps what is noted, and writes it down.
//!
//! Nothing is written when an event is handed to a handler, so the first unclean end does not tell which one was to
//! blame. After it, a group is careful for a while, and for some thousand events: each event is noted right before its
//! handler is called. So the next unclean end leaves behind what was in a handler: the suspects. They are handled one
//! after the other in the whole process ([`Turn`]), as long as none takes long; everything else goes on beside them. The
//! suspect whose turn it is when the process ends is charged with that, and nothing else is. Each time it comes later than
//! before, so that whoever kills processes at some time after their start does not meet the same one again and again.
//!
//! A note goes once the attempt has ended, with the save that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// So long after a take-over that follows on an unclean end everything is noted, at least.
const CAREFUL: Duration = Duration::from_secs(10);
/// So many attempts are noted then at least, however late they come: what was in a handler comes behind what was settled
/// and not saved, and what has been handled beside it. More than twice what a broker settles before it saves that.
pub const ENOUGH: usize = 2_048;
/// So long a suspect keeps others waiting.
const PATIENCE: Duration = Duration::from_secs(2);
/// When a suspect that waits asks again.
const AGAIN: Duration = Duration::from_millis(10);
/// So much later it comes after each end of the process that it is charged with.
const LATER: Duration = Duration::from_millis(200);

/// What is known of an event that may have ended the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    /// How often the process ended while it had its turn.
    pub crashes: u32,
    /// How often others did not wait for it any longer.
    pub outlasted: u32,
}

impl Suspect {
    /// How long others wait for it. It doubles, so that in the end one of two slow ones has been alone for long enough.
    fn patience(self) -> Duration {
        PATIENCE * (1 << self.outlasted.min(8))
    }

    /// How long after the take-over it comes at the earliest: one that took long lets the others go first.
    fn delay(self) -> Duration {
        let outlasted = if self.outlasted == 0 { Duration::ZERO } else { self.patience() };
        outlasted + LATER * self.crashes.min(8)
    }
}

/// What is to be done before a handler is called with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<W> {
    /// It is called.
    Free,
    /// Others go first; to be asked again so much later.
    Later(Duration),
    /// It is called once this is noted.
    Noted {
        /// What is to be written down.
        note: Note<W>,
        /// How often the process ended while the event was alone in a handler.
        crashes: u32,
    },
}

/// What a group knows of its suspects, by their places.
#[derive(Debug)]
pub struct Suspects<K> {
    /// When the group was taken over.
    since: Instant,
    /// The last process was not ended in order.
    crashed: bool,
    /// How many attempts were noted since.
    attempts: usize,
    /// Those that are not settled.
    known: BTreeMap<K, Suspect>,
    /// What is written down.
    noted: BTreeSet<K>,
    /// Of which of that the next save removes what is written.
    ended: Vec<K>,
}

impl<K: Ord + Copy> Default for Suspects<K> {
    fn default() -> Self {
        Self::new(BTreeMap::new(), false)
    }
}

impl<K: Ord + Copy> Suspects<K> {
    /// What was found as a group was taken over; `crashed`: its last process has ended, and not in order.
    #[must_use]
    pub fn new(known: BTreeMap<K, Suspect>, crashed: bool) -> Self {
        let noted = known.keys().copied().collect();
        Self { since: Instant::now(), crashed, attempts: 0, known, noted, ended: Vec::new() }
    }

    /// Whether they are to be asked about each event.
    #[must_use]
    pub fn are_there(&self) -> bool {
        !self.known.is_empty() || self.is_careful()
    }

    /// Whether everything is noted.
    fn is_careful(&self) -> bool {
        self.crashed && (self.attempts < ENOUGH || self.since.elapsed() < CAREFUL)
    }

    /// Another process has ended, and not in order: what it had may be to blame, and comes now.
    pub fn be_careful(&mut self) {
        (self.since, self.crashed, self.attempts) = (Instant::now(), true, 0);
    }

    /// One more was found.
    pub fn add(&mut self, at: K, suspect: Suspect) {
        self.known.insert(at, suspect);
        self.noted.insert(at);
        self.ended.retain(|ended| *ended != at);
    }

    /// Whether the event at `at` is a suspect.
    #[must_use]
    pub fn contains(&self, at: K) -> bool {
        self.known.contains_key(&at)
    }

    /// What is known of the event at `at`.
    #[must_use]
    pub fn find(&self, at: K) -> Suspect {
        self.known.get(&at).copied().unwrap_or_default()
    }

    /// How often the process ended while the event at `at` was alone in a handler.
    #[must_use]
    pub fn crashes(&self, at: K) -> u32 {
        self.find(at).crashes
    }

    /// The attempt of a delivery that was handed out without the crashes, which are added when it is handed out again.
    #[must_use]
    pub fn uncounted(&self, at: K, attempt: u32) -> u32 {
        attempt.saturating_sub(self.crashes(at)).max(1)
    }

    /// A handler is about to be called with the event at `at`, which is `which` among those that have turns.
    pub fn begin<W: Ord + Copy>(&mut self, at: K, which: W, turn: &mut Turn<W>, now: Instant) -> Attempt<W> {
        let suspect = self.known.get(&at).copied();
        if suspect.is_none() && !self.is_careful() {
            return Attempt::Free;
        }
        let delay = suspect.map_or(Duration::ZERO, Suspect::delay);
        let left = delay.saturating_sub(now.saturating_duration_since(self.since));
        if !left.is_zero() {
            return Attempt::Later(left);
        }
        let note = match suspect {
            Some(suspect) => turn.begin(which, suspect.patience(), now),
            None => Some(Note { alone: false, outlasted: None }),
        };
        let Some(note) = note else { return Attempt::Later(AGAIN) };
        self.attempts += 1;
        self.noted.insert(at);
        self.ended.retain(|ended| *ended != at);
        Attempt::Noted { note, crashes: suspect.map_or(0, |suspect| suspect.crashes) }
    }

    /// An attempt at the event at `at` has ended: it is no suspect any more. `true`: it was one.
    pub fn clear(&mut self, at: K) -> bool {
        if self.noted.remove(&at) {
            self.ended.push(at);
        }
        self.known.remove(&at).is_some()
    }

    /// The event at `at` is no suspect any more, and its note is removed with what says so. `true`: it was noted.
    pub fn forget(&mut self, at: K) -> bool {
        self.known.remove(&at);
        self.noted.remove(&at)
    }

    /// Others did not wait any longer for the event at `at`, which is not alone any more; what is known of it now.
    pub fn outlast(&mut self, at: K) -> Option<Suspect> {
        let suspect = self.known.get_mut(&at)?;
        suspect.outlasted += 1;
        Some(*suspect)
    }

    /// Only the events that `is_open` are left.
    pub fn retain(&mut self, is_open: impl Fn(K) -> bool) {
        self.known.retain(|at, _| is_open(*at));
        self.noted.retain(|at| is_open(*at));
    }

    /// What is written down, and not to be removed yet.
    pub fn noted(&self) -> impl Iterator<Item = (K, Suspect)> {
        self.noted.iter().map(|at| (*at, self.find(*at)))
    }

    /// Of which events a save is to remove what is written.
    pub fn begin_save(&mut self) -> Vec<K> {
        std::mem::take(&mut self.ended)
    }

    /// That was not saved.
    pub fn put_back(&mut self, ended: Vec<K>) {
        // What was noted anew meanwhile stays.
        self.ended.extend(ended.into_iter().filter(|at| !self.noted.contains(at)));
    }
}

/// Suspects are handled one after the other, so that the end of the process tells which one it was. One that takes long
/// does not keep the others waiting for ever; then nothing is learnt about those beside it.
///
/// `W` is a delivery: the number of its subscription, and its place.
#[derive(Debug)]
pub struct Turn<W> {
    /// The suspect that others wait for, and until when.
    turn: Option<(W, Instant)>,
    /// Suspects that are still in a handler, and that others do not wait for any more.
    outlasted: BTreeSet<W>,
}

/// What is to be noted before the handler is called with a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<W> {
    /// No other suspect is to blame if the process ends now.
    pub alone: bool,
    /// This one had its turn, and is not alone any more.
    pub outlasted: Option<W>,
}

impl<W> Default for Turn<W> {
    fn default() -> Self {
        Self { turn: None, outlasted: BTreeSet::new() }
    }
}

impl<W: Ord + Copy> Turn<W> {
    /// A handler is about to be called with the suspect `which`; others wait for it for `patience`. None: it is to wait.
    pub fn begin(&mut self, which: W, patience: Duration, now: Instant) -> Option<Note<W>> {
        self.end(which);
        if self.turn.is_some_and(|(_, until)| now < until) {
            return None;
        }
        let outlasted = self.turn.replace((which, now + patience)).map(|(earlier, _)| earlier);
        self.outlasted.extend(outlasted);
        Some(Note { alone: self.outlasted.is_empty(), outlasted })
    }

    /// The handler of `which` has ended.
    pub fn end(&mut self, which: W) {
        self.end_if(|one| one == which);
    }

    /// Nothing that `is_gone` is in a handler that counts.
    pub fn end_if(&mut self, is_gone: impl Fn(W) -> bool) {
        self.outlasted.retain(|one| !is_gone(*one));
        self.turn = self.turn.filter(|(one, _)| !is_gone(*one));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Option<Note<(u64, i64)>> = Some(Note { alone: true, outlasted: None });
    const BESIDE: Option<Note<(u64, i64)>> = Some(Note { alone: false, outlasted: None });

    #[test]
    fn suspects_of_all_subscriptions_are_handled_one_after_the_other() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        assert_eq!(turn.begin((1, 5), PATIENCE, now), ALONE);
        assert_eq!(turn.begin((2, 5), PATIENCE, now), None);
        turn.end((2, 5));
        assert_eq!(turn.begin((1, 6), PATIENCE, now), None);
        turn.end((1, 5));
        assert_eq!(turn.begin((2, 5), PATIENCE, now), ALONE);
        turn.end_if(|(number, _)| number == 2);
        assert_eq!(turn.begin((1, 6), PATIENCE, now), ALONE);
        assert_eq!(turn.begin((1, 6), PATIENCE, now), ALONE, "it is the same one again");
    }

    #[test]
    fn a_slow_suspect_keeps_others_waiting_for_a_while_and_then_none_is_alone() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        assert_eq!(turn.begin((1, 5), PATIENCE, now), ALONE);
        let later = now + PATIENCE;
        let outlasted = Some((1, 5));
        assert_eq!(turn.begin((2, 5), PATIENCE, later), Some(Note { alone: false, outlasted }));
        turn.end((2, 5));
        assert_eq!(turn.begin((2, 6), PATIENCE, later), BESIDE);
        turn.end((2, 6));
        turn.end((1, 5));
        assert_eq!(turn.begin((2, 7), PATIENCE, later), ALONE);
    }

    #[test]
    fn after_an_unclean_end_many_attempts_are_noted_however_late_they_come() {
        let (mut suspects, mut turn) = (Suspects::new(BTreeMap::new(), true), Turn::default());
        let late = Instant::now().checked_sub(CAREFUL).expect("the machine runs for longer");
        for at in 0..ENOUGH {
            suspects.since = late;
            assert!(suspects.are_there(), "after {at}");
            let attempt = suspects.begin(at, at, &mut turn, Instant::now());
            assert!(matches!(attempt, Attempt::Noted { note: Note { alone: false, .. }, crashes: 0 }));
        }
        assert!(!suspects.are_there());
        assert_eq!(suspects.begin(0, 0, &mut turn, Instant::now()), Attempt::Free);
        suspects.since = Instant::now();
        assert!(suspects.are_there(), "and all that come soon");
    }

    #[test]
    fn what_is_noted_anew_while_its_note_is_being_removed_stays_noted() {
        let (mut suspects, mut turn) = (Suspects::new(BTreeMap::new(), true), Turn::default());
        suspects.begin(1, 1, &mut turn, Instant::now());
        assert!(!suspects.clear(1));
        let ended = suspects.begin_save();
        assert_eq!(ended, [1]);
        suspects.begin(1, 1, &mut turn, Instant::now());
        suspects.put_back(ended);
        assert!(suspects.begin_save().is_empty() && suspects.noted().count() == 1);
    }
}
