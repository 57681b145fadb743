//! Envelopes as [CloudEvents](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md) on a wire: what any
//! message becomes, whoever sent it. Pure functions; how attributes are named and encoded is each protocol's matter.

mod percent;
mod structured;

pub(crate) use percent::percent_bytes;
pub use percent::{percent_decode, percent_encode};
pub use structured::{
    MEDIA_TYPE, base64_decode, base64_encode, is_structured, read_structured, write_structured,
};

use bytes::Bytes;
use eventbus_core::{Envelope, EventId, Headers, Topic};
use jiff::Timestamp;
use std::borrow::Cow;

/// What a broker knows by itself of a message that it carried. It fills what the message does not say.
#[derive(Clone, Debug)]
pub struct Carried {
    /// The topic, from the address that the message was sent to.
    pub topic: Topic,
    /// The broker's own name of the message, such as its place: the same whenever it is delivered.
    pub id: EventId,
    /// When the broker stored it.
    pub time: Timestamp,
}

/// The envelope of a message in binary mode: attributes under their names without prefix, all other headers, and the
/// payload as it is.
///
/// Nothing has to be there: a message from a program that knows nothing of CloudEvents is an event too. An attribute
/// that is not what its name promises counts as missing; one without a meaning here becomes a header.
pub fn read_binary<'a>(
    carried: Carried,
    attributes: impl IntoIterator<Item = (&'a str, Cow<'a, str>)>,
    headers: Headers,
    payload: Bytes,
) -> Envelope {
    let attributes: Vec<_> = attributes.into_iter().collect();
    let given = |name: &str| attributes.iter().any(|(other, value)| *other == name && !value.is_empty());
    let identified = given("id");
    let Carried { topic, id, time } = carried;
    // It takes long to read a time, so it is read once.
    let mut times = attributes.iter().rev().filter(|(name, _)| *name == "time");
    let time = times.find_map(|(_, value)| value.parse().ok()).unwrap_or(time);
    let others = attributes.iter().filter(|(name, _)| *name != "time");
    let pairs = others.map(|(name, value)| (*name, value.as_ref()));
    let envelope = Envelope::from_attributes(topic, pairs, headers, payload).with_time(time);
    if identified { envelope } else { envelope.with_id(id) }
}

/// A topic for an address that is none, with what no topic has replaced.
///
/// ```
/// use eventbus_server::cloudevents::nearest_topic;
/// assert_eq!(nearest_topic("order.größe").as_str(), "order.gr__e");
/// ```
#[must_use]
pub fn nearest_topic(address: &str) -> Topic {
    let segment = |segment: &str| -> String {
        let plain =
            segment.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' });
        let plain: String = plain.take(60).collect();
        if plain.is_empty() { "_".to_owned() } else { plain }
    };
    let topic = address.split('.').take(4).map(segment).collect::<Vec<_>>().join(".");
    Topic::new(topic).unwrap_or(Topic::from_static("unreadable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::tests_support::{any_envelope, any_text, same};

    fn carried() -> Carried {
        Carried {
            topic: Topic::from_static("order.placed"),
            id: EventId::new("EVENTS/7"),
            time: Timestamp::from_second(1_700_000_000).unwrap(),
        }
    }

    #[test]
    fn a_message_that_says_nothing_of_itself_is_an_event_with_what_the_broker_knows() {
        let read = read_binary(carried(), [], Headers::new(), Bytes::from_static(b"\xff\0"));
        assert_eq!((read.id(), read.time()), (&carried().id, carried().time));
        assert_eq!((read.topic(), read.event_type()), (&carried().topic, "order.placed"));
        assert_eq!(&read.payload().unwrap()[..], b"\xff\0");
    }

    #[test]
    fn an_attribute_that_is_no_such_thing_counts_as_missing() {
        let attributes = [("time", "yesterday".into()), ("id", "".into()), ("eventversion", "-1".into())];
        let read = read_binary(carried(), attributes, Headers::new(), Bytes::new());
        assert_eq!((read.id(), read.time(), read.version()), (&carried().id, carried().time, 1));
    }

    #[test]
    fn any_envelope_comes_back_from_its_attributes() {
        let mut random = fastrand::Rng::with_seed(17);
        for _ in 0..2_000 {
            let sent = any_envelope(&mut random);
            let attributes: Vec<_> = sent.attributes().collect();
            let pairs = attributes.iter().map(|(name, value)| (*name, Cow::Borrowed(value.as_ref())));
            let broker = Carried { topic: sent.topic().clone(), ..carried() };
            let read = read_binary(broker, pairs, sent.headers().clone(), sent.payload().unwrap().clone());
            same(&sent, &read);
        }
    }

    #[test]
    fn no_attributes_and_no_bytes_end_in_a_panic() {
        let mut random = fastrand::Rng::with_seed(18);
        let names =
            ["id", "time", "type", "eventversion", "causationdepth", "datacontenttype", "subject", ""];
        for _ in 0..2_000 {
            let attributes: Vec<_> = (0..random.usize(..9))
                .map(|_| (*random.choice(&names).unwrap(), any_text(&mut random).into()))
                .collect();
            let payload: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            read_binary(carried(), attributes, Headers::new(), payload.into());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    /// Text of every kind: empty, with spaces at its ends, line breaks, quotes, and what is not ASCII.
    pub(crate) fn any_text(random: &mut fastrand::Rng) -> String {
        let pieces = [
            "a", "B7", " ", "%", "%41", "\"", "\\", "\n", "\r\n", "\t", "é", "日本", "🦀", ":", ";",
            "\u{1b}", "\0",
        ];
        (0..random.usize(..8)).map(|_| *random.choice(&pieces).unwrap()).collect()
    }

    fn any_word(random: &mut fastrand::Rng) -> String {
        (0..random.usize(1..12)).map(|_| random.alphanumeric()).collect()
    }

    pub(crate) fn any_envelope(random: &mut fastrand::Rng) -> Envelope {
        let topic = Topic::new(format!("{}.{}", any_word(random), any_word(random))).unwrap();
        let content_type = *random
            .choice(&["application/json", "image/png", "text/plain; charset=utf-8", "application/vnd.a+json"])
            .unwrap();
        let payload: Vec<u8> = match content_type {
            // Bytes that say they are JSON, and are.
            "application/json" | "application/vnd.a+json" if random.bool() => {
                format!("{{ \"n\" : {}.50 , \"t\":{:?}}}", random.u16(..), any_word(random)).into_bytes()
            }
            _ => (0..random.usize(..60)).map(|_| random.u8(..)).collect(),
        };
        let mut envelope = Envelope::from_bytes(topic, content_type, payload.into())
            .with_source(any_text(random))
            .with_version(random.u32(1..9));
        if random.bool() {
            envelope = envelope.with_id(EventId::new(format!("i{}", any_text(random))));
        }
        if random.bool() {
            envelope = envelope.with_key(any_text(random));
        }
        if random.bool() {
            envelope = envelope.with_subject(any_text(random));
        }
        if random.bool() {
            envelope = envelope.with_type(any_word(random));
        }
        if random.bool() {
            let cause = random.bool().then(|| EventId::new(format!("c{}", any_text(random))));
            envelope =
                envelope.with_causes(EventId::new(format!("r{}", any_text(random))), cause, random.u32(..5));
        }
        for _ in 0..random.usize(..4) {
            let name = format!("h-{}", any_word(random));
            envelope.headers_mut().append(name, any_text(random));
        }
        envelope
    }

    /// Compares everything that an envelope has; headers without regard to their order among different names.
    pub(crate) fn same(sent: &Envelope, read: &Envelope) {
        let attributes = |envelope: &Envelope| {
            envelope.attributes().map(|(name, value)| (name, value.into_owned())).collect::<Vec<_>>()
        };
        let headers = |envelope: &Envelope| {
            let pairs = envelope.headers().iter();
            let mut pairs: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            pairs.sort_by(|left, right| left.0.cmp(&right.0));
            pairs
        };
        assert_eq!(sent.topic(), read.topic());
        assert_eq!(attributes(sent), attributes(read));
        assert_eq!(headers(sent), headers(read));
        assert_eq!(sent.payload().unwrap(), read.payload().unwrap());
    }
}
