//! The wire: an event as the fields of a stream's entry, and any entry as an event.
//!
//! There is no official binding of CloudEvents to Redis, so this is ours. An attribute is a field `ce-<name>`, the media
//! type is `content-type` (as in the bindings to HTTP, NATS and AMQP), a header is `h-<name>`, and the payload is `data`,
//! byte for byte. Fields are binary-safe, so nothing is encoded.
//!
//! An entry of a program that knows nothing of this is an event too. Where it has `data`, that is its payload, and its
//! other fields are headers; where it has none, all its fields together are the payload, as one JSON object. What
//! FastStream has put into one field is read as if it had fields of its own.

use crate::faststream;
use crate::place::Place;
use bytes::Bytes;
use eventbus_core::broker::{DeadLetter, FailureKind, Offset};
use eventbus_core::{DecodeError, Envelope, EventId, Headers, Topic};
use eventbus_server::cloudevents::{self, Carried, MEDIA_TYPE};
use jiff::Timestamp;
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::sync::Arc;

const ATTRIBUTE: &str = "ce-";
const HEADER: &str = "h-";
const CONTENT_TYPE: &str = "content-type";
const DATA: &str = "data";
const DEAD_LETTER: &str = "eventbus-dead-letter-";
/// Where an event stood in its topic that was published again.
pub(crate) const ORIGIN: &str = "eventbus-origin";

/// The most fields that an entry may have: scripts hand no more on to a command.
pub(crate) const MAX_FIELDS: usize = 3_000;

/// The fields of an entry, one text behind the other.
#[derive(Default)]
pub(crate) struct Fields {
    bytes: Vec<u8>,
    /// Where each name and each value ends.
    ends: Vec<usize>,
}

impl Fields {
    fn push(&mut self, prefix: &str, name: &str, value: &[u8]) {
        self.bytes.extend_from_slice(prefix.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.ends.push(self.bytes.len());
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }

    /// Names and values, in turn.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.bytes[begin..*end])
    }

    /// How many names and values there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How many bytes they have.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentMode {
    /// Attributes are fields of their own, the payload stands as it is
    /// ([binary mode](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#message)).
    #[default]
    Binary,
    /// The event is one JSON object in the field `data`.
    Structured,
}

/// The fields of an event.
///
/// # Errors
/// Where the event has no form in its codec.
pub(crate) fn write(envelope: &Envelope, mode: ContentMode) -> Result<Fields, DecodeError> {
    let payload = envelope.payload()?;
    let mut fields = Fields { bytes: Vec::with_capacity(payload.len() + 256), ends: Vec::with_capacity(16) };
    match mode {
        ContentMode::Binary => {
            for (name, value) in envelope.attributes() {
                match name {
                    "datacontenttype" => fields.push("", CONTENT_TYPE, value.as_bytes()),
                    name => fields.push(ATTRIBUTE, name, value.as_bytes()),
                }
            }
            headers(&mut fields, envelope);
            fields.push("", DATA, payload);
        }
        ContentMode::Structured => {
            fields.push("", CONTENT_TYPE, MEDIA_TYPE.as_bytes());
            headers(&mut fields, envelope);
            fields.push("", DATA, &cloudevents::write_structured(envelope)?);
        }
    }
    Ok(fields)
}

fn headers(fields: &mut Fields, envelope: &Envelope) {
    for (name, value) in envelope.headers().iter() {
        fields.push(HEADER, name, value.as_bytes());
    }
}

/// The event in an entry at `place` of the stream of `topic`; `fields` are its names and values.
pub(crate) fn read(topic: Topic, place: Place, mut fields: Vec<(Vec<u8>, Vec<u8>)>) -> Envelope {
    let carried = Carried { id: EventId::new(format!("{topic}/{place}")), topic, time: place.time() };
    if !fields.iter().any(|(name, _)| name == DATA.as_bytes()) {
        let of_faststream = fields.iter().position(|(name, _)| name == faststream::FIELD.as_bytes());
        let Some(at) = of_faststream else { return foreign(carried, &fields) };
        let (_, field) = fields.remove(at);
        fields.extend(taken_apart(field.into()));
    }
    let mut attributes: Vec<(String, String)> = Vec::with_capacity(fields.len());
    let mut headers = Headers::new();
    let mut payload = None;
    for (name, value) in fields {
        if name == DATA.as_bytes() && payload.is_none() {
            payload = Some(Bytes::from(value));
            continue;
        }
        // Names and values of others may be any bytes.
        let (name, value) = (text(name), text(value));
        if let Some(attribute) = name.strip_prefix(ATTRIBUTE) {
            attributes.push((attribute.to_owned(), value));
        } else if name == CONTENT_TYPE {
            attributes.push(("datacontenttype".to_owned(), value));
        } else {
            headers.append(name.strip_prefix(HEADER).unwrap_or(&name), value);
        }
    }
    let payload = payload.unwrap_or_default();
    let structured =
        attributes.iter().any(|(name, value)| name == "datacontenttype" && cloudevents::is_structured(value));
    if structured && !attributes.iter().any(|(name, _)| name == "specversion") {
        return cloudevents::read_structured(carried, headers, payload);
    }
    let pairs = attributes.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_str())));
    cloudevents::read_binary(carried, pairs, headers, payload)
}

/// The fields that an entry of FastStream would have, had it been written here.
fn taken_apart(field: Bytes) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let faststream::Message { headers, payload } = faststream::read(field);
    let named = |(name, value): (String, String)| {
        let is_attribute = name.starts_with(ATTRIBUTE) || name == CONTENT_TYPE;
        let name = if is_attribute { name } else { format!("{HEADER}{name}") };
        (name.into_bytes(), value.into_bytes())
    };
    headers.into_iter().map(named).chain([(DATA.into(), payload.into())])
}

/// An entry that was written as a record of its own fields.
fn foreign(carried: Carried, fields: &[(Vec<u8>, Vec<u8>)]) -> Envelope {
    let mut record = Map::new();
    for (name, value) in fields {
        let name = String::from_utf8_lossy(name);
        match std::str::from_utf8(value) {
            Ok(value) => record.insert(name.into_owned(), Json::from(value)),
            // As CloudEvents writes what is no text.
            Err(_) => record.insert(format!("{name}_base64"), Json::from(base64(value))),
        };
    }
    let payload = Bytes::from(Json::Object(record).to_string());
    let attributes = [("datacontenttype", Cow::Borrowed("application/json"))];
    cloudevents::read_binary(carried, attributes, Headers::new(), payload)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|other| String::from_utf8_lossy(other.as_bytes()).into_owned())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let written = digit <= group.len();
            text.push(if written { DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char } else { '=' });
        }
    }
    text
}

/// The fields of a dead letter: those of its event, and what is known of the failure.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_dead_letter(letter: &DeadLetter) -> Result<Fields, DecodeError> {
    let mut fields = write(&letter.envelope, ContentMode::Binary)?;
    for (name, value) in letter.headers().iter() {
        // An offset is a place, as tools show it.
        match name.strip_prefix(DEAD_LETTER) {
            Some("offset") => fields.push("", name, Place::from(letter.offset).to_string().as_bytes()),
            _ => fields.push("", name, value.as_bytes()),
        }
    }
    Ok(fields)
}

/// The dead letter in an entry of the group's; none, where somebody else wrote what is there.
pub(crate) fn read_dead_letter(
    group: &str,
    place: Place,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
) -> Option<DeadLetter> {
    let is_of_failure = |(name, _): &(Vec<u8>, Vec<u8>)| name.starts_with(DEAD_LETTER.as_bytes());
    let (failure, event): (Vec<_>, Vec<_>) = fields.into_iter().partition(is_of_failure);
    let known = |name: &str| {
        let found = failure.iter().find(|(other, _)| other[DEAD_LETTER.len()..] == *name.as_bytes())?;
        std::str::from_utf8(&found.1).ok()
    };
    let topic = Topic::new(known("topic")?).ok()?;
    let time = |name| known(name).and_then(|time| time.parse::<Timestamp>().ok());
    let origin = known("offset").and_then(|offset| offset.parse().ok()).unwrap_or(place);
    let last_failed_at = time("last-failed-at").unwrap_or_else(|| place.time());
    Some(DeadLetter {
        envelope: Arc::new(read(topic, origin, event)),
        group: group.to_owned(),
        handler: known("handler").unwrap_or_default().to_owned(),
        kind: known("kind").and_then(FailureKind::parse).unwrap_or(FailureKind::Failed),
        reason: known("reason").unwrap_or_default().to_owned(),
        attempts: known("attempts").and_then(|attempts| attempts.parse().ok()).unwrap_or(1),
        first_failed_at: time("first-failed-at").unwrap_or(last_failed_at),
        last_failed_at,
        offset: Offset::from(origin),
    })
}

/// Takes out of an entry that was published again where its event stood first.
pub(crate) fn take_origin(fields: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Option<Place> {
    let at = fields.iter().position(|(name, _)| name == ORIGIN.as_bytes())?;
    std::str::from_utf8(&fields.remove(at).1).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
        let texts: Vec<_> = fields.texts().map(<[u8]>::to_vec).collect();
        texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    fn any_text(random: &mut fastrand::Rng) -> String {
        let pieces = ["a", "B7", " ", "%", "\"", "\r\n", "\0", "é", "日本", "🦀", ":", "data", "ce-id", "h-"];
        (0..random.usize(..6)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    fn any_envelope(random: &mut fastrand::Rng) -> Envelope {
        let payload: Vec<u8> = (0..random.usize(..60)).map(|_| random.u8(..)).collect();
        let content_type =
            *random.choice(&["application/json", "image/png", "", "application/cloudevents+json"]).unwrap();
        let mut envelope = Envelope::from_bytes(Topic::from_static("a.b"), content_type, payload.into())
            .with_source(any_text(random))
            .with_version(random.u32(1..5));
        if random.bool() {
            envelope = envelope.with_id(EventId::new(format!("i{}", any_text(random))));
        }
        if random.bool() {
            envelope = envelope.with_key(any_text(random)).with_subject(any_text(random));
        }
        if random.bool() {
            envelope = envelope.with_type("other").with_causes(
                EventId::new(format!("r{}", any_text(random))),
                random.bool().then(|| EventId::new("cause")),
                random.u32(..5),
            );
        }
        for _ in 0..random.usize(..4) {
            envelope.headers_mut().append(any_text(random), any_text(random));
        }
        envelope
    }

    fn all(envelope: &Envelope) -> String {
        let attributes: Vec<_> = envelope.attributes().collect();
        format!("{:?} {attributes:?} {:?} {:?}", envelope.topic(), envelope.headers(), envelope.payload())
    }

    const PLACE: Place = Place { millis: 1_700_000_000_123, number: 4 };

    #[test]
    fn an_entry_of_faststream_is_the_event_that_its_headers_tell_of() {
        let event = |field: &[u8]| {
            let fields = vec![(b"__data__".to_vec(), field.to_vec())];
            read(Topic::from_static("a.b"), PLACE, fields)
        };
        let known = br#"{"data": "{\"n\": 1}", "headers": {
            "ce-id": "7", "ce-partitionkey": "k", "content-type": "application/json", "h-x": "y"
        }}"#;
        let known = event(known);
        assert_eq!((&*known.id().to_string(), known.key()), ("7", Some("k")));
        assert_eq!((known.content_type(), known.headers().get("h-x")), ("application/json", Some("y")));
        assert_eq!(&known.payload().unwrap()[..], br#"{"n": 1}"#);
        let unknown = event(b"\xff");
        assert_eq!((unknown.id().to_string(), unknown.time()), (format!("a.b/{PLACE}"), PLACE.time()));
        assert_eq!(&unknown.payload().unwrap()[..], b"\xff");
    }

    #[test]
    fn any_envelope_comes_back_from_its_fields() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..3_000 {
            let sent = any_envelope(&mut random);
            let read = read(sent.topic().clone(), PLACE, pairs(&write(&sent, ContentMode::Binary).unwrap()));
            assert_eq!(all(&sent), all(&read));
        }
    }

    #[test]
    fn any_envelope_comes_back_from_the_structured_mode() {
        let mut random = fastrand::Rng::with_seed(12);
        for _ in 0..1_000 {
            let sent = any_envelope(&mut random).with_content_type("application/octet-stream");
            let read =
                read(sent.topic().clone(), PLACE, pairs(&write(&sent, ContentMode::Structured).unwrap()));
            assert_eq!(all(&sent), all(&read));
        }
    }

    #[test]
    fn no_fields_end_in_a_panic_and_payloads_stay_as_they_are() {
        let mut random = fastrand::Rng::with_seed(13);
        let names =
            ["data", "ce-id", "ce-time", "ce-", "content-type", "h-", "h-a", "", "order", "eventbus-origin"];
        for _ in 0..3_000 {
            let any_bytes =
                |random: &mut fastrand::Rng| (0..random.usize(..9)).map(|_| random.u8(..)).collect();
            let fields: Vec<(Vec<u8>, Vec<u8>)> = (0..random.usize(..6))
                .map(|_| {
                    let name = match random.bool() {
                        true => random.choice(&names).unwrap().as_bytes().to_vec(),
                        false => any_bytes(&mut random),
                    };
                    (name, any_bytes(&mut random))
                })
                .collect();
            let data = fields.iter().find(|(name, _)| name == b"data").map(|(_, data)| data.clone());
            read_dead_letter("group", PLACE, fields.clone());
            let read = read(Topic::from_static("a.b"), PLACE, fields);
            if let Some(data) = data {
                assert_eq!(&read.payload().unwrap()[..], &data[..]);
            }
        }
    }

    #[test]
    fn an_entry_of_a_foreign_program_is_an_event_with_its_own_place_and_time() {
        let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let topic = || Topic::from_static("order.placed");
        let plain = read(topic(), PLACE, vec![field("data", "{}"), field("tenant", "acme")]);
        assert_eq!(plain.id().to_string(), "order.placed/1700000000123-4");
        assert_eq!((plain.event_type(), plain.time()), ("order.placed", PLACE.time()));
        assert_eq!(plain.headers().get("tenant"), Some("acme"));
        let record = read(topic(), PLACE, vec![field("order", "7"), (b"raw".to_vec(), vec![0xff, 0])]);
        assert_eq!(&record.payload().unwrap()[..], br#"{"order":"7","raw_base64":"/wA="}"#);
        assert_eq!(record.content_type(), "application/json");
    }

    #[test]
    fn a_dead_letter_comes_back_with_all_that_is_known_of_it() {
        let mut random = fastrand::Rng::with_seed(14);
        for _ in 0..500 {
            let letter = DeadLetter {
                envelope: Arc::new(any_envelope(&mut random)),
                group: "billing.charge".to_owned(),
                handler: any_text(&mut random),
                kind: FailureKind::TimedOut,
                reason: any_text(&mut random),
                attempts: random.u32(..),
                first_failed_at: PLACE.time(),
                last_failed_at: Timestamp::now(),
                offset: PLACE.next().into(),
            };
            let fields = pairs(&write_dead_letter(&letter).unwrap());
            let read = read_dead_letter("billing.charge", PLACE, fields).unwrap();
            assert_eq!(all(&letter.envelope), all(&read.envelope));
            assert_eq!(letter.headers(), read.headers());
        }
    }
}
