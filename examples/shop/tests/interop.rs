//! Services in Python take part: one in FastStream and one with the plain client of each broker exchange events with
//! handlers of ours, each way. They need the servers and the clients that `cargo xtask brokers up` brings up.

#[allow(dead_code, reason = "other tests use other addresses")]
#[path = "support/address.rs"]
mod address;

use eventbus::broker::{DeadLetterQuery, FailureKind};
use eventbus::{Bus, Envelope, Event, State, subscribe};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How many events go each way, and of how many keys they are.
const COUNT: u32 = 200;
const KEYS: u32 = 8;
/// Nothing here takes so long; it ends a test that would wait for ever.
const LONG: Duration = Duration::from_secs(240);

/// What Python publishes.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "reading.taken", key = sensor)]
struct ReadingTaken {
    sensor: String,
    number: u32,
}

/// What Python reads.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "alarm.raised", key = sensor)]
struct AlarmRaised {
    sensor: String,
    number: u32,
}

#[subscribe(group = "interop.readings")]
async fn take(_reading: &ReadingTaken, envelope: &Envelope, seen: State<Seen>) {
    seen.tell(envelope);
}

/// Notices come from Python alone, which says nothing with them but what they are.
#[subscribe("notice.>", group = "interop.notices")]
async fn note(envelope: &Envelope, seen: State<Seen>) {
    seen.tell(envelope);
}

/// The events that our handlers had, each once, in the order in which they came.
#[derive(Clone, Default)]
struct Seen(Arc<(Mutex<Vec<Envelope>>, Notify)>);

impl Seen {
    fn tell(&self, envelope: &Envelope) {
        let (events, told) = &*self.0;
        let mut events = events.lock().unwrap();
        // A broker may deliver an event twice.
        if events.iter().all(|event| event.id() != envelope.id()) {
            events.push(envelope.clone());
        }
        drop(events);
        told.notify_one();
    }

    /// Those of a topic, once there are so many.
    async fn on(&self, topic: &str, count: usize) -> Vec<Envelope> {
        let (events, told) = &*self.0;
        let those = || {
            let events = events.lock().unwrap();
            events.iter().filter(|event| event.topic().as_str() == topic).cloned().collect::<Vec<_>>()
        };
        let all = async {
            while those().len() < count {
                told.notified().await;
            }
        };
        let came = timeout(LONG, all).await;
        assert!(came.is_ok(), "{} of {count} events on {topic} have come", those().len());
        those()
    }
}

macro_rules! python_takes_part {
    ($($broker:ident: $address:expr, $plain_key:expr;)*) => {$(
        mod $broker {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_service_in_faststream_takes_part() {
                exchange("faststream", &$address, $plain_key).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_service_with_the_plain_client_takes_part() {
                exchange("plain", &$address, $plain_key).await;
            }
        }
    )*};
}

// Beside each address, the key of a message that has no attributes.
python_takes_part! {
    nats: address::nats(), None;
    redis: address::redis(), None;
    valkey: address::valkey(), None;
    rabbitmq: address::rabbitmq(), None;
    kafka: address::kafka(), Some("k7");
}

/// A service and a bus publish at the same time, and each reads what the other one publishes.
async fn exchange(service: &str, url: &str, plain_key: Option<&str>) {
    let seen = Seen::default();
    let bus = Bus::builder().state(seen.clone()).connect(url).await.unwrap();
    bus.start().unwrap();
    let alarms: Vec<_> = (0..COUNT).map(alarm).collect();
    // One event makes the topic, so that the service finds it, and is the first that it reads; not from a queue of its
    // own, which begins empty.
    let before = usize::from(bus.features().start_earliest);
    publish(&bus, &alarms[..before]).await;
    let mut python = Python::begin(service, url);
    python.is_ready().await;
    publish(&bus, &alarms[before..]).await;

    they_read_what_we_published(&alarms, &python.told().await);
    we_read_what_they_published(service, &seen.on("reading.taken", COUNT as usize).await);
    what_says_nothing_of_itself_is_an_event(&seen.on("notice.sent", 1).await[0], service, plain_key);
    the_misfit_is_a_dead_letter(&bus).await;
    assert_eq!(
        seen.on("reading.taken", COUNT as usize).await.len(),
        COUNT as usize,
        "the misfit is none of them"
    );
    bus.shutdown().await.unwrap();
}

/// An event of ours, with all that an event may say of itself.
fn alarm(number: u32) -> Envelope {
    Envelope::from_event(AlarmRaised { sensor: format!("Fühler {}", number % KEYS), number })
        .with_source("/rust/größe 1%")
        .with_subject(format!("alarm {number}"))
        .with_header("tenant", "Zoë")
}

async fn publish(bus: &Bus, events: &[Envelope]) {
    for published in bus.publish_envelopes(events.to_vec()).await {
        published.unwrap();
    }
}

fn they_read_what_we_published(published: &[Envelope], told: &[Value]) {
    let mut last = BTreeMap::new();
    let mut partitions: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let mut missing: BTreeMap<String, &Envelope> =
        published.iter().map(|event| (event.id().to_string(), event)).collect();
    for seen in told {
        let id = seen["attributes"]["id"].as_str().unwrap();
        let sent = missing.remove(id).unwrap_or_else(|| panic!("{seen} was not published"));
        let attributes: Map<String, Value> =
            sent.attributes().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        assert_eq!(seen["attributes"], Value::Object(attributes));
        assert_eq!(seen["headers"]["tenant"], "Zoë", "{seen}");
        let payload: Value = serde_json::from_slice(sent.payload().unwrap()).unwrap();
        assert_eq!(seen["payload"], payload);
        let key = sent.key().unwrap().to_owned();
        if let Some(of_record) = seen.get("key") {
            assert_eq!(*of_record, json!(key), "the key of the record");
            partitions.entry(key.clone()).or_default().insert(seen["partition"].as_u64().unwrap());
        }
        let number = payload["number"].as_u64();
        let before = last.insert(key, number).flatten();
        assert!(before < number, "{seen} came after number {before:?} of its key");
    }
    assert!(missing.is_empty(), "lost: {missing:?}");
    assert!(partitions.values().all(|of_key| of_key.len() == 1), "{partitions:?}");
}

fn we_read_what_they_published(service: &str, seen: &[Envelope]) {
    assert_eq!(seen.len(), COUNT as usize);
    let mut last = BTreeMap::new();
    for event in seen {
        let reading = event.event::<ReadingTaken>().unwrap();
        let number = reading.number;
        let expected = [
            ("specversion", "1.0".to_owned()),
            ("id", format!("reading-{number}")),
            ("source", format!("/python/{service}")),
            ("type", "reading.taken".to_owned()),
            ("time", "2026-03-01T12:00:00.25Z".to_owned()),
            ("subject", format!("reading {number}")),
            ("partitionkey", format!("Fühler {}", number % KEYS)),
            ("datacontenttype", "application/json".to_owned()),
        ];
        let attributes: BTreeMap<_, _> = event.attributes().collect();
        for (name, value) in expected {
            assert_eq!(attributes.get(name).map(|value| &**value), Some(&*value), "{name}");
        }
        assert_eq!(reading.sensor, format!("Fühler {}", number % KEYS));
        let before = last.insert(reading.sensor.clone(), number);
        assert!(before < Some(number), "number {number} came after {before:?} of its key");
    }
    let numbers: BTreeSet<_> =
        seen.iter().map(|event| event.event::<ReadingTaken>().unwrap().number).collect();
    assert_eq!(numbers, (0..COUNT).collect());
}

/// What is not said is filled from where it stands.
fn what_says_nothing_of_itself_is_an_event(notice: &Envelope, service: &str, key: Option<&str>) {
    let payload: Value = serde_json::from_slice(notice.payload().unwrap()).unwrap();
    assert_eq!(payload, json!({ "text": service }));
    assert_eq!((notice.event_type(), notice.key()), ("notice.sent", key));
    // On RabbitMQ FastStream names itself as the program.
    let source = notice.source();
    assert!(source.is_empty() || source.starts_with("faststream-"), "{source}");
    assert!(!notice.id().to_string().is_empty());
}

async fn the_misfit_is_a_dead_letter(bus: &Bus) {
    timeout(LONG, bus.settled()).await.expect("everything is settled").unwrap();
    let letters = bus.dead_letters().unwrap().find(DeadLetterQuery::default()).await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    let (_, letter) = &letters[0];
    assert_eq!((&*letter.group, letter.kind), ("interop.readings", FailureKind::Undecodable));
    assert_eq!((&*letter.envelope.id().to_string(), letter.attempts), ("misfit", 1));
    let payload: Value = serde_json::from_slice(letter.envelope.payload().unwrap()).unwrap();
    assert_eq!(payload, json!({ "sensor": 7 }));
}

/// A service that runs.
struct Python {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Python {
    fn begin(service: &str, url: &str) -> Self {
        let packages = address::setting("EVENTBUS_TEST_PYTHON").unwrap_or_else(|| {
            panic!("there are no clients for Python; run `cargo xtask brokers up`, or set EVENTBUS_TEST_PYTHON to a folder with them")
        });
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/interop/{service}_service.py"));
        let mut child = Command::new("python3")
            .arg("-B")
            .arg(script)
            .arg(url)
            .env("PYTHONPATH", packages)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("there is a python3");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> Option<String> {
        timeout(LONG, self.lines.next_line()).await.expect("the service goes on").unwrap()
    }

    /// Waits until it reads.
    async fn is_ready(&mut self) {
        assert_eq!(self.line().await.as_deref(), Some("ready"), "what failed is on standard error");
    }

    /// All events that it has seen, once it has ended.
    async fn told(mut self) -> Vec<Value> {
        let mut told = Vec::new();
        while let Some(line) = self.line().await {
            told.push(
                serde_json::from_str(&line).unwrap_or_else(|_| panic!("it prints events only: {line}")),
            );
        }
        let status = timeout(LONG, self.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "the service failed ({status}) after {} events", told.len());
        told
    }
}
