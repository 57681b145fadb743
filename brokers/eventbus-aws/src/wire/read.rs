//! Reads events: those of ours, CloudEvents of others, and whatever else a queue has.

use super::{BODY, CONTENT_TYPE, FAILURE, REST, TOPIC, pairs};
use bytes::Bytes;
use eventbus_core::{Envelope, EventId, Headers, Pattern, Topic};
use eventbus_server::cloudevents::{
    Carried, base64_decode, is_structured, percent_decode, read_binary, read_structured,
};
use jiff::Timestamp;
use std::borrow::Cow;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::read_dead_letter;
    use crate::wire::tests::{any_text, pattern};

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
    fn no_message_ends_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(6);
        let names = ["ce-id", "ce-time", "ce-", "content-type", REST, FAILURE, "x"];
        for _ in 0..3_000 {
            let values: Vec<_> = (0..random.usize(..9)).map(|_| any_text(&mut random)).collect();
            let body = any_text(&mut random);
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
