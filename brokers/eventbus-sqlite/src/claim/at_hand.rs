//! What is at hand for a subscription's reader, and how much it has been handed.

use super::rows::Noted;
use eventbus_core::Envelope;
use std::collections::VecDeque;
use std::sync::Arc;

/// With more bytes of payload handed out than this, no more are handed out until some are settled.
const HANDED_OUT_BYTES: usize = 64 << 20;

/// A delivery that is at hand.
pub(super) struct Waiting {
    pub(super) offset: i64,
    pub(super) envelope: Arc<Envelope>,
    /// The size of its payload.
    pub(super) size: usize,
    pub(super) noted: Noted,
    pub(super) origin: Origin,
    /// Whether its row is what was written.
    pub(super) intact: bool,
}

/// Where a delivery comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// It was just read, and is opened when it is handed out.
    Read,
    /// It is open: it was unfinished before, or came back.
    Open,
    /// It is open among what was published again.
    Letter,
}

/// Deliveries in the order of the log, since earlier events of a key go first.
#[derive(Default)]
pub(super) struct AtHand {
    queue: VecDeque<Waiting>,
    /// The size of their payloads.
    bytes: usize,
    /// How many were handed out and are not settled, and the size of their payloads.
    handed_out: usize,
    handed_out_bytes: usize,
    /// The reader waits until some of them are settled.
    stalled: bool,
}

impl Waiting {
    fn place(&self) -> (i64, bool) {
        (self.offset, self.origin == Origin::Letter)
    }
}

impl AtHand {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a delivery at hand; what is there already comes back.
    pub(super) fn push(&mut self, waiting: Waiting) -> Option<Waiting> {
        let at = match self.queue.back() {
            Some(last) if last.place() >= waiting.place() => {
                self.queue.partition_point(|other| other.place() < waiting.place())
            }
            _ => self.queue.len(),
        };
        if self.queue.get(at).is_some_and(|other| other.place() == waiting.place()) {
            return Some(waiting);
        }
        self.bytes += waiting.size;
        self.queue.insert(at, waiting);
        None
    }

    /// The next delivery to hand out, if there is one and not too much is handed out already.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        if self.handed_out > 0 && self.handed_out_bytes >= HANDED_OUT_BYTES {
            self.stalled = !self.queue.is_empty();
            return None;
        }
        let waiting = self.queue.pop_front()?;
        self.bytes -= waiting.size;
        Some(waiting)
    }

    /// A delivery of `size` bytes is handed out.
    pub(super) fn hand_out(&mut self, size: usize) {
        self.handed_out += 1;
        self.handed_out_bytes += size;
    }

    /// A delivery of `size` bytes is not in anybody's hands any more. `true`: the reader waits for that.
    pub(super) fn give_back(&mut self, size: usize) -> bool {
        self.handed_out = self.handed_out.saturating_sub(1);
        self.handed_out_bytes = self.handed_out_bytes.saturating_sub(size);
        std::mem::take(&mut self.stalled)
    }

    pub(super) fn into_envelopes(self) -> impl Iterator<Item = Arc<Envelope>> {
        self.queue.into_iter().map(|waiting| waiting.envelope)
    }
}
