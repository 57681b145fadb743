//! The structured mode: an event as one JSON object, after the
//! [JSON event format](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).

use super::{Carried, read_binary};
use bytes::Bytes;
use eventbus_core::media_type::is_json;
use eventbus_core::{DecodeError, Envelope, Headers};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The media type of a message in structured mode.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";

/// Whether a message of this media type is an event in structured mode.
///
/// ```
/// use eventbus_server::cloudevents::is_structured;
/// assert!(is_structured("Application/CloudEvents+JSON; charset=utf-8"));
/// assert!(!is_structured("application/json") && !is_structured("application/cloudevents-batch+json"));
/// ```
#[must_use]
pub fn is_structured(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(MEDIA_TYPE)
}

/// The event as one JSON object. Headers are no part of it: the protocol carries them beside it.
///
/// A payload that is JSON stands in `data` as it is, whatever else in `data_base64`.
///
/// # Errors
/// Where the event has no form in its codec.
pub fn write_structured(envelope: &Envelope) -> Result<Bytes, DecodeError> {
    struct Document<'a>(&'a Envelope, &'a Bytes);
    impl Serialize for Document<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self(envelope, payload) = self;
            let mut document = serializer.serialize_map(None)?;
            for (name, value) in envelope.attributes() {
                match (name, value.parse::<u32>()) {
                    // Integers of CloudEvents are signed.
                    ("eventversion" | "causationdepth", Ok(number)) if i32::try_from(number).is_ok() => {
                        document.serialize_entry(name, &number)?;
                    }
                    _ => document.serialize_entry(name, &value)?,
                }
            }
            match json(envelope.content_type(), payload) {
                Some(data) => document.serialize_entry("data", data)?,
                None => document.serialize_entry("data_base64", &base64_encode(payload))?,
            }
            document.end()
        }
    }
    let document = serde_json::to_vec(&Document(envelope, envelope.payload()?));
    Ok(document.expect("texts and numbers have a form in JSON").into())
}

/// A payload that stands for itself in a JSON object: it is JSON, to the last byte.
fn json<'a>(content_type: &str, payload: &'a [u8]) -> Option<&'a RawValue> {
    let data: &RawValue = is_json(content_type).then(|| serde_json::from_slice(payload).ok())??;
    (data.get().len() == payload.len()).then_some(data)
}

/// The envelope of a message in structured mode. `headers` came beside it.
///
/// What is no such JSON object stays what it is: an event with these bytes, of the media type of the structured mode,
/// which no handler decodes. So it becomes a dead letter with its bytes kept.
#[must_use]
pub fn read_structured(carried: Carried, headers: Headers, message: Bytes) -> Envelope {
    match parse(&message) {
        Some((attributes, payload)) => {
            let pairs = attributes.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_str())));
            read_binary(carried, pairs, headers, payload)
        }
        None => read_binary(carried, [("datacontenttype", MEDIA_TYPE.into())], headers, message),
    }
}

fn parse(message: &[u8]) -> Option<(Vec<(String, String)>, Bytes)> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_slice(message).ok()?;
    let (data, base64) = (members.remove("data"), members.remove("data_base64"));
    let mut attributes = Vec::with_capacity(members.len() + 1);
    for (name, value) in members {
        match serde_json::from_str(value.get()).ok()? {
            serde_json::Value::Null => {}
            serde_json::Value::String(text) => attributes.push((name, text)),
            other => attributes.push((name, other.to_string())),
        }
    }
    let media_type = attributes.iter().find(|(name, _)| name == "datacontenttype");
    let as_json = media_type.is_none_or(|(_, media_type)| is_json(media_type));
    let payload = match (data, base64) {
        (None, Some(base64)) => base64_decode(&serde_json::from_str::<String>(base64.get()).ok()?)?.into(),
        (Some(data), None) if as_json => Bytes::copy_from_slice(data.get().as_bytes()),
        // Text that is no JSON stands there as a string.
        (Some(data), None) => match serde_json::from_str::<String>(data.get()) {
            Ok(text) => text.into(),
            Err(_) => Bytes::copy_from_slice(data.get().as_bytes()),
        },
        (None, None) => Bytes::new(),
        (Some(_), Some(_)) => return None,
    };
    if media_type.is_none() {
        attributes.push(("datacontenttype".to_owned(), "application/json".to_owned()));
    }
    Some((attributes, payload))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes as base64, with padding.
#[must_use]
pub fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let written = digit <= group.len();
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if written { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

/// The bytes, where the text is base64; padding may be left out.
#[must_use]
pub fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut bits = 0;
        for digit in group {
            bits = bits << 6 | u32::from(value(*digit)?);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend(bits.to_be_bytes()[1..].iter().take(group.len() * 6 / 8));
    }
    Some(bytes)
}

/// What a digit of base64 stands for.
const fn value(digit: u8) -> Option<u8> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::tests_support::{any_envelope, any_text, same};
    use eventbus_core::{EventId, Topic};
    use jiff::Timestamp;

    fn carried(topic: &Topic) -> Carried {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        Carried { topic: topic.clone(), id: EventId::new("EVENTS/7"), time }
    }

    fn read(message: &str) -> Envelope {
        let topic = Topic::from_static("order.placed");
        read_structured(carried(&topic), Headers::new(), Bytes::copy_from_slice(message.as_bytes()))
    }

    #[test]
    fn any_envelope_comes_back_and_its_payload_to_the_last_byte() {
        let mut random = fastrand::Rng::with_seed(29);
        for _ in 0..2_000 {
            let sent = any_envelope(&mut random);
            let message = write_structured(&sent).unwrap();
            serde_json::from_slice::<serde_json::Value>(&message).unwrap();
            same(&sent, &read_structured(carried(sent.topic()), sent.headers().clone(), message));
        }
    }

    #[test]
    fn an_event_of_another_program_is_read() {
        let event = read(
            r#"{"specversion":"1.0","id":"A-1","source":"/shop","type":"com.shop.order","time":"2026-01-02T03:04:05Z",
               "comexampleextension":5,"data": {"n": 1.50}}"#,
        );
        assert_eq!((event.id().to_string().as_str(), event.event_type()), ("A-1", "com.shop.order"));
        assert_eq!(event.content_type(), "application/json");
        assert_eq!(&event.payload().unwrap()[..], br#"{"n": 1.50}"#);
        assert_eq!(event.headers().get("comexampleextension"), Some("5"));
        assert_eq!(
            &read(r#"{"datacontenttype":"text/plain","data":"a\nb"}"#).payload().unwrap()[..],
            b"a\nb"
        );
        assert_eq!(&read(r#"{"data_base64":"/wA"}"#).payload().unwrap()[..], b"\xff\0");
        assert!(read(r#"{"id":"x"}"#).payload().unwrap().is_empty());
    }

    #[test]
    fn what_is_no_event_keeps_its_bytes_and_is_no_json() {
        for message in [
            "",
            "{",
            "[]",
            "7",
            r#"{"data":1,"data_base64":"AA=="}"#,
            r#"{"data_base64":"A"}"#,
            "{\"data\":}",
        ] {
            let event = read(message);
            assert_eq!(&event.payload().unwrap()[..], message.as_bytes());
            assert_eq!(event.content_type(), MEDIA_TYPE);
            assert_eq!(event.id().to_string(), "EVENTS/7");
        }
    }

    #[test]
    fn no_bytes_end_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(30);
        let pieces = [
            "{",
            "}",
            "\"data\"",
            ":",
            ",",
            "\"data_base64\"",
            "\"A\"",
            "1",
            "null",
            "[",
            "\"id\"",
            "\u{1f}",
        ];
        for _ in 0..5_000 {
            let mut message: String =
                (0..random.usize(..10)).map(|_| *random.choice(&pieces).unwrap()).collect();
            message.push_str(&any_text(&mut random));
            read(&message);
        }
    }

    #[test]
    fn bytes_survive_base64_and_padding_is_as_others_write_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64_encode(bytes.as_bytes()), text);
            assert_eq!(base64_decode(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(base64_decode("Z"), None);
        assert_eq!(base64_decode("Zm 9"), None);
    }
}
