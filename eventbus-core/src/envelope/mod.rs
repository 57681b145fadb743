//! The envelope: an event's bytes plus its context attributes as it travels.

mod attributes;
mod payload;
mod read_back;
mod size;

use crate::codec::{Codec, Json};
use crate::error::{DecodeError, PublishError};
use crate::event::{Event, IntoEvent, Key};
use crate::foreign;
use crate::headers::Headers;
use crate::id::EventId;
use crate::topic::Topic;
use bytes::Bytes;
use jiff::Timestamp;
use payload::Payload;
use read_back::ReadBack;
use serde::Serialize;
use smol_str::SmolStr;
use std::sync::Arc;

pub use read_back::ReadBacks;

/// An event as it travels: payload, context attributes after
/// [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md), and headers.
///
/// `bus.publish(&event)` makes one; make one yourself to publish bytes, or to set what an event type cannot say.
///
/// ```
/// use bytes::Bytes;
/// use eventbus_core::{Envelope, Topic};
///
/// let envelope = Envelope::from_bytes(Topic::from_static("scan.stored"), "image/png", Bytes::from_static(b"\x89PNG"))
///     .with_key("door-7")
///     .with_header("tenant", "acme");
/// assert_eq!(envelope.key(), Some("door-7"));
/// ```
#[derive(Clone, Debug)]
pub struct Envelope {
    id: EventId,
    source: SmolStr,
    topic: Topic,
    event_type: Option<SmolStr>,
    version: u32,
    time: Timestamp,
    subject: Option<SmolStr>,
    key: Option<Key>,
    content_type: SmolStr,
    correlation_id: Option<EventId>,
    causation_id: Option<EventId>,
    causation_depth: u32,
    headers: Headers,
    payload: Payload,
}

impl Envelope {
    /// The envelope of a typed event, with the topic, key and subject of its type. The event is encoded when
    /// somebody asks for its bytes.
    #[must_use]
    #[inline]
    pub fn from_event<I: IntoEvent>(event: I) -> Self {
        let event = event.into_event();
        let (key, subject) = (event.key(), event.subject());
        let meta = I::Event::META;
        let content_type = SmolStr::new_static(<I::Event as Event>::Codec::CONTENT_TYPE);
        let mut envelope = Self::new(Topic::of_event(meta.topic), content_type, Payload::of(event));
        envelope.version = meta.version;
        envelope.key = key;
        envelope.subject = subject.map(SmolStr::from);
        envelope
    }

    /// The envelope of a value without an event type, as JSON.
    ///
    /// # Errors
    /// Where the value has no form in JSON.
    pub fn from_json<T: Serialize + ?Sized>(topic: Topic, value: &T) -> Result<Self, PublishError> {
        let encoded = foreign::call("a serializer", || Json::encode(value));
        match encoded.unwrap_or_else(|panicked| Err(panicked.into())) {
            Ok(payload) => Ok(Self::from_bytes(topic, Json::<()>::CONTENT_TYPE, payload)),
            Err(cause) => Err(PublishError::Encode { topic: topic.to_string(), cause }),
        }
    }

    /// The envelope of bytes of any kind; `content_type` is their media type.
    #[must_use]
    pub fn from_bytes(topic: Topic, content_type: &str, payload: Bytes) -> Self {
        let content_type = match content_type {
            "application/json" => SmolStr::new_static("application/json"),
            other => SmolStr::new(other),
        };
        Self::new(topic, content_type, Payload::Bytes(payload))
    }

    /// An envelope out of a broker's own store, where its id and its time are known already.
    #[must_use]
    pub fn stored(topic: Topic, id: EventId, time: Timestamp, payload: Bytes) -> Self {
        Self::at(topic, id, time, SmolStr::new_static("application/json"), Payload::Bytes(payload))
    }

    #[inline]
    fn new(topic: Topic, content_type: SmolStr, payload: Payload) -> Self {
        let time = Timestamp::now();
        Self::at(topic, EventId::at(time), time, content_type, payload)
    }

    #[inline]
    fn at(topic: Topic, id: EventId, time: Timestamp, content_type: SmolStr, payload: Payload) -> Self {
        Self {
            id,
            source: SmolStr::new_static(""),
            topic,
            event_type: None,
            version: 1,
            time,
            subject: None,
            key: None,
            content_type,
            correlation_id: None,
            causation_id: None,
            causation_depth: 0,
            headers: Headers::new(),
            payload,
        }
    }

    /// Sets the id, which is a fresh UUID v7 otherwise. A broker that deduplicates goes by source and id.
    #[must_use]
    pub fn with_id(mut self, id: EventId) -> Self {
        self.set_id(id);
        self
    }

    pub(crate) fn set_id(&mut self, id: EventId) {
        self.id = id;
    }

    /// Sets the time at which the event happened, which is now otherwise.
    #[must_use]
    pub fn with_time(mut self, time: Timestamp) -> Self {
        self.set_time(time);
        self
    }

    pub(crate) fn set_time(&mut self, time: Timestamp) {
        self.time = time;
    }

    /// Sets the context in which the event happened (a URI reference); the bus sets its own otherwise.
    #[must_use]
    pub fn with_source(mut self, source: impl AsRef<str>) -> Self {
        self.source = SmolStr::new(source);
        self
    }

    pub(crate) fn set_source(&mut self, source: SmolStr) {
        self.source = source;
    }

    /// Sets the type, where it is another than the topic.
    #[must_use]
    pub fn with_type(mut self, event_type: impl AsRef<str>) -> Self {
        let event_type = event_type.as_ref();
        self.event_type = (event_type != self.topic.as_str()).then(|| SmolStr::new(event_type));
        self
    }

    /// Sets the version of the payload's shape, which is 1 otherwise.
    #[must_use]
    pub fn with_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets what the event is about.
    #[must_use]
    pub fn with_subject(mut self, subject: impl AsRef<str>) -> Self {
        self.set_subject(subject);
        self
    }

    pub(crate) fn set_subject(&mut self, subject: impl AsRef<str>) {
        self.subject = Some(SmolStr::new(subject));
    }

    /// Sets the key: events with one key are handled in publish order.
    #[must_use]
    pub fn with_key(mut self, key: impl std::fmt::Display) -> Self {
        self.set_key(key);
        self
    }

    pub(crate) fn set_key(&mut self, key: impl std::fmt::Display) {
        self.key = Some(Key::new(key));
    }

    /// Sets a header.
    #[must_use]
    pub fn with_header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Replaces the payload, and keeps everything else: for mending a dead letter.
    #[must_use]
    pub fn with_payload(mut self, payload: Bytes) -> Self {
        self.payload = Payload::Bytes(payload);
        self
    }

    /// Sets the media type of the payload, which is `application/json` in an envelope out of a store.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl AsRef<str>) -> Self {
        self.content_type = SmolStr::new(content_type);
        self
    }

    /// Sets what caused the event, as a broker's store tells it; an event that is published is marked by the bus.
    #[must_use]
    pub fn with_causes(mut self, correlation_id: EventId, causation_id: Option<EventId>, depth: u32) -> Self {
        self.correlation_id = (correlation_id != self.id).then_some(correlation_id);
        self.causation_id = causation_id;
        self.causation_depth = depth;
        self
    }

    /// Marks the event as caused by `cause`: it carries its correlation on, and counts the chain's length.
    #[must_use]
    pub fn caused_by(mut self, cause: &Self) -> Self {
        self.set_cause(cause);
        self
    }

    pub(crate) fn set_cause(&mut self, cause: &Self) {
        self.correlation_id = Some(cause.correlation_id().clone());
        self.causation_id = Some(cause.id.clone());
        self.causation_depth = cause.causation_depth.saturating_add(1);
    }

    /// The id, unique together with the source.
    #[must_use]
    pub fn id(&self) -> &EventId {
        &self.id
    }

    /// The context in which the event happened.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The address that the event was published to.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The type of the event: its topic, where nothing else is said.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.event_type.as_deref().unwrap_or(self.topic.as_str())
    }

    /// The version of the payload's shape, from 1.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// When the event happened.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// What the event is about.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// What orders the event among others.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_ref().map(Key::as_str)
    }

    pub(crate) fn lane_key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The media type of the payload.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The id that all events of one chain share: the id of its first event.
    #[must_use]
    pub fn correlation_id(&self) -> &EventId {
        self.correlation_id.as_ref().unwrap_or(&self.id)
    }

    /// The id of the event whose handler published this one.
    #[must_use]
    pub fn causation_id(&self) -> Option<&EventId> {
        self.causation_id.as_ref()
    }

    /// How many events in a row caused this one.
    #[must_use]
    pub fn causation_depth(&self) -> u32 {
        self.causation_depth
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The headers, to change them before the event is published.
    pub fn headers_mut(&mut self) -> &mut Headers {
        &mut self.headers
    }

    /// The payload's bytes. A typed event that was published in this process is encoded now, once.
    ///
    /// # Errors
    /// Where the event has no form in its codec.
    pub fn payload(&self) -> Result<&Bytes, DecodeError> {
        self.payload.bytes().map_err(|cause| DecodeError::Encode { topic: self.topic.to_string(), cause })
    }

    /// The event, shared with everybody else where it was published in this process, decoded where it was not.
    ///
    /// # Errors
    /// Where the payload is not an `E`.
    pub fn event<E: Event>(&self) -> Result<Arc<E>, DecodeError> {
        match self.shared_value() {
            Some(event) => Ok(event),
            None => self.decode().map(Arc::new),
        }
    }

    /// The event, decoded from bytes.
    pub(crate) fn decode<E: Event>(&self) -> Result<E, DecodeError> {
        if self.event_type() != E::META.topic {
            return Err(DecodeError::UnknownType { event: E::META, found: self.event_type().to_owned() });
        }
        E::decode(self.version, &self.content_type, self.payload()?)
    }

    /// Checks that a typed event can be read again once it is bytes, as often as the build asks for it.
    pub(crate) fn check(&self) -> Result<(), PublishError> {
        self.payload.check(self, ReadBack::ByBuild)
    }

    /// Checks that a typed event can be read again once it is bytes: for buses of tests, in release builds too.
    ///
    /// # Errors
    /// Where it cannot be written, read, or comes back as another one.
    #[doc(hidden)]
    pub fn read_back(&self) -> Result<(), PublishError> {
        self.payload.check(self, ReadBack::Every)
    }

    /// The same, to be kept.
    #[inline]
    pub(crate) fn shared_value<E: Event>(&self) -> Option<Arc<E>> {
        self.payload.value()
    }

    /// Whether bytes were published, and no event of a type.
    pub(crate) fn is_bytes(&self) -> bool {
        self.payload.is_bytes()
    }

    /// The event that was published, where it was published in this process as an `E`.
    pub(crate) fn value<E: Event>(&self) -> Option<&E> {
        self.payload.value_ref()
    }
}
