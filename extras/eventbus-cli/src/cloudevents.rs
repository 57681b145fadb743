//! Events in [CloudEvents JSON](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md), as
//! they are read: those that `log --json` wrote, and those of others.

use crate::json;
use crate::text::from_base64;
use bytes::Bytes;
use eventbus_core::printable::printable;
use eventbus_core::{Envelope, Headers, Topic};
use jiff::Timestamp;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::io::Read;

/// The members that have a meaning of their own, so no header is written under such a name.
pub(crate) const MEMBERS: &[&str] = &[
    "offset",
    "topic",
    "headers",
    "data",
    "data_base64",
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "subject",
    "datacontenttype",
    "eventversion",
    "partitionkey",
    "correlationid",
    "causationid",
    "causationdepth",
    "mended",
];

/// The events of a text, each as soon as it has come: objects one after the other, as in JSON Lines, or lists of them, as
/// in the batch format.
pub(crate) fn events(text: impl Read) -> impl Iterator<Item = Result<Box<RawValue>, String>> {
    let values = serde_json::Deserializer::from_reader(text).into_iter::<Box<RawValue>>();
    values.flat_map(|value| match value {
        Ok(value) if value.get().starts_with('[') => {
            match serde_json::from_str::<Vec<Box<RawValue>>>(value.get()) {
                Ok(events) => events.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(not_json(&error))],
            }
        }
        Ok(value) => vec![Ok(value)],
        Err(error) => vec![Err(not_json(&error))],
    })
}

fn not_json(error: &serde_json::Error) -> String {
    format!("this is no JSON: {error}")
}

/// An event as it was read.
pub(crate) struct Incoming {
    pub(crate) envelope: Envelope,
    /// It was written by `log --json`, most likely, so that what it has not is not there.
    pub(crate) ours: bool,
}

/// Reads an event. It goes to `topic`, where one is given, otherwise to the member `topic` or, in events of
/// others, to the topic that its type names.
pub(crate) fn read(event: &RawValue, topic: Option<&Topic>) -> Result<Incoming, String> {
    let Members(members) =
        serde_json::from_str(event.get()).map_err(|error| format!("this is no CloudEvent: {error}"))?;
    let mut event = Event { ours: members.iter().any(|(name, _)| name == "topic"), ..Event::default() };
    for (name, value) in &members {
        event.read(name, value)?;
    }
    let ours = event.ours;
    Ok(Incoming { envelope: event.envelope(topic)?, ours })
}

/// What was read of an event so far.
#[derive(Default)]
struct Event<'a> {
    /// It was written by `log --json`, most likely.
    ours: bool,
    topic: Option<String>,
    attributes: Vec<(&'a str, String)>,
    headers: Headers,
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
}

impl<'a> Event<'a> {
    fn read(&mut self, name: &'a str, value: &'a RawValue) -> Result<(), String> {
        match name {
            "data" => self.data = Some(value),
            "data_base64" => self.data_base64 = text(name, value)?,
            "headers" if value.get().starts_with('{') => self.read_headers(value)?,
            "topic" => self.topic = scalar(name, value)?,
            // What groups got in the place of the payload is no part of the event.
            "mended" if self.ours && value.get().starts_with('[') => {}
            "offset" if self.ours => {}
            "specversion" | "id" | "source" | "type" | "subject" | "datacontenttype" => {
                self.attributes.extend(text(name, value)?.map(|text| (name, text)));
            }
            "time" => {
                if let Some(time) = text(name, value)? {
                    let read: Result<Timestamp, _> = time.parse();
                    read.map_err(|error| format!("its `time` is none: {}", printable(error)))?;
                    self.attributes.push((name, time));
                }
            }
            "partitionkey" | "correlationid" | "causationid" => {
                self.attributes.extend(scalar(name, value)?.map(|text| (name, text)));
            }
            "eventversion" | "causationdepth" => match scalar(name, value)? {
                Some(number) if number.parse::<u32>().is_ok() => self.attributes.push((name, number)),
                // Somebody else's, who means something else by it.
                other => self.headers.extend(other.map(|other| (name, other))),
            },
            extension => self.headers.extend(scalar(name, value)?.map(|value| (extension, value))),
        }
        Ok(())
    }

    fn read_headers(&mut self, value: &RawValue) -> Result<(), String> {
        let Members(headers) =
            serde_json::from_str(value.get()).map_err(|error| format!("`headers`: {error}"))?;
        for (name, value) in headers {
            let values = match value.get().starts_with('[') {
                true => serde_json::from_str(value.get()).map_err(|error| format!("`headers`: {error}"))?,
                false => vec![value],
            };
            for value in values {
                self.headers.extend(scalar(&name, &value)?.map(|value| (&name, value)));
            }
        }
        Ok(())
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    }

    fn required(&self, name: &str) -> Result<&str, String> {
        self.attribute(name).ok_or_else(|| format!("it has no `{name}`, which CloudEvents requires"))
    }

    fn envelope(mut self, topic: Option<&Topic>) -> Result<Envelope, String> {
        let version = self.required("specversion")?;
        if !version.starts_with("1.") {
            return Err(format!("it is of CloudEvents {}, and 1.0 is read", printable(version)));
        }
        for name in ["id", "source"] {
            self.required(name)?;
        }
        let named = self.topic.as_deref().map_or_else(|| self.required("type"), Ok)?;
        let topic = match topic {
            Some(topic) => topic.clone(),
            None => Topic::new(named).map_err(|error| {
                format!("{}; name the topic to publish to: `publish TOPIC --cloudevents`", printable(error))
            })?,
        };
        let payload = self.payload()?;
        let attributes = self.attributes.iter().map(|(name, value)| (*name, value.as_str()));
        Ok(Envelope::from_attributes(topic, attributes, std::mem::take(&mut self.headers), payload))
    }

    fn payload(&self) -> Result<Bytes, String> {
        let data = match (self.data, self.data_base64.as_deref()) {
            (Some(_), Some(_)) => {
                return Err("it has `data` and `data_base64`, and one is allowed".to_owned());
            }
            (None, None) => return Ok(Bytes::new()),
            (None, Some(base64)) => {
                let bytes = from_base64(base64).ok_or("its `data_base64` is no base64")?;
                return Ok(bytes.into());
            }
            (Some(data), None) => data.get(),
        };
        if !json::is_json(self.attribute("datacontenttype").unwrap_or_default()) {
            if data == "null" {
                return Ok(Bytes::new());
            }
            // What is no JSON is the text that the string holds.
            if let Ok(text) = serde_json::from_str::<String>(data) {
                return Ok(text.into());
            }
        }
        Ok(json::compact(data.as_bytes()).unwrap_or_else(|| data.to_owned()).into())
    }
}

/// A value that is to be a text; none for `null`, which is as good as nothing.
fn text(name: &str, value: &RawValue) -> Result<Option<String>, String> {
    serde_json::from_str(value.get()).map_err(|_| format!("its `{}` is no text", printable(name)))
}

/// An extension's value as a text: CloudEvents has texts, numbers and truth values.
fn scalar(name: &str, value: &RawValue) -> Result<Option<String>, String> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'{' | b'[') => Err(format!(
            "its `{}` is a list or an object, and CloudEvents has no such attributes",
            printable(name)
        )),
        Some(b'"' | b'n') => text(name, value),
        _ => Ok(Some(json.to_owned())),
    }
}

/// The members of an object, to the letter and in their order.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, _>()? {
                    if members.iter().any(|(other, _)| *other == name) {
                        return Err(serde::de::Error::custom(format!("it has `{}` twice", printable(name))));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;
    use eventbus_core::EventId;

    fn read(text: &str) -> Result<Vec<Envelope>, String> {
        events(text.as_bytes()).map(|event| Ok(super::read(&event?, None)?.envelope)).collect()
    }

    fn again(sent: &Envelope) -> Envelope {
        let text = event::object(None, sent).unwrap().finish();
        let read = read(&text).unwrap_or_else(|error| panic!("{error}: {text}")).remove(0);
        assert_eq!(event::object(None, &read).unwrap().finish(), text);
        read
    }

    fn assert_same(sent: &Envelope) {
        let read = again(sent);
        let attributes = |envelope: &Envelope| {
            envelope.attributes().map(|(name, value)| (name, value.into_owned())).collect::<Vec<_>>()
        };
        assert_eq!(attributes(&read), attributes(sent));
        assert_eq!((read.topic(), read.payload().unwrap()), (sent.topic(), sent.payload().unwrap()));
        let sorted = |envelope: &Envelope| {
            let names = envelope.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
            let mut names: Vec<_> = names.collect();
            names.sort_by(|(left, _), (right, _)| left.cmp(right));
            names
        };
        assert_eq!(sorted(&read), sorted(sent));
    }

    #[test]
    fn an_event_that_was_written_is_read_back_as_it_was() {
        let topic = || Topic::from_static("order.placed");
        let bytes = |content_type, payload: &'static [u8]| {
            Envelope::from_bytes(topic(), content_type, Bytes::from_static(payload)).with_source("/shop")
        };
        let cause = bytes("application/json", b"1").with_id(EventId::new("cause"));
        for sent in [
            bytes("application/json", br#"{"id":1.0000000000000000000001,"b":"\u00e9 \ud83d\ude00"}"#),
            bytes("application/json", b"null"),
            bytes("application/json", b"\"text\""),
            bytes("application/json", b""),
            bytes("application/json", b"{"),
            bytes("Application/Vnd.Shop+JSON; charset=utf-8", b"[1,2]"),
            bytes("text/json", b"7"),
            bytes("", b"{\"a\":1}"),
            bytes("", b"\x00\xff"),
            bytes("text/plain; charset=utf-8", "naïve 日本 \u{1b}[2J".as_bytes()),
            bytes("text/plain", b"\"quoted\""),
            bytes("image/png", b"\x89PNG\r\n\x1a\n\x00"),
            bytes("application/json", b"1").with_key(""),
            bytes("application/json", b"1").with_key("日本 🦀").with_subject("näher\nbei"),
            bytes("application/json", b"1").with_version(4).with_type("shop.order.placed.v4"),
            bytes("application/json", b"1").with_id(EventId::new("A234/é \"x\"")).with_source("urn:a b"),
            bytes("application/json", b"1").with_time("2026-07-01T12:00:00.123456789Z".parse().unwrap()),
            bytes("application/json", b"1").with_time("-009999-01-02T01:59:59Z".parse().unwrap()),
            bytes("application/json", b"1").caused_by(&bytes("", b"").caused_by(&cause)),
        ] {
            assert_same(&sent);
        }
        let mut odd = bytes("application/json", b"1");
        for name in
            MEMBERS.iter().copied().chain(["tenant", "X-Note", "traceparent", "", "名", "dataschema", "a.b"])
        {
            odd.headers_mut().append(name, format!("of {name}"));
        }
        for value in ["1", "", "2"] {
            odd.headers_mut().append("list", value);
        }
        assert_same(&odd);
    }

    #[test]
    fn events_of_others_are_read() {
        let text = r#"
            { "specversion" : "1.0", "type" : "com.example.someevent", "source" : "/mycontext", "id" : "A234",
              "comexampleextension1" : "value", "comexampleothervalue" : 5, "flag": true, "unset": null,
              "unsetobject": null, "time" : "2018-04-05T17:31:00+02:00", "offset": 12,
              "datacontenttype" : "text/xml", "data" : "<much wow=\"xml\"/>" }
            [{"specversion":"1.0","type":"a","source":"s","id":"1","data":{ "b": 1.50 }},
             {"specversion":"1.0","type":"a","source":"s","id":"2","data":"text","eventversion":"v2"},
             {"specversion":"1.0","type":"a","source":"s","id":"3","data_base64":"AP8","partitionkey":42}]"#;
        let read = read(text).unwrap();
        let [xml, json, string, binary] = &read[..] else { panic!("{read:?}") };
        assert_eq!(
            (xml.topic().as_str(), xml.source(), xml.id().to_string()),
            ("com.example.someevent", "/mycontext", "A234".into())
        );
        assert_eq!(xml.payload().unwrap(), "<much wow=\"xml\"/>");
        assert_eq!(xml.time().to_string(), "2018-04-05T15:31:00Z");
        let headers: Vec<_> = xml.headers().iter().collect();
        assert_eq!(
            headers,
            [
                ("comexampleextension1", "value"),
                ("comexampleothervalue", "5"),
                ("flag", "true"),
                ("offset", "12")
            ]
        );
        assert_eq!(
            (json.payload().unwrap(), json.content_type()),
            (&Bytes::from_static(b"{\"b\":1.50}"), "")
        );
        assert_eq!(
            (string.payload().unwrap(), string.headers().get("eventversion")),
            (&Bytes::from_static(b"\"text\""), Some("v2"))
        );
        assert_eq!((binary.payload().unwrap(), binary.key()), (&Bytes::from_static(b"\0\xff"), Some("42")));
    }

    #[test]
    fn what_is_no_event_is_refused_with_what_it_lacks() {
        for (event, said) in [
            ("7", "no CloudEvent"),
            ("{", "no JSON"),
            ("nonsense", "no JSON"),
            (r#"{"id":"1"}"#, "`specversion`"),
            (r#"{"specversion":"0.3","id":"1","source":"s","type":"a"}"#, "CloudEvents 0.3"),
            (r#"{"specversion":"1.0","source":"s","type":"a"}"#, "`id`"),
            (r#"{"specversion":"1.0","id":7,"source":"s","type":"a"}"#, "`id` is no text"),
            (r#"{"specversion":"1.0","id":"1","type":"a"}"#, "`source`"),
            (r#"{"specversion":"1.0","id":"1","source":"s"}"#, "`type`"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"a/b"}"#, "publish TOPIC --cloudevents"),
            (r#"{"specversion":"1.0","id":"1","id":"2","source":"s","type":"a"}"#, "`id` twice"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"a","time":"soon"}"#, "`time`"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"a","x":[1]}"#, "`x`"),
            (
                r#"{"specversion":"1.0","id":"1","source":"s","type":"a","data":1,"data_base64":""}"#,
                "one is allowed",
            ),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"a","data_base64":"*"}"#, "no base64"),
        ] {
            let error = read(event).unwrap_err();
            assert!(error.contains(said), "{event}: {error}");
        }
    }
}
