//! Acks: which tags of a channel the server has not heard of yet, and how few acks say so. A plain value.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The number of a delivery on its channel, from 1.
pub(crate) type Tag = u64;

/// So long what is settled waits for what came before it, to be acked with it.
pub(crate) const APART: Duration = Duration::from_millis(50);
/// So much of it waits at most.
const BEYOND: usize = 256;

/// An ack to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: Tag,
    /// It stands for everything before it as well.
    pub(crate) multiple: bool,
}

/// The tags of a channel that the server has not heard of yet.
///
/// An ack may stand for all before it, and then it has to name one that is not acked: the server ends the channel for any
/// other. So what is acked apart is out of here.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    open: BTreeSet<Tag>,
    done: BTreeSet<Tag>,
    /// Since when something waits for what came before it.
    since: Option<Instant>,
}

impl Unacked {
    pub(crate) fn open(&mut self, tag: Tag) {
        self.open.insert(tag);
    }

    pub(crate) fn settle(&mut self, tag: Tag, now: Instant) {
        if self.open.remove(&tag) {
            self.done.insert(tag);
            self.since.get_or_insert(now);
        }
    }

    /// It was given back to the queue.
    pub(crate) fn forget(&mut self, tag: Tag) {
        self.open.remove(&tag);
    }

    pub(crate) fn next(&mut self, now: Instant) -> Vec<Ack> {
        let mut acks: Vec<_> = self.prefix().into_iter().collect();
        let waited = self.since.is_some_and(|since| now >= since + APART);
        if waited || self.done.len() > BEYOND {
            acks.extend(self.rest());
        }
        acks
    }

    pub(crate) fn all(&mut self) -> Vec<Ack> {
        self.prefix().into_iter().chain(self.rest()).collect()
    }

    /// One ack for everything before the first that is open.
    fn prefix(&mut self) -> Option<Ack> {
        let last = match self.open.first() {
            Some(open) => self.done.range(..open).next_back().copied(),
            None => self.done.last().copied(),
        }?;
        let beyond = self.done.split_off(&(last + 1));
        let multiple = self.done.len() > 1;
        self.done = beyond;
        if self.done.is_empty() {
            self.since = None;
        }
        Some(Ack { tag: last, multiple })
    }

    /// An ack for each that is settled.
    fn rest(&mut self) -> Vec<Ack> {
        self.since = None;
        std::mem::take(&mut self.done).into_iter().map(|tag| Ack { tag, multiple: false }).collect()
    }

    /// How many acks are to be sent.
    pub(crate) fn unsent(&self) -> usize {
        self.done.len()
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + APART)
    }
}
