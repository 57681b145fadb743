//! Reading back: an event that is published can be read again from its own bytes.
//!
//! In this process events travel as values, so a type that is written in another way than it is read would be handled
//! live, and be a dead letter in every replay. Debug builds and tests read back every event; release builds do so for
//! the first ones of each type, which is where such a type shows, and look at each event for what its codec cannot
//! carry.

use super::Envelope;
use crate::codec::Codec;
use crate::error::{BoxError, DecodeError, PublishError};
use crate::event::Event;
use crate::foreign::{self, Kept};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many events of a type are read back in a release build.
const FIRST: u32 = 16;

/// How many events of a type were read back so far.
#[derive(Debug, Default)]
pub struct ReadBacks(AtomicU32);

impl ReadBacks {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn is_due(&self) -> bool {
        self.0.load(Ordering::Relaxed) < FIRST && self.0.fetch_add(1, Ordering::Relaxed) < FIRST
    }
}

/// Which events are read back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadBack {
    /// Those that the build asks for.
    ByBuild,
    Every,
}

/// Checks that the value inside of `envelope`, an `E`, can be read again.
pub(super) fn check<E: Event>(envelope: &Envelope, which: ReadBack) -> Result<(), PublishError> {
    let Some(event) = envelope.value::<E>() else { return Ok(()) };
    let checked = foreign::call("the serialization of an event", || {
        E::Codec::check(event).map_err(Fault::Unwritten)?;
        if which == ReadBack::Every || cfg!(debug_assertions) || E::__read_backs().is_due() {
            read_back(envelope, event)?;
        }
        Ok(())
    });
    let topic = || envelope.topic().to_string();
    match checked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Fault::Unwritten(cause))) => Err(PublishError::Encode { topic: topic(), cause }),
        Ok(Err(Fault::Unread(cause))) => {
            Err(PublishError::Unreadable { topic: topic(), event: E::META, cause })
        }
        Err(panicked) => Err(PublishError::Encode { topic: topic(), cause: panicked.into() }),
    }
}

enum Fault {
    Unwritten(BoxError),
    Unread(BoxError),
}

fn read_back<E: Event>(envelope: &Envelope, event: &E) -> Result<(), Fault> {
    // The bytes are kept for the first who asks.
    let written = envelope.payload().map_err(|error| match error {
        DecodeError::Encode { cause, .. } => Fault::Unwritten(cause),
        other => Fault::Unwritten(other.into()),
    })?;
    // That it can be read is all there is to find out: what its destructor does is no matter of the publisher.
    let read: Kept<E> = envelope.decode().map(Kept::new).map_err(|error| Fault::Unread(error.into()))?;
    let again = E::Codec::encode(&*read).map_err(Fault::Unwritten)?;
    if *written == again {
        return Ok(());
    }
    // Maps and sets come in another order, and some codecs never write the same bytes twice. So what counts is what the
    // two values hold, where that can be told.
    match (value(event), value(&*read)) {
        (Some(sent), Some(read)) => match difference(&sent, &read) {
            Some(place) => Err(Fault::Unread(format!("{place} comes back as something else").into())),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// What an event holds. An integer of more than 64 bits is no value, but its text is one, if not to the last digit.
fn value(event: &impl Serialize) -> Option<Value> {
    let from_text = || serde_json::from_slice(&serde_json::to_vec(event).ok()?).ok();
    serde_json::to_value(event).ok().or_else(from_text)
}

/// Where two values differ, in a path of names. The order of members and of items is none of it, since items may be
/// those of a set.
fn difference(sent: &Value, read: &Value) -> Option<String> {
    match (sent, read) {
        (Value::Object(sent), Value::Object(read)) => {
            let names: BTreeMap<_, ()> = sent.keys().chain(read.keys()).map(|name| (name, ())).collect();
            names.into_keys().find_map(|name| match (sent.get(name), read.get(name)) {
                (Some(sent), Some(read)) if in_order(sent) == in_order(read) => None,
                (Some(sent @ Value::Object(_)), Some(read @ Value::Object(_))) => {
                    difference(sent, read).map(|place| format!("`{name}`, in it {place}"))
                }
                _ => Some(format!("`{name}`")),
            })
        }
        _ => (in_order(sent) != in_order(read)).then(|| "the value".to_owned()),
    }
}

/// The value as a text in which members and items have an order of their own.
fn in_order(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(in_order).collect();
            items.sort_unstable();
            format!("[{}]", items.join(","))
        }
        Value::Object(members) => {
            let mut members: Vec<_> =
                members.iter().map(|(name, value)| format!("{name:?}:{}", in_order(value))).collect();
            members.sort_unstable();
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_is_named_by_its_place_and_order_is_none() {
        let sent = json!({ "id": 1, "tags": ["a", { "b": [1, 2] }], "deep": { "x": 1, "y": null } });
        let same = json!({ "deep": { "y": null, "x": 1 }, "tags": [{ "b": [2, 1] }, "a"], "id": 1 });
        assert_eq!(difference(&sent, &same), None);
        for (read, place) in [
            (json!({ "id": 1, "tags": ["a", "a"], "deep": { "x": 1, "y": null } }), "`tags`"),
            (json!({ "id": 1.0, "tags": ["a", { "b": [1, 2] }], "deep": { "x": 1, "y": null } }), "`id`"),
            (json!({ "id": 1, "tags": ["a", { "b": [1, 2] }], "deep": { "x": 1 } }), "`deep`, in it `y`"),
            (json!(null), "the value"),
        ] {
            assert_eq!(difference(&sent, &read).as_deref(), Some(place));
        }
    }

    #[test]
    fn the_first_ones_are_due_and_no_others() {
        let read_backs = ReadBacks::new();
        assert_eq!((0..100).filter(|_| read_backs.is_due()).count(), FIRST as usize);
    }
}
