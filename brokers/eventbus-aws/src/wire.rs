//! Envelopes as messages of SNS and SQS. CloudEvents has no binding for them, so this is ours. Pure functions.
//!
//! A message has at most ten attributes (SQS drops one with more that SNS hands on raw), and a CloudEvent alone may have
//! twelve. So those that others filter by and read have attributes of their own, `ce-…`, and everything else stands
//! together in one: `eventbus`.

use crate::batches::LARGEST;
use bytes::Bytes;
use eventbus_core::broker::{DeadLetter, FailureKind};
use eventbus_core::{DecodeError, Envelope, EventId, Headers, Pattern, Topic};
use eventbus_server::cloudevents::{
    Carried, MEDIA_TYPE, base64_decode, base64_encode, is_structured, percent_decode, percent_encode,
    read_binary, read_structured, write_structured,
};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

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
/// What is said there: the topic, how the payload is written, and the queue that a dead letter goes again to.
const TOPIC: &str = "topic";
const BODY: &str = "body";
const QUEUE: &str = "queue";
/// What stands for a payload without any bytes, since a message has at least one letter.
const NOTHING: &str = "-";

/// The longest id by which Amazon tells messages apart, or groups them.
const LONGEST_ID: usize = 128;

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

/// Writes an event.
pub(crate) fn write(envelope: &Envelope, mode: ContentMode) -> Result<Written, DecodeError> {
    let (mut attributes, mut rest) = (Vec::with_capacity(10), Pairs::default());
    rest.push(TOPIC, envelope.topic().as_str());
    let body = match mode {
        ContentMode::Binary => {
            for (name, value) in envelope.attributes() {
                match ALONE.iter().find(|(alone, _)| *alone == name) {
                    // An attribute without a value is refused.
                    Some((_, name)) if !value.is_empty() => {
                        attributes.push((*name, percent_encode(&value).into_owned()));
                    }
                    _ => rest.push(name, &value),
                }
            }
            let payload = envelope.payload()?;
            match std::str::from_utf8(payload) {
                _ if payload.is_empty() => {
                    rest.push(BODY, "empty");
                    NOTHING.to_owned()
                }
                Ok(text) if text.chars().all(is_carried) => text.to_owned(),
                _ => {
                    rest.push(BODY, "base64");
                    base64_encode(payload)
                }
            }
        }
        ContentMode::Structured => {
            attributes.push((CONTENT_TYPE, MEDIA_TYPE.to_owned()));
            let document = write_structured(envelope)?;
            match std::str::from_utf8(&document) {
                Ok(text) if text.chars().all(is_carried) => text.to_owned(),
                _ => {
                    rest.push(BODY, "base64");
                    base64_encode(&document)
                }
            }
        }
    };
    for (name, value) in envelope.headers().iter() {
        rest.push(&format!(":{name}"), value);
    }
    attributes.push((REST, rest.0));
    Ok(Written { attributes, body })
}

/// Whether SQS carries a letter, and none of what it becomes on its way is another one: XML makes a line break of a
/// carriage return.
fn is_carried(letter: char) -> bool {
    matches!(letter, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// What an SQS message says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Message<'a> {
    /// Its name, which stays when it is delivered again.
    pub(crate) id: &'a str,
    /// When it was sent.
    pub(crate) time: Timestamp,
    /// Its message group, on a FIFO queue.
    pub(crate) group: Option<&'a str>,
    /// Attributes that are texts.
    pub(crate) attributes: Vec<(&'a str, &'a str)>,
    pub(crate) body: &'a str,
}

/// Reads an event that came to the queue of a pattern. Any message is one: what it does not say is filled from where it
/// stands.
pub(crate) fn read(message: &Message<'_>, pattern: &Pattern) -> Envelope {
    let mut attributes: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(12);
    let mut headers = Headers::new();
    let (mut topic, mut body, mut content_type) = (None, None, None);
    // Ours are keys in another form, or stand for none.
    let is_ours = message.attributes.iter().any(|(name, _)| *name == REST);
    let group = message.group.filter(|_| !is_ours);
    for (name, value) in &message.attributes {
        match (*name, name.strip_prefix("ce-")) {
            (_, Some(attribute)) => attributes.push((attribute.into(), percent_decode(value))),
            (REST, _) => {
                for (name, value) in pairs(value) {
                    match (&*name, name.strip_prefix(':')) {
                        (_, Some(header)) => headers.append(header, value),
                        (TOPIC, _) => topic = Topic::new(&*value).ok(),
                        (BODY, _) => body = Some(value.into_owned()),
                        _ => attributes.push((name, value)),
                    }
                }
            }
            (FAILURE, _) => {}
            (CONTENT_TYPE, _) => content_type = Some(*value),
            (other, _) => headers.append(other, value),
        }
    }
    let payload: Bytes = match body.as_deref() {
        Some("empty") => Bytes::new(),
        Some("base64") => base64_decode(message.body).map_or_else(|| text(message.body), Bytes::from),
        _ => text(message.body),
    };
    // A program of others may say what the event is, and nothing else does on a queue of a pattern.
    let topic = topic.or_else(|| {
        let named = attributes.iter().find(|(name, _)| name == "type").map(|(_, value)| Topic::new(&**value));
        named.and_then(Result::ok).filter(|topic| pattern.matches(topic.as_str()))
    });
    let topic = topic.unwrap_or_else(|| topic_within(pattern));
    let carried = Carried { topic, id: EventId::new(message.id), time: message.time };
    let keyed = |envelope: Envelope| match group {
        // What others send in order is handled in order.
        Some(group) if envelope.key().is_none() => envelope.with_key(group),
        _ => envelope,
    };
    if content_type.is_some_and(is_structured) {
        return keyed(read_structured(carried, headers, payload));
    }
    if let Some(media_type) =
        content_type.filter(|_| !attributes.iter().any(|(name, _)| name == "datacontenttype"))
    {
        attributes.push(("datacontenttype".into(), media_type.into()));
    }
    let given = attributes.iter().map(|(name, value)| (&**name, Cow::Borrowed(&**value)));
    keyed(read_binary(carried, given, headers, payload))
}

fn text(body: &str) -> Bytes {
    Bytes::copy_from_slice(body.as_bytes())
}

/// The topic of a message that names none: that of the queue, with `unknown` for what a wildcard leaves open.
fn topic_within(pattern: &Pattern) -> Topic {
    let segments = pattern.as_str().split('.').map(|segment| match segment {
        "*" | ">" => "unknown",
        literal => literal,
    });
    Topic::new(segments.collect::<Vec<_>>().join(".")).unwrap_or(Topic::from_static("unknown"))
}

/// By this Amazon knows an event again that is published twice: ids are unique within their source.
pub(crate) fn deduplication_id(envelope: &Envelope) -> String {
    let id = envelope.id().to_string();
    let named = format!("{}#{}", percent_encode(envelope.source()), percent_encode(&id));
    if named.len() <= LONGEST_ID {
        return named;
    }
    let digest = Sha256::digest(named.as_bytes());
    digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes what is written");
        text
    })
}

/// The group of messages that are delivered in order: those with one key. What has no key is in no order, and each is a
/// group of its own.
pub(crate) fn message_group(envelope: &Envelope) -> String {
    let Some(key) = envelope.key() else {
        return format!("~{:016x}", crate::names::hash(&[envelope.source(), &envelope.id().to_string()]));
    };
    let plain = percent_encode(key);
    // Two long keys of one hash wait for each other, and nothing else.
    if plain.is_empty() || plain.len() > LONGEST_ID - 1 {
        return format!("#{:016x}", crate::names::hash(&[key]));
    }
    format!("={plain}")
}

/// How much of a dead letter has found room beside its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Whole,
    /// Its reason, or the name of its handler too, is cut.
    Shortened,
    /// Only the payload is there: a message of another program left no room.
    Bare,
}

/// Writes a dead letter of at most so many bytes, for the queue of dead letters of its group. `queue` is the one it came
/// from.
pub(crate) fn write_dead_letter(
    letter: &DeadLetter,
    queue: &str,
    largest: usize,
) -> Result<(Written, Fit), DecodeError> {
    let mut written = write(&letter.envelope, ContentMode::Binary)?;
    let room = largest.saturating_sub(written.size() + FAILURE.len() + "String".len());
    let said = |reason: &str, handler: &str| {
        let mut said = Pairs::default();
        said.push(QUEUE, queue);
        for (name, value) in letter.headers().iter() {
            let name = name.trim_start_matches("eventbus-dead-letter-");
            said.push(
                name,
                match name {
                    "reason" => reason,
                    "handler" => handler,
                    _ => value,
                },
            );
        }
        said.0
    };
    let (mut reason, mut handler) = (letter.reason.as_str(), letter.handler.as_str());
    let mut failure = said(reason, handler);
    while failure.len() > room && !(reason.is_empty() && handler.is_empty()) {
        match reason {
            "" => handler = half(handler),
            _ => reason = half(reason),
        }
        failure = said(reason, handler);
    }
    if failure.len() > room {
        written.attributes.clear();
        return Ok((written, Fit::Bare));
    }
    written.attributes.push((FAILURE, failure));
    let whole = reason.len() == letter.reason.len() && handler.len() == letter.handler.len();
    Ok((written, if whole { Fit::Whole } else { Fit::Shortened }))
}

/// About the first half of a text.
fn half(text: &str) -> &str {
    let half = text.len() / 2;
    let cut = (0..=half).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[..cut]
}

/// A dead letter that was read, and the queue that it came from. None, where the message is none.
pub(crate) fn read_dead_letter(message: &Message<'_>) -> Option<(DeadLetter, String)> {
    let said = message.attributes.iter().find(|(name, _)| *name == FAILURE)?.1;
    let said: Vec<_> = pairs(said).collect();
    let take = |name: &str| said.iter().find(|(other, _)| other == name).map(|(_, value)| value.to_string());
    let time = |name: &str| take(name)?.parse::<Timestamp>().ok();
    let topic = take("topic")?;
    let envelope = read(message, &Pattern::new(&topic).ok()?);
    let letter = DeadLetter {
        envelope: Arc::new(envelope),
        group: take("group")?,
        handler: take("handler")?,
        kind: FailureKind::parse(&take("kind")?)?,
        reason: take("reason")?,
        attempts: take("attempts")?.parse().ok()?,
        first_failed_at: time("first-failed-at")?,
        last_failed_at: time("last-failed-at")?,
        offset: take("offset")?.parse().ok()?,
    };
    Some((letter, take(QUEUE)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::broker::Offset;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).unwrap()
    }

    fn read_back(written: &Written, on: &str) -> Envelope {
        read(&message(written), &pattern(on))
    }

    fn message(written: &Written) -> Message<'_> {
        Message {
            id: "5fea7756-0ea4-451a-a703-a558b933e274",
            time: Timestamp::from_second(1_700_000_000).unwrap(),
            group: Some("=of ours"),
            attributes: written.attributes.iter().map(|(name, value)| (*name, value.as_str())).collect(),
            body: &written.body,
        }
    }

    fn text(random: &mut fastrand::Rng) -> String {
        let pieces = ["a", "B", " ", "%", "%41", "=", "&", ":", "\n", "\r\n", "é", "日本", "\0", "\u{fffe}"];
        (0..random.usize(..8)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    fn any(random: &mut fastrand::Rng) -> Envelope {
        let payload: Vec<u8> = match random.u8(..3) {
            0 => (0..random.usize(..50)).map(|_| random.u8(..)).collect(),
            1 => text(random).into_bytes(),
            _ => br#"{"n": 1.50}"#.to_vec(),
        };
        let mut envelope =
            Envelope::from_bytes(Topic::from_static("order.placed"), "application/json", payload.into())
                .with_source(text(random))
                .with_version(random.u32(1..5));
        if random.bool() {
            envelope = envelope.with_key(text(random)).with_subject(text(random));
        }
        if random.bool() {
            envelope = envelope.with_id(EventId::new(format!("i{}", text(random)))).with_causes(
                EventId::new("chain"),
                Some(EventId::new(text(random) + "c")),
                random.u32(1..4),
            );
        }
        for _ in 0..random.usize(..20) {
            let name = if random.bool() { text(random) } else { format!("ce-h{}", random.u8(..3)) };
            envelope.headers_mut().append(name, text(random));
        }
        envelope
    }

    type Texts = Vec<(String, String)>;

    fn parts(envelope: &Envelope) -> (Texts, Texts, Bytes) {
        let attributes = envelope.attributes().map(|(name, value)| (name.to_owned(), value.into_owned()));
        let headers = envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        (attributes.collect(), headers.collect(), envelope.payload().unwrap().clone())
    }

    #[test]
    fn any_envelope_comes_back_in_both_modes_and_is_a_message_that_sqs_takes() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..3_000 {
            let sent = any(&mut random);
            for mode in [ContentMode::Binary, ContentMode::Structured] {
                let written = write(&sent, mode).unwrap();
                assert!(written.attributes.len() <= 9 && !written.body.is_empty(), "{written:?}");
                assert!(written.body.chars().all(is_carried));
                for (_, value) in &written.attributes {
                    assert!(
                        !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()),
                        "{value:?}"
                    );
                }
                assert_eq!(parts(&sent), parts(&read_back(&written, "order.>")), "{mode:?}");
            }
        }
    }

    #[test]
    fn a_payload_that_is_text_stays_readable() {
        let sent =
            Envelope::from_json(Topic::from_static("order.placed"), &"größe").unwrap().with_source("/shop");
        let written = write(&sent, ContentMode::Binary).unwrap();
        assert_eq!(written.body, "\"größe\"");
        let get =
            |name| written.attributes.iter().find(|(other, _)| *other == name).map(|(_, value)| &**value);
        assert_eq!((get("ce-source"), get("ce-type")), (Some("/shop"), Some("order.placed")));
        assert_eq!(get("eventbus"), Some("topic=order.placed&eventversion=1"));
    }

    #[test]
    fn a_message_of_a_program_that_knows_no_cloud_events_is_an_event() {
        let mut message = Message {
            id: "42",
            time: Timestamp::from_second(1_700_000_000).unwrap(),
            group: None,
            attributes: vec![("content-type", "text/plain"), ("tenant", "acme")],
            body: "hello",
        };
        let event = read(&message, &pattern("order.placed"));
        assert_eq!((event.id().to_string().as_str(), event.time()), ("42", message.time));
        assert_eq!((event.topic().as_str(), event.content_type()), ("order.placed", "text/plain"));
        assert_eq!(
            (event.headers().get("tenant"), &event.payload().unwrap()[..]),
            (Some("acme"), &b"hello"[..])
        );
        assert_eq!(read(&message, &pattern("order.*.>")).topic().as_str(), "order.unknown.unknown");
        message.attributes.push(("ce-type", "order.paid"));
        assert_eq!(read(&message, &pattern("order.>")).topic().as_str(), "order.paid");
        assert_eq!(read(&message, &pattern("user.>")).topic().as_str(), "user.unknown");
    }

    #[test]
    fn the_message_group_of_another_program_is_the_key_unless_it_says_another_one() {
        let mut message = Message {
            id: "42",
            time: Timestamp::UNIX_EPOCH,
            group: Some("door 7"),
            attributes: Vec::new(),
            body: r#"{"specversion":"1.0","id":"7","source":"/x","type":"order.paid","data":1}"#,
        };
        let key = |message: &Message<'_>| read(message, &pattern("a.b")).key().map(str::to_owned);
        assert_eq!(key(&message).as_deref(), Some("door 7"));
        message.attributes.push(("content-type", "application/cloudevents+json"));
        assert_eq!(key(&message).as_deref(), Some("door 7"));
        message.attributes = vec![("ce-partitionkey", "k")];
        assert_eq!(key(&message).as_deref(), Some("k"));
        message.attributes = vec![("eventbus", "topic=a.b")];
        assert_eq!(key(&message), None, "ours have keys of their own, or none");
    }

    #[test]
    fn ids_for_amazon_are_of_its_alphabet_and_length_and_tell_events_apart() {
        let mut random = fastrand::Rng::with_seed(8);
        let mut seen = std::collections::HashMap::new();
        for _ in 0..2_000 {
            let long = "ü".repeat(random.usize(..60));
            let event =
                any(&mut random).with_source(text(&mut random) + &long).with_key(text(&mut random) + &long);
            let id = deduplication_id(&event);
            for text in [&id, &message_group(&event)] {
                assert!(
                    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()),
                    "{text}"
                );
            }
            let named = (event.source().to_owned(), event.id().to_string());
            let other = seen.insert(id, named.clone());
            assert!(other.is_none_or(|other| other == named));
        }
        let of = |key: &str| message_group(&any(&mut fastrand::Rng::with_seed(1)).with_key(key));
        assert_eq!(of("door 7"), "=door%207");
        assert_eq!(of(""), of(""));
    }

    #[test]
    fn a_dead_letter_comes_back_and_fits_beside_the_largest_event() {
        let mut random = fastrand::Rng::with_seed(9);
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        for size in [0, 1_000, MAX_PAYLOAD] {
            let mut letter = DeadLetter {
                envelope: Arc::new(any(&mut random).with_payload(vec![7; size].into())),
                group: "shop.mail".to_owned(),
                handler: "shop::mail (src/main.rs:7)".to_owned(),
                kind: FailureKind::Failed,
                reason: "ü & = % \n".to_owned(),
                attempts: 3,
                first_failed_at: time,
                last_failed_at: time,
                offset: Offset::new(u128::MAX),
            };
            let (written, fit) = write_dead_letter(&letter, "q", LARGEST).unwrap();
            assert!(written.attributes.len() <= 10 && fit == Fit::Whole);
            let (read, queue) = read_dead_letter(&message(&written)).unwrap();
            assert_eq!((queue.as_str(), &read.reason), ("q", &letter.reason));
            assert_eq!(format!("{:?}", read.headers()), format!("{:?}", letter.headers()));
            assert_eq!(parts(&read.envelope), parts(&letter.envelope));
            letter.reason = "ü".repeat(4_096);
            let (written, fit) = write_dead_letter(&letter, "q", LARGEST).unwrap();
            assert!(written.size() <= LARGEST, "{}", written.size());
            assert_eq!(fit == Fit::Whole, size < MAX_PAYLOAD);
            assert!(letter.reason.starts_with(&read_dead_letter(&message(&written)).unwrap().0.reason));
        }
    }

    #[test]
    fn each_event_that_is_published_or_that_sqs_carries_has_a_dead_letter_that_can_be_stored() {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        for room in (0..6_000).step_by(97) {
            // Filled up with a header to some bytes below the largest message.
            let event = Envelope::from_bytes(Topic::from_static("a.b"), "text/plain", vec![b'x'; 9].into());
            let with = |note: usize| event.clone().with_header("note", "n".repeat(note));
            let empty = write(&with(0), ContentMode::Binary).unwrap().size();
            let event = with(LARGEST - room - empty);
            let size = write(&event, ContentMode::Binary).unwrap().size();
            assert_eq!(size, LARGEST - room);
            let letter = DeadLetter {
                envelope: Arc::new(event),
                group: "shop.mail".repeat(10),
                handler: "shop::mail (src/main.rs:7)".repeat(9),
                kind: FailureKind::Failed,
                reason: "ü".repeat(9_000),
                attempts: 3,
                first_failed_at: time,
                last_failed_at: time,
                offset: Offset::new(u128::MAX),
            };
            let (written, fit) = write_dead_letter(&letter, &"q".repeat(80), LARGEST).unwrap();
            assert!(written.size() <= LARGEST, "{}", written.size());
            let read = read_dead_letter(&message(&written));
            assert_eq!(read.is_some(), fit == Fit::Shortened, "{room}");
            if size <= LARGEST_EVENT {
                let reason = read.unwrap().0.reason;
                assert!(reason.len() > 99, "there is room for a reason: {reason}");
            }
            let (written, fit) = write_dead_letter(&letter, "q", 4 * LARGEST).unwrap();
            assert!(fit == Fit::Whole && read_dead_letter(&message(&written)).is_some());
        }
        // A message of another program that is as large as a message may be.
        let message =
            Message { id: "42", time, group: None, attributes: Vec::new(), body: &"x".repeat(LARGEST) };
        let envelope = Arc::new(read(&message, &pattern("a.b")));
        let letter = DeadLetter {
            envelope,
            group: "mail".to_owned(),
            handler: "mail".to_owned(),
            kind: FailureKind::Damaged,
            reason: "why".to_owned(),
            attempts: 0,
            first_failed_at: time,
            last_failed_at: time,
            offset: Offset::new(1),
        };
        let (written, fit) = write_dead_letter(&letter, "q", LARGEST).unwrap();
        assert!(fit == Fit::Bare && written.size() == LARGEST && written.body == message.body);
    }

    #[test]
    fn no_message_ends_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(6);
        let names = ["ce-id", "ce-time", "ce-", "content-type", REST, FAILURE, "x"];
        for _ in 0..3_000 {
            let values: Vec<_> = (0..random.usize(..9)).map(|_| text(&mut random)).collect();
            let body = text(&mut random);
            let mut attributes: Vec<_> =
                values.iter().map(|value| (*random.choice(&names).unwrap(), value.as_str())).collect();
            attributes.push((REST, *random.choice(&["body=base64", "body=empty", "topic=&&=", ""]).unwrap()));
            let group = random.bool().then_some(body.as_str());
            let message = Message { id: "1", time: Timestamp::UNIX_EPOCH, group, attributes, body: &body };
            read(&message, &pattern("*.>"));
            read_dead_letter(&message);
        }
    }
}
