//! What was published can be read again: an event that its codec cannot carry, or that is written in another way than
//! it is read, is refused when it is published, on every broker.

mod support;

use bytes::Bytes;
use eventbus::event::Codec;
use eventbus::{BoxError, Bus, Envelope, Event, Outcome, PublishError, Topic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use support::{Log, Ping};

/// How many events of each type a release build reads back.
const FIRST: usize = 16;

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "sensor.read")]
struct SensorRead {
    celsius: f64,
    spread: Vec<Option<f32>>,
    by_place: BTreeMap<String, f64>,
}

fn read(celsius: f64) -> SensorRead {
    SensorRead { celsius, spread: vec![], by_place: BTreeMap::new() }
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "article.tagged")]
struct ArticleTagged {
    id: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Amount {
    wei: u128,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "coin.sent")]
struct CoinSent {
    #[serde(flatten)]
    amount: Amount,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "user.renamed")]
struct UserRenamed {
    #[serde(rename(serialize = "newName"))]
    name: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Change {
    Moved { x: i32 },
    Resized { x: i32, width: Option<u32> },
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "box.changed")]
struct BoxChanged {
    change: Change,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "field.forgotten")]
struct FieldForgotten {
    #[serde(skip_deserializing)]
    forgotten: u32,
    wei: u128,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "grid.filled")]
struct GridFilled {
    cells: BTreeMap<(u8, u8), u32>,
}

/// Writes a text and reads a number.
mod lopsided {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        u32::deserialize(deserializer)
    }
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "number.written")]
struct NumberWritten {
    #[serde(with = "lopsided")]
    number: u32,
}

fn panics<T>(_: &T) -> bool {
    panic!("no serialization today")
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "panic.written")]
struct PanicWritten {
    #[serde(skip_serializing_if = "panics", default)]
    number: u32,
}

/// On the in-process broker, where no event is encoded, and on the embedded log.
async fn everywhere<F: Future>(test: impl Fn(Bus) -> F) {
    let folder = tempfile::tempdir().unwrap();
    for url in ["memory:".to_owned(), format!("sqlite:{}", folder.path().join("log.db").display())] {
        test(Bus::builder().only([] as [&str; 0]).connect(&url).await.unwrap()).await;
    }
}

async fn is_refused<E: Event + Debug>(event: E, words: &[&str]) {
    everywhere(async |bus: Bus| {
        let error = bus.publish(&event).await.expect_err(E::META.name);
        let text = error.to_string();
        assert!(matches!(error, PublishError::Encode { .. } | PublishError::Unreadable { .. }), "{text}");
        for word in [&[E::META.topic], words].concat() {
            assert!(text.contains(word), "{word}: {text}");
        }
        let of_many = bus.publish_all(&[event.clone(), event.clone()]).await;
        assert!(of_many.iter().all(Result::is_err), "{of_many:?}");
    })
    .await;
}

#[tokio::test]
async fn a_number_without_a_form_in_json_is_refused_wherever_it_stands() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let number = odd.to_string();
        is_refused(read(odd), &["`celsius`", &number]).await;
        is_refused(SensorRead { spread: vec![None, Some(odd as f32)], ..read(1.0) }, &["`spread`"]).await;
        let by_place = BTreeMap::from([("sea".to_owned(), odd)]);
        is_refused(SensorRead { by_place, ..read(1.0) }, &["`by_place.sea`"]).await;
        everywhere(async |bus: Bus| {
            let error = bus.publish_to("sensor.read", &[Some(odd)]).await.unwrap_err();
            assert!(matches!(error, PublishError::Encode { .. }), "{error}");
            // Not only among the first events of a type.
            for _ in 0..2 * FIRST {
                bus.publish(read(21.5)).await.unwrap();
            }
            assert!(bus.publish(read(odd)).await.is_err());
        })
        .await;
    }
}

#[tokio::test]
async fn an_event_that_is_written_in_another_way_than_it_is_read_is_refused() {
    is_refused(
        ArticleTagged { id: 1, tags: vec![] },
        &["`ArticleTagged`", "readable.rs", "`tags`", "`default`"],
    )
    .await;
    is_refused(CoinSent { amount: Amount { wei: 5 } }, &["`CoinSent`", "u128"]).await;
    is_refused(UserRenamed { name: "Ada".to_owned() }, &["`name`"]).await;
    let change = Change::Resized { x: 1, width: Some(2) };
    is_refused(BoxChanged { change }, &["`change`, in it `width` comes back as something else"]).await;
    let _ = Change::Moved { x: 1 };
    for wei in [1, u128::MAX] {
        let event = FieldForgotten { forgotten: 7, wei };
        is_refused(event, &["`forgotten` comes back as something else"]).await;
    }
    is_refused(GridFilled { cells: BTreeMap::from([((1, 2), 3)]) }, &["`cells`", "list of pairs"]).await;
    is_refused(NumberWritten { number: 7 }, &["expected u32"]).await;
}

#[tokio::test]
async fn a_panic_in_the_serialization_of_an_event_refuses_it() {
    is_refused(PanicWritten { number: 7 }, &["no serialization today"]).await;
}

#[tokio::test]
async fn an_envelope_that_says_another_version_or_media_type_than_its_event_is_refused() {
    everywhere(async |bus: Bus| {
        let envelope = || Envelope::from_event(Ping { number: 1 });
        for odd in [
            envelope().with_version(7),
            envelope().with_content_type("text/plain"),
            envelope().with_type("x"),
        ] {
            let error = bus.publish_envelope(odd).await.unwrap_err();
            assert!(matches!(error, PublishError::Unreadable { .. }), "{error}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_returns_is_refused_too_and_its_delivery_becomes_a_dead_letter_that_says_so() {
    let (bus, broker) = support::bus().await;
    bus.on(|_: Arc<Ping>| async { ArticleTagged { id: 1, tags: vec![] } }).group("returns").await.unwrap();
    bus.on(|_: Arc<Ping>| async { Outcome::publish(read(f64::NAN)) }).group("outcome").await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let reason = |group| letters.iter().find(|(_, letter)| letter.group == group).unwrap().1.reason.clone();
    assert!(reason("returns").contains("`ArticleTagged`"), "{}", reason("returns"));
    assert!(reason("outcome").contains("NaN"), "{}", reason("outcome"));
    assert!(letters.iter().all(|(_, letter)| letter.attempts == 1), "trying again cannot help");
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "everything.sent")]
struct EverythingSent {
    set: HashSet<String>,
    map: HashMap<String, HashSet<u32>>,
    large: u128,
    small: i128,
    doubles: Vec<f64>,
    singles: Vec<f32>,
    bytes: Vec<u8>,
    at: std::time::SystemTime,
    by_number: BTreeMap<u64, char>,
    nothing: (),
    choice: Result<Option<String>, u8>,
    #[serde(skip)]
    cache: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

fn everything() -> EverythingSent {
    let words = || ["a", "b", "c", "d", "e"].map(str::to_owned);
    EverythingSent {
        set: words().into(),
        map: words().map(|word| (word, (0..20).collect())).into(),
        large: u128::MAX,
        small: i128::MIN,
        doubles: vec![0.1, -0.0, 1e23, f64::MAX, f64::MIN_POSITIVE, f64::from_bits(1)],
        singles: vec![0.1, -0.0, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)],
        bytes: (0..=255).collect(),
        at: std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123),
        by_number: BTreeMap::from([(u64::MAX, 'ß')]),
        nothing: (),
        choice: Ok(None),
        cache: None,
        note: None,
    }
}

#[tokio::test]
async fn what_can_be_read_again_is_published_in_whatever_order_it_comes_back() {
    everywhere(async |bus: Bus| {
        for cache in [None, Some(7)] {
            bus.publish(&EverythingSent { cache, ..everything() }).await.unwrap();
        }
    })
    .await;
    let bytes = Envelope::from_event(everything()).payload().unwrap().clone();
    let topic = eventbus::Topic::from_static("everything.sent");
    let stored = Envelope::from_bytes(topic, "application/json", bytes);
    assert_eq!(*stored.event::<EverythingSent>().unwrap(), everything());
}

/// Begins with what never comes again, as an encrypted payload does.
struct Salted;

impl Codec for Salted {
    const CONTENT_TYPE: &'static str = "application/x-salted";

    fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, BoxError> {
        let mut bytes = fastrand::u64(..).to_le_bytes().to_vec();
        serde_json::to_writer(&mut bytes, value)?;
        Ok(bytes.into())
    }

    fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
        Ok(serde_json::from_slice(&payload[8..])?)
    }
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "secret.told", codec = Salted)]
struct SecretTold {
    text: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    place: String,
}

#[tokio::test]
async fn an_event_is_read_back_through_its_own_codec_which_may_write_other_bytes_each_time() {
    let told = |place: &str| SecretTold { text: "gold".to_owned(), place: place.to_owned() };
    everywhere(async |bus: Bus| drop(bus.publish(told("cellar")).await.unwrap())).await;
    is_refused(told(""), &["`SecretTold`", "`place`"]).await;
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "number.counted")]
struct NumberCounted {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "Option::deserialize")]
    number: Option<u32>,
}

#[tokio::test]
async fn debug_builds_read_back_every_event_and_release_builds_the_first_of_each_type() {
    let (bus, _broker) = support::bus().await;
    for number in 0..FIRST as u32 {
        bus.publish(&NumberCounted { number: Some(number) }).await.unwrap();
    }
    let later = bus.publish(&NumberCounted { number: None }).await;
    assert_eq!(later.is_err(), cfg!(debug_assertions), "{later:?}");
    // Each type has its own count.
    assert!(bus.publish(&ArticleTagged { id: 1, tags: vec![] }).await.is_err());
}

/// How often the program was warned of something else than the event of a topic.
fn warnings(log: &Log) -> usize {
    log.text()
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("what is published is not"))
        .count()
}

#[tokio::test]
async fn a_value_that_is_not_the_event_of_its_topic_is_warned_of_once() {
    let (bus, _broker) = support::bus().await;
    let (log, _guard) = Log::capture();
    for _ in 0..3 {
        bus.publish_to("article.tagged", &json!({ "identifier": 1 })).await.unwrap();
    }
    assert_eq!(warnings(&log), usize::from(cfg!(debug_assertions)), "{}", log.text());
    if cfg!(debug_assertions) {
        assert!(log.text().contains("`ArticleTagged` (tests/readable.rs:"), "{}", log.text());
    }
    let bytes = |text: &'static str| {
        let topic = Topic::new("user.renamed").unwrap();
        Envelope::from_bytes(topic, text, Bytes::from_static(b"\x00"))
    };
    bus.publish_envelopes([bytes("application/json"), bytes("image/png")]).await;
    assert_eq!(warnings(&log), 2 * usize::from(cfg!(debug_assertions)), "{}", log.text());
}

#[tokio::test]
async fn a_value_that_can_be_read_as_the_event_of_its_topic_is_not_warned_of() {
    let (bus, _broker) = support::bus().await;
    let (log, _guard) = Log::capture();
    bus.publish_to("article.tagged", &json!({ "id": 1, "tags": [], "more": true })).await.unwrap();
    // Nobody has a type for it, or not in this version.
    bus.publish_to("article.removed", &1).await.unwrap();
    let later = Envelope::from_json(Topic::new("article.tagged").unwrap(), &1).unwrap().with_version(7);
    bus.publish_envelope(later).await.unwrap();
    assert_eq!(warnings(&log), 0, "{}", log.text());
}
