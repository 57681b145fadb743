//! The tail: the latest events, as they were published, for subscriptions that keep up.
//!
//! A subscription that keeps up takes events from here, without reading or decoding what was just written.

use eventbus_core::{Envelope, Pattern};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many events are kept.
const EVENTS: usize = 8_192;
/// How many bytes their payloads may have.
const BYTES: usize = 8 << 20;

/// An unbroken row of events up to the latest one of the log: whoever finds nothing behind its place has read everything.
#[derive(Default)]
pub(crate) struct Tail {
    events: VecDeque<(i64, Arc<Envelope>, usize)>,
    bytes: usize,
}

/// What a subscription found in the tail.
pub(crate) struct Caught {
    pub(crate) events: Vec<(i64, Arc<Envelope>)>,
    /// The last place that was looked at.
    pub(crate) position: i64,
    /// Whether nothing is behind it.
    pub(crate) complete: bool,
}

impl Tail {
    /// Adds the event at `offset`. Where somebody else stored events in between, what came before is forgotten. What
    /// is not kept comes back, since its value is to be dropped without a lock.
    pub(crate) fn push(&mut self, offset: i64, envelope: Arc<Envelope>, size: usize) -> Vec<Arc<Envelope>> {
        let mut evicted = match self.events.back() {
            Some((last, ..)) if last + 1 != offset => self.clear(),
            _ => Vec::new(),
        };
        self.events.push_back((offset, envelope, size));
        self.bytes += size;
        while self.events.len() > EVENTS || (self.bytes > BYTES && self.events.len() > 1) {
            if let Some((_, envelope, size)) = self.events.pop_front() {
                self.bytes -= size;
                evicted.push(envelope);
            }
        }
        evicted
    }

    /// Forgets everything, and gives it back: somebody else has stored events behind it.
    pub(crate) fn clear(&mut self) -> Vec<Arc<Envelope>> {
        self.bytes = 0;
        std::mem::take(&mut self.events).into_iter().map(|(_, envelope, _)| envelope).collect()
    }

    /// At most `limit` events on `pattern` behind `position`; none where the tail begins later.
    pub(crate) fn after(&self, position: i64, pattern: &Pattern, limit: usize) -> Option<Caught> {
        let first = self.events.front()?.0;
        let skip = usize::try_from(position + 1 - first).ok()?;
        let mut caught = Caught { events: Vec::new(), position, complete: true };
        for (offset, envelope, _) in self.events.range(skip.min(self.events.len())..) {
            if caught.events.len() == limit {
                caught.complete = false;
                break;
            }
            caught.position = *offset;
            if pattern.matches(envelope.topic().as_str()) {
                caught.events.push((*offset, Arc::clone(envelope)));
            }
        }
        Some(caught)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::Topic;

    fn tail(offsets: impl IntoIterator<Item = i64>) -> Tail {
        let mut tail = Tail::default();
        for offset in offsets {
            let topic = if offset % 2 == 0 { "even.stored" } else { "odd.stored" };
            let envelope = Envelope::from_json(Topic::from_static(topic), &offset).unwrap();
            tail.push(offset, Arc::new(envelope), 1);
        }
        tail
    }

    fn offsets(tail: &Tail, position: i64, pattern: &str, limit: usize) -> Option<(Vec<i64>, i64, bool)> {
        let caught = tail.after(position, &Pattern::new(pattern).unwrap(), limit)?;
        Some((caught.events.iter().map(|(offset, _)| *offset).collect(), caught.position, caught.complete))
    }

    #[test]
    fn who_keeps_up_finds_what_matches_and_who_does_not_reads_the_file() {
        let tail = tail(10..=15);
        assert_eq!(offsets(&tail, 9, ">", 9), Some((vec![10, 11, 12, 13, 14, 15], 15, true)));
        assert_eq!(offsets(&tail, 12, "even.*", 9), Some((vec![14], 15, true)));
        assert_eq!(offsets(&tail, 9, ">", 2), Some((vec![10, 11], 11, false)));
        assert_eq!(offsets(&tail, 15, ">", 2), Some((vec![], 15, true)));
        assert_eq!(offsets(&tail, 8, ">", 2), None);
    }

    #[test]
    fn a_gap_forgets_what_came_before() {
        let tail = tail([1, 2, 5, 6]);
        assert_eq!(offsets(&tail, 2, ">", 9), None);
        assert_eq!(offsets(&tail, 4, ">", 9), Some((vec![5, 6], 6, true)));
    }
}
