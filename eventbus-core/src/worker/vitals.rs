//! Whether a subscription gets on: when an attempt last ended, and since when there is one to make.
//!
//! It is told of the time only where a worker rests, the watchdog looks, or somebody asks, so that an event costs nothing.

use std::time::Duration;
use tokio::time::Instant;

/// When a subscription last got on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vitals {
    /// How many attempts had ended at the last look.
    seen: u64,
    /// When that was seen first.
    ended: Option<Instant>,
    /// Since when something is at hand; nothing, where there is not.
    busy: Option<Instant>,
}

impl Vitals {
    /// A look at `now`: so many attempts have `ended` so far, and so many deliveries are `at_hand`, ready or handled.
    pub(super) fn look(&mut self, now: Instant, ended: u64, at_hand: usize) {
        if ended != self.seen {
            (self.seen, self.ended) = (ended, Some(now));
        }
        self.busy = if at_hand == 0 { None } else { self.busy.or(Some(now)) };
    }

    /// How long ago an attempt has ended; nothing, where none has.
    pub(super) fn last_ended(&self, now: Instant) -> Option<Duration> {
        self.ended.map(|ended| now.saturating_duration_since(ended))
    }

    /// How long something has been at hand without that an attempt has ended.
    pub(super) fn stuck(&self, now: Instant) -> Duration {
        let since = self.busy.map(|busy| self.ended.map_or(busy, |ended| ended.max(busy)));
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stuck_is_what_is_at_hand_while_no_attempt_ends() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut vitals = Vitals::default();
        vitals.look(start, 0, 0);
        assert_eq!((vitals.last_ended(start), vitals.stuck(start)), (None, Duration::ZERO));
        // It was idle for long before the first one came.
        vitals.look(start + 60 * second, 0, 1);
        assert_eq!(vitals.stuck(start + 61 * second), second);
        vitals.look(start + 62 * second, 1, 1);
        assert_eq!(vitals.stuck(start + 65 * second), 3 * second, "since the last one has ended");
        vitals.look(start + 66 * second, 1, 0);
        assert_eq!(vitals.stuck(start + 99 * second), Duration::ZERO);
        assert_eq!(vitals.last_ended(start + 99 * second), Some(37 * second));
    }
}
