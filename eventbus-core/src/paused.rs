//! A paused clock, as tests have it: tokio's jumps to the next timer once only timers are left to wait for, and counts
//! neither I/O nor threads among what is waited for.

use std::time::{Duration, Instant};

/// What a wait on tokio's clock takes on the real one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wait {
    began: Instant,
    time: Duration,
}

impl Wait {
    /// A wait that begins now, and takes `time` on tokio's clock.
    pub(crate) fn begin(time: Duration) -> Self {
        Self { began: Instant::now(), time }
    }

    /// When it is over on the real clock, unless the other one jumps; none, where that is farther away than any time.
    pub(crate) fn due(self) -> Option<Instant> {
        self.began.checked_add(self.time)
    }

    /// How long it takes on tokio's clock.
    pub(crate) fn time(self) -> Duration {
        self.time
    }

    /// How long it has taken so far on the real clock.
    pub(crate) fn real(self) -> Duration {
        self.began.elapsed()
    }

    /// What to say beside a wait that is over, where its time has not passed.
    pub(crate) fn hint(self) -> String {
        hint(self.real(), self.time)
    }
}

/// What to say of a wait of `time` that took as long as `real` on the real clock: nothing, unless the clock has jumped.
pub(crate) fn hint(real: Duration, time: Duration) -> String {
    // Timers are never early, so half of it leaves nothing to chance.
    if real >= time / 2 {
        return String::new();
    }
    format!(
        "; the clock is paused and jumped over this time after {real:.1?}, as tokio's does once only timers are left to \
         wait for: I/O and threads are none, so where a handler waits for these, let the test run on real time (without \
         `start_paused`), or give the handler a stand-in that does no I/O"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_has_jumped_is_named_and_one_that_ran_is_not() {
        let minute = Duration::from_secs(60);
        assert_eq!(hint(minute, minute), "");
        assert_eq!(hint(minute * 2, minute), "");
        assert_eq!(hint(Duration::ZERO, Duration::ZERO), "");
        let jumped = hint(Duration::from_millis(3), minute);
        assert!(jumped.contains("the clock is paused and jumped over this time after 3.0ms"), "{jumped}");
    }
}
