//! Backoff: how long to wait between attempts.

use std::time::Duration;

/// Exponential backoff: the first delay, doubled for each further attempt, up to the longest delay.
///
/// Jitter only ever lengthens: a delay `d` becomes a random time in `[d, 2d]`, so that a crowd of retries
/// spreads out and none comes too early.
///
/// ```
/// use eventbus_core::Backoff;
/// use std::time::Duration;
///
/// let backoff = Backoff::parse("200ms..1m");
/// assert_eq!(backoff.delay(3), Duration::from_millis(800));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Delays from `first` to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// Reads a backoff as it is written in `#[subscribe(backoff = "200ms..1m")]`.
    ///
    /// # Panics
    /// Where `text` is not two durations, the shorter one first; in a `const` this is a compile error.
    #[must_use]
    pub const fn parse(text: &str) -> Self {
        match eventbus_grammar::duration_range(text) {
            Ok((first, longest)) => Self { first, longest },
            Err(fault) => panic!("{}", fault.explain(text).as_str()),
        }
    }

    /// The delay after `attempt` has failed, before jitter; attempts count from 1.
    #[must_use]
    pub fn delay(self, attempt: u32) -> Duration {
        let factor = 2u32.saturating_pow(attempt.saturating_sub(1));
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// The delay after `attempt` has failed, with jitter.
    pub(crate) fn jittered(self, attempt: u32) -> Duration {
        let delay = self.delay(attempt);
        delay.saturating_add(delay.mul_f64(fastrand::f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let delays: Vec<_> = [1, 2, 3, 9, 10, 1_000].map(|attempt| backoff.delay(attempt).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn the_longest_of_delays_does_not_overflow() {
        assert_eq!(Backoff::new(Duration::MAX, Duration::MAX).jittered(9), Duration::MAX);
    }

    #[test]
    fn jitter_only_lengthens_and_at_most_doubles() {
        let backoff = Backoff::parse("200ms..1m");
        for _ in 0..1_000 {
            let delay = backoff.jittered(2).as_millis();
            assert!((400..=800).contains(&delay), "{delay}");
        }
    }
}
