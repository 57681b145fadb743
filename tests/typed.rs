//! Typed events: shared in one process, decoded where they come as bytes, read in every older version.

mod support;

use bytes::Bytes;
use eventbus::event::Codec;
use eventbus::{Attempt, BoxError, Bus, Envelope, Event, Headers, Json, State, Topic, subscribe};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Seen, bus};

static ENCODED: AtomicUsize = AtomicUsize::new(0);
static DECODED: AtomicUsize = AtomicUsize::new(0);

/// JSON that counts how often it is asked.
struct Counting;

impl Codec for Counting {
    const CONTENT_TYPE: &'static str = "application/json";

    fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, BoxError> {
        ENCODED.fetch_add(1, Ordering::SeqCst);
        Json::encode(value)
    }

    fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, BoxError> {
        DECODED.fetch_add(1, Ordering::SeqCst);
        Json::decode(payload)
    }
}

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "value.counted", codec = Counting)]
struct Counted(u64);

#[tokio::test]
async fn an_event_is_not_encoded_where_both_ends_know_its_type_and_once_where_not() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    for group in ["a", "b"] {
        let seen = seen.clone();
        bus.on(move |event: Arc<Counted>| {
            let seen = seen.clone();
            async move { seen.push(event) }
        })
        .group(group)
        .await
        .unwrap();
    }
    bus.start().unwrap();
    // What reading back costs is known once the publish has returned; whatever comes beyond it is the delivery's.
    let counts = || (ENCODED.load(Ordering::SeqCst), DECODED.load(Ordering::SeqCst));
    let event = Arc::new(Counted(7));
    bus.publish(Arc::clone(&event)).await.unwrap();
    let published = counts();
    broker.settled().await;
    assert!(seen.len() == 2 && seen.all().iter().all(|seen| Arc::ptr_eq(seen, &event)), "it is shared");
    assert_eq!(counts(), published);
    let bytes = Seen::new();
    for group in ["c", "d"] {
        let bytes = bytes.clone();
        bus.on_topic("value.counted", move |delivery| {
            let bytes = bytes.clone();
            async move { bytes.push(delivery.envelope().payload().unwrap().clone()) }
        })
        .group(group)
        .await
        .unwrap();
    }
    bus.publish(Counted(8)).await.unwrap();
    broker.settled().await;
    let all = bytes.all();
    assert_eq!(all, ["8", "8"].map(Bytes::from));
    assert_eq!(all[0].as_ptr(), all[1].as_ptr(), "it is encoded once");
    if !cfg!(debug_assertions) {
        // Beyond the first events of a type nothing is read back, and nothing encoded.
        for number in 0..100 {
            bus.publish(Counted(number)).await.unwrap();
        }
        assert!(counts().1 < 100, "{:?}", counts());
    }
}

/// Not [`Counted`], whose counts belong to one test.
#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "value.read")]
struct Read(u64);

/// Every way in which JSON is written as a media type is JSON to a subscriber whose codec is.
#[tokio::test]
async fn a_payload_is_json_by_any_media_type_that_says_so() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let read = seen.clone();
    bus.on(move |event: Arc<Read>| {
        let read = read.clone();
        async move { read.push(event.0) }
    })
    .group("a")
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    let types = [
        "application/json",
        "application/JSON; charset=utf-8",
        "text/json",
        "application/vnd.shop.value+json",
        "Application/CloudEvents+JSON ; charset=utf-8",
        "",
    ];
    for (number, content_type) in types.iter().enumerate() {
        let payload = Bytes::from(number.to_string());
        let envelope = Envelope::from_bytes(Topic::from_static("value.read"), content_type, payload);
        bus.publish_envelope(envelope).await.unwrap();
    }
    let other = Envelope::from_bytes(Topic::from_static("value.read"), "text/plain", "7".into());
    bus.publish_envelope(other).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 1);
}

mod versions {
    use super::*;

    #[derive(Event, Clone, Serialize, Deserialize)]
    #[event(topic = "user.named")]
    pub(super) struct UserNamedV1 {
        pub(super) name: String,
    }

    #[derive(Event, Clone, Serialize, Deserialize)]
    #[event(topic = "user.named", version = 2, upcast_from = UserNamedV1)]
    pub(super) struct UserNamedV2 {
        pub(super) first: String,
        pub(super) last: String,
    }

    impl From<UserNamedV1> for UserNamedV2 {
        fn from(old: UserNamedV1) -> Self {
            let (first, last) = old.name.split_once(' ').unwrap_or((&old.name, ""));
            Self { first: first.to_owned(), last: last.to_owned() }
        }
    }

    #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[event(topic = "user.named", version = 3, upcast_from = UserNamedV2)]
    pub(super) struct UserNamed {
        pub(super) sorted: String,
    }

    impl From<UserNamedV2> for UserNamed {
        fn from(old: UserNamedV2) -> Self {
            Self { sorted: format!("{}, {}", old.last, old.first) }
        }
    }
}

#[tokio::test]
async fn a_subscriber_reads_every_older_version_of_its_event() {
    use versions::{UserNamed, UserNamedV1, UserNamedV2};

    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let names = seen.clone();
    bus.on(move |user: Arc<UserNamed>| {
        let names = names.clone();
        async move { names.push(user.sorted.clone()) }
    })
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&UserNamedV1 { name: "Ada Lovelace".into() }).await.unwrap();
    bus.publish(&UserNamedV2 { first: "Alan".into(), last: "Turing".into() }).await.unwrap();
    let outside = serde_json::json!({ "name": "Grace Hopper" });
    bus.publish_envelope(Envelope::from_json(Topic::from_static("user.named"), &outside).unwrap())
        .await
        .unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), ["Lovelace, Ada", "Turing, Alan", "Hopper, Grace"]);
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "door.opened", key = door, subject = room)]
struct DoorOpened {
    door: u32,
    room: String,
}

type Facts = Seen<String>;

#[subscribe]
async fn by_value(event: DoorOpened, facts: State<Facts>) {
    facts.push(format!("value {}", event.door));
}

#[subscribe]
async fn by_reference(facts: State<Facts>, event: &DoorOpened) {
    facts.push(format!("reference {}", event.room));
}

#[subscribe]
async fn by_arc(event: Arc<DoorOpened>, Attempt(attempt): Attempt, facts: State<Facts>) {
    facts.push(format!("arc {} attempt {attempt}", event.door));
}

#[subscribe("door.*")]
async fn by_envelope(envelope: &Envelope, facts: State<Facts>) {
    facts.push(format!("envelope {:?} {:?}", envelope.key(), envelope.subject()));
}

#[subscribe("door.>")]
async fn by_json(Json(door): Json<serde_json::Value>, facts: State<Facts>) {
    facts.push(format!("json {}", door["room"]));
}

#[subscribe("door.opened")]
async fn by_bytes(bytes: Bytes, headers: Headers, facts: State<Facts>) {
    facts.push(format!("bytes {} {:?}", bytes.len(), headers.get("floor")));
}

#[subscribe]
fn in_place(event: &DoorOpened, facts: State<Facts>) {
    facts.push(format!("sync {}", event.door));
}

#[subscribe(blocking)]
fn on_a_blocking_thread(event: DoorOpened, facts: State<Facts>) -> Result<(), std::num::ParseIntError> {
    facts.push(format!("blocking {} {:?}", event.door, std::thread::current().name().is_some()));
    Ok(())
}

struct Doors {
    facts: Facts,
}

#[eventbus::subscriber]
impl Doors {
    #[subscribe]
    async fn count(&self, event: &DoorOpened) {
        self.facts.push(format!("method {}", event.door));
    }
}

#[tokio::test]
async fn a_handler_takes_what_it_names_in_any_order() {
    let facts: Facts = Seen::new();
    let broker = eventbus::memory::MemoryBroker::new();
    let builder = Bus::builder().state(facts.clone()).state(Doors { facts: facts.clone() });
    let bus = builder.broker(broker.clone()).await.unwrap();
    bus.start().unwrap();
    let event = DoorOpened { door: 7, room: "hall".into() };
    bus.publish(&event).header("Floor", "2").await.unwrap();
    broker.settled().await;
    let mut typed = facts.all();
    typed.sort_unstable();
    let expected = [
        "arc 7 attempt 1",
        "blocking 7 true",
        "bytes 24 Some(\"2\")",
        "envelope Some(\"7\") Some(\"hall\")",
        "json \"hall\"",
        "method 7",
        "reference hall",
        "sync 7",
        "value 7",
    ];
    assert_eq!(typed, expected);
    // The same event as bytes, as it comes from outside: every handler reads the same.
    let bytes = Envelope::from_json(Topic::from_static("door.opened"), &event).unwrap();
    let bytes = bytes.with_key(7).with_subject("hall").with_header("floor", "2");
    bus.publish_envelope(bytes).await.unwrap();
    broker.settled().await;
    let mut decoded = facts.all().split_off(typed.len());
    decoded.sort_unstable();
    assert_eq!(decoded, expected);
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_handler_is_a_plain_function() {
    let facts: Facts = Seen::new();
    by_value(DoorOpened { door: 1, room: "hall".into() }, State::new(facts.clone())).await;
    in_place(&DoorOpened { door: 2, room: "hall".into() }, State::new(facts.clone()));
    assert_eq!(facts.all(), ["value 1", "sync 2"]);
}
