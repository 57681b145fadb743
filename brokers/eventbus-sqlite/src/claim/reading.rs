//! How far the events of a subscription were read.

use std::mem::take;

/// How far the events of a claim were read, and what is being fetched.
pub(super) struct Reading {
    /// Everything up to here was read: it is at hand, open, or not ours.
    position: i64,
    /// There may be events behind `position`.
    behind: bool,
    /// Somebody said so while events were fetched.
    called: bool,
    /// The ticket of what is being fetched, while it is wanted.
    fetching: Option<u64>,
    tickets: u64,
}

/// What is fetched: events behind a position. It is worth nothing any more once the reading was forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) position: i64,
    number: u64,
}

impl Reading {
    /// Begins behind `position`, where there may be events.
    pub(super) fn new(position: i64) -> Self {
        Self { position, behind: true, called: false, fetching: None, tickets: 0 }
    }

    pub(super) fn position(&self) -> i64 {
        self.position
    }

    /// There may be events behind what was read.
    pub(super) fn call(&mut self) {
        (self.behind, self.called) = (true, true);
    }

    /// Whether everything was read.
    pub(super) fn is_complete(&self) -> bool {
        !self.behind && self.fetching.is_none()
    }

    /// Whether there may be something to fetch, and nobody does.
    pub(super) fn wants_more(&self) -> bool {
        self.behind && self.fetching.is_none()
    }

    /// Events were taken, up to `position`.
    pub(super) fn advance(&mut self, position: i64, complete: bool) {
        (self.position, self.behind) = (position, !complete);
    }

    /// There is nothing of ours up to `head`; tells how far everything was read.
    pub(super) fn skip_to(&mut self, head: i64) -> i64 {
        self.position = self.position.max(head);
        self.position
    }

    pub(super) fn begin_fetch(&mut self) -> Ticket {
        self.tickets += 1;
        self.called = false;
        self.fetching = Some(self.tickets);
        Ticket { position: self.position, number: self.tickets }
    }

    /// What was fetched has come; `false`: it is not wanted any more. None was read if it failed.
    pub(super) fn end_fetch(&mut self, ticket: Ticket, read: Option<(i64, bool)>) -> bool {
        let wanted = self.fetching == Some(ticket.number);
        if wanted {
            self.fetching = None;
            if let Some((position, complete)) = read {
                let called = take(&mut self.called);
                self.advance(position, complete && !called);
            }
        }
        wanted
    }

    /// What is being fetched is not wanted.
    pub(super) fn forget(&mut self) {
        self.fetching = None;
    }

    /// Begins again behind `position`.
    pub(super) fn resume(&mut self, position: i64) {
        self.fetching = None;
        (self.position, self.behind) = (position, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_while_events_are_fetched_is_not_missed() {
        let mut reading = Reading::new(0);
        let ticket = reading.begin_fetch();
        assert!(!reading.wants_more(), "one at a time");
        reading.call();
        assert!(reading.end_fetch(ticket, Some((5, true))));
        assert!(reading.wants_more(), "what was called for may be behind 5");
        let ticket = reading.begin_fetch();
        assert!(reading.end_fetch(ticket, Some((6, true))));
        assert!(reading.is_complete());
    }

    #[test]
    fn what_was_fetched_before_a_take_over_is_not_wanted_after_it() {
        let mut reading = Reading::new(0);
        let stale = reading.begin_fetch();
        reading.resume(3);
        assert!(!reading.end_fetch(stale, Some((9, true))));
        let ticket = reading.begin_fetch();
        assert!(!reading.end_fetch(stale, Some((9, true))));
        assert_eq!((ticket.position, reading.position()), (3, 3));
        assert!(
            reading.end_fetch(ticket, None) && reading.wants_more(),
            "after an error it is fetched again"
        );
    }
}
