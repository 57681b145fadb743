//! Messages that came, as envelopes and dead letters.

use super::{
    ACQUIRED, AGAIN, ATTEMPT, ATTRIBUTES, DELIVERIES, FAILURE, HEADERS, LETTER, NOTE, NOTED_ID, NOTED_SOURCE,
    OURS, QUEUE, SERVERS, TOPIC, attribute,
};
use bytes::Bytes;
use eventbus_core::broker::{DeadLetter, FailureKind, Offset};
use eventbus_core::{Envelope, EventId, Headers, Pattern, Topic};
use eventbus_server::cloudevents::{Carried, is_structured, read_binary, read_structured};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};
use std::borrow::Cow;
use std::sync::Arc;

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
    read_as(message, pattern, any_id(), Timestamp::now())
}

/// Reads an event from the stream of all events. One that does not say what it is called, or when it happened, is called
/// and timed so.
pub(crate) fn read_kept(message: &Message, id: EventId, time: Timestamp) -> Envelope {
    const ALL: &str = ">";
    let pattern = Pattern::new(ALL).expect("it is a pattern");
    read_as(message, &pattern, id, time)
}

/// What stands in the stream of all events beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Empty, where it says nothing.
    pub(crate) group: String,
    pub(crate) source: String,
    pub(crate) id: String,
    pub(crate) payload: Bytes,
}

/// Reads a note. None, where it is an event. What came by an exchange is one.
pub(crate) fn read_note(message: &Message) -> Option<Note> {
    let group = message.text(NOTE).filter(|_| message.exchange.is_empty())?;
    let said = |name| message.text(name).unwrap_or_default();
    Some(Note { group, source: said(NOTED_SOURCE), id: said(NOTED_ID), payload: message.body.clone() })
}

fn read_as(message: &Message, pattern: &Pattern, id: EventId, fallback: Timestamp) -> Envelope {
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
                let pairs =
                    text(value).and_then(|text| serde_json::from_str::<Vec<(String, String)>>(&text).ok());
                for (name, value) in pairs.into_iter().flatten() {
                    headers.append(name, value);
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
    let carried = Carried { topic, id, time: time.unwrap_or(fallback) };
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
        offset: said("offset")?.parse().ok()?,
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
