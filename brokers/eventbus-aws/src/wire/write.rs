//! Writes events.

use super::{ALONE, BODY, CONTENT_TYPE, ContentMode, Pairs, REST, TOPIC, Written};
use eventbus_core::{DecodeError, Envelope};
use eventbus_server::cloudevents::{MEDIA_TYPE, base64_encode, percent_encode, write_structured};

/// What stands for a payload without any bytes, since a message has at least one letter.
const NOTHING: &str = "-";

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::{any, parts, read_back};
    use eventbus_core::Topic;

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
}
