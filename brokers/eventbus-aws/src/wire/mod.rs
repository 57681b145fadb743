//! Envelopes as messages of SNS and SQS. CloudEvents has no binding for them, so this is ours. Pure functions.
//!
//! A message has at most ten attributes (SQS drops one with more that SNS hands on raw), and a CloudEvent alone may have
//! twelve. So those that others filter by and read have attributes of their own, `ce-…`, and everything else stands
//! together in one: `eventbus`.

mod dead_letter;
mod ids;
mod read;
mod write;

use crate::batches::LARGEST;
use eventbus_server::cloudevents::{percent_decode, percent_encode};
use std::borrow::Cow;
use std::fmt::Write;

pub(crate) use dead_letter::{Fit, read_dead_letter, write_dead_letter};
pub(crate) use ids::{deduplication_id, message_group};
pub(crate) use read::{Message, read};
pub(crate) use write::write;

/// The largest payload. Bytes that are no text take a third more on the way, and attributes need room as well.
pub(crate) const MAX_PAYLOAD: usize = 180 << 10;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentMode {
    /// The payload is the message, and what the event says of itself stands in attributes.
    #[default]
    Binary,
    /// The message is one JSON object, for programs that see no attributes.
    Structured,
}

/// The largest event that is published: there is room for its failure beside it, should it become a dead letter.
pub(crate) const LARGEST_EVENT: usize = LARGEST - (4 << 10);

/// The attributes that stand alone, with their names in CloudEvents.
const ALONE: [(&str, &str); 8] = [
    ("specversion", "ce-specversion"),
    ("id", "ce-id"),
    ("source", "ce-source"),
    ("type", "ce-type"),
    ("time", "ce-time"),
    ("subject", "ce-subject"),
    ("datacontenttype", "ce-datacontenttype"),
    ("partitionkey", "ce-partitionkey"),
];
const CONTENT_TYPE: &str = "content-type";
/// Everything else: pairs as in the query of an address. Names of headers begin with a colon.
const REST: &str = "eventbus";
/// What a dead letter says of its failure, written in the same way.
const FAILURE: &str = "eventbus-dead-letter";
/// What is said of an event: the topic, and how the payload is written.
const TOPIC: &str = "topic";
const BODY: &str = "body";

/// A message as it is sent. All of its attributes are texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) attributes: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Written {
    /// How many bytes Amazon counts.
    pub(crate) fn size(&self) -> usize {
        let of = |(name, value): &(&str, String)| name.len() + "String".len() + value.len();
        self.body.len() + self.attributes.iter().map(of).sum::<usize>()
    }
}

/// Pairs of names and values in one text.
#[derive(Default)]
struct Pairs(String);

impl Pairs {
    fn push(&mut self, name: &str, value: &str) {
        let encoded = |text: &str| percent_encode(text).replace('&', "%26").replace('=', "%3D");
        let and = if self.0.is_empty() { "" } else { "&" };
        write!(self.0, "{and}{}={}", encoded(name), encoded(value)).expect("a text takes what is written");
    }
}

/// The pairs of such a text.
fn pairs(text: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(name), percent_decode(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use eventbus_core::{Envelope, EventId, Pattern, Topic};
    use jiff::Timestamp;

    pub(super) fn pattern(text: &str) -> Pattern {
        Pattern::new(text).unwrap()
    }

    pub(super) fn read_back(written: &Written, on: &str) -> Envelope {
        read(&message(written), &pattern(on))
    }

    pub(super) fn message(written: &Written) -> Message<'_> {
        Message {
            id: "5fea7756-0ea4-451a-a703-a558b933e274",
            time: Timestamp::from_second(1_700_000_000).unwrap(),
            group: Some("=of ours"),
            attributes: written.attributes.iter().map(|(name, value)| (*name, value.as_str())).collect(),
            body: &written.body,
        }
    }

    pub(super) fn any_text(random: &mut fastrand::Rng) -> String {
        let pieces = ["a", "B", " ", "%", "%41", "=", "&", ":", "\n", "\r\n", "é", "日本", "\0", "\u{fffe}"];
        (0..random.usize(..8)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    pub(super) fn any(random: &mut fastrand::Rng) -> Envelope {
        let payload: Vec<u8> = match random.u8(..3) {
            0 => (0..random.usize(..50)).map(|_| random.u8(..)).collect(),
            1 => any_text(random).into_bytes(),
            _ => br#"{"n": 1.50}"#.to_vec(),
        };
        let mut envelope =
            Envelope::from_bytes(Topic::from_static("order.placed"), "application/json", payload.into())
                .with_source(any_text(random))
                .with_version(random.u32(1..5));
        if random.bool() {
            envelope = envelope.with_key(any_text(random)).with_subject(any_text(random));
        }
        if random.bool() {
            envelope = envelope.with_id(EventId::new(format!("i{}", any_text(random)))).with_causes(
                EventId::new("chain"),
                Some(EventId::new(any_text(random) + "c")),
                random.u32(1..4),
            );
        }
        for _ in 0..random.usize(..20) {
            let name = if random.bool() { any_text(random) } else { format!("ce-h{}", random.u8(..3)) };
            envelope.headers_mut().append(name, any_text(random));
        }
        envelope
    }

    type Texts = Vec<(String, String)>;

    pub(super) fn parts(envelope: &Envelope) -> (Texts, Texts, Bytes) {
        let attributes = envelope.attributes().map(|(name, value)| (name.to_owned(), value.into_owned()));
        let headers = envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        (attributes.collect(), headers.collect(), envelope.payload().unwrap().clone())
    }
}
