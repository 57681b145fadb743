//! Envelopes as NATS messages, after the
//! [CloudEvents binding for NATS](https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md),
//! and what the reply subject of a delivery tells of it. Pure functions.

use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use eventbus_core::{DecodeError, Envelope, EventId, Headers, Topic};
use eventbus_server::cloudevents::{
    Carried, MEDIA_TYPE, is_structured, nearest_topic, percent_decode, percent_encode, read_binary,
    read_structured, write_structured,
};
use jiff::Timestamp;
use std::borrow::Cow;

/// The largest that the headers of a message may be together: the server has 16 bits for it.
pub(crate) const MAX_HEADERS: usize = u16::MAX as usize;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentMode {
    /// Attributes are headers, and the payload is the message as it is.
    #[default]
    Binary,
    /// The message is one JSON object, for programs that see no headers.
    Structured,
}

/// By this the server knows an event again that is published twice.
const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
/// Carries a header that NATS cannot carry under its own name or with its own value: `name=value`, both
/// percent-encoded.
const ENCODED: HeaderName = HeaderName::from_static("eventbus-header");
/// On what is delivered again to one group: the place at which it was published.
pub(crate) const AGAIN: &str = "eventbus-again";
/// On such a message whose payload is another one than was published.
pub(crate) const MENDED: &str = "eventbus-mended";
/// The subject of a message whose own is no topic.
const SUBJECT: &str = "eventbus-subject";

/// A message as it is sent: its headers and its payload.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// How many bytes the headers have on the wire.
    pub(crate) header_size: usize,
}

/// Writes an event.
pub(crate) fn write(envelope: &Envelope, mode: ContentMode) -> Result<Written, DecodeError> {
    let mut headers = Sized { map: HeaderMap::new(), size: "NATS/1.0\r\n\r\n".len() };
    headers.append(MESSAGE_ID, message_id(envelope));
    let payload = match mode {
        ContentMode::Binary => {
            for (name, value) in envelope.attributes() {
                headers.append(attribute(name), encoded(value));
            }
            envelope.payload()?.clone()
        }
        ContentMode::Structured => {
            headers.append(CONTENT_TYPE, MEDIA_TYPE.to_owned());
            write_structured(envelope)?
        }
    };
    for (name, value) in envelope.headers().iter() {
        match name.parse::<HeaderName>() {
            Ok(name) if is_free(name.as_ref()) && is_plain(value) => headers.append(name, value.to_owned()),
            _ => {
                let name = percent_encode(name).replace('=', "%3D");
                headers.append(ENCODED, format!("{name}={}", percent_encode(value)));
            }
        }
    }
    Ok(Written { headers: headers.map, payload, header_size: headers.size })
}

/// What the server knows the event again by: ids are unique within their source.
pub(crate) fn message_id(envelope: &Envelope) -> String {
    let id = envelope.id().to_string();
    let id = percent_encode(&id);
    match envelope.source() {
        "" => id.into_owned(),
        source => format!("{}#{id}", percent_encode(source)),
    }
}

/// A value as a header carries it; it is copied only where that differs.
fn encoded(value: Cow<'_, str>) -> String {
    match percent_encode(&value) {
        Cow::Borrowed(_) => value.into_owned(),
        Cow::Owned(encoded) => encoded,
    }
}

/// The headers so far, and their size on the wire.
struct Sized {
    map: HeaderMap,
    size: usize,
}

impl Sized {
    fn append(&mut self, name: HeaderName, value: String) {
        let text: &str = name.as_ref();
        self.size += text.len() + value.len() + ": \r\n".len();
        // Every value is plain text or was encoded: there is no line break that would be refused.
        self.map.append(name, HeaderValue::from(value));
    }
}

/// The header of an attribute.
fn attribute(name: &'static str) -> HeaderName {
    macro_rules! names {
        ($($name:literal)*) => {
            match name {
                $($name => HeaderName::from_static(concat!("ce-", $name)),)*
                other => format!("ce-{other}").parse().unwrap_or(ENCODED),
            }
        };
    }
    names! {
        "specversion" "id" "source" "type" "time" "subject" "datacontenttype" "eventversion" "partitionkey"
        "correlationid" "causationid" "causationdepth"
    }
}

/// Whether a name has no meaning of its own to the server or to a reader of events.
fn is_free(name: &str) -> bool {
    let begins = |with: &str| name.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
        && !begins("ce-")
        && !begins("nats-")
        && !begins("eventbus-header")
        && ![SUBJECT, AGAIN, MENDED].into_iter().any(begins)
        && !name.eq_ignore_ascii_case("content-type")
}

/// Whether a value is read as it is written: readers drop white space at the ends.
fn is_plain(value: &str) -> bool {
    value.trim() == value && !value.chars().any(char::is_control)
}

/// Where a message stands, by its reply subject:
/// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<place>.<time>.<behind>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// How often it was delivered.
    pub(crate) deliveries: u64,
    /// Its place in the stream.
    pub(crate) sequence: u64,
    /// The number of this delivery in its consumer.
    pub(crate) delivery: u64,
    /// When it was stored.
    pub(crate) time: Timestamp,
    /// How many wait behind it.
    pub(crate) behind: u64,
}

impl Place {
    pub(crate) fn read(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?.as_bytes();
        let skipped = match 1 + rest.iter().filter(|byte| **byte == b'.').count() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let mut tokens = rest.split(|byte| *byte == b'.').skip(skipped);
        let mut next = || number(tokens.next()?);
        let (deliveries, sequence, delivery, nanos, behind) = (next()?, next()?, next()?, next()?, next()?);
        let time = Timestamp::from_nanosecond(nanos.into()).ok()?;
        Some(Self { deliveries, sequence, delivery, time, behind })
    }

    /// The reply subject of another delivery of the same consumer, as far as the server looks at it.
    pub(crate) fn reply_of(reply: &str, sequence: u64, delivery: u64) -> Option<String> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let kept = match rest.split('.').count() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let consumer: Vec<_> = rest.split('.').take(kept).collect();
        let time = rest.split('.').nth(kept + 3)?;
        Some(format!("$JS.ACK.{}.1.{sequence}.{delivery}.{time}.0", consumer.join(".")))
    }
}

/// A number out of its digits. Each message has five of them, so they are not looked for as text.
fn number(digits: &[u8]) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, add) }
}

/// Whether a message comes out of a stream, whatever status its publisher has given it.
pub(crate) fn is_stored(message: &Message) -> bool {
    message.reply.as_deref().is_some_and(|reply| Place::read(reply).is_some())
}

/// Reads an event. `rest` is the subject without the prefix of the stream; `stream` and `place` say where it stands.
///
/// Any message is an event: what it does not say is filled from where it stands.
pub(crate) fn read(
    stream: &str,
    rest: &str,
    sequence: u64,
    time: Timestamp,
    headers: Option<&HeaderMap>,
    payload: Bytes,
) -> Envelope {
    let mut attributes: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(12);
    let mut others = Headers::new();
    let (mut content_type, mut message_id) = (None, None);
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        for value in values {
            let value = value.as_str();
            let attribute = name.get(..3).filter(|prefix| prefix.eq_ignore_ascii_case("ce-"));
            if attribute.is_some() {
                let name = &name[3..];
                let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    Cow::Owned(name.to_ascii_lowercase())
                } else {
                    Cow::Borrowed(name)
                };
                attributes.push((name, percent_decode(value)));
            } else if name.eq_ignore_ascii_case(MESSAGE_ID.as_ref()) {
                message_id = Some(value);
            } else if name.eq_ignore_ascii_case("content-type") {
                content_type = Some(value);
            } else if name.eq_ignore_ascii_case(ENCODED.as_ref()) {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                others.append(percent_decode(name), percent_decode(value));
            } else if !name.get(..5).is_some_and(|prefix| prefix.eq_ignore_ascii_case("nats-")) {
                // What the server has added says nothing of the event, and neither does what we have.
                if name != AGAIN && name != MENDED {
                    others.append(name, value);
                }
            }
        }
    }
    let topic = Topic::new(rest).unwrap_or_else(|_| {
        others.insert(SUBJECT, rest);
        nearest_topic(rest)
    });
    let of_place = || EventId::new(format!("{stream}/{sequence}"));
    let id = message_id.map_or_else(of_place, |id| EventId::new(percent_decode(id)));
    let carried = Carried { topic, id, time };
    if content_type.is_some_and(is_structured) {
        return read_structured(carried, others, payload);
    }
    // Programs without CloudEvents say here what the payload is.
    if let Some(media_type) =
        content_type.filter(|_| !attributes.iter().any(|(name, _)| name == "datacontenttype"))
    {
        attributes.push(("datacontenttype".into(), media_type.into()));
    }
    let pairs = attributes.iter().map(|(name, value)| (name.as_ref(), Cow::Borrowed(value.as_ref())));
    read_binary(carried, pairs, others, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(envelope: &Envelope, mode: ContentMode) -> Envelope {
        let written = write(envelope, mode).unwrap();
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        read("EVENTS", envelope.topic().as_str(), 7, time, Some(&over_the_wire(&written)), written.payload)
    }

    /// The headers as a reader sees them: lines, with white space at the ends of values dropped.
    fn over_the_wire(written: &Written) -> HeaderMap {
        let mut read = HeaderMap::new();
        let mut size = "NATS/1.0\r\n\r\n".len();
        for (name, values) in written.headers.iter() {
            for value in values {
                let line = format!("{name}: {value}");
                assert!(!line.contains(['\r', '\n']), "{line:?}");
                size += line.len() + 2;
                let (name, value) = line.split_once(':').unwrap();
                read.append(name.parse::<HeaderName>().unwrap(), value.trim());
            }
        }
        assert_eq!(size, written.header_size);
        read
    }

    fn text(random: &mut fastrand::Rng) -> String {
        let pieces = [
            "a", "B", " ", "%", "%41", "=", "\n", "\r\n", "\t", "é", "日本", ":", "\u{1b}", "\0", "\u{2028}",
            "\u{a0}",
        ];
        (0..random.usize(..8)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    fn any(random: &mut fastrand::Rng) -> Envelope {
        let payload: Vec<u8> = (0..random.usize(..50)).map(|_| random.u8(..)).collect();
        let mut envelope =
            Envelope::from_bytes(Topic::from_static("order.placed"), "image/png", payload.into())
                .with_source(text(random))
                .with_key(text(random))
                .with_subject(text(random))
                .with_version(random.u32(1..5));
        if random.bool() {
            envelope = envelope.with_id(EventId::new(format!("i{}", text(random))));
        }
        for _ in 0..random.usize(..5) {
            let name = match random.u8(..4) {
                0 => random
                    .choice(["Nats-Rollup", "ce-id", "Content-Type", "eventbus-header"])
                    .unwrap()
                    .to_owned(),
                1 => text(random),
                _ => format!("h{}", random.u8(..3)),
            };
            envelope.headers_mut().append(name, text(random));
        }
        envelope
    }

    type Pairs = Vec<(String, String)>;

    fn parts(envelope: &Envelope) -> (Pairs, Pairs, Bytes) {
        let attributes = envelope.attributes().map(|(name, value)| (name.to_owned(), value.into_owned()));
        let mut headers: Vec<_> =
            envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        // Those under one name keep their order, as far as NATS carries them alike.
        headers.sort();
        (attributes.collect(), headers, envelope.payload().unwrap().clone())
    }

    #[test]
    fn any_envelope_comes_back_in_both_modes() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..3_000 {
            let sent = any(&mut random);
            for mode in [ContentMode::Binary, ContentMode::Structured] {
                assert_eq!(parts(&sent), parts(&read_back(&sent, mode)), "{mode:?}");
            }
        }
    }

    #[test]
    fn headers_are_named_and_encoded_as_the_binding_says() {
        let sent = Envelope::from_json(Topic::from_static("order.placed"), &1)
            .unwrap()
            .with_id(EventId::new("a b"))
            .with_source("/shop")
            .with_key("Zoë")
            .with_header("Tenant", "ünï");
        let written = write(&sent, ContentMode::Binary).unwrap();
        let get = |name: &str| written.headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(get("ce-id").as_deref(), Some("a%20b"));
        assert_eq!(get("ce-partitionkey").as_deref(), Some("Zo%C3%AB"));
        assert_eq!(get("ce-datacontenttype").as_deref(), Some("application/json"));
        assert_eq!(get("Nats-Msg-Id").as_deref(), Some("/shop#a%20b"));
        assert_eq!(get("Tenant").as_deref(), Some("ünï"));
        assert_eq!(get("content-type"), None, "it would say that the mode is another");
    }

    #[test]
    fn a_header_of_the_program_is_no_order_to_the_server() {
        let sent =
            Envelope::from_json(Topic::from_static("a.b"), &1).unwrap().with_header("nats-rollup", "all");
        let written = write(&sent, ContentMode::Binary).unwrap();
        assert!(written.headers.iter().all(|(name, _)| {
            let name: &str = name.as_ref();
            name == "Nats-Msg-Id" || !name.to_ascii_lowercase().starts_with("nats-")
        }));
        assert_eq!(read_back(&sent, ContentMode::Binary).headers().get("nats-rollup"), Some("all"));
    }

    #[test]
    fn a_message_of_a_program_that_knows_no_cloud_events_is_an_event() {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        let event = read("EVENTS", "order.placed", 7, time, None, Bytes::from_static(b"hello"));
        assert_eq!((event.id().to_string(), event.time()), ("EVENTS/7".to_owned(), time));
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "text/plain");
        headers.insert("Nats-Msg-Id", "42");
        headers.insert("Nats-Expected-Stream", "EVENTS");
        headers.insert("CE-Type", "com.shop.Order");
        let event = read("EVENTS", "order.placed", 7, time, Some(&headers), Bytes::new());
        assert_eq!((event.id().to_string().as_str(), event.content_type()), ("42", "text/plain"));
        assert_eq!((event.event_type(), event.headers().len()), ("com.shop.Order", 0));
    }

    #[test]
    fn a_subject_that_is_no_topic_is_kept_beside_the_nearest_one() {
        let time = Timestamp::from_second(0).unwrap();
        for (subject, topic) in [("order.größe", "order.gr__e"), ("a.b c.!", "a.b_c._"), ("$x", "_x")] {
            let event = read("EVENTS", subject, 7, time, None, Bytes::new());
            assert_eq!((event.topic().as_str(), event.headers().get(SUBJECT)), (topic, Some(subject)));
        }
        let long = "x".repeat(2_000);
        read("EVENTS", &long, 7, time, None, Bytes::new());
    }

    #[test]
    fn a_reply_subject_tells_where_a_message_stands_in_both_of_its_forms() {
        let place = Place {
            deliveries: 2,
            sequence: 70,
            delivery: 9,
            time: Timestamp::from_nanosecond(1_700_000_000_000_000_001).unwrap(),
            behind: 3,
        };
        let short = "$JS.ACK.EVENTS.c-1.2.70.9.1700000000000000001.3";
        let long = "$JS.ACK._.hash.EVENTS.c-1.2.70.9.1700000000000000001.3.token";
        assert_eq!((Place::read(short), Place::read(long)), (Some(place), Some(place)));
        for wrong in [
            "",
            "$JS.ACK",
            "$JS.ACK.a.b.1.2.3.4",
            "$JS.ACK.EVENTS.c.x.70.9.1.3",
            "_INBOX.1",
            "$JS.ACK.EVENTS.c.1..9.1.3",
            "$JS.ACK.EVENTS.c.1.99999999999999999999.9.1.3",
        ] {
            assert_eq!(Place::read(wrong), None, "{wrong}");
        }
        let other = Place::read(&Place::reply_of(long, 71, 12).unwrap()).unwrap();
        assert_eq!((other.sequence, other.delivery), (71, 12));
        assert!(Place::reply_of(short, 71, 12).unwrap().starts_with("$JS.ACK.EVENTS.c-1.1.71.12."));
    }

    #[test]
    fn no_message_ends_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(6);
        let names =
            ["ce-id", "ce-time", "CE-", "ce-é", "content-type", "eventbus-header", "Nats-Msg-Id", "x"];
        for _ in 0..3_000 {
            let mut headers = HeaderMap::new();
            for _ in 0..random.usize(..8) {
                if let (Ok(name), Ok(value)) = (
                    random.choice(&names).unwrap().parse::<HeaderName>(),
                    text(&mut random).parse::<HeaderValue>(),
                ) {
                    headers.append(name, value);
                }
            }
            headers.append("content-type", *random.choice(&["application/cloudevents+json", ""]).unwrap());
            let subject = text(&mut random);
            let payload: Vec<u8> = (0..random.usize(..50)).map(|_| random.u8(..)).collect();
            read("EVENTS", &subject, 1, Timestamp::from_second(0).unwrap(), Some(&headers), payload.into());
            Place::read(&format!("$JS.ACK.{subject}"));
        }
    }
}
