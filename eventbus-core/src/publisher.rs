//! Publishing: from an event to a broker's confirmation.

use crate::broker::{Broker, BrokerFuture, Features};
use crate::causation;
use crate::envelope::Envelope;
use crate::error::{BrokerError, DecodeError, PublishError};
use crate::event::{Attributes, Event, EventMeta, IntoEvent};
use crate::foreign::{self, Kept, Panicked, Wakers};
use crate::gate::{Gate, Passage, Refused};
use crate::id::EventId;
use crate::lock::{Lock, Rank};
use crate::log;
use crate::observe::Observer;
use crate::printable::printable;
use crate::topic::Topic;
use crate::trace_context;
use jiff::Timestamp;
use serde::Serialize;
use smol_str::SmolStr;
use std::collections::BTreeSet;
use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Publishes events. A bus is one; a handler takes one as an argument, and what it publishes with it is marked as
/// caused by the delivered event.
///
/// It is cheap to clone, and may be kept beyond the handler's call.
#[derive(Clone)]
pub struct Publisher {
    outlet: Arc<Outlet>,
    cause: Option<Arc<Envelope>>,
}

impl Publisher {
    pub(crate) fn new(outlet: Arc<Outlet>, cause: Option<Arc<Envelope>>) -> Self {
        Self { outlet, cause }
    }

    /// Publishes an event, to the topic of its type. Awaited, it answers with the event's id once the broker has
    /// confirmed; before that, key and headers can be set.
    ///
    /// ```
    /// # use eventbus::{Bus, Event};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed")]
    /// # struct OrderPlaced { id: u64 }
    /// # async fn place(bus: Bus) -> Result<(), eventbus::PublishError> {
    /// bus.publish(&OrderPlaced { id: 1 }).header("tenant", "acme").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A function for events of any type takes `impl IntoEvent`, and so an event by value, by reference and in an `Arc`:
    ///
    /// ```
    /// # use eventbus::{Bus, Event, EventId, PublishError};
    /// # use serde::{Deserialize, Serialize};
    /// # use std::sync::Arc;
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed")]
    /// # struct OrderPlaced { id: u64 }
    /// use eventbus::event::IntoEvent;
    ///
    /// async fn announce(bus: &Bus, event: impl IntoEvent) -> Result<EventId, PublishError> {
    ///     bus.publish(event).header("announced", "yes").await
    /// }
    /// # async fn all(bus: &Bus) -> Result<(), PublishError> {
    /// # let order = OrderPlaced { id: 1 };
    ///
    /// announce(bus, &order).await?;
    /// announce(bus, order.clone()).await?;
    /// announce(bus, Arc::new(order)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For a type parameter, the bound is `E: IntoEvent<Event = E>`, which says that `E` is an event; with `E: Event`
    /// alone, publish `&event` or `Arc::new(event)`.
    ///
    /// # Errors
    /// [`PublishError`], once awaited. Nothing is stored then, unless it is `Unconfirmed`.
    pub fn publish(&self, event: impl IntoEvent) -> Publish<'_> {
        self.start(shared_envelope_of(event))
    }

    /// Publishes a value without an event type, as JSON. A topic that is not well-formed and a value without a
    /// form in JSON are errors of the answer. Where the topic is that of an event type of this program, and the value none,
    /// debug builds log a warning, once for each topic: handlers that take the event will give it up.
    ///
    /// ```
    /// # async fn place(bus: eventbus::Bus) -> Result<(), eventbus::PublishError> {
    /// bus.publish_to("user.created", &serde_json::json!({ "name": "Ada" })).key("ada").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_to<T: Serialize + ?Sized>(&self, topic: impl AsRef<str>, value: &T) -> Publish<'_> {
        self.start(match Topic::new(topic) {
            Ok(topic) => Envelope::from_json(topic, value).map(Arc::new),
            Err(error) => Err(error.into()),
        })
    }

    /// Publishes an envelope as it is, with the source and the cause filled in where they are not set.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_envelope(&self, envelope: Envelope) -> Publish<'_> {
        self.start(Ok(Arc::new(envelope)))
    }

    /// Publishes several events of one type in one go, and answers for each in their order.
    ///
    /// ```
    /// # use eventbus::{Bus, Event};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed")]
    /// # struct OrderPlaced { id: u64 }
    /// # async fn place(bus: Bus) -> Result<(), eventbus::PublishError> {
    /// let orders = [OrderPlaced { id: 1 }, OrderPlaced { id: 2 }];
    /// let ids: Vec<_> = bus.publish_all(&orders).await.into_iter().collect::<Result<_, _>>()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Each event has its own; the others are published all the same.
    ///
    /// # Cancel safety
    /// Dropped before it is done, each event may or may not have been published.
    pub async fn publish_all<I>(&self, events: I) -> Vec<Result<EventId, PublishError>>
    where
        I: IntoIterator<Item: IntoEvent>,
    {
        self.outlet.publish_all(events.into_iter().map(envelope_of).collect(), self.cause.as_ref()).await
    }

    /// Publishes several envelopes in one go, of any types, each with the id, the time and the headers that it was
    /// given, and answers for each in their order.
    ///
    /// ```
    /// # use eventbus::{Bus, Envelope, Event, EventId};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed")]
    /// # struct OrderPlaced { id: u64 }
    /// # async fn import(bus: Bus) {
    /// let envelope = |id| {
    ///     let event_id = EventId::new(format!("order-{id}/placed"));
    ///     Envelope::from_event(OrderPlaced { id }).with_id(event_id)
    /// };
    /// bus.publish_envelopes([1, 2].map(envelope)).await;
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`publish_all`](Self::publish_all).
    ///
    /// # Cancel safety
    /// As `publish_all`.
    pub async fn publish_envelopes(
        &self,
        envelopes: impl IntoIterator<Item = Envelope>,
    ) -> Vec<Result<EventId, PublishError>> {
        self.outlet.publish_all(envelopes.into_iter().map(Ok).collect(), self.cause.as_ref()).await
    }

    #[inline]
    fn start(&self, envelope: Result<Arc<Envelope>, PublishError>) -> Publish<'_> {
        Publish { outlet: &self.outlet, cause: self.cause.as_ref(), envelope }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("cause", &self.cause).finish_non_exhaustive()
    }
}

/// An event that is about to be published: set what its type does not say, then `.await` it.
#[must_use = "nothing is published until you `.await` this"]
#[derive(Debug)]
pub struct Publish<'a> {
    outlet: &'a Outlet,
    cause: Option<&'a Arc<Envelope>>,
    /// Nobody shares it before it is published; it is behind a pointer already because an envelope is large to move.
    envelope: Result<Arc<Envelope>, PublishError>,
}

impl Publish<'_> {
    /// Sets a header.
    pub fn header(self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.change(|envelope| envelope.headers_mut().insert(name, value))
    }

    /// Sets the key, in place of the one that the event's type says.
    pub fn key(self, key: impl fmt::Display) -> Self {
        self.change(|envelope| envelope.set_key(key))
    }

    /// Sets the subject, in place of the one that the event's type says.
    pub fn subject(self, subject: impl AsRef<str>) -> Self {
        self.change(|envelope| envelope.set_subject(subject))
    }

    /// Sets the id, which is a fresh UUID v7 otherwise. An id of your own tells the event apart together with the bus's
    /// [`source`](crate::BusBuilder::source), which follows the name of the program unless it is set.
    pub fn id(self, id: EventId) -> Self {
        self.change(|envelope| envelope.set_id(id))
    }

    /// Sets when it happened, for what is told later; it is now otherwise.
    pub fn time(self, time: Timestamp) -> Self {
        self.change(|envelope| envelope.set_time(time))
    }

    fn change(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        if let Ok(envelope) = &mut self.envelope
            && let Err(panicked) = foreign::call("what a publisher sets", || change(Arc::make_mut(envelope)))
        {
            self.envelope = Err(unencodable(envelope.topic(), panicked));
        }
        self
    }
}

impl<'a> IntoFuture for Publish<'a> {
    type Output = Result<EventId, PublishError>;
    type IntoFuture = Publishing<'a>;

    fn into_future(self) -> Publishing<'a> {
        let Publish { outlet, cause, envelope } = self;
        Publishing { outlet, stage: Stage::Ready { cause, envelope } }
    }
}

/// The future of a [`Publish`]: the event's id, once the broker has confirmed.
///
/// # Cancel safety
/// Dropped before it is done, the event may or may not have been published.
#[must_use = "futures do nothing unless you `.await` them"]
#[derive(Debug)]
pub struct Publishing<'a> {
    outlet: &'a Outlet,
    stage: Stage<'a>,
}

#[derive(Debug)]
enum Stage<'a> {
    Ready { cause: Option<&'a Arc<Envelope>>, envelope: Result<Arc<Envelope>, PublishError> },
    Sent { envelope: Arc<Envelope>, stored: BrokerFuture<Result<(), PublishError>>, passage: Passage<'a> },
    Done,
}

impl Future for Publishing<'_> {
    type Output = Result<EventId, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { outlet, stage } = &mut *self;
        let (envelope, mut passage, polled) = match std::mem::replace(stage, Stage::Done) {
            Stage::Ready { cause, envelope } => {
                let mut envelope = envelope?;
                let passage = outlet.prepare(Arc::make_mut(&mut envelope), cause)?;
                // Most brokers answer at once, so it is asked and polled in one call.
                let sent = Arc::clone(&envelope);
                let polled = foreign::call("a broker", || poll_stored(outlet.broker.publish(sent), context));
                (envelope, passage, polled)
            }
            Stage::Sent { envelope, stored, passage } => {
                // What is not stored by now never is.
                outlet.still_open(envelope.topic())?;
                let polled = foreign::call("a broker", || poll_stored(stored, context));
                (envelope, passage, polled)
            }
            Stage::Done => panic!("polled after it was ready"),
        };
        match polled {
            Ok(Ok(result)) => Poll::Ready(outlet.confirm(&envelope, result)),
            Ok(Err(stored)) => {
                outlet.wait(&mut passage, envelope.topic(), context)?;
                *stage = Stage::Sent { envelope, stored, passage };
                Poll::Pending
            }
            Err(panicked) => Poll::Ready(outlet.confirm(&envelope, unconfirmed(&envelope, panicked))),
        }
    }
}

/// The broker's answer, or the future that still waits for it.
fn poll_stored<T>(stored: BrokerFuture<T>, context: &mut Context<'_>) -> Result<T, BrokerFuture<T>> {
    let mut stored = match stored.at_once() {
        Ok(answer) => return Ok(answer),
        Err(stored) => stored,
    };
    match Pin::new(&mut stored).poll(context) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => Err(stored),
    }
}

/// What is called on every envelope before it is published.
pub(crate) type PublishHook = Kept<Box<dyn Fn(&mut Envelope) + Send + Sync>>;

/// The envelope of an event, whose type says what is in it: it may be copied, and is asked for its key and subject.
fn envelope_of<I: IntoEvent>(event: I) -> Result<Envelope, PublishError> {
    foreign::call("an event", || Envelope::from_event(event))
        .map_err(|panicked| unencodable(I::Event::META.topic, panicked))
}

/// The same, behind the pointer in which it stays: made inside of the call, so that less is moved.
fn shared_envelope_of<I: IntoEvent>(event: I) -> Result<Arc<Envelope>, PublishError> {
    foreign::call("an event", || Arc::new(Envelope::from_event(event)))
        .map_err(|panicked| unencodable(I::Event::META.topic, panicked))
}

/// What an event says of itself could not be asked.
fn unencodable(topic: impl fmt::Display, panicked: Panicked) -> PublishError {
    PublishError::Encode { topic: topic.to_string(), cause: panicked.into() }
}

/// The broker has panicked, so that nobody knows what it did.
fn unconfirmed<T>(envelope: &Envelope, panicked: Panicked) -> Result<T, PublishError> {
    Err(PublishError::Unconfirmed { topic: envelope.topic().to_string(), cause: panicked.into() })
}

const STRANDED: &str = "the tokio runtime on which the bus was connected has ended, and its handlers with it; \
                        connect the bus on a runtime that lasts as long as the bus is used";

/// How many circles, and how many topics, are told of: topics may be made of data.
const TOLD: usize = 256;

/// Reads the bytes of an envelope as the event type that the program has for it. The registry, which knows that, stands
/// above.
pub(crate) type ReadBytes = fn(&Envelope) -> Option<(&'static EventMeta, Result<Attributes, DecodeError>)>;

fn wake(wakers: Vec<Waker>) {
    let mut all = Wakers::default();
    all.extend(wakers);
    all.wake();
}

/// The way out of a bus: what every publisher of it shares.
pub(crate) struct Outlet {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) source: SmolStr,
    pub(crate) causation_limit: u32,
    pub(crate) on_publish: Vec<PublishHook>,
    pub(crate) observers: Vec<Kept<Box<dyn Observer>>>,
    pub(crate) gate: Gate,
    pub(crate) durable: bool,
    /// What handlers return is published with the settlement of their events.
    pub(crate) transactions: bool,
    /// The circles that were stopped and told: what was to be published, and what caused it.
    circles: Lock<BTreeSet<(String, String)>>,
    read_bytes: ReadBytes,
    /// The topics of which it was told that something else than their event is published there.
    mistaken: Lock<BTreeSet<Topic>>,
}

impl Outlet {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        source: SmolStr,
        causation_limit: u32,
        on_publish: Vec<PublishHook>,
        observers: Vec<Kept<Box<dyn Observer>>>,
        read_bytes: ReadBytes,
    ) -> Self {
        let Features { durable, transactions, .. } = broker.features();
        Self {
            broker,
            source,
            causation_limit,
            on_publish,
            observers,
            gate: Gate::new(),
            durable,
            transactions,
            circles: Lock::new(Rank::LEAF, BTreeSet::new()),
            read_bytes,
            mistaken: Lock::new(Rank::LEAF, BTreeSet::new()),
        }
    }

    /// From now on only handlers may publish, so that those that still run can finish.
    pub(crate) fn drain(&self) {
        wake(self.gate.drain());
    }

    /// From now on nobody may publish.
    pub(crate) fn close(&self) {
        wake(self.gate.close());
    }

    /// The runtime that handlers run on has ended.
    pub(crate) fn strand(&self) {
        wake(self.gate.strand());
    }

    /// Resolves once the publishes that have passed the gate before it closed are done, those of handlers apart.
    pub(crate) async fn passed(&self) {
        struct InLine<'a>(&'a Gate, Option<u64>);
        impl Drop for InLine<'_> {
            fn drop(&mut self) {
                self.0.leave_line(self.1);
            }
        }

        let mut line = InLine(&self.gate, None);
        poll_fn(|context| self.gate.poll_passed(context, &mut line.1)).await;
    }

    /// What a broker that is not durable has not taken by the end of the bus is not published: nobody will handle it.
    /// A durable broker is asked to the end, since what it stores is handled later.
    fn still_open(&self, topic: &Topic) -> Result<(), PublishError> {
        match self.gate.refuses() {
            Some(refused) if !self.durable => Err(self.refuse(topic, refused)),
            _ => Ok(()),
        }
    }

    /// Waits for a broker that is not durable no longer than the gate is open.
    fn wait(
        &self,
        passage: &mut Passage<'_>,
        topic: &Topic,
        context: &Context<'_>,
    ) -> Result<(), PublishError> {
        if self.durable {
            return Ok(());
        }
        passage.wait(context).map_or(Ok(()), |refused| Err(self.refuse(topic, refused)))
    }

    fn refuse(&self, topic: &Topic, refused: Refused) -> PublishError {
        let topic = topic.to_string();
        match refused {
            Refused::Closed => PublishError::Closed { topic },
            Refused::Stranded => PublishError::Broker { topic, cause: STRANDED.into() },
        }
    }

    /// Lets an event pass the gate, fills in what the bus knows of it, and refuses what must not be published.
    fn prepare(
        &self,
        envelope: &mut Envelope,
        cause: Option<&Arc<Envelope>>,
    ) -> Result<Passage<'_>, PublishError> {
        let current;
        let cause = match cause {
            Some(cause) => Some(cause),
            None => {
                current = causation::current();
                current.as_ref()
            }
        };
        let passage =
            self.gate.enter(cause.is_some()).map_err(|refused| self.refuse(envelope.topic(), refused))?;
        if envelope.source().is_empty() {
            envelope.set_source(self.source.clone());
        }
        if let Some(cause) = cause {
            if envelope.causation_id().is_none() {
                envelope.set_cause(cause);
            }
            if envelope.causation_depth() > self.causation_limit {
                return Err(self.stop_circle(envelope.topic(), cause.topic()));
            }
        }
        for hook in &self.on_publish {
            foreign::tell("a hook of `on_publish`", || hook(envelope));
        }
        envelope.check()?;
        if cfg!(debug_assertions) && envelope.is_bytes() {
            self.doubt(envelope);
        }
        trace_context::link(envelope, cause.map(|cause| &**cause));
        Ok(passage)
    }

    /// Warns of bytes that are not the event of their topic. They are not refused: a handler of another version of the
    /// program may read what this one cannot.
    fn doubt(&self, envelope: &Envelope) {
        let Some((event, Err(error))) = (self.read_bytes)(envelope) else { return };
        let mut mistaken = self.mistaken.lock();
        let new = mistaken.len() < TOLD && mistaken.insert(envelope.topic().clone());
        drop(mistaken);
        if new {
            let event = format!("`{}` ({}:{})", event.name, event.file, event.line);
            log::warn!(
                target: "eventbus", topic = %printable(envelope.topic()), error = %printable(&error),
                "what is published is not the event {} that this program has for the topic: handlers that take it give \
                 this up; publish that event, or to another topic", printable(&event)
            );
        }
    }

    /// Its handler may well ignore the error, so the first of each circle is an error line.
    fn stop_circle(&self, topic: &Topic, cause: &Topic) -> PublishError {
        let (topic, cause) = (topic.to_string(), cause.to_string());
        let mut circles = self.circles.lock();
        let new = circles.len() < TOLD && circles.insert((topic.clone(), cause.clone()));
        drop(circles);
        let error = PublishError::CausationLimit { topic, cause, limit: self.causation_limit };
        if new {
            log::error!(target: "eventbus", "{}", printable(&error));
        }
        error
    }

    fn confirm(
        &self,
        envelope: &Arc<Envelope>,
        result: Result<(), PublishError>,
    ) -> Result<EventId, PublishError> {
        result?;
        self.still_open(envelope.topic())?;
        log::debug!(
            target: "eventbus", topic = %printable(envelope.topic()), id = %printable(envelope.id()),
            key = envelope.key().map(|key| tracing::field::display(printable(key))), "published"
        );
        for observer in &self.observers {
            foreign::tell("an observer", || observer.published(envelope));
        }
        Ok(envelope.id().clone())
    }

    /// Publishes several envelopes and answers for each.
    pub(crate) async fn publish_all(
        &self,
        envelopes: Vec<Result<Envelope, PublishError>>,
        cause: Option<&Arc<Envelope>>,
    ) -> Vec<Result<EventId, PublishError>> {
        let (prepared, passage) = self.prepare_all(envelopes, cause);
        self.store_all(prepared, passage).await
    }

    /// Publishes what a handler has returned, in one with the settlement of its event, which `ask` asks the broker for.
    /// None, where that does not do so for this event: then they are published by themselves.
    pub(crate) async fn publish_with(
        &self,
        events: Vec<Envelope>,
        cause: &Arc<Envelope>,
        ask: impl FnOnce(&[Arc<Envelope>]) -> Option<BrokerFuture<Result<Result<(), BrokerError>, PublishError>>>,
    ) -> Result<Option<Result<(), BrokerError>>, PublishError> {
        let (prepared, passage) = self.prepare_all(events.into_iter().map(Ok).collect(), Some(cause));
        // Of what is published together nothing goes alone.
        let events = prepared.into_iter().collect::<Result<Vec<_>, _>>()?;
        let Some(first) = events.first() else { return Ok(None) };
        let answer = match foreign::call("a broker", || ask(&events)) {
            Ok(Some(answer)) => foreign::run("a broker", || answer).await,
            Ok(None) => {
                let stored = self.store_all(events.into_iter().map(Ok).collect(), passage).await;
                stored.into_iter().try_for_each(|result| result.map(drop))?;
                return Ok(None);
            }
            Err(panicked) => Err(panicked),
        };
        let told = answer.unwrap_or_else(|panicked| unconfirmed(first, panicked))?;
        if told.is_ok() {
            for event in &events {
                // It is settled by now, whatever else has ended.
                let _ = self.confirm(event, Ok(()));
            }
        }
        drop(passage);
        Ok(Some(told))
    }

    /// Makes several envelopes ready; the passage is of all of them.
    fn prepare_all(
        &self,
        envelopes: Vec<Result<Envelope, PublishError>>,
        cause: Option<&Arc<Envelope>>,
    ) -> (Vec<Result<Arc<Envelope>, PublishError>>, Option<Passage<'_>>) {
        let mut passage = None;
        let prepared = envelopes.into_iter().map(|envelope| {
            let mut envelope = envelope?;
            let passed = self.prepare(&mut envelope, cause)?;
            passage.get_or_insert(passed);
            Ok(Arc::new(envelope))
        });
        (prepared.collect(), passage)
    }

    async fn store_all(
        &self,
        prepared: Vec<Result<Arc<Envelope>, PublishError>>,
        passage: Option<Passage<'_>>,
    ) -> Vec<Result<EventId, PublishError>> {
        let Some(mut passage) = passage else {
            return prepared
                .into_iter()
                .map(|envelope| envelope.map(|envelope| envelope.id().clone()))
                .collect();
        };
        let sent = prepared.iter().filter_map(|envelope| envelope.as_ref().ok().cloned()).collect();
        let mut storing = std::pin::pin!(foreign::run("a broker", || self.broker.publish_all(sent)));
        let stored = poll_fn(|context| match storing.as_mut().poll(context) {
            Poll::Pending if self.durable => Poll::Pending,
            // As for one event; what was taken before is counted with what the bus could not handle.
            Poll::Pending => passage.wait(context).map_or(Poll::Pending, |refused| Poll::Ready(Err(refused))),
            Poll::Ready(stored) => Poll::Ready(Ok(stored)),
        })
        .await;
        let (mut stored, panicked, refused) = match stored {
            Ok(Ok(stored)) => (stored.into_iter(), None, None),
            Ok(Err(panicked)) => (Vec::new().into_iter(), Some(panicked), None),
            Err(refused) => (Vec::new().into_iter(), None, Some(refused)),
        };
        prepared
            .into_iter()
            .map(|envelope| {
                let envelope = envelope?;
                if let Some(refused) = refused {
                    return Err(self.refuse(envelope.topic(), refused));
                }
                let result = stored.next().unwrap_or_else(|| {
                    let cause = match &panicked {
                        Some(panicked) => panicked.clone().into(),
                        None => "the broker did not answer for this event of a batch".into(),
                    };
                    Err(PublishError::Unconfirmed { topic: envelope.topic().to_string(), cause })
                });
                self.confirm(&envelope, result)
            })
            .collect()
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("broker", &self.broker.name()).finish_non_exhaustive()
    }
}
