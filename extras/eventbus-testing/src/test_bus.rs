//! The bus that tests publish on.

use crate::record::{HandledAttempt, Record};
use crate::strict::Strict;
use eventbus_core::broker::DeadLetter;
use eventbus_core::census::unlinked;
use eventbus_core::choice::choice;
use eventbus_core::counted::counted;
use eventbus_core::memory::MemoryBroker;
use eventbus_core::printable::printable;
use eventbus_core::{Attempted, Bus, BusBuilder, Envelope, Event, EventId, IntoEvent};
use serde::Serialize;
use std::fmt::{self, Debug};
use std::sync::Arc;

/// A running bus on the in-process broker, on which a test publishes and awaits everything that follows.
///
/// Every publish resolves once nothing is queued, being handled, or parked for a retry: by counting deliveries,
/// not by waiting a while. In a test with `#[tokio::test(start_paused = true)]` the clock jumps to the next retry
/// or timeout whenever there is nothing else to do. Sockets and threads are nothing to that clock: a handler that waits
/// for one meets its `timeout` at once, and the dead letter says so. Such a handler is tested on real time
/// (`#[tokio::test]`), or with a stand-in for what it talks to.
///
/// It refuses what a log could not keep or give back, though it keeps events in memory:
///
/// - an event that cannot be read again from its own bytes, or comes back as another one (see
///   [`PublishError::Unreadable`](eventbus_core::PublishError::Unreadable)); a field that is left out on purpose
///   (`#[serde(skip)]`) is none;
/// - what the event's codec has no form for, such as NaN in JSON;
/// - a payload of more than 8 MiB, which is what the embedded log takes by default.
///
/// Where a handler publishes or returns such an event, its delivery becomes a dead letter that says so.
///
/// Its methods panic where a program would get an error, so that a test reads as a list of facts.
pub struct TestBus {
    bus: Bus,
    broker: MemoryBroker,
    record: Record,
}

impl TestBus {
    /// Starts a bus with the settings of `builder`: those of the program, or some for this test.
    ///
    /// # Panics
    /// Where the start-up checks find mistakes; the message lists them.
    #[track_caller]
    pub fn start(builder: BusBuilder) -> impl Future<Output = Self> {
        // Groups that begin at the earliest event, replays and the audit log can be tested as well.
        let broker = MemoryBroker::builder().history(usize::MAX).build();
        let record = Record::default();
        let caller = std::panic::Location::caller();
        async move {
            let bus = match builder.observer(record.clone()).broker(Strict(broker.clone())).await {
                Ok(bus) => bus,
                Err(error) => panic!("the bus of the test at {caller} does not start: {error}"),
            };
            let bus = Self { bus, broker, record };
            bus.run();
            bus
        }
    }

    /// Runs what there is to run. Without subscriptions that is nothing; the test may subscribe later, or only look at
    /// what was published.
    fn run(&self) {
        if !self.bus.subscriptions().is_empty() {
            // A test may have shut it down.
            let _ = self.bus.start_quietly();
        }
    }

    /// Publishes an event, and resolves when everything that it causes is over.
    ///
    /// # Panics
    /// Where the bus refuses the event.
    #[track_caller]
    pub fn publish(&self, event: impl IntoEvent) -> impl Future<Output = EventId> {
        self.finish(self.bus.publish(event))
    }

    /// Publishes a value without an event type, as JSON, and resolves when everything that it causes is over.
    ///
    /// # Panics
    /// Where the topic is not well-formed, and where the bus refuses the event.
    #[track_caller]
    pub fn publish_to<T: Serialize + ?Sized>(&self, topic: &str, value: &T) -> impl Future<Output = EventId> {
        self.finish(self.bus.publish_to(topic, value))
    }

    /// Publishes an envelope, and resolves when everything that it causes is over.
    ///
    /// # Panics
    /// Where the bus refuses the event.
    #[track_caller]
    pub fn publish_envelope(&self, envelope: Envelope) -> impl Future<Output = EventId> {
        self.finish(self.bus.publish_envelope(envelope))
    }

    #[track_caller]
    fn finish<'a>(&'a self, publish: eventbus_core::Publish<'a>) -> impl Future<Output = EventId> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            match publish.await {
                Ok(id) => {
                    self.settled().await;
                    id
                }
                Err(error) => panic!("the test could not publish at {caller}: {error}"),
            }
        }
    }

    /// Resolves when everything is over that was published so far, also past this test bus.
    pub async fn settled(&self) {
        self.run();
        self.broker.settled().await;
    }

    /// The bus itself: to hand it to what is tested, or to subscribe to it.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The events of one type that were published so far, by the test and by handlers, in their order.
    ///
    /// # Panics
    /// Where an event on the topic of `E` is not an `E`.
    #[must_use]
    #[track_caller]
    pub fn published<E: Event>(&self) -> Vec<Arc<E>> {
        let published = self.published_envelopes();
        let mut events = Vec::new();
        // In a closure, the panic would be at a line of ours.
        for envelope in published.iter().filter(|envelope| envelope.topic().as_str() == E::META.topic) {
            match envelope.event() {
                Ok(event) => events.push(event),
                Err(error) => {
                    panic!("an event on \"{}\" is not a `{}`: {error}", E::META.topic, E::META.name)
                }
            }
        }
        events
    }

    /// The envelopes of everything that was published so far, in their order.
    #[must_use]
    pub fn published_envelopes(&self) -> Vec<Arc<Envelope>> {
        self.record.happened().published.clone()
    }

    /// Asserts that an event equal to `expected` was published, by the test or by a handler.
    ///
    /// # Panics
    /// Where none was; the message shows the events of that type that were.
    #[track_caller]
    pub fn assert_published<E: Event + PartialEq + Debug>(&self, expected: &E) {
        let published = self.published::<E>();
        assert!(
            published.iter().any(|event| **event == *expected),
            "no such event was published on \"{}\": {expected:#?}\npublished were: {published:#?}\n{}",
            E::META.topic,
            self.failures()
        );
    }

    /// How many attempts the handler of a group made: `attempts(send_confirmation::SUBSCRIBER)`, or by name.
    ///
    /// # Panics
    /// Where there is no such group; the message lists those that there are.
    #[must_use]
    #[track_caller]
    pub fn attempts(&self, group: impl AsRef<str>) -> usize {
        self.handled(group).len()
    }

    /// Every attempt of the handler of a group, in their order.
    ///
    /// # Panics
    /// Where there is no such group; the message lists those that there are.
    #[must_use]
    #[track_caller]
    pub fn handled(&self, group: impl AsRef<str>) -> Vec<HandledAttempt> {
        let group = group.as_ref();
        let happened = self.record.happened();
        let handled: Vec<_> =
            happened.attempts.iter().filter(|attempt| attempt.group == group).cloned().collect();
        drop(happened);
        let groups: Vec<_> =
            self.bus.subscriptions().into_iter().map(|subscription| subscription.group).collect();
        // One that was stopped meanwhile is known by what it has handled.
        let known = !handled.is_empty() || groups.iter().any(|known| known == group);
        assert!(
            known,
            "the bus of this test has no group `{group}`; {}{}",
            choice(group, groups.iter().map(|group| &**group)),
            unlinked(group)
        );
        handled
    }

    /// The dead letters so far, in their order.
    #[must_use]
    pub fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        let happened = self.record.happened();
        let letter = |attempt: &HandledAttempt| match &attempt.result {
            Attempted::DeadLettered(letter) => Some(Arc::clone(letter)),
            _ => None,
        };
        happened.attempts.iter().filter_map(letter).collect()
    }

    /// Asserts that no event was given up.
    ///
    /// # Panics
    /// Where one was; the message says why.
    #[track_caller]
    pub fn assert_no_dead_letters(&self) {
        assert!(self.dead_letters().is_empty(), "{}", self.failures());
    }

    fn failures(&self) -> String {
        let lines: Vec<_> = self
            .dead_letters()
            .iter()
            .map(|letter| {
                format!(
                    "\n- `{}` gave up \"{}\" after {} ({}): {}",
                    letter.group,
                    letter.envelope.topic(),
                    counted(letter.attempts, "attempt"),
                    letter.kind,
                    printable(&letter.reason)
                )
            })
            .collect();
        if lines.is_empty() {
            "no event was given up".to_owned()
        } else {
            format!("given up:{}", lines.concat())
        }
    }
}

impl Debug for TestBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestBus").field(&self.bus).finish()
    }
}
