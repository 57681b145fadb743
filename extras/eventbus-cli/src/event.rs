//! How an event is written: as CloudEvents JSON, as a row, and in full.

use crate::cloudevents;
use crate::failure::Result;
use crate::json::{self, Object};
use crate::output::{BOLD, DIM, Output, TOPIC, paint};
use crate::table::{self, Cell, Column, cell, styled};
use crate::text;
use bytes::Bytes;
use eventbus_core::broker::{Offset, Recorded};
use eventbus_core::printable::printable;
use eventbus_core::{DecodeError, Envelope};

/// The columns of events.
pub(crate) const COLUMNS: &[Column] = &[
    Column::number("OFFSET"),
    Column::whole("TIME"),
    Column::name("TOPIC"),
    Column::id("KEY"),
    Column::text("PAYLOAD"),
];

/// The event in a row, with its time as it is written.
pub(crate) fn row(Recorded { offset, envelope }: &Recorded, time: String) -> Result<Vec<Cell>> {
    Ok(vec![
        cell(offset.to_string()),
        styled(DIM, time),
        styled(TOPIC, envelope.topic()),
        cell(envelope.key().unwrap_or("-")),
        cell(summary(envelope)?),
    ])
}

/// The payload in one line.
fn summary(envelope: &Envelope) -> Result<String, DecodeError> {
    let payload = envelope.payload()?;
    if let Some(json) = json::compact(payload) {
        return Ok(json);
    }
    Ok(match std::str::from_utf8(payload) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("<{} of {}>", text::counted(payload.len() as u64, "byte"), content_type(envelope)),
    })
}

fn content_type(envelope: &Envelope) -> &str {
    if envelope.content_type().is_empty() { "unknown type" } else { envelope.content_type() }
}

/// The event in CloudEvents JSON, with its topic and its place.
///
/// Attributes and extensions stand under their CloudEvents names. A header whose name CloudEvents allows is an
/// extension, too; the others, and those that are named as an attribute is, are members of `headers`. So
/// [`cloudevents::read`] reads back the same event.
pub(crate) fn object(offset: Option<Offset>, envelope: &Envelope) -> Result<Object> {
    let mut object = Object::new();
    if let Some(offset) = offset {
        object = object.text("offset", offset.to_string());
    }
    object = object.text("topic", envelope.topic());
    for (name, value) in envelope.attributes() {
        object = match (name, value.parse::<u32>()) {
            ("datacontenttype", _) if value.is_empty() => object,
            ("eventversion" | "causationdepth", Ok(number)) => object.number(name, number),
            _ => object.text(name, value),
        };
    }
    let mut others = Object::new();
    let headers = envelope.headers();
    for (place, (name, value)) in headers.iter().enumerate() {
        let extension = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            && !cloudevents::MEMBERS.contains(&name)
            && headers.get_all(name).count() == 1;
        let first = headers.iter().position(|(other, _)| other.eq_ignore_ascii_case(name)) == Some(place);
        if extension {
            object = object.text(name, value);
        } else if headers.get_all(name).count() == 1 {
            others = others.text(name, value);
        } else if first {
            others = others.list(name, headers.get_all(name).map(json::string));
        }
    }
    if !others.is_empty() {
        object = object.object("headers", others);
    }
    Ok(with_payload(object, envelope, envelope.payload()?))
}

/// The object with a payload of the event's media type: as `data`, or as `data_base64` where it is no JSON.
fn with_payload(object: Object, envelope: &Envelope, payload: &[u8]) -> Object {
    let data = if json::is_json(envelope.content_type()) { json::compact(payload) } else { None };
    match data {
        Some(data) => object.raw("data", &data),
        None if payload.is_empty() => object,
        None => object.text("data_base64", text::base64(payload)),
    }
}

/// The event with what it was mended to, as `mended`: for each group that gets it so, the payload in the place of its own.
pub(crate) fn with_mended(object: Object, envelope: &Envelope, mended: &[(String, Bytes)]) -> Object {
    if mended.is_empty() {
        return object;
    }
    let of_group = |(group, payload): &(String, Bytes)| {
        with_payload(Object::new().text("group", group), envelope, payload).finish()
    };
    object.list("mended", mended.iter().map(of_group))
}

/// The event in full, for people.
pub(crate) fn show(out: &mut Output, offset: Option<Offset>, envelope: &Envelope) -> Result {
    out.line(paint(TOPIC.bold(), envelope.topic()))?;
    let time = out.full_time(envelope.time());
    let mut facts = Facts::new(out);
    if let Some(offset) = offset {
        facts.say("offset", offset)?;
    }
    facts.say("id", envelope.id())?;
    facts.say("time", time)?;
    facts.say("source", envelope.source())?;
    if envelope.event_type() != envelope.topic().as_str() {
        facts.say("type", envelope.event_type())?;
    }
    facts.say("version", envelope.version())?;
    facts.maybe("key", envelope.key())?;
    facts.maybe("subject", envelope.subject())?;
    if envelope.correlation_id() != envelope.id() {
        facts.say("correlation", envelope.correlation_id())?;
    }
    facts.maybe("cause", envelope.causation_id())?;
    for (name, value) in envelope.headers().iter() {
        facts.say("header", format_args!("{name}: {value}"))?;
    }
    let payload = envelope.payload()?;
    facts.say(
        "payload",
        format_args!("{} of {}", text::counted(payload.len() as u64, "byte"), content_type(envelope)),
    )?;
    if payload.is_empty() {
        return Ok(());
    }
    out.line("")?;
    show_payload(out, payload)
}

/// What an event was mended to, for people: for each group that gets it so, the payload in the place of its own.
pub(crate) fn show_mended(out: &mut Output, mended: &[(String, Bytes)]) -> Result {
    for (group, payload) in mended {
        out.line("")?;
        out.line(paint(BOLD, format_args!("mended for `{}`", printable(group))))?;
        show_payload(out, payload)?;
    }
    Ok(())
}

fn show_payload(out: &mut Output, payload: &[u8]) -> Result {
    match (json::pretty(payload), std::str::from_utf8(payload)) {
        (Some(json), _) => out.line(json),
        (None, Ok(payload)) => out.line(text::printable_lines(payload)),
        (None, Err(_)) => hex(out, payload),
    }
}

/// The beginning of what is no text.
fn hex(out: &mut Output, bytes: &[u8]) -> Result {
    const SHOWN: usize = 256;
    // Each takes four columns, and one is between the two halves.
    let in_line = if out.width.is_some_and(|width| width <= 16 * 4) { 8 } else { 16 };
    for line in bytes[..bytes.len().min(SHOWN)].chunks(in_line) {
        let hex = line.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
        let letter = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
        let letters = line.iter().map(letter).collect::<String>();
        out.line(format_args!("{hex:<0$}{1}", in_line * 3 + 1, paint(DIM, letters)))?;
    }
    if bytes.len() > SHOWN {
        out.line(paint(DIM, "… (all of it with --json)"))?;
    }
    Ok(())
}

/// Where the values begin.
const INDENT: usize = 15;

/// Names and values under each other.
pub(crate) struct Facts<'a>(&'a mut Output);

impl<'a> Facts<'a> {
    pub(crate) fn new(out: &'a mut Output) -> Self {
        Self(out)
    }

    pub(crate) fn say(&mut self, name: &str, value: impl std::fmt::Display) -> Result {
        let value = printable(value).to_string();
        let lines = match self.0.width {
            Some(width) => text::wrapped(&value, width.saturating_sub(INDENT).max(16)),
            None => vec![value],
        };
        for (place, line) in lines.iter().enumerate() {
            let name = if place == 0 { name } else { "" };
            self.0.line(format_args!("  {} {line}", paint(DIM, format_args!("{name:<12}"))))?;
        }
        Ok(())
    }

    pub(crate) fn maybe(&mut self, name: &str, value: Option<impl std::fmt::Display>) -> Result {
        value.map_or(Ok(()), |value| self.say(name, value))
    }
}

/// The columns of an event in a tree of causes.
const CAUSE: &[Column] = &[
    Column::name("TOPIC"),
    Column::id("KEY").goes(2),
    Column::whole("TIME"),
    Column::number("OFFSET"),
    Column::id("ID").goes(1),
];
const CAUSE_WITHOUT_KEY: &[Column] = &[CAUSE[0], CAUSE[2], CAUSE[3], CAUSE[4]];

/// One event of a tree of causes, in one line that begins behind `indent` columns.
pub(crate) fn brief(
    out: &Output,
    Recorded { offset, envelope }: &Recorded,
    asked: bool,
    indent: usize,
) -> String {
    let mark = if asked { "  ◀" } else { "" };
    let key = envelope.key();
    let row = [
        Some(styled(if asked { TOPIC.bold() } else { TOPIC }, envelope.topic())),
        key.map(cell),
        Some(styled(DIM, out.time(envelope.time()))),
        Some(styled(DIM, offset.to_string())),
        Some(styled(DIM, envelope.id().to_string())),
    ];
    let columns = if key.is_some() { CAUSE } else { CAUSE_WITHOUT_KEY };
    let row: Vec<_> = row.into_iter().flatten().collect();
    let room = out.width.map(|width| width.saturating_sub(indent + mark.chars().count()).max(16));
    format!("{}{}", table::line(columns, &row, room), paint(BOLD, mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_core::{EventId, Topic};
    use serde_json::{Value, json};

    fn read(envelope: &Envelope) -> Value {
        serde_json::from_str(&object(Some(Offset::new(7)), envelope).unwrap().finish()).unwrap()
    }

    #[test]
    fn an_event_is_written_as_cloudevents_json() {
        let topic = Topic::from_static("order.placed");
        let cause = Envelope::from_json(topic.clone(), &()).unwrap().with_id(EventId::new("one"));
        let envelope = Envelope::from_json(topic, &json!({ "order": 1 }))
            .unwrap()
            .with_id(EventId::new("two"))
            .with_source("/shop")
            .with_time("2026-07-01T12:00:00Z".parse().unwrap())
            .with_key(42)
            .with_version(2)
            .with_header("tenant", "acme")
            .with_header("X-Note", "kept")
            .with_header("data", "no payload")
            .caused_by(&cause);
        let expected = json!({
            "offset": "7", "topic": "order.placed",
            "specversion": "1.0", "id": "two", "source": "/shop", "type": "order.placed",
            "time": "2026-07-01T12:00:00Z", "datacontenttype": "application/json", "eventversion": 2,
            "partitionkey": "42", "correlationid": "one", "causationid": "one", "causationdepth": 1,
            "tenant": "acme", "headers": { "X-Note": "kept", "data": "no payload" },
            "data": { "order": 1 },
        });
        assert_eq!(read(&envelope), expected);
    }

    #[test]
    fn a_payload_that_is_no_json_is_written_in_base64() {
        let envelope = |content_type, payload| {
            Envelope::from_bytes(Topic::from_static("a"), content_type, Bytes::from_static(payload))
        };
        assert_eq!(read(&envelope("image/png", b"\x89PNG"))["data_base64"], "iVBORw==");
        let broken = read(&envelope("application/json", b"{"));
        assert_eq!((&broken["data_base64"], broken.get("data")), (&json!("ew=="), None));
        assert_eq!(summary(&envelope("image/png", b"\x89PNG")).unwrap(), "<4 bytes of image/png>");
        assert_eq!(summary(&envelope("", b"{ \"a\": 1 }")).unwrap(), "{\"a\":1}");
    }
}
