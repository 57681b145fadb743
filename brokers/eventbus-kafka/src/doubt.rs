//! Whether the server may have given away what a process has, since that stood still. A plain value without a clock.

use std::time::{Duration, Instant};

/// What is known of the process's own silence.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// When its thread ran last.
    alive: Option<Instant>,
    /// How often it has stood still.
    times: u64,
    /// It has stood still, and the server has said nothing since.
    open: bool,
}

impl Doubt {
    /// Whether the server may have given away what this process has: nothing is begun then.
    pub(crate) fn is_open(&self, now: Instant, silence: Duration) -> bool {
        self.open || self.stood_still(now, silence)
    }

    fn stood_still(&self, now: Instant, silence: Duration) -> bool {
        self.alive.is_some_and(|alive| now.saturating_duration_since(alive) > silence)
    }

    /// The thread runs. The number of the doubt that is open, where one is.
    pub(crate) fn run(&mut self, now: Instant, silence: Duration) -> Option<u64> {
        if self.stood_still(now, silence) {
            self.times += 1;
            self.open = true;
        }
        self.alive = Some(now);
        self.open.then_some(self.times)
    }

    /// The server, asked in the doubt of this number, knows the process. It says nothing of a later one.
    pub(crate) fn end(&mut self, number: u64) {
        if number == self.times {
            self.open = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(3);

    fn second(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    #[test]
    fn a_process_that_runs_is_not_in_doubt() {
        let (mut doubt, begun) = (Doubt::default(), Instant::now());
        assert!(!doubt.is_open(begun, SILENCE), "it has not begun");
        for at in (0..30).step_by(3) {
            assert_eq!(doubt.run(second(begun, at), SILENCE), None);
            assert!(!doubt.is_open(second(begun, at + 3), SILENCE));
        }
    }

    #[test]
    fn one_that_stood_still_is_until_the_server_has_answered() {
        let (mut doubt, begun) = (Doubt::default(), Instant::now());
        doubt.run(begun, SILENCE);
        // Another thread may run before its own one does.
        assert!(doubt.is_open(second(begun, 4), SILENCE));
        let first = doubt.run(second(begun, 4), SILENCE).expect("it stood still");
        assert_eq!(doubt.run(second(begun, 5), SILENCE), Some(first));
        doubt.end(first);
        assert!(!doubt.is_open(second(begun, 5), SILENCE));
        assert_eq!(doubt.run(second(begun, 6), SILENCE), None);
    }

    #[test]
    fn an_answer_from_before_it_stood_still_again_does_not_count() {
        let (mut doubt, begun) = (Doubt::default(), Instant::now());
        doubt.run(begun, SILENCE);
        let first = doubt.run(second(begun, 4), SILENCE).expect("it stood still");
        let later = doubt.run(second(begun, 8), SILENCE).expect("again");
        doubt.end(first);
        assert!(doubt.is_open(second(begun, 8), SILENCE));
        doubt.end(later);
        assert!(!doubt.is_open(second(begun, 8), SILENCE));
    }
}
