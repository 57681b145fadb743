//! The gate of a bus: who may still publish, and how many publishes are under way.
//!
//! `models/` runs this file under every order of its steps that shuttle finds.

use crate::foreign;
use crate::line::Line;
use crate::sync::{AtomicUsize, Ordering};
use std::fmt;
use std::task::{Context, Poll, Waker};

/// One word: how the gate stands, and above that how many publishes from outside of handlers are under way. So nobody
/// passes between a look at the one and a look at the other.
pub(crate) struct Gate {
    word: AtomicUsize,
    /// Who waits until the publishes under way are done, and publishers that wait for a broker.
    line: Line,
}

/// Only handlers that still run may publish.
const DRAINING: usize = 1;
/// Nobody may publish.
const CLOSED: usize = 2;
/// The runtime that handlers run on has ended.
const STRANDED: usize = 4;
const STATE: usize = 7;
const ONE: usize = 8;

/// Why nobody may publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The bus was shut down.
    Closed,
    /// The runtime that handlers run on has ended.
    Stranded,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { word: AtomicUsize::new(0), line: Line::new() }
    }

    /// Lets a publish pass; those of handlers also while the bus drains.
    pub(crate) fn enter(&self, by_handler: bool) -> Result<Passage<'_>, Refused> {
        let (state, counted) = if by_handler {
            (self.word.load(Ordering::SeqCst) & STATE & !DRAINING, false)
        } else {
            (self.word.fetch_add(ONE, Ordering::SeqCst) & STATE, true)
        };
        // Dropped where it is refused, it is not under way.
        let passage = Passage { gate: self, counted, number: None };
        if state == 0 { Ok(passage) } else { Err(refused(state)) }
    }

    /// From now on only handlers may publish, so that those that still run can finish. The answer is to be woken once
    /// no lock is held, as that of the next two.
    pub(crate) fn drain(&self) -> Vec<Waker> {
        self.set(DRAINING)
    }

    /// From now on nobody may publish, and who waits is told.
    pub(crate) fn close(&self) -> Vec<Waker> {
        self.set(CLOSED)
    }

    /// The runtime that handlers run on has ended.
    pub(crate) fn strand(&self) -> Vec<Waker> {
        self.set(STRANDED)
    }

    fn set(&self, state: usize) -> Vec<Waker> {
        self.word.fetch_or(state, Ordering::SeqCst);
        self.line.call()
    }

    /// Why nobody may publish, where that is so.
    pub(crate) fn refuses(&self) -> Option<Refused> {
        let state = self.word.load(Ordering::SeqCst) & (CLOSED | STRANDED);
        (state != 0).then(|| refused(state))
    }

    /// Ready once no publish from outside is under way; `number` is the caller's place in the line.
    pub(crate) fn poll_passed(&self, context: &Context<'_>, number: &mut Option<u64>) -> Poll<()> {
        *number = Some(self.line.enter(*number, context.waker().clone()));
        if self.word.load(Ordering::SeqCst) / ONE > 0 { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Leaves the place in the line that `poll_passed` has given.
    #[inline]
    pub(crate) fn leave_line(&self, number: Option<u64>) {
        if let Some(number) = number {
            self.line.leave(number);
        }
    }
}

fn refused(state: usize) -> Refused {
    if state & (CLOSED | DRAINING) == 0 { Refused::Stranded } else { Refused::Closed }
}

/// A publish that has passed the gate; under way until this is dropped.
pub(crate) struct Passage<'a> {
    gate: &'a Gate,
    counted: bool,
    number: Option<u64>,
}

impl Passage<'_> {
    /// Waits for the broker, as long as the gate is not closed.
    pub(crate) fn wait(&mut self, context: &Context<'_>) -> Option<Refused> {
        self.number = Some(self.gate.line.enter(self.number, context.waker().clone()));
        self.gate.refuses()
    }

    /// Ends. The answer is to be woken once no lock is held.
    #[inline]
    fn end(&mut self) -> Vec<Waker> {
        self.gate.leave_line(self.number.take());
        if !std::mem::take(&mut self.counted) {
            return Vec::new();
        }
        let before = self.gate.word.fetch_sub(ONE, Ordering::SeqCst);
        // Only a shutdown waits for those under way.
        if before & STATE != 0 && before / ONE == 1 { self.gate.line.call() } else { Vec::new() }
    }
}

impl fmt::Debug for Passage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passage")
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let called = self.end();
        if !called.is_empty() {
            // One that panics is no reason to leave the others asleep.
            called.into_iter().for_each(|waker| foreign::tell("a waker", || waker.wake()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(gate: &Gate) -> bool {
        let mut number = None;
        let polled = gate.poll_passed(&Context::from_waker(Waker::noop()), &mut number);
        gate.leave_line(number);
        polled.is_ready()
    }

    #[test]
    fn the_gate_closes_for_others_first_and_then_for_handlers() {
        let gate = Gate::new();
        let under_way = gate.enter(false).ok().unwrap();
        let _ = gate.drain();
        assert_eq!(gate.enter(false).err(), Some(Refused::Closed));
        assert!(!passed(&gate), "one had passed before");
        let of_handler = gate.enter(true).ok().unwrap();
        drop(under_way);
        assert!(passed(&gate), "the publishes of handlers are not waited for");
        assert_eq!(gate.refuses(), None);
        let _ = gate.close();
        assert_eq!(gate.enter(true).err(), Some(Refused::Closed));
        assert_eq!(gate.refuses(), Some(Refused::Closed));
        drop(of_handler);
        assert!(passed(&gate));
    }

    #[test]
    fn whoever_waits_for_the_broker_is_called_when_the_gate_closes() {
        let gate = Gate::new();
        let mut passage = gate.enter(false).ok().unwrap();
        let context = Context::from_waker(Waker::noop());
        assert_eq!(passage.wait(&context), None);
        assert_eq!(gate.strand().len(), 1);
        assert_eq!(passage.wait(&context), Some(Refused::Stranded));
        drop(passage);
        assert!(gate.close().is_empty(), "it has left the line");
    }
}
