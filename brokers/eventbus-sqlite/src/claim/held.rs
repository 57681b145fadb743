//! The lease on a group, as handlers ask for it: without a lock, before each event.

use std::sync::atomic::{AtomicU64, Ordering};

/// Whether the group is ours, and since which take-over.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Incremented on every take-over and when the group is lost; deliveries of earlier epochs are no longer ours.
    epoch: AtomicU64,
    /// Until when the lease holds, in milliseconds since the store was opened.
    until: AtomicU64,
    /// The last epoch in which some delivery was dropped or not settled; 0: in none.
    refused: AtomicU64,
}

impl Held {
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The group was taken over, until then.
    pub(super) fn begin(&self, until: u64) {
        self.extend(until);
        self.end();
    }

    /// Whatever was handed out is no longer ours.
    pub(super) fn end(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The lease was extended.
    pub(super) fn extend(&self, until: u64) {
        self.until.store(until, Ordering::Release);
    }

    /// Whether a delivery of `epoch` may be handled `now`. If it is of this epoch and may not, that is remembered, and
    /// none of this epoch may be from then on, even if the lease is extended: it would overtake what was dropped.
    pub(super) fn allows(&self, epoch: u64, now: u64) -> bool {
        // Deliveries of an earlier epoch were at hand again when the group was taken over.
        let ours = epoch == self.epoch();
        let allowed = ours && !self.has_refused() && now < self.until.load(Ordering::Acquire);
        if ours && !allowed {
            self.refuse(epoch);
        }
        allowed
    }

    /// Some delivery of `epoch` was not settled: the group begins again.
    pub(super) fn refuse(&self, epoch: u64) {
        self.refused.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Whether some delivery of this epoch was dropped since the lease was over, or could not be settled.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire) == self.epoch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_delivery_that_was_dropped_waits_until_the_group_begins_again() {
        let held = Held::default();
        held.begin(10);
        let epoch = held.epoch();
        assert!(held.allows(epoch, 9) && !held.has_refused());
        assert!(!held.allows(epoch, 10) && held.has_refused());
        held.extend(20);
        assert!(!held.allows(epoch, 11), "what was dropped comes first");
        held.begin(20);
        assert!(!held.has_refused() && held.allows(held.epoch(), 11));
    }

    #[test]
    fn what_is_refused_of_an_earlier_epoch_says_nothing_of_this_one() {
        let held = Held::default();
        held.begin(10);
        let earlier = held.epoch();
        held.begin(20);
        held.refuse(earlier);
        assert!(!held.allows(earlier, 11) && !held.has_refused());
        assert!(held.allows(held.epoch(), 11));
    }
}
