//! Envelopes as messages of AMQP 0-9-1. Pure functions.
//!
//! CloudEvents has a binding for AMQP 1.0 only. On 0-9-1 programs of others write the attributes as headers that begin with
//! `ce-`, `cloudEvents:` or `cloudEvents_`: all three are read, and the first is written. The payload is the body.

use bytes::Bytes;
use eventbus_core::broker::{DeadLetter, FailureKind, Offset};
use eventbus_core::{BoxError, Envelope, EventId, Headers, Pattern, PublishError, Topic};
use eventbus_server::cloudevents::{
    Carried, MEDIA_TYPE, is_structured, read_binary, read_structured, write_structured,
};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use std::borrow::Cow;
use std::sync::Arc;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentMode {
    /// The payload is the body, and what the event says of itself stands in headers.
    #[default]
    Binary,
    /// The body is one JSON object, for programs that see no headers.
    Structured,
}

/// How the names of headers begin that are attributes of CloudEvents. The first is written.
const ATTRIBUTES: [&str; 3] = ["ce-", "cloudEvents:", "cloudEvents_"];
/// What RabbitMQ adds, or acts upon.
const SERVERS: [&str; 14] = [
    "CC",
    "BCC",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    DELIVERIES,
    ACQUIRED,
    "x-stream-offset",
    "x-stream-filter-value",
    "x-delay",
];
/// How often a message was delivered before: up to RabbitMQ 4.2, and since.
const DELIVERIES: &str = "x-delivery-count";
const ACQUIRED: &str = "x-acquired-count";

/// How the names of our own headers begin.
const OURS: &str = "eventbus-";
/// The topic of a message that does not come by way of the exchange.
const TOPIC: &str = "eventbus-topic";
/// Headers whose names others would take for something else: names and values in turn.
const HEADERS: &str = "eventbus-headers";
/// The name of a message that was sent to its group once more.
const AGAIN: &str = "eventbus-again";
/// Which attempt comes next.
const ATTEMPT: &str = "eventbus-attempt";
/// The queue that a dead letter came from, and its name.
const QUEUE: &str = "eventbus-dead-letter-queue";
const LETTER: &str = "eventbus-dead-letter-id";
const FAILURE: &str = "eventbus-dead-letter-";

/// The longest name of a header, and text of a property.
const LONGEST: usize = 255;
/// What the attributes and headers of an event may take. They travel in one frame, of 128 KiB by default, and a dead letter
/// has some more.
pub(crate) const MAX_HEADERS: usize = 96 << 10;
/// What the reason of a dead letter may take beside them.
const MAX_REASON: usize = 8 << 10;

/// A message as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

/// Writes an event.
pub(crate) fn write(envelope: &Envelope, mode: ContentMode) -> Result<Written, PublishError> {
    let encode = |cause: BoxError| PublishError::Encode { topic: envelope.topic().to_string(), cause };
    let mut headers = FieldTable::default();
    let (content_type, body) = match mode {
        ContentMode::Binary => {
            for (name, value) in envelope.attributes() {
                put(&mut headers, &format!("{}{name}", ATTRIBUTES[0]), &value);
            }
            (envelope.content_type(), envelope.payload().map_err(|error| encode(error.into()))?.clone())
        }
        ContentMode::Structured => {
            (MEDIA_TYPE, write_structured(envelope).map_err(|error| encode(error.into()))?)
        }
    };
    write_headers(&mut headers, envelope.headers());
    let size = size(&headers);
    if size > MAX_HEADERS {
        let (topic, part) = (envelope.topic().to_string(), "headers");
        return Err(PublishError::TooLarge { topic, part, size, limit: MAX_HEADERS });
    }
    let seconds = u64::try_from(envelope.time().as_second()).unwrap_or_default();
    let mut properties = BasicProperties::default()
        .with_headers(headers)
        // Kept over a restart of the server.
        .with_delivery_mode(2)
        .with_timestamp(seconds);
    if let Ok(content_type) = ShortString::try_new(content_type) {
        properties = properties.with_content_type(content_type);
    }
    if let Ok(id) = ShortString::try_new(envelope.id().to_string()) {
        properties = properties.with_message_id(id);
    }
    if let Ok(event_type) = ShortString::try_new(envelope.event_type()) {
        properties = properties.with_type(event_type);
    }
    Ok(Written { properties, body })
}

fn write_headers(into: &mut FieldTable, headers: &Headers) {
    let mut others = FieldArray::default();
    for (name, value) in headers.iter() {
        let is_plain = !name.is_empty()
            && name.len() <= LONGEST
            && attribute(name).is_none()
            && !name.starts_with(OURS)
            && !SERVERS.contains(&name)
            && headers.get_all(name).count() == 1;
        if is_plain {
            put(into, name, value);
        } else {
            others.push(AMQPValue::LongString(name.into()));
            others.push(AMQPValue::LongString(value.into()));
        }
    }
    if !others.as_slice().is_empty() {
        into.insert(HEADERS.into(), AMQPValue::FieldArray(others));
    }
}

/// `name` has at most 255 bytes.
fn put(into: &mut FieldTable, name: &str, value: &str) {
    into.insert(name.into(), AMQPValue::LongString(value.into()));
}

/// How many bytes headers take in a frame.
fn size(headers: &FieldTable) -> usize {
    headers.inner().iter().map(|(name, value)| name.as_str().len() + 1 + size_of(value)).sum()
}

fn size_of(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 5 + text.len(),
        AMQPValue::FieldArray(values) => 5 + values.as_slice().iter().map(size_of).sum::<usize>(),
        AMQPValue::FieldTable(table) => 5 + size(table),
        _ => 16,
    }
}

/// The attribute that a header is.
fn attribute(name: &str) -> Option<&str> {
    ATTRIBUTES.iter().find_map(|prefix| {
        let begin = name.get(..prefix.len())?;
        begin.eq_ignore_ascii_case(prefix).then(|| &name[prefix.len()..])
    })
}

/// A message as it came.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

impl Message {
    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    fn text(&self, name: &str) -> Option<String> {
        text(self.header(name)?)
    }

    /// Which attempt this is: that which was written when it was sent to its group again, and the deliveries that the
    /// server has counted since.
    pub(crate) fn attempt(&self) -> u32 {
        let number = |name| self.header(name).and_then(integer).unwrap_or_default();
        let counted = number(DELIVERIES).max(number(ACQUIRED)).max(0);
        self.first_attempt().saturating_add(u32::try_from(counted).unwrap_or(u32::MAX))
    }

    /// Which attempt this is, where the server counts nothing.
    pub(crate) fn first_attempt(&self) -> u32 {
        self.text(ATTEMPT).and_then(|attempt| attempt.parse().ok()).unwrap_or(1).max(1)
    }

    /// How often it was given back to its queue, as far as a limit of the queue counts that.
    pub(crate) fn returns(&self) -> u32 {
        let counted = self.header(DELIVERIES).and_then(integer).unwrap_or_default();
        u32::try_from(counted).unwrap_or_default()
    }

    /// Whether it has an id of its own.
    pub(crate) fn is_named(&self) -> bool {
        let by_property = self.properties.message_id().as_ref().is_some_and(|id| !id.as_str().is_empty());
        by_property || ATTRIBUTES.iter().any(|prefix| self.header(&format!("{prefix}id")).is_some())
    }

    /// The name under which it was sent to its group again.
    pub(crate) fn again(&self) -> Option<String> {
        self.text(AGAIN)
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(number) => (*number).into(),
        AMQPValue::ShortShortUInt(number) => (*number).into(),
        AMQPValue::ShortInt(number) => (*number).into(),
        AMQPValue::ShortUInt(number) => (*number).into(),
        AMQPValue::LongInt(number) => (*number).into(),
        AMQPValue::LongUInt(number) => (*number).into(),
        AMQPValue::LongLongInt(number) => *number,
        AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).ok()?,
        _ => return None,
    })
}

/// A value of a header as text; none, where it has none.
fn text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::Void => return None,
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::Timestamp(seconds) => {
            let time = i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
            time.map_or_else(|| seconds.to_string(), |time| time.to_string())
        }
        other => match json(other) {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        },
    })
}

fn json(value: &AMQPValue) -> serde_json::Value {
    match value {
        AMQPValue::Boolean(flag) => (*flag).into(),
        AMQPValue::Float(number) => (*number).into(),
        AMQPValue::Double(number) => (*number).into(),
        AMQPValue::DecimalValue(number) => format!("{}e-{}", number.value, number.scale).into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => {
            let members = table.inner().iter().map(|(name, value)| (name.to_string(), json(value)));
            serde_json::Value::Object(members.collect())
        }
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::Void => serde_json::Value::Null,
        AMQPValue::LongString(_) | AMQPValue::ShortString(_) | AMQPValue::Timestamp(_) => {
            text(value).unwrap_or_default().into()
        }
        other => integer(other).unwrap_or_default().into(),
    }
}

/// Reads an event that came to a queue of a pattern. Any message is one: what it does not say is filled from where it stands.
pub(crate) fn read(message: &Message, pattern: &Pattern) -> Envelope {
    let mut attributes: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::with_capacity(12);
    let mut headers = Headers::new();
    for (name, value) in message.properties.headers().iter().flat_map(|headers| headers.inner()) {
        let name = name.as_str();
        if SERVERS.contains(&name) {
            continue;
        }
        match (name, attribute(name)) {
            (_, Some(attribute)) => {
                if let Some(value) = text(value) {
                    attributes.push((attribute.to_ascii_lowercase().into(), value.into()));
                }
            }
            (HEADERS, _) => {
                if let AMQPValue::FieldArray(pairs) = value {
                    for pair in pairs.as_slice().chunks(2) {
                        let mut pair = pair.iter().filter_map(text);
                        if let (Some(name), Some(value)) = (pair.next(), pair.next()) {
                            headers.append(name, value);
                        }
                    }
                }
            }
            (ours, _) if ours.starts_with(OURS) => {}
            (other, _) => {
                if let Some(value) = text(value) {
                    headers.append(other, value);
                }
            }
        }
    }
    let properties = &message.properties;
    let mut fill = |name: &'static str, property: Option<&ShortString>| {
        if let Some(value) = property.filter(|value| !value.as_str().is_empty())
            && !attributes.iter().any(|(other, _)| other == name)
        {
            attributes.push((name.into(), value.to_string().into()));
        }
    };
    fill("id", properties.message_id().as_ref());
    let content_type = properties.content_type().as_ref().map(ShortString::to_string);
    let structured = content_type.as_deref().is_some_and(is_structured);
    if !structured {
        fill("datacontenttype", properties.content_type().as_ref());
        fill("type", properties.kind().as_ref());
        fill("source", properties.app_id().as_ref());
    }
    let topic = topic(message, &attributes, pattern);
    let seconds = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
    let time = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let carried = Carried { topic, id: any_id(), time: time.unwrap_or_else(Timestamp::now) };
    if structured {
        return read_structured(carried, headers, message.body.clone());
    }
    let given = attributes.iter().map(|(name, value)| (&**name, Cow::Borrowed(&**value)));
    read_binary(carried, given, headers, message.body.clone())
}

/// RabbitMQ has no names of messages, so one without is given another one whenever it comes.
fn any_id() -> EventId {
    Envelope::from_bytes(Topic::from_static("any"), "", Bytes::new()).id().clone()
}

type Attributes<'a> = [(Cow<'a, str>, Cow<'a, str>)];

fn topic(message: &Message, attributes: &Attributes<'_>, pattern: &Pattern) -> Topic {
    let named = message.text(TOPIC).and_then(|topic| Topic::new(topic).ok());
    let routed = || {
        let by_exchange = !message.exchange.is_empty();
        by_exchange.then(|| Topic::new(&message.routing_key).ok()).flatten()
    };
    // Whoever sends to the queue itself may say what it is.
    let typed = || {
        let event_type = attributes.iter().find(|(name, _)| name == "type")?;
        Topic::new(&*event_type.1).ok().filter(|topic| pattern.matches(topic.as_str()))
    };
    named.or_else(routed).or_else(typed).unwrap_or_else(|| within(pattern))
}

/// The topic of a message that names none: that of the queue, with `unknown` for what a wildcard leaves open.
fn within(pattern: &Pattern) -> Topic {
    let segments = pattern.as_str().split('.').map(|segment| match segment {
        "*" | ">" => "unknown",
        literal => literal,
    });
    Topic::new(segments.collect::<Vec<_>>().join(".")).unwrap_or(Topic::from_static("unknown"))
}

/// Writes an event for the queue of one group, past the exchange: under this name, with the attempt that comes next.
pub(crate) fn write_again(envelope: &Envelope, name: &str, attempt: u32) -> Result<Written, PublishError> {
    let mut written = write(envelope, ContentMode::Binary)?;
    let attempt = attempt.to_string();
    let said = [(TOPIC, envelope.topic().as_str()), (AGAIN, name), (ATTEMPT, &attempt)];
    written.properties = with(written.properties, said);
    Ok(written)
}

fn with<'a>(
    properties: BasicProperties,
    said: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    for (name, value) in said {
        put(&mut headers, name, value);
    }
    properties.with_headers(headers)
}

/// Writes a dead letter, under its name, for the queue of dead letters of its group. `queue` is the one it came from.
pub(crate) fn write_dead_letter(
    letter: &DeadLetter,
    name: &str,
    queue: &str,
) -> Result<Written, PublishError> {
    let mut written = write(&letter.envelope, ContentMode::Binary)?;
    let failure = letter.headers();
    let said = failure.iter().map(|(name, value)| (name, cut(value, MAX_REASON)));
    let ours = [(TOPIC, letter.envelope.topic().as_str()), (LETTER, name), (QUEUE, queue)];
    written.properties = with(written.properties, said.chain(ours));
    Ok(written)
}

/// The text, or as much of its beginning as has at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or_default()]
}

/// A dead letter as it was read.
#[derive(Clone, Debug)]
pub(crate) struct ReadLetter {
    /// Its name, where it has one.
    pub(crate) name: Option<String>,
    /// By this one without a name is known again.
    pub(crate) mark: String,
    /// The queue that it came from.
    pub(crate) queue: String,
    pub(crate) letter: DeadLetter,
}

/// Reads a dead letter of a group. What RabbitMQ itself has moved there says so. None, where the message is none.
pub(crate) fn read_dead_letter(message: &Message, group: &str) -> Option<ReadLetter> {
    let said = |name: &str| message.text(&format!("{FAILURE}{name}"));
    let Some(kind) = said("kind") else { return read_dropped(message, group) };
    let time = |name: &str| said(name)?.parse::<Timestamp>().ok();
    let topic = message.text(TOPIC)?;
    let letter = DeadLetter {
        envelope: Arc::new(read(message, &Pattern::new(&topic).ok()?)),
        group: said("group")?,
        handler: said("handler")?,
        kind: FailureKind::parse(&kind)?,
        reason: said("reason")?,
        attempts: said("attempts")?.parse().ok()?,
        first_failed_at: time("first-failed-at")?,
        last_failed_at: time("last-failed-at")?,
        offset: Offset::new(said("offset")?.parse().ok()?),
    };
    Some(ReadLetter { name: message.text(LETTER), mark: String::new(), queue: message.text(QUEUE)?, letter })
}

/// What RabbitMQ has moved to the dead letters by its own rules: a delivery limit, a length, an age.
fn read_dropped(message: &Message, group: &str) -> Option<ReadLetter> {
    let AMQPValue::FieldArray(deaths) = message.header("x-death")? else { return None };
    let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else { return None };
    let death = death.inner();
    let said = |name: &str| death.get(name).and_then(text);
    let (queue, reason) = (said("queue")?, said("reason")?);
    let seconds = death.get("time").and_then(integer).unwrap_or_default();
    let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let key = death.get("routing-keys").and_then(|keys| match keys {
        AMQPValue::FieldArray(keys) => keys.as_slice().first().and_then(text),
        _ => None,
    });
    let topic = message.text(TOPIC).or(key).and_then(|topic| Topic::new(topic).ok());
    let topic = topic.unwrap_or(Topic::from_static("unknown"));
    let pattern = Pattern::new(topic.as_str()).ok()?;
    let mut origin = message.clone();
    (origin.exchange, origin.routing_key) = (said("exchange").unwrap_or_default(), topic.to_string());
    let kind = if reason == "delivery_limit" { FailureKind::Crashed } else { FailureKind::Rejected };
    let letter = DeadLetter {
        envelope: Arc::new(read(&origin, &pattern).with_time(at.max(Timestamp::UNIX_EPOCH))),
        group: group.to_owned(),
        handler: "RabbitMQ".to_owned(),
        kind,
        reason: format!(
            "RabbitMQ has given the event up (`{reason}` of the queue `{queue}`); look at its policies"
        ),
        attempts: message.attempt().saturating_sub(1).max(1),
        first_failed_at: at,
        last_failed_at: at,
        offset: Offset::new(0),
    };
    let named = ATTRIBUTES.iter().find_map(|prefix| message.text(&format!("{prefix}id")));
    let named = named.or_else(|| message.properties.message_id().as_ref().map(ShortString::to_string));
    let mark = named.unwrap_or_else(|| String::from_utf8_lossy(&message.body).into_owned());
    Some(ReadLetter { name: None, mark, queue, letter })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).unwrap()
    }

    fn by_exchange(written: &Written, key: &str) -> Message {
        let Written { properties, body } = written.clone();
        Message { exchange: "eventbus".to_owned(), routing_key: key.to_owned(), properties, body }
    }

    fn to_queue(written: &Written) -> Message {
        Message {
            exchange: String::new(),
            routing_key: "eventbus:group:a:b".to_owned(),
            ..by_exchange(written, "")
        }
    }

    fn text_of(random: &mut fastrand::Rng) -> String {
        let pieces = ["a", "B", " ", "%", "=", ":", "\n", "\r\n", "é", "日本", "🦀", "\0"];
        (0..random.usize(..8)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    fn name_of(random: &mut fastrand::Rng) -> String {
        match random.u8(..6) {
            0 => text_of(random),
            1 => (*random.choice(&SERVERS).unwrap()).to_owned(),
            2 => format!("{}id", random.choice(&ATTRIBUTES).unwrap()),
            3 => (*random
                .choice(&[TOPIC, HEADERS, AGAIN, ATTEMPT, LETTER, "eventbus-dead-letter-kind"])
                .unwrap())
            .to_owned(),
            4 => "n".repeat(random.usize(250..600)),
            _ => format!("h-{}", random.u8(..3)),
        }
    }

    fn any(random: &mut fastrand::Rng) -> Envelope {
        let payload: Vec<u8> = match random.u8(..3) {
            0 => (0..random.usize(..50)).map(|_| random.u8(..)).collect(),
            1 => text_of(random).into_bytes(),
            _ => br#"{"n": 1.50}"#.to_vec(),
        };
        let mut envelope =
            Envelope::from_bytes(Topic::from_static("order.placed"), "application/json", payload.into())
                .with_source(text_of(random))
                .with_version(random.u32(1..5));
        if random.bool() {
            envelope = envelope.with_key(text_of(random)).with_subject(text_of(random));
        }
        if random.bool() {
            envelope = envelope
                .with_id(EventId::new(format!("i{}", text_of(random))))
                .with_type("t".repeat(random.usize(1..400)))
                .with_causes(
                    EventId::new("chain"),
                    Some(EventId::new(text_of(random) + "c")),
                    random.u32(1..4),
                );
        }
        for _ in 0..random.usize(..8) {
            let name = name_of(random);
            envelope.headers_mut().append(name, text_of(random));
        }
        envelope
    }

    type Texts = Vec<(String, String)>;

    fn parts(envelope: &Envelope) -> (String, Texts, Texts, Bytes) {
        let attributes = envelope.attributes().map(|(name, value)| (name.to_owned(), value.into_owned()));
        let headers = envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        // Of one name they stay in their order.
        let mut headers: Vec<_> = headers.collect();
        headers.sort_by(|one, other| one.0.cmp(&other.0));
        (envelope.topic().to_string(), attributes.collect(), headers, envelope.payload().unwrap().clone())
    }

    #[test]
    fn any_envelope_comes_back_in_both_modes_and_on_each_way() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..2_000 {
            let sent = any(&mut random);
            for mode in [ContentMode::Binary, ContentMode::Structured] {
                let written = write(&sent, mode).unwrap();
                let read = read(&by_exchange(&written, "order.placed"), &pattern("order.>"));
                assert_eq!(parts(&sent), parts(&read), "{mode:?}");
            }
            let again = to_queue(&write_again(&sent, "again-1", 3).unwrap());
            assert_eq!(parts(&sent), parts(&read(&again, &pattern("order.>"))));
            assert_eq!((again.attempt(), again.again().as_deref()), (3, Some("again-1")));
        }
    }

    fn letter(random: &mut fastrand::Rng, reason: String) -> DeadLetter {
        let failed_at = Timestamp::from_microsecond(1_700_000_000_123_456).unwrap();
        DeadLetter {
            envelope: Arc::new(any(random)),
            group: "shop.größer".to_owned(),
            handler: "shop::mail (src/main.rs:7)".to_owned(),
            kind: FailureKind::Failed,
            reason,
            attempts: 5,
            first_failed_at: failed_at,
            last_failed_at: failed_at,
            offset: Offset::new(77),
        }
    }

    #[test]
    fn a_dead_letter_comes_back_with_its_event_as_it_was() {
        let mut random = fastrand::Rng::with_seed(12);
        for _ in 0..500 {
            let sent = letter(&mut random, "out of stock, größer".to_owned());
            let written = write_dead_letter(&sent, "1-2-3", "queue").unwrap();
            let ReadLetter { name, queue, letter, .. } =
                read_dead_letter(&to_queue(&written), "other").unwrap();
            assert_eq!((name.as_deref(), queue.as_str()), (Some("1-2-3"), "queue"));
            assert_eq!(parts(&sent.envelope), parts(&letter.envelope));
            assert_eq!(sent.headers(), letter.headers());
        }
    }

    #[test]
    fn the_dead_letter_of_the_largest_headers_fits_into_a_frame() {
        let mut random = fastrand::Rng::with_seed(13);
        let mut sent = letter(&mut random, "é".repeat(60_000));
        let large = Envelope::from_json(Topic::from_static("a.b"), &1)
            .unwrap()
            .with_header("large", "x".repeat(90 << 10));
        write(&large, ContentMode::Binary).unwrap();
        sent.envelope = Arc::new(large.clone());
        let written = write_dead_letter(&sent, "1-2-3", "queue").unwrap();
        assert!(size(written.properties.headers().as_ref().unwrap()) < 120 << 10);
        let ReadLetter { letter, .. } = read_dead_letter(&to_queue(&written), "group").unwrap();
        assert!(letter.reason.len() <= MAX_REASON && letter.reason.starts_with("éé"));
        let refused = write(&large.with_header("more", "x".repeat(10 << 10)), ContentMode::Binary);
        assert!(matches!(refused, Err(PublishError::TooLarge { part: "headers", .. })), "{refused:?}");
    }

    fn table(pairs: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
        let mut table = FieldTable::default();
        pairs.into_iter().for_each(|(name, value)| _ = table.insert(name.into(), value));
        table
    }

    fn long(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn foreign(properties: BasicProperties, exchange: &str, key: &str) -> Message {
        let body = Bytes::from_static(b"{\"n\":1}");
        Message { exchange: exchange.to_owned(), routing_key: key.to_owned(), properties, body }
    }

    #[test]
    fn the_attributes_of_others_are_read_in_each_spelling() {
        for prefix in ["ce-", "ce-".to_uppercase().as_str(), "cloudEvents:", "cloudEvents_", "cloudevents_"] {
            let mut headers = FieldTable::default();
            for (name, value) in
                [("id", "A-1"), ("type", "com.shop.order"), ("source", "/shop"), ("Subject", "s")]
            {
                headers.insert(format!("{prefix}{name}").into(), long(value));
            }
            headers.insert(format!("{prefix}partitionkey").into(), AMQPValue::LongInt(7));
            let message =
                foreign(BasicProperties::default().with_headers(headers), "eventbus", "order.placed");
            let read = read(&message, &pattern("order.*"));
            assert_eq!(
                (read.id().to_string().as_str(), read.event_type()),
                ("A-1", "com.shop.order"),
                "{prefix}"
            );
            assert_eq!(
                (read.source(), read.subject(), read.key()),
                ("/shop", Some("s"), Some("7")),
                "{prefix}"
            );
        }
    }

    #[test]
    fn a_message_that_says_nothing_of_itself_is_an_event_of_where_it_stands() {
        let bare = foreign(BasicProperties::default(), "eventbus", "order.placed");
        let event = read(&bare, &pattern("order.*"));
        assert_eq!(
            (event.topic().as_str(), &event.payload().unwrap()[..]),
            ("order.placed", &b"{\"n\":1}"[..])
        );
        let one = read(&bare, &pattern("order.*"));
        assert_ne!(event.id(), one.id(), "nobody knows whether they are one");
        let sent = BasicProperties::default()
            .with_message_id("m-1".into())
            .with_timestamp(1_700_000_000)
            .with_content_type("text/plain".into())
            .with_type("order.paid".into())
            .with_app_id("billing".into());
        let event = read(&foreign(sent, "", "queue"), &pattern("order.*"));
        assert_eq!((event.topic().as_str(), event.source()), ("order.paid", "billing"));
        assert_eq!((event.id().to_string().as_str(), event.content_type()), ("m-1", "text/plain"));
        assert_eq!(event.time().as_second(), 1_700_000_000);
        let event = read(&foreign(BasicProperties::default(), "", "queue"), &pattern("order.*.>"));
        assert_eq!(event.topic().as_str(), "order.unknown.unknown");
        let wrong = read(&foreign(BasicProperties::default(), "amq.topic", "no topic!"), &pattern("order.*"));
        assert_eq!(wrong.topic().as_str(), "order.unknown");
    }

    #[test]
    fn headers_of_any_type_are_text_and_those_of_the_server_are_left_out() {
        let headers = table([
            ("flag", AMQPValue::Boolean(true)),
            ("number", AMQPValue::LongLongInt(-3)),
            ("float", AMQPValue::Double(1.5)),
            ("none", AMQPValue::Void),
            ("list", AMQPValue::FieldArray(vec![AMQPValue::LongInt(1), long("b")].into())),
            ("table", AMQPValue::FieldTable(table([("a", AMQPValue::Boolean(false))]))),
            (DELIVERIES, AMQPValue::LongLongInt(2)),
            ("x-death", AMQPValue::FieldArray(FieldArray::default())),
        ]);
        let message = foreign(BasicProperties::default().with_headers(headers), "eventbus", "a.b");
        let event = read(&message, &pattern("a.b"));
        let headers: Vec<_> = event.headers().iter().collect();
        let expected = [
            ("flag", "true"),
            ("float", "1.5"),
            ("list", "[1,\"b\"]"),
            ("number", "-3"),
            ("table", "{\"a\":false}"),
        ];
        assert_eq!(headers, expected);
        assert_eq!(message.attempt(), 3);
    }

    #[test]
    fn attempts_are_those_that_either_server_has_counted() {
        for (name, value, attempt) in [
            ("none", AMQPValue::Void, 1),
            (DELIVERIES, AMQPValue::LongInt(1), 2),
            (ACQUIRED, AMQPValue::LongLongInt(4), 5),
        ] {
            let message = foreign(BasicProperties::default().with_headers(table([(name, value)])), "x", "a");
            assert_eq!(message.attempt(), attempt, "{name}");
        }
        let mut again = to_queue(
            &write_again(&Envelope::from_json(Topic::from_static("a"), &1).unwrap(), "n", 3).unwrap(),
        );
        let mut headers = again.properties.headers().clone().unwrap();
        headers.insert(DELIVERIES.into(), AMQPValue::LongLongInt(2));
        again.properties = again.properties.with_headers(headers);
        assert_eq!((again.attempt(), again.first_attempt()), (5, 3));
    }

    #[test]
    fn what_the_server_gave_up_is_a_dead_letter_that_says_so() {
        let event = Envelope::from_json(Topic::from_static("order.placed"), &7).unwrap();
        let written = write(&event, ContentMode::Binary).unwrap();
        let death = table([
            ("queue", long("eventbus:group:mail:order.*")),
            ("reason", long("delivery_limit")),
            ("exchange", long("eventbus")),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
            ("count", AMQPValue::LongLongInt(1)),
            ("routing-keys", AMQPValue::FieldArray(vec![long("order.placed")].into())),
        ]);
        let mut message = to_queue(&written);
        let mut headers = message.properties.headers().clone().unwrap();
        headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
        message.properties = message.properties.with_headers(headers);
        let ReadLetter { name, mark, queue, letter } = read_dead_letter(&message, "mail").unwrap();
        assert_eq!((name, queue.as_str()), (None, "eventbus:group:mail:order.*"));
        assert_eq!(mark, event.id().to_string());
        assert_eq!((letter.kind, letter.group.as_str()), (FailureKind::Crashed, "mail"));
        assert!(
            letter.reason.contains("delivery_limit") && letter.reason.contains("policies"),
            "{}",
            letter.reason
        );
        assert_eq!((letter.envelope.topic(), letter.envelope.id()), (event.topic(), event.id()));
        assert!(read_dead_letter(&to_queue(&written), "mail").is_none(), "it is no dead letter");
    }

    #[test]
    fn no_message_ends_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(14);
        let names = [
            "ce-id",
            "ce-",
            "cloudEvents:time",
            "ce-é",
            TOPIC,
            HEADERS,
            ATTEMPT,
            AGAIN,
            "x-death",
            DELIVERIES,
            "eventbus-dead-letter-kind",
            "eventbus-dead-letter-offset",
            LETTER,
            QUEUE,
            "",
        ];
        for _ in 0..5_000 {
            let headers = (0..random.usize(..8)).map(|_| {
                let value = match random.u8(..8) {
                    0 => AMQPValue::LongLongInt(random.i64(..)),
                    1 => AMQPValue::FieldArray(
                        vec![long("a"), AMQPValue::Void, AMQPValue::FieldTable(FieldTable::default())].into(),
                    ),
                    2 => AMQPValue::LongString(vec![0xff, random.u8(..)].into()),
                    3 => AMQPValue::Timestamp(random.u64(..)),
                    4 => long("failed"),
                    5 => AMQPValue::ByteArray(vec![1, 2].into()),
                    6 => AMQPValue::Float(f32::NAN),
                    _ => long(&text_of(&mut random)),
                };
                (*random.choice(&names).unwrap(), value)
            });
            let headers = table(headers.collect::<Vec<_>>());
            let properties = BasicProperties::default().with_headers(headers).with_timestamp(random.u64(..));
            let content_type = *random.choice(&["", "application/cloudevents+json", "text/plain"]).unwrap();
            let message =
                foreign(properties.with_content_type(content_type.into()), "x", &text_of(&mut random));
            read(&message, &pattern("a.>"));
            read_dead_letter(&message, "group");
            message.attempt();
        }
    }
}
