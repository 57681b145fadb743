//! Events: records of something that happened, each type with one topic.

use crate::codec::Codec;
use crate::envelope::ReadBacks;
use crate::error::DecodeError;
use crate::media_type;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::{SmolStr, ToSmolStr};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A record of something that happened; derive it.
///
/// The derive macro connects the type with its topic, so that publishing needs no address and a subscriber's
/// topic and argument are compared when the program compiles. An event is `Clone`, and serde's `Serialize` and
/// `Deserialize`.
///
/// An event has to come back from its codec as what it was: a publish fails with
/// [`PublishError::Unreadable`](crate::PublishError::Unreadable) where it does not. Debug builds look at every event,
/// release builds at the first 16 of each type. What is compared is what is written, so a field that
/// `#[serde(skip)]` leaves out may hold anything.
///
/// ```
/// use eventbus::Event;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Event, Clone, Serialize, Deserialize)]
/// #[event(topic = "order.placed", key = id)]
/// struct OrderPlaced { id: u64 }
///
/// assert_eq!(OrderPlaced::META.topic, "order.placed");
/// assert_eq!(OrderPlaced { id: 7 }.key().unwrap().as_str(), "7");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "this type has no topic",
    note = "add `#[derive(Event, Clone, Serialize, Deserialize)]` and `#[event(topic = \"order.placed\")]` to the type",
    note = "a value without an event type can be published with `publish_to(topic, &value)`"
)]
pub trait Event: Stored + Send + Sync + 'static {
    /// Topic, version and origin of the type.
    const META: &'static EventMeta;

    /// How values of this type become bytes.
    type Codec: Codec;

    /// What orders events among each other: events with one key are handled in publish order.
    /// By default none.
    fn key(&self) -> Option<Key> {
        None
    }

    /// What the event is about, within its source (CloudEvents `subject`). By default nothing.
    fn subject(&self) -> Option<String> {
        None
    }

    /// How many events of this type were read back. The derive macro gives each type a count of its own; types whose
    /// `Event` is written by hand share one.
    #[doc(hidden)]
    fn __read_backs() -> &'static ReadBacks {
        static SHARED: ReadBacks = ReadBacks::new();
        &SHARED
    }

    /// Decodes a payload that was written as `version` of this event; the derive macro reads older versions
    /// through `upcast_from`.
    ///
    /// # Errors
    /// Where the bytes are not this event, or the version is unknown.
    fn decode(version: u32, content_type: &str, payload: &[u8]) -> Result<Self, DecodeError> {
        decode_current(version, content_type, payload)
    }
}

/// What a type needs to be written and read back, as one bound, so that a forgotten derive is one error.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "the event `{Self}` needs `Clone`, `Serialize` and `Deserialize`",
    label = "one of them is missing here",
    note = "write `#[derive(Event, Clone, serde::Serialize, serde::Deserialize)]`; serde is a dependency of your own, \
            with the feature `derive`"
)]
pub trait Stored: Clone + Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: Clone + Serialize + DeserializeOwned> Stored for T {}

// Nothing is ever `Never`. Where only one implementation could apply, the compiler tells what that one lacks, in the
// words of serde and once for each trait; where two could, it tells what this trait says.
#[diagnostic::do_not_recommend]
impl<T: Clone + Serialize + DeserializeOwned + Stored> Stored for T where for<'never> (): Never {}

trait Never {}

/// Decodes the current version of `E`, and no other.
///
/// # Errors
/// As [`Event::decode`].
pub fn decode_current<E: Event>(version: u32, content_type: &str, payload: &[u8]) -> Result<E, DecodeError> {
    if version != E::META.version {
        return Err(DecodeError::UnknownVersion { event: E::META, version });
    }
    if !content_type.is_empty() && !media_type::fits(content_type, E::Codec::CONTENT_TYPE) {
        return Err(DecodeError::ContentType {
            event: E::META,
            stated: content_type.to_owned(),
            expected: E::Codec::CONTENT_TYPE,
        });
    }
    E::Codec::decode(payload).map_err(|cause| DecodeError::Malformed { event: E::META, cause })
}

/// What an event has as its key and as its subject.
pub type Attributes = (Option<Key>, Option<String>);

/// Reads the payload of a version and a media type.
pub type Reader = fn(u32, &str, &[u8]) -> Result<Attributes, DecodeError>;

/// The [`Reader`] of `E`.
///
/// # Errors
/// As [`Event::decode`].
pub fn read<E: Event>(version: u32, content_type: &str, payload: &[u8]) -> Result<Attributes, DecodeError> {
    let event = E::decode(version, content_type, payload)?;
    Ok((event.key(), event.subject()))
}

/// What is known of an event type at compile time.
#[derive(Debug)]
pub struct EventMeta {
    /// The topic that events of this type are published to; also their CloudEvents `type`.
    pub topic: &'static str,
    /// The name of the Rust type, for messages.
    pub name: &'static str,
    /// The version of the type's shape, from 1.
    pub version: u32,
    /// Whether events of this type have a key.
    pub keyed: bool,
    /// A hash of the fields' names and types, to notice two types that claim one topic and version.
    pub schema: u64,
    /// The package that declares the type.
    pub package: &'static str,
    /// The source file that declares the type.
    pub file: &'static str,
    /// The line in that file, from 1.
    pub line: u32,
}

/// A value that can be published: an event by value, by reference (cloned once) or in an `Arc` (shared).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event, so it cannot be published",
    label = "this type has no topic",
    note = "publish an event by value, by reference or in an `Arc`; to make a type an event: \
            `#[derive(Event, Clone, Serialize, Deserialize)] #[event(topic = \"order.placed\")]`",
    note = "a value without an event type can be published with `publish_to(topic, &value)`"
)]
pub trait IntoEvent {
    /// The type of the event.
    type Event: Event;

    /// The event, ready to be shared between subscribers.
    fn into_event(self) -> Arc<Self::Event>;
}

#[diagnostic::do_not_recommend]
impl<E: Event> IntoEvent for &E {
    type Event = E;

    fn into_event(self) -> Arc<E> {
        Arc::new(self.clone())
    }
}

#[diagnostic::do_not_recommend]
impl<E: Event> IntoEvent for Arc<E> {
    type Event = E;

    fn into_event(self) -> Self {
        self
    }
}

/// What orders events among each other (CloudEvents extension `partitionkey`).
///
/// ```
/// use eventbus_core::Key;
/// assert_eq!(Key::new(1042).as_str(), "1042");
/// ```
///
/// An event makes its key, so [`Event::key`] gives a `Key`, as [`Event::subject`] gives a `String`; an envelope lends
/// what it has, so [`Envelope::key`](crate::Envelope::key) gives a `&str`. A key is a `str` wherever one is wanted:
///
/// ```
/// # use eventbus::{Envelope, Event};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Event, Clone, Serialize, Deserialize)]
/// # #[event(topic = "order.placed", key = id)]
/// # struct OrderPlaced { id: u64 }
/// # let order = OrderPlaced { id: 1042 };
/// # let envelope = Envelope::from_event(&order);
/// assert_eq!(order.key().as_deref(), envelope.key());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(SmolStr);

impl Key {
    /// A key out of anything that can be written; up to 23 bytes are kept without an allocation.
    #[must_use]
    pub fn new(key: impl fmt::Display) -> Self {
        Self(key.to_smolstr())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
