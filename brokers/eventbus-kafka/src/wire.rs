//! Envelopes as Kafka records, after the
//! [CloudEvents binding for Kafka](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md).
//! Pure functions.

use crate::place::Origin;
use bytes::Bytes;
use eventbus_core::broker::{DeadLetter, FailureKind, Offset};
use eventbus_core::{DecodeError, Envelope, EventId, Headers, Topic};
use eventbus_server::cloudevents::{
    Carried, MEDIA_TYPE, is_structured, nearest_topic, percent_decode, percent_encode, read_binary,
    read_structured, write_structured,
};
use jiff::Timestamp;
use std::borrow::Cow;
use std::sync::Arc;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentMode {
    /// Attributes are headers, and the payload is the value of the record as it is.
    #[default]
    Binary,
    /// The value of the record is one JSON object, for programs that see no headers.
    Structured,
}

const CONTENT_TYPE: &str = "content-type";
/// What the header of an attribute begins with.
const PREFIX: &str = "ce_";
/// Carries a header whose own name means something else to readers, or cannot be sent: `name=value`, its name
/// percent-encoded.
const ENCODED: &str = "eventbus-header";
/// The Kafka topic of a record, where it is no topic of ours.
const FOREIGN_TOPIC: &str = "eventbus-topic";

/// What is known of a failure begins so.
const DEAD_LETTER: &str = "eventbus-dead-letter-";
/// Where an event that is published again was published first.
const ORIGIN: &str = "eventbus-origin";
/// The topic of such an event.
const TOPIC: &str = "eventbus-published-on";
/// Says that such an event has another payload than the first time.
const MENDED: &str = "eventbus-mended";

/// A record as it is sent.
#[derive(Debug)]
pub(crate) struct Written {
    /// What decides on its partition; none, where the event has no key.
    pub(crate) key: Option<String>,
    pub(crate) headers: Vec<(Cow<'static, str>, String)>,
    pub(crate) payload: Bytes,
}

impl Written {
    /// How large the record is, about.
    pub(crate) fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        self.payload.len() + headers + self.key.as_ref().map_or(0, String::len) + 70
    }
}

/// A record as it was read.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) headers: Vec<(&'a str, Option<&'a [u8]>)>,
    pub(crate) payload: Bytes,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Its Kafka topic, without the prefix of the bus.
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The time of the record.
    pub(crate) time: Timestamp,
}

/// Writes an event.
pub(crate) fn write(envelope: &Envelope, mode: ContentMode) -> Result<Written, DecodeError> {
    let mut headers: Vec<(Cow<'static, str>, String)> = Vec::with_capacity(16);
    let payload = match mode {
        ContentMode::Binary => {
            for (name, value) in envelope.attributes() {
                headers.push((header_of(name), value.into_owned()));
            }
            envelope.payload()?.clone()
        }
        ContentMode::Structured => {
            headers.push((CONTENT_TYPE.into(), MEDIA_TYPE.to_owned()));
            write_structured(envelope)?
        }
    };
    for (name, value) in envelope.headers().iter() {
        if is_free(name) {
            headers.push((name.to_owned().into(), value.to_owned()));
        } else {
            let name = percent_encode(name).replace('=', "%3D");
            headers.push((ENCODED.into(), format!("{name}={value}")));
        }
    }
    Ok(Written { key: envelope.key().map(str::to_owned), headers, payload })
}

/// The header of an attribute.
fn header_of(name: &'static str) -> Cow<'static, str> {
    macro_rules! names {
        ($($name:literal)*) => {
            match name {
                "datacontenttype" => CONTENT_TYPE.into(),
                $($name => concat!("ce_", $name).into(),)*
                other => format!("{PREFIX}{other}").into(),
            }
        };
    }
    names! {
        "specversion" "id" "source" "type" "time" "subject" "eventversion" "partitionkey" "correlationid"
        "causationid" "causationdepth"
    }
}

/// The attribute that a header stands for.
fn attribute_of(header: &str) -> Option<Cow<'_, str>> {
    let name = begins_with(header, PREFIX).then(|| &header[PREFIX.len()..])?;
    Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    })
}

fn begins_with(name: &str, with: &str) -> bool {
    name.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with))
}

/// Whether a header of this name can be sent, and is read as nothing else.
fn is_free(name: &str) -> bool {
    // The client ends a name at the first zero byte.
    !name.contains('\0')
        && !begins_with(name, PREFIX)
        && !name.eq_ignore_ascii_case(CONTENT_TYPE)
        && name != ENCODED
        && name != FOREIGN_TOPIC
        && name != ORIGIN
        && name != TOPIC
        && name != MENDED
        && !name.starts_with(DEAD_LETTER)
}

/// Reads an event. Any record is one: what it does not say is filled from where it stands.
///
/// A header whose value is no UTF-8 text is read with replacement characters, and one without a value as empty. A record
/// without a value has an empty payload.
pub(crate) fn read<'a>(
    place: Place<'_>,
    key: Option<&'a [u8]>,
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    payload: Bytes,
) -> Envelope {
    let mut attributes: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(12);
    let mut others = Headers::new();
    let mut content_type = None;
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.unwrap_or_default());
        if let Some(attribute) = attribute_of(name) {
            attributes.push((attribute, value));
        } else if name.eq_ignore_ascii_case(CONTENT_TYPE) {
            content_type = Some(value);
        } else if name == ENCODED {
            let (name, value) = value.split_once('=').unwrap_or((&value, ""));
            others.append(percent_decode(name), value);
        } else if name != FOREIGN_TOPIC {
            others.append(name, value);
        }
    }
    let Place { topic: name, partition, offset, time } = place;
    let topic = Topic::new(name).unwrap_or_else(|_| {
        others.insert(FOREIGN_TOPIC, name);
        nearest_topic(name)
    });
    let carried = Carried { topic, id: EventId::new(format!("{name}/{partition}/{offset}")), time };
    let mut envelope = if content_type.as_deref().is_some_and(is_structured) {
        read_structured(carried, others, payload)
    } else {
        if let Some(media_type) = content_type {
            attributes.push(("datacontenttype".into(), media_type));
        }
        let pairs = attributes.iter().map(|(name, value)| (name.as_ref(), Cow::Borrowed(value.as_ref())));
        read_binary(carried, pairs, others, payload)
    };
    // A program without CloudEvents says by the record's key alone what is handled in order.
    if envelope.key().is_none()
        && let Some(key) = key
    {
        envelope = envelope.with_key(String::from_utf8_lossy(key));
    }
    envelope
}

/// A dead letter: its event as it is always written, and what is known of the failure. `name` is its key.
pub(crate) fn write_dead_letter(
    letter: &DeadLetter,
    origin: &Origin,
    name: &str,
) -> Result<Written, DecodeError> {
    let mut written = write(&letter.envelope, ContentMode::Binary)?;
    written.key = Some(name.to_owned());
    for (name, value) in letter.headers().iter() {
        // A place as Kafka's tools show it.
        let value = if name == "eventbus-dead-letter-offset" { origin.to_string() } else { value.to_owned() };
        written.headers.push((name.to_owned().into(), value));
    }
    Ok(written)
}

/// The dead letter in a record, and where its event was published. None, where somebody else wrote the record.
pub(crate) fn read_dead_letter(record: Record<'_>, time: Timestamp) -> Option<(DeadLetter, Origin)> {
    let (failure, event): (Vec<_>, Vec<_>) =
        record.headers.into_iter().partition(|(name, _)| name.starts_with(DEAD_LETTER));
    let known = |name: &str| {
        let found = failure.iter().find(|(other, _)| other[DEAD_LETTER.len()..] == *name)?;
        std::str::from_utf8(found.1?).ok()
    };
    let topic = Topic::new(known("topic")?).ok()?;
    let origin: Origin = known("offset")?.parse().ok()?;
    let at = |name| known(name).and_then(|time| time.parse::<Timestamp>().ok());
    let last_failed_at = at("last-failed-at").unwrap_or(time);
    let place = Place {
        topic: topic.as_str(),
        partition: origin.partition,
        offset: i64::try_from(origin.offset).unwrap_or(i64::MAX),
        time,
    };
    let envelope = read(place, None, event, record.payload);
    let letter = DeadLetter {
        envelope: Arc::new(envelope),
        group: known("group")?.to_owned(),
        handler: known("handler").unwrap_or_default().to_owned(),
        kind: known("kind").and_then(FailureKind::parse).unwrap_or(FailureKind::Failed),
        reason: known("reason").unwrap_or_default().to_owned(),
        attempts: known("attempts").and_then(|attempts| attempts.parse().ok()).unwrap_or(1),
        first_failed_at: at("first-failed-at").unwrap_or(last_failed_at),
        last_failed_at,
        offset: Offset::from(origin.place()),
    };
    Some((letter, origin))
}

/// An event that is published again, for one group.
pub(crate) fn write_again(
    envelope: &Envelope,
    origin: &Origin,
    mended: bool,
) -> Result<Written, DecodeError> {
    let mut written = write(envelope, ContentMode::Binary)?;
    written.headers.push((ORIGIN.into(), origin.to_string()));
    written.headers.push((TOPIC.into(), envelope.topic().to_string()));
    if mended {
        written.headers.push((MENDED.into(), "true".to_owned()));
    }
    Ok(written)
}

/// An event that was published again: where it was published first, and whether its payload is another one. None, where
/// somebody else wrote the record.
pub(crate) fn read_again(record: Record<'_>, time: Timestamp) -> Option<(Envelope, Origin, bool)> {
    let text = |name: &str| {
        let found = record.headers.iter().find(|(other, _)| *other == name)?;
        std::str::from_utf8(found.1?).ok()
    };
    let origin: Origin = text(ORIGIN)?.parse().ok()?;
    let topic = Topic::new(text(TOPIC)?).ok()?;
    let mended = text(MENDED).is_some();
    let offset = i64::try_from(origin.offset).unwrap_or(i64::MAX);
    let place = Place { topic: topic.as_str(), partition: origin.partition, offset, time };
    let headers = record.headers.into_iter().filter(|(name, _)| ![ORIGIN, TOPIC, MENDED].contains(name));
    Some((read(place, record.key, headers, record.payload), origin, mended))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(topic: &str) -> Place<'_> {
        Place { topic, partition: 3, offset: 70, time: Timestamp::from_second(1_700_000_000).unwrap() }
    }

    fn read_back(envelope: &Envelope, mode: ContentMode) -> Envelope {
        let written = write(envelope, mode).unwrap();
        let headers = written.headers.iter().map(|(name, value)| {
            assert!(!name.contains('\0'), "{name:?} cannot be sent");
            (name.as_ref(), Some(value.as_bytes()))
        });
        let key = written.key.as_deref().map(str::as_bytes);
        read(place(envelope.topic().as_str()), key, headers, written.payload.clone())
    }

    fn text(random: &mut fastrand::Rng) -> String {
        let pieces =
            ["a", "B", " ", "%", "%41", "=", "\n", "\r\n", "é", "日本", ":", "\0", "ce_", "\u{2028}"];
        (0..random.usize(..6)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    fn any_envelope(random: &mut fastrand::Rng) -> Envelope {
        let payload: Vec<u8> = (0..random.usize(..50)).map(|_| random.u8(..)).collect();
        let kind = *random.choice(&["application/octet-stream", "image/png", "text/plain"]).unwrap();
        let mut envelope = Envelope::from_bytes(Topic::from_static("order.placed"), kind, payload.into())
            .with_source(text(random))
            .with_version(random.u32(1..5));
        if random.bool() {
            envelope = envelope.with_key(text(random));
        }
        if random.bool() {
            envelope = envelope.with_subject(text(random));
        }
        if random.bool() {
            let cause = EventId::new(format!("c{}", text(random)));
            envelope = envelope.with_causes(cause.clone(), Some(cause), 2);
        }
        let names =
            ["content-type", "CE_id", "ce_x", ENCODED, FOREIGN_TOPIC, "traceparent", "a=b", "n\0l", ""];
        for name in names {
            if random.bool() {
                envelope.headers_mut().append(name, text(random));
            }
        }
        envelope
    }

    type Pairs = Vec<(String, String)>;

    /// Everything that an envelope says, headers in the order of their names.
    fn said(envelope: &Envelope) -> (Pairs, Pairs, Bytes) {
        let attributes = envelope.attributes().map(|(name, value)| (name.to_owned(), value.into_owned()));
        let mut headers: Vec<_> = envelope
            .headers()
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        headers.sort();
        (attributes.collect(), headers, envelope.payload().unwrap().clone())
    }

    #[test]
    fn any_envelope_comes_back_in_both_modes() {
        let mut random = fastrand::Rng::with_seed(12);
        for _ in 0..2_000 {
            let sent = any_envelope(&mut random);
            for mode in [ContentMode::Binary, ContentMode::Structured] {
                assert_eq!(said(&read_back(&sent, mode)), said(&sent), "{mode:?}");
            }
        }
    }

    #[test]
    fn a_record_is_what_other_programs_with_cloudevents_expect() {
        let sent = Envelope::from_bytes(Topic::from_static("order.placed"), "text/plain", "hi".into())
            .with_source("/Zoë")
            .with_key("größe 7");
        let written = write(&sent, ContentMode::Binary).unwrap();
        let value = |name: &str| {
            written.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
        };
        assert_eq!((written.key.as_deref(), &written.payload[..]), (Some("größe 7"), &b"hi"[..]));
        assert_eq!(
            (value("ce_specversion"), value("ce_source")),
            (Some("1.0"), Some("/Zoë")),
            "UTF-8 as it is"
        );
        assert_eq!((value("content-type"), value("ce_datacontenttype")), (Some("text/plain"), None));
        assert_eq!((value("ce_type"), value("ce_partitionkey")), (Some("order.placed"), Some("größe 7")));
        let keyless = Envelope::from_bytes(Topic::from_static("a"), "text/plain", Bytes::new());
        assert_eq!(write(&keyless, ContentMode::Binary).unwrap().key, None, "any partition will do");
    }

    #[test]
    fn a_record_that_knows_nothing_of_cloudevents_is_an_event() {
        let event = read(place("order.placed"), Some(b"k7"), [], Bytes::from_static(b"\xff"));
        assert_eq!((event.id().to_string(), event.key()), ("order.placed/3/70".to_owned(), Some("k7")));
        assert_eq!((event.time(), event.event_type()), (place("").time, "order.placed"));
        assert_eq!(&event.payload().unwrap()[..], b"\xff");
        let headers = [
            ("Content-Type", Some(&b"text/plain"[..])),
            ("CE_Type", Some(b"com.shop.Order")),
            ("x", None),
            ("y", Some(b"a\xff")),
        ];
        let event = read(place("order.placed"), Some(b"\xff"), headers, Bytes::new());
        assert_eq!((event.content_type(), event.event_type()), ("text/plain", "com.shop.Order"));
        assert_eq!((event.headers().get("x"), event.headers().get("y")), (Some(""), Some("a\u{fffd}")));
        assert_eq!(event.key(), Some("\u{fffd}"));
    }

    #[test]
    fn a_kafka_topic_that_is_no_topic_is_kept_beside_the_nearest_one() {
        for (kafka, topic) in [("orders..x", "orders._.x"), (".a", "_.a"), ("__internal", "__internal")] {
            let event = read(place(kafka), None, [], Bytes::new());
            assert_eq!(event.topic().as_str(), topic);
            let foreign = (kafka != topic).then_some(kafka);
            assert_eq!(event.headers().get(FOREIGN_TOPIC), foreign);
        }
    }

    fn record_of(written: &Written) -> Record<'_> {
        Record {
            key: written.key.as_deref().map(str::as_bytes),
            headers: written.headers.iter().map(|(n, value)| (n.as_ref(), Some(value.as_bytes()))).collect(),
            payload: written.payload.clone(),
        }
    }

    #[test]
    fn dead_letters_and_what_is_published_again_come_back_with_all_that_is_known() {
        let mut random = fastrand::Rng::with_seed(14);
        for _ in 0..500 {
            let origin = Origin {
                topic: "shop.order.placed".into(),
                partition: random.i32(0..9),
                offset: random.u64(..1 << 50),
                time: random.u64(..1 << 40),
            };
            let at = Timestamp::from_second(random.i64(0..2_000_000_000)).unwrap();
            let letter = DeadLetter {
                envelope: Arc::new(any_envelope(&mut random)),
                group: text(&mut random),
                handler: text(&mut random),
                kind: FailureKind::TimedOut,
                reason: text(&mut random),
                attempts: random.u32(1..),
                first_failed_at: at,
                last_failed_at: at,
                offset: Offset::from(origin.place()),
            };
            let written = write_dead_letter(&letter, &origin, "17-1").unwrap();
            assert_eq!(written.key.as_deref(), Some("17-1"));
            let (read, from) = read_dead_letter(record_of(&written), place("").time).unwrap();
            assert_eq!((said(&read.envelope), read.headers()), (said(&letter.envelope), letter.headers()));
            assert_eq!((read.offset, from), (letter.offset, origin.clone()));
            let mended = random.bool();
            let written = write_again(&letter.envelope, &origin, mended).unwrap();
            let read = read_again(record_of(&written), place("").time).unwrap();
            assert_eq!((said(&read.0), read.1, read.2), (said(&letter.envelope), origin, mended));
        }
    }

    #[test]
    fn no_record_ends_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(13);
        let names =
            ["ce_id", "ce_time", "CE_", "ce_é", "content-type", "c", "é_", ENCODED, FOREIGN_TOPIC, ""];
        for _ in 0..3_000 {
            let values: Vec<(&str, Option<Vec<u8>>)> = (0..random.usize(..8))
                .map(|_| {
                    let any: Vec<u8> = (0..random.usize(..9)).map(|_| random.u8(..)).collect();
                    let structured = b"application/cloudevents+json".to_vec();
                    let value = *random.choice(&[Some(0), Some(1), None]).unwrap();
                    (*random.choice(&names).unwrap(), value.map(|v| if v == 0 { any } else { structured }))
                })
                .collect();
            let headers = values.iter().map(|(name, value)| (*name, value.as_deref()));
            let payload: Vec<u8> = (0..random.usize(..50)).map(|_| random.u8(..)).collect();
            let (topic, key) = (text(&mut random), random.bool().then_some(&payload[..]));
            read(place(&topic), key, headers, payload.clone().into());
            let record = || Record {
                key,
                headers: values.iter().map(|(name, value)| (*name, value.as_deref())).collect(),
                payload: payload.clone().into(),
            };
            read_dead_letter(record(), place("").time);
            read_again(record(), place("").time);
        }
    }
}
