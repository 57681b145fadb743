//! Who has the turn among what SQS has delivered again and again: one of these may have ended the process that had it.

use super::{Held, Token};
use std::time::{Duration, Instant};

/// Whether a handler may begin with what SQS has delivered several times, and what nobody has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has come once or twice.
    Any,
    /// It has the turn. Hidden for so many seconds, it comes back after a crash behind those that wait for their turns.
    Taken(i32),
    /// Another one has it.
    Waits,
    /// It is given up.
    TooOften,
}

/// What comes for this time takes turns. A process that ends once makes nothing slow: what it had comes for the second time.
const SUSPECT: u32 = 3;
/// So long one that has the turn keeps the others waiting.
const TURN: Duration = Duration::from_secs(2);

impl Held {
    /// Whether a handler may begin with a message that SQS may deliver so often, at most. What it has delivered again and
    /// again may have ended the process that had it, and so may whatever else was there: they take turns, and the one that
    /// has its turn is hidden for longer. So after the next crash the others come first, and what comes alone, again and again, is to blame.
    pub(crate) fn turn(&mut self, token: Token, most: u32, now: Instant) -> Turn {
        let Some(entry) = self.entries.get(&token) else { return Turn::Any };
        if entry.delivered < SUSPECT {
            return Turn::Any;
        }
        if entry.delivered > most && !entry.follows {
            return Turn::TooOften;
        }
        let is_taken = self.turn.is_some_and(|(other, since)| {
            let open = self.entries.get(&other).is_some_and(|entry| entry.due.is_none());
            other != token && open && now < since + TURN
        });
        if is_taken {
            return Turn::Waits;
        }
        self.turn = Some((token, now));
        let mut hidden = self.visibility * 2;
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.due = None;
            hidden = hidden.min(entry.hidden.most(now));
        }
        Turn::Taken(i32::try_from(hidden.as_secs().max(1)).unwrap_or(i32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::Arrival;
    use crate::held::tests::{VISIBILITY, arrival};
    use std::collections::HashSet;

    fn delivered(offset: u128, lane: Option<u64>, attempt: u32) -> Arrival {
        Arrival { attempt, ..arrival(offset, lane) }
    }

    #[test]
    fn what_came_before_takes_turns_and_is_hidden_longer_while_it_has_its_own() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for (offset, attempt) in [(1, 2), (2, 3), (3, 3), (4, 9)] {
            held.arrive(delivered(offset, None, attempt), now, now);
        }
        let tokens: Vec<_> = held.take(9).iter().map(|(token, _)| *token).collect();
        let mut turn = |at: usize, now| held.turn(tokens[at], 8, now);
        assert_eq!(turn(0, now), Turn::Any);
        assert_eq!((turn(1, now), turn(2, now)), (Turn::Taken(60), Turn::Waits));
        assert_eq!(turn(1, now), Turn::Taken(60), "its next attempt");
        assert_eq!(turn(3, now), Turn::TooOften);
        assert_eq!(turn(2, now + TURN), Turn::Taken(60), "a long handler keeps nobody waiting for ever");
        assert_eq!(turn(1, now + TURN), Turn::Waits);
        let settled = held.settle(tokens[2], now);
        assert!(settled && held.turn(tokens[1], 8, now + TURN) == Turn::Waits, "until it is deleted");
        let deletes = held.next_deletes();
        held.deleted(&deletes, &HashSet::new());
        assert_eq!(held.turn(tokens[1], 8, now + TURN), Turn::Taken(60));
        assert!(held.park(tokens[1], now + VISIBILITY, now));
        assert_eq!(
            held.turn(tokens[3], 9, now + TURN),
            Turn::Taken(60),
            "what waits for a retry has no turn"
        );
    }

    #[test]
    fn what_was_only_behind_another_in_its_lane_is_not_given_up() {
        let (mut held, now) = (Held::new(VISIBILITY), Instant::now());
        for offset in [1, 2] {
            held.arrive(delivered(offset, Some(7), 9), now, now);
        }
        let tokens: Vec<_> = held.take(9).iter().map(|(token, _)| *token).collect();
        assert_eq!(held.turn(tokens[0], 8, now), Turn::TooOften);
        assert_eq!(held.turn(tokens[1], 8, now), Turn::Taken(60));
    }
}
