//! The payload of an envelope: bytes, or a value that becomes bytes when somebody asks.

use super::Envelope;
use super::read_back::{self, ReadBack};
use crate::codec::Codec;
use crate::counted::counted;
use crate::error::{BoxError, PublishError};
use crate::event::Event;
use crate::foreign::{self, Kept};
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// In one process a value travels as it is, and is encoded at most once, for the first who asks for bytes.
#[derive(Clone)]
pub(super) enum Payload {
    Bytes(Bytes),
    Value(Value),
}

#[derive(Clone)]
pub(super) struct Value {
    event: Kept<Arc<dyn Any + Send + Sync>>,
    of_type: &'static OfType,
    encoded: OnceLock<Bytes>,
}

/// What is done with values of one type.
struct OfType {
    encode: fn(&dyn Any) -> Result<Bytes, BoxError>,
    check: fn(&Envelope, ReadBack) -> Result<(), PublishError>,
}

impl OfType {
    const fn new<E: Event>() -> Self {
        Self {
            encode: |event| match event.downcast_ref::<E>() {
                Some(event) => E::Codec::encode(event),
                None => unreachable!("the function stands beside a value of its own type"),
            },
            check: read_back::check::<E>,
        }
    }
}

impl Payload {
    pub(super) fn of<E: Event>(event: Arc<E>) -> Self {
        Self::Value(Value {
            event: Kept::new(event),
            of_type: const { &OfType::new::<E>() },
            encoded: OnceLock::new(),
        })
    }

    /// Checks that the value, which is that of `envelope`, can be read again; bytes need not be.
    pub(super) fn check(&self, envelope: &Envelope, which: ReadBack) -> Result<(), PublishError> {
        match self {
            Self::Value(value) => (value.of_type.check)(envelope, which),
            Self::Bytes(_) => Ok(()),
        }
    }

    pub(super) fn bytes(&self) -> Result<&Bytes, BoxError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Value(value) => match value.encoded.get() {
                Some(bytes) => Ok(bytes),
                None => {
                    let bytes = foreign::call("a serializer", || (value.of_type.encode)(&**value.event))??;
                    Ok(value.encoded.get_or_init(|| bytes))
                }
            },
        }
    }

    /// The value itself, where it is an `E`.
    pub(super) fn value_ref<E: Event>(&self) -> Option<&E> {
        match self {
            Self::Value(value) => value.event.downcast_ref(),
            Self::Bytes(_) => None,
        }
    }

    /// Whether it is bytes, of which nothing is known.
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self, Self::Bytes(_))
    }

    /// The value itself, to be shared, where it is an `E`.
    pub(super) fn value<E: Event>(&self) -> Option<Arc<E>> {
        match self {
            Self::Value(value) => Arc::clone(&*value.event).downcast().ok(),
            Self::Bytes(_) => None,
        }
    }
}

impl fmt::Debug for Payload {
    /// Payloads may hold what should not be in a log, so only their size is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&counted(bytes.len(), "byte")),
            Self::Value(_) => f.write_str("a value of this process"),
        }
    }
}
