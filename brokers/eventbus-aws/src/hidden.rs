//! For how long SQS hides a message from others, and for how long it may. Plain values, without a clock.

use crate::config::LONGEST_HIDDEN;
use crate::held::SPARE;
use std::time::{Duration, Instant};

/// What is known of how a message is hidden.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hidden {
    /// When it was asked for. SQS counts its twelve hours from when it gave it out, however often it hides it longer.
    since: Instant,
    /// Until then nobody else gets it.
    until: Instant,
    /// SQS is being asked to hide it longer.
    asked: bool,
}

impl Hidden {
    /// That of a message that was asked for at that time.
    pub(crate) fn new(since: Instant, visibility: Duration) -> Self {
        Self { since, until: since + visibility, asked: false }
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// For how long nobody else gets it.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    /// For how long SQS may be asked to hide it.
    pub(crate) fn most(&self, now: Instant) -> Duration {
        (self.since + LONGEST_HIDDEN).saturating_duration_since(now)
    }

    /// For how many seconds SQS is to hide it now, where it is time to ask: for this `wait`, and for `visibility` beyond it.
    /// A part of a second is left out, so that it is hidden no shorter than we think.
    pub(crate) fn ask(&mut self, wait: Duration, visibility: Duration, now: Instant) -> Option<i32> {
        let seconds = (wait + visibility).min(self.most(now)).as_secs();
        let gains = now + Duration::from_secs(seconds) > self.until;
        if self.asked || !gains || self.left(now) > visibility.mul_f64(2.0 / 3.0) {
            return None;
        }
        self.asked = true;
        i32::try_from(seconds).ok()
    }

    /// SQS has answered: it hides it until then. None, where it was not done.
    pub(crate) fn answered(&mut self, until: Option<Instant>) {
        self.asked = false;
        if let Some(until) = until {
            self.until = until;
        }
    }

    /// Whether the twelve hours are nearly over, and will be before a handler may have begun that is due then. SQS is not
    /// being asked for anything.
    pub(crate) fn ends_before(&self, due: Instant, visibility: Duration, now: Instant) -> bool {
        let is_late = due + visibility.mul_f64(SPARE) > self.since + LONGEST_HIDDEN;
        !self.asked && is_late && self.most(now) <= visibility / 4
    }

    /// It is not hidden any more.
    pub(crate) fn end(&mut self, now: Instant) {
        self.until = self.until.min(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISIBILITY: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn it_is_asked_for_what_is_left_of_twelve_hours_since_it_came_and_for_nothing_when_they_are_over() {
        let since = Instant::now();
        let mut hidden = Hidden::new(since, VISIBILITY);
        assert_eq!(hidden.ask(HOUR * 20, VISIBILITY, since), None, "it is early");
        let now = since + Duration::from_secs(15);
        assert_eq!(hidden.ask(HOUR * 20, VISIBILITY, now), Some(43_185));
        assert_eq!(hidden.ask(HOUR * 20, VISIBILITY, now), None, "it is on its way");
        hidden.answered(Some(now + Duration::from_secs(43_185)));
        let end = since + HOUR * 12;
        for (due, before, ends) in [(HOUR * 20, 6, true), (HOUR * 20, 60, false), (HOUR * 11, 6, false)] {
            let now = end - Duration::from_secs(before);
            assert_eq!(hidden.ends_before(since + due, VISIBILITY, now), ends, "{due:?}");
        }
        assert_eq!(hidden.ask(HOUR, VISIBILITY, end - Duration::from_secs(10)), None, "there is no more");
        assert!(!hidden.is_over(end - Duration::from_secs(1)) && hidden.is_over(end));
    }

    #[test]
    fn a_handler_that_goes_on_for_hours_is_given_all_that_there_is() {
        let since = Instant::now();
        let (mut hidden, mut now) = (Hidden::new(since, VISIBILITY), since);
        while now < since + HOUR * 12 - Duration::from_secs(1) {
            assert!(!hidden.is_over(now));
            now += Duration::from_secs(1);
            if let Some(seconds) = hidden.ask(Duration::ZERO, VISIBILITY, now) {
                let until = now + Duration::from_secs(seconds.unsigned_abs().into());
                assert!(seconds > 0 && until <= since + HOUR * 12, "SQS would refuse it");
                hidden.answered(Some(until));
            }
        }
    }
}
