//! Whose turn it is among events that may have ended an earlier process.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A delivery: the number of its subscription, and its place.
pub(crate) type Which = (u64, i64);

/// Suspects are handled one after the other, so that the end of the process tells which one it was. One that takes long
/// does not keep the others waiting for ever; then nothing is learnt about those beside it.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// The suspect that others wait for, and until when.
    turn: Option<(Which, Instant)>,
    /// Suspects that are still in a handler, and that others do not wait for any more.
    outlasted: BTreeSet<Which>,
}

/// What is to be noted before the handler is called with a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// No other suspect is to blame if the process ends now.
    pub(crate) alone: bool,
    /// This one had its turn, and is not alone any more.
    pub(crate) outlasted: Option<Which>,
}

impl Turn {
    /// A handler is about to be called with the suspect `which`; others wait for it for `patience`. None: it is to wait.
    pub(crate) fn begin(&mut self, which: Which, patience: Duration, now: Instant) -> Option<Note> {
        self.end(which);
        if self.turn.is_some_and(|(_, until)| now < until) {
            return None;
        }
        let outlasted = self.turn.replace((which, now + patience)).map(|(earlier, _)| earlier);
        self.outlasted.extend(outlasted);
        Some(Note { alone: self.outlasted.is_empty(), outlasted })
    }

    /// The handler of `which` has ended.
    pub(crate) fn end(&mut self, which: Which) {
        self.end_if(|one| one == which);
    }

    /// Nothing of the subscription `number` is in a handler that counts.
    pub(crate) fn forget(&mut self, number: u64) {
        self.end_if(|one| one.0 == number);
    }

    fn end_if(&mut self, ended: impl Fn(Which) -> bool) {
        self.outlasted.retain(|one| !ended(*one));
        self.turn = self.turn.filter(|(one, _)| !ended(*one));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);
    const ALONE: Option<Note> = Some(Note { alone: true, outlasted: None });
    const BESIDE: Option<Note> = Some(Note { alone: false, outlasted: None });

    #[test]
    fn suspects_of_all_subscriptions_are_handled_one_after_the_other() {
        let (mut turn, now) = (Turn::default(), Instant::now());
        assert_eq!(turn.begin((1, 5), PATIENCE, now), ALONE);
        assert_eq!(turn.begin((2, 5), PATIENCE, now), None);
        turn.end((2, 5));
        assert_eq!(turn.begin((1, 6), PATIENCE, now), None);
        turn.end((1, 5));
        assert_eq!(turn.begin((2, 5), PATIENCE, now), ALONE);
        turn.forget(2);
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
}
