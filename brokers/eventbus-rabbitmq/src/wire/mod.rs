//! Envelopes as messages of AMQP 0-9-1. Pure functions.
//!
//! CloudEvents has a binding for AMQP 1.0 only. On 0-9-1 programs of others write the attributes as headers that begin with
//! `ce-`, `cloudEvents:` or `cloudEvents_`: all three are read, and the first is written. The payload is the body.

mod reading;
mod writing;

pub(crate) use reading::{Message, Note, ReadLetter, read, read_dead_letter, read_kept, read_note};
pub(crate) use writing::{write, write_again, write_dead_letter, write_note};

use bytes::Bytes;
use lapin::BasicProperties;

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
const SERVERS: [&str; 15] = [
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
    "timestamp_in_ms",
];
/// How the names of headers begin that a stream takes for something else, or does not give back.
const STREAMS: [&str; 8] = [
    "x-amqp-",
    "x-basic-",
    "x-cc",
    "x-correlation-id",
    "x-exchange",
    "x-message-id",
    "x-opt-",
    "x-routing-key",
];
/// A stream takes the body of a message of this type apart.
const AMQP_1_0: &str = "amqp-1.0";
/// How often a message was delivered before: up to RabbitMQ 4.2, and since.
const DELIVERIES: &str = "x-delivery-count";
const ACQUIRED: &str = "x-acquired-count";

/// A message in the stream of all events that is no event, and what it says: nothing, or the group for which an event, by its
/// source and its id, has another payload since its dead letter was published again.
const NOTE: &str = "eventbus-note";
const NOTED_SOURCE: &str = "eventbus-note-source";
const NOTED_ID: &str = "eventbus-note-id";

/// How the names of our own headers begin.
const OURS: &str = "eventbus-";
/// The topic of a message that does not come by way of the exchange.
const TOPIC: &str = "eventbus-topic";
/// Headers whose names others would take for something else: names and values in turn, as text, since a stream drops lists.
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

/// The attribute that a header is.
fn attribute(name: &str) -> Option<&str> {
    ATTRIBUTES.iter().find_map(|prefix| {
        let begin = name.get(..prefix.len())?;
        begin.eq_ignore_ascii_case(prefix).then(|| &name[prefix.len()..])
    })
}

#[cfg(test)]
mod tests {
    use super::writing::size;
    use super::*;
    use eventbus_core::broker::{DeadLetter, FailureKind, Offset};
    use eventbus_core::{Envelope, EventId, Pattern, PublishError, Topic};
    use jiff::Timestamp;
    use lapin::types::{AMQPValue, FieldArray, FieldTable};
    use std::sync::Arc;

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
