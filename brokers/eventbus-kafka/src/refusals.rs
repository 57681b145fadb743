//! What the server goes on to refuse. A plain value without a clock.

use std::time::{Duration, Instant};

/// So long a refusal may be one that passes, as while a right is being given or a topic made anew.
const LASTS: Duration = Duration::from_secs(5);
/// How often one that lasts is told.
const AGAIN: Duration = Duration::from_secs(60);

/// The refusals of something that is asked again and again.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Since when there was nothing else.
    since: Option<Instant>,
    /// When that was told last.
    told: Option<Instant>,
}

impl Refusals {
    /// It is done.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    /// It is refused. Whether that is to be told.
    pub(crate) fn hear(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_due = self.told.is_none_or(|told| now.duration_since(told) >= AGAIN);
        if now.duration_since(since) < LASTS || !is_due {
            return false;
        }
        self.told = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_it_lasts_and_then_now_and_again() {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let mut told = Vec::new();
        for second in 0..=130 {
            if refusals.hear(begun + Duration::from_secs(second)) {
                told.push(second);
            }
        }
        assert_eq!(told, [5, 65, 125]);
        refusals.end();
        assert!(!refusals.hear(begun + Duration::from_secs(200)), "it begins anew");
        assert!(refusals.hear(begun + Duration::from_secs(205)));
    }
}
