//! The patience of a publisher that waits for room: after a while it says what it waits for, and what to do.

use super::queue::Queue;
use crate::foreign;
use crate::log;
use crate::printable::printable;
use crate::stderr;
use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;
use tokio::time::Sleep;

/// How long it waits before it looks whether anybody reads the queue.
const LOOK: Duration = Duration::from_millis(700);
/// After so many looks at a queue that was read before, and is not read any more.
const LOOKS: u32 = 7;

/// How long one publisher has waited without anything being taken from the queue.
pub(super) struct Patience {
    /// None where there are no timers: outside of a runtime, or on one without.
    next: Option<Pin<Box<Sleep>>>,
    has_begun: bool,
    reads: u64,
    looks: u32,
}

impl Patience {
    pub(super) fn new(queue: &Queue) -> Self {
        Self { next: None, has_begun: false, reads: queue.reads(), looks: 0 }
    }

    /// Looks whenever it is time to. To be called with no lock held, whenever the publisher still has to wait.
    pub(super) fn watch(&mut self, context: &mut Context<'_>, queue: &Queue, capacity: usize) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.next = foreign::timer(LOOK).map(Box::pin);
        }
        while let Some(next) = &mut self.next
            && next.as_mut().poll(context).is_ready()
        {
            self.next = foreign::timer(LOOK).map(Box::pin);
            let reads = queue.reads();
            self.looks = if reads == self.reads { self.looks + 1 } else { 0 };
            self.reads = reads;
            if (reads == 0 || self.looks >= LOOKS) && queue.is_first_to_be_told() {
                tell(queue, capacity, reads > 0);
            }
        }
    }
}

fn tell(queue: &Queue, capacity: usize, was_read: bool) {
    let group = queue.group();
    if was_read {
        log::warn!(
            target: "eventbus", group = %printable(group), capacity,
            "the queue of `{}` is full, and nothing was taken from it for {:?}: its handlers are slow, blocked, or \
             their runtime has ended; publishers wait until there is room",
            printable(group), printable(format_args!("{:?}", LOOK * LOOKS))
        );
    } else {
        // A bus that was not started does not speak yet.
        stderr::insist(|| {
            log::warn!(
                target: "eventbus", group = %printable(group), capacity,
                "the queue of `{}` is full, and nobody reads it: publishers wait; call \
                 `bus.start()` or `bus.run()` before so much is published, raise `capacity` of the in-process broker, \
                 or let publishes fail with `Overflow::Error`",
                printable(group)
            );
        });
    }
}
