//! Envelopes and dead letters as messages that are sent.

use super::{
    AGAIN, AMQP_1_0, ATTEMPT, ATTRIBUTES, ContentMode, HEADERS, LETTER, LONGEST, MAX_HEADERS, MAX_REASON,
    NOTE, NOTED_ID, NOTED_SOURCE, OURS, QUEUE, SERVERS, STREAMS, TOPIC, Written, attribute,
};
use bytes::Bytes;
use eventbus_core::broker::DeadLetter;
use eventbus_core::{BoxError, Envelope, Headers, PublishError};
use eventbus_server::cloudevents::{MEDIA_TYPE, write_structured};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

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
    if let Ok(event_type) = ShortString::try_new(envelope.event_type())
        && event_type.as_str() != AMQP_1_0
    {
        properties = properties.with_type(event_type);
    }
    Ok(Written { properties, body })
}

fn write_headers(into: &mut FieldTable, headers: &Headers) {
    let mut others = Vec::new();
    for (name, value) in headers.iter() {
        let is_plain = !name.is_empty()
            && name.len() <= LONGEST
            && attribute(name).is_none()
            && !name.starts_with(OURS)
            && !SERVERS.contains(&name)
            && !STREAMS.iter().any(|begin| name.starts_with(begin))
            && headers.get_all(name).count() == 1;
        if is_plain {
            put(into, name, value);
        } else {
            others.push((name, value));
        }
    }
    if !others.is_empty() {
        put(into, HEADERS, &serde_json::to_string(&others).expect("texts have a form in JSON"));
    }
}

/// `name` has at most 255 bytes.
fn put(into: &mut FieldTable, name: &str, value: &str) {
    into.insert(name.into(), AMQPValue::LongString(value.into()));
}

/// How many bytes headers take in a frame.
pub(super) fn size(headers: &FieldTable) -> usize {
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

/// Writes an event for the queue of one group, past the exchange: under this name, with the attempt that comes next.
pub(crate) fn write_again(envelope: &Envelope, name: &str, attempt: u32) -> Result<Written, PublishError> {
    let mut written = write(envelope, ContentMode::Binary)?;
    let attempt = attempt.to_string();
    let said = [(TOPIC, envelope.topic().as_str()), (AGAIN, name), (ATTEMPT, &attempt)];
    written.properties = with(written.properties, said);
    Ok(written)
}

/// Writes a note for the stream of all events: nothing, or which payload an event has for a group by now.
pub(crate) fn write_note(mended: Option<(&Envelope, &str, Bytes)>) -> Written {
    let mut headers = FieldTable::default();
    put(&mut headers, NOTE, mended.as_ref().map_or("", |(_, group, _)| group));
    if let Some((event, _, _)) = &mended {
        put(&mut headers, NOTED_SOURCE, event.source());
        put(&mut headers, NOTED_ID, &event.id().to_string());
    }
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    Written { properties, body: mended.map(|(_, _, payload)| payload).unwrap_or_default() }
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
