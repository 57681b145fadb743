//! Whether a subscription stands by, as its broker knows it, and the lines of the log when that changes.

use super::condition::Standing;
use crate::log;
use crate::printable::printable;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a subscription of this process stands to its group, where one process at a time handles it.
///
/// How it begins is told by the bus that opens it. What changes is a line of the log each time: that it stands by from now
/// on, and that it has taken the group over. To be called with no lock held.
#[derive(Debug, Default)]
pub struct Stance {
    stands_by: AtomicBool,
    /// That it stands by was told, and not yet that this is over.
    told: AtomicBool,
}

impl Stance {
    /// How it stands when it is opened.
    pub fn begin(&self, stands_by: bool) {
        self.stands_by.store(stands_by, Ordering::Release);
        self.told.store(stands_by, Ordering::Release);
    }

    /// Another process has the group.
    pub fn stands_by(&self, group: &str, pattern: &str) {
        self.stands_by.store(true, Ordering::Release);
        if !self.told.swap(true, Ordering::AcqRel) {
            log::info!(
                target: "eventbus", group = %printable(group), pattern = %printable(pattern),
                "stands by for a group: another process handles it"
            );
        }
    }

    /// No process has the group.
    pub fn is_free(&self) {
        self.stands_by.store(false, Ordering::Release);
    }

    /// This process has the group.
    pub fn is_ours(&self, group: &str, pattern: &str) {
        self.is_free();
        if self.told.swap(false, Ordering::AcqRel) {
            has_taken_over(group, pattern);
        }
    }

    /// What is known.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if self.stands_by.load(Ordering::Acquire) { Standing::StandingBy } else { Standing::Active }
    }
}

/// Tells that this process has a group for which it stood by.
pub fn has_taken_over(group: &str, pattern: &str) {
    log::info!(
        target: "eventbus", group = %printable(group), pattern = %printable(pattern),
        "has taken over a group: another process handled it before"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::captured::Captured;

    #[test]
    fn each_change_is_told_once_and_the_beginning_is_not() {
        let log = Captured::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let said = || {
            let text = log.take();
            let lines = text.lines().map(|line| {
                assert!(line.contains("INFO") && line.contains("group=mail"), "{line}");
                if line.contains("has taken over") { "taken" } else { "waits" }
            });
            lines.collect::<Vec<_>>()
        };
        tracing::subscriber::with_default(subscriber, || {
            let stance = Stance::default();
            stance.is_ours("mail", "a");
            assert_eq!((said(), stance.standing()), (vec![], Standing::Active));
            stance.stands_by("mail", "a");
            stance.is_free();
            assert_eq!(stance.standing(), Standing::Active);
            stance.stands_by("mail", "a");
            assert_eq!((said(), stance.standing()), (vec!["waits"], Standing::StandingBy));
            stance.is_free();
            stance.is_ours("mail", "a");
            stance.is_ours("mail", "a");
            assert_eq!((said(), stance.standing()), (vec!["taken"], Standing::Active));
            stance.begin(true);
            stance.stands_by("mail", "a");
            assert_eq!(said(), Vec::<&str>::new());
            stance.is_ours("mail", "a");
            assert_eq!(said(), ["taken"]);
        });
    }
}
