//! What is asked of a consumer and did not come yet. A plain value: it counts, and says when to ask for more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One ask for messages.
#[derive(Debug)]
struct Pull {
    number: u64,
    left: usize,
    /// How many bytes they may have together.
    bytes: usize,
    sent: Instant,
}

/// How many messages are asked for ahead of the reader: at first, and at least.
const FIRST: usize = 64;
const LEAST: usize = 8;

/// How far to ask ahead of the reader. What is held has to be kept, and comes again where it was not, which costs a process
/// that is short of time more than it saves.
#[derive(Debug)]
pub(crate) struct Ahead(usize);

impl Default for Ahead {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Ahead {
    pub(crate) fn get(&self) -> usize {
        self.0
    }

    /// What is held was kept in time.
    pub(crate) fn was_in_time(&mut self, most: usize) {
        self.0 = (self.0 + self.0 / 4).min(most);
    }

    /// It was not.
    pub(crate) fn was_late(&mut self) {
        self.0 = (self.0 / 2).max(LEAST);
    }
}

/// The asks that are open.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    next: u64,
    open: VecDeque<Pull>,
    heard: Option<Instant>,
}

impl Pulls {
    /// How many messages may still come.
    pub(crate) fn coming(&self) -> usize {
        self.open.iter().map(|pull| pull.left).sum()
    }

    /// How many bytes these may have.
    pub(crate) fn bytes(&self) -> usize {
        self.open.iter().map(|pull| pull.bytes).sum()
    }

    /// The number of the latest ask.
    pub(crate) fn last(&self) -> u64 {
        self.next
    }

    /// Asks for so many, of so many bytes; the number under which the answer comes.
    pub(crate) fn ask(&mut self, count: usize, bytes: usize, now: Instant) -> u64 {
        self.next += 1;
        if self.open.is_empty() {
            self.heard = Some(now);
        }
        self.open.push_back(Pull { number: self.next, left: count, bytes, sent: now });
        self.next
    }

    /// A message of that size came; the server answers the oldest ask first. When the oldest that it may have answered was sent.
    pub(crate) fn came(&mut self, size: usize, now: Instant) -> Option<Instant> {
        self.heard = Some(now);
        let oldest = self.open.front_mut()?;
        let sent = oldest.sent;
        oldest.left = oldest.left.saturating_sub(1);
        oldest.bytes = oldest.bytes.saturating_sub(size);
        if oldest.left == 0 {
            self.open.pop_front();
        }
        Some(sent)
    }

    /// The server has ended the ask of this number. When it was sent.
    pub(crate) fn ended(&mut self, number: u64, now: Instant) -> Option<Instant> {
        self.heard = Some(now);
        let at = self.open.iter().position(|pull| pull.number == number)?;
        self.open.remove(at).map(|pull| pull.sent)
    }

    /// The server is there, and has nothing.
    pub(crate) fn beat(&mut self, number: u64, now: Instant) -> Option<Instant> {
        self.heard = Some(now);
        self.open.iter().find(|pull| pull.number == number).map(|pull| pull.sent)
    }

    /// Whether the server has said nothing for so long though it was asked.
    pub(crate) fn is_silent(&self, patience: Duration, now: Instant) -> bool {
        !self.open.is_empty()
            && self.heard.is_some_and(|heard| now.saturating_duration_since(heard) > patience)
    }

    /// Nothing is expected any more.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_what_was_ended_is_not_expected_any_more() {
        let (now, mut pulls) = (Instant::now(), Pulls::default());
        let (first, second) = (pulls.ask(2, 100, now), pulls.ask(3, 50, now));
        assert_eq!((pulls.coming(), pulls.bytes()), (5, 150));
        pulls.came(30, now);
        assert_eq!((pulls.coming(), pulls.bytes()), (4, 120));
        assert!(pulls.ended(first, now).is_some() && pulls.ended(first, now).is_none());
        assert_eq!((pulls.coming(), pulls.bytes()), (3, 50));
        assert!(pulls.beat(second, now).is_some() && pulls.beat(first, now).is_none());
        for _ in 0..5 {
            pulls.came(30, now);
        }
        assert_eq!((pulls.coming(), pulls.bytes()), (0, 0), "more came than was asked for");
    }

    #[test]
    fn who_is_late_asks_for_less_and_who_is_in_time_for_more() {
        let mut ahead = Ahead::default();
        for _ in 0..20 {
            ahead.was_in_time(500);
        }
        assert_eq!(ahead.get(), 500);
        ahead.was_late();
        assert_eq!(ahead.get(), 250);
        for _ in 0..9 {
            ahead.was_late();
        }
        assert_eq!(ahead.get(), LEAST);
        ahead.was_in_time(500);
        assert!(ahead.get() > LEAST);
    }

    #[test]
    fn silence_counts_from_the_last_sign_and_only_where_something_was_asked() {
        let (now, mut pulls, patience) = (Instant::now(), Pulls::default(), Duration::from_secs(6));
        let later = now + patience * 2;
        assert!(!pulls.is_silent(patience, later));
        let number = pulls.ask(1, 9, now);
        assert!(!pulls.is_silent(patience, now + patience) && pulls.is_silent(patience, later));
        pulls.beat(number, later);
        assert!(!pulls.is_silent(patience, later + patience));
        pulls.forget();
        assert!(!pulls.is_silent(patience, later + patience * 9));
    }
}
