//! The lease on a group, as handlers ask for it: without a lock, before each event.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Whether the group is ours, and since which take-over.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Incremented on every take-over and when the group is lost; deliveries of earlier epochs are no longer ours.
    epoch: AtomicU64,
    /// Until when the lease holds, in milliseconds since the store was opened.
    until: AtomicU64,
    /// Some delivery was not handled because the lease was over.
    refused: AtomicBool,
}

impl Held {
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The group was taken over, until then.
    pub(super) fn begin(&self, until: u64) {
        self.extend(until);
        self.end();
        self.refused.store(false, Ordering::Release);
    }

    /// Whatever was handed out is no longer ours.
    pub(super) fn end(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// The lease was extended.
    pub(super) fn extend(&self, until: u64) {
        self.until.store(until, Ordering::Release);
    }

    /// Whether a delivery of `epoch` may be handled `now`. If it is of this epoch and may not, that is remembered.
    pub(super) fn allows(&self, epoch: u64, now: u64) -> bool {
        // Deliveries of an earlier epoch were at hand again when the group was taken over.
        let ours = epoch == self.epoch();
        let allowed = ours && now < self.until.load(Ordering::Acquire);
        if ours && !allowed {
            self.refuse();
        }
        allowed
    }

    /// Some delivery of this epoch was not settled: the group begins again.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
    }

    /// Whether some delivery of this epoch was not handled because the lease was over.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }
}
