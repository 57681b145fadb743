//! Code of others panics wherever it is called: one delivery fails, or one publish, and nothing else happens.

mod support;

use eventbus::broker::FailureKind;
use eventbus::bus::BusBuilder;
use eventbus::extract::FromBatch;
use eventbus::middleware::{Next, from_fn};
use eventbus::observe::{Attempted, Observer};
use eventbus::{
    Backoff, Bus, Delivery, Envelope, Event, EventId, FromDelivery, Outcome, PublishError, State, Topic,
    subscribe,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use support::{Log, OrderPlaced, Seen};
use tower::{Layer, Service};

/// Where an event makes code of others panic.
type Place = &'static str;

const NOWHERE: Place = "nowhere";
const EXTRACTOR: Place = "an extractor";
const DESERIALIZE: Place = "Deserialize";
const CLONE: Place = "Clone";
const CLOSURE: Place = "a closure";
const BODY: Place = "the handler";
const PAYLOAD: Place = "the destructor of what was thrown";
const LOCAL: Place = "the destructor of a local";
const TIMEOUT: Place = "the destructor of a future that timed out";
const FUTURE: Place = "the destructor of a future that has answered";
const DISPLAY: Place = "the display of an error";
const SOURCE: Place = "the source of an error";
const KEY: Place = "the key of a returned event";
const SUBJECT: Place = "the subject of a returned event";
const SERIALIZE: Place = "Serialize of a returned event";
const LAYER_CALL: Place = "the call of a layer";
const LAYER_POLL: Place = "the future of a layer";
const LAYER_DROP: Place = "the destructor of a layer's future";
const LAYER_ERROR: Place = "the display of a layer's error";

/// Panics, where an event says so.
fn here(place: Place, at: &str) {
    assert!(at != place, "at {place}");
}

/// Panics are expected here, and need no line each.
fn quiet() {
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.payload_as_str();
            if text.is_some_and(|text| !text.starts_with("at ")) {
                loud(panic);
            }
        }));
    });
}

/// An event that panics where it says.
#[derive(Event, Debug, Serialize)]
#[event(topic = "fragile.sent", key = lane)]
struct Fragile {
    number: u64,
    lane: u64,
    at: String,
}

impl Fragile {
    fn new(number: u64, at: &str) -> Self {
        Self { number, lane: number % 3, at: at.to_owned() }
    }
}

impl Clone for Fragile {
    fn clone(&self) -> Self {
        here(CLONE, &self.at);
        Self { number: self.number, lane: self.lane, at: self.at.clone() }
    }
}

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Plain {
            number: u64,
            at: String,
        }

        let Plain { number, at } = Plain::deserialize(from)?;
        here(DESERIALIZE, &at);
        Ok(Self::new(number, &at))
    }
}

/// An event that handlers return.
#[derive(Event, Clone, Debug, Deserialize)]
#[event(topic = "answer.given", key = key, subject = subject)]
struct Answer {
    key: KeyOf,
    subject: SubjectOf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeyOf(String);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SubjectOf(String);

impl Answer {
    fn to(at: &str) -> Self {
        Self { key: KeyOf(at.to_owned()), subject: SubjectOf(at.to_owned()) }
    }
}

impl fmt::Display for KeyOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        here(KEY, &self.0);
        f.write_str("key")
    }
}

impl fmt::Display for SubjectOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        here(SUBJECT, &self.0);
        f.write_str("subject")
    }
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        here(SERIALIZE, &self.key.0);
        (&self.key, &self.subject).serialize(to)
    }
}

/// An argument that panics as it is taken.
struct Picky;

impl FromDelivery<'_> for Picky {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        here(EXTRACTOR, &delivery.event::<Fragile>()?.at);
        Ok(Self)
    }
}

impl FromBatch<'_> for Picky {
    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        deliveries.iter().try_for_each(|delivery| Self::from_delivery(delivery).map(drop))?;
        Ok(Self)
    }
}

/// An error that panics as it is asked.
#[derive(Debug)]
struct Shy(String);

impl fmt::Display for Shy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        here(DISPLAY, &self.0);
        here(LAYER_ERROR, &self.0);
        f.write_str("shy")
    }
}

impl Error for Shy {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        here(SOURCE, &self.0);
        None
    }
}

/// Panics when it is dropped.
struct Armed(Place, String);

impl Drop for Armed {
    fn drop(&mut self) {
        here(self.0, &self.1);
    }
}

/// What every handler does, unless it panics.
fn handle(event: &Fragile) -> Result<(), Shy> {
    here(BODY, &event.at);
    if event.at == PAYLOAD {
        std::panic::panic_any(Armed(PAYLOAD, event.at.clone()));
    }
    let _local = Armed(LOCAL, event.at.clone());
    match event.at.as_str() {
        DISPLAY | SOURCE => Err(Shy(event.at.clone())),
        _ => Ok(()),
    }
}

/// As `handle`, and it waits where that is to be cut off.
async fn handle_or_wait(event: &Fragile) -> Result<(), Shy> {
    let _local = Armed(TIMEOUT, if event.at == TIMEOUT { event.at.clone() } else { String::new() });
    if event.at == TIMEOUT {
        std::future::pending::<()>().await;
    }
    handle(event)
}

#[subscribe(concurrency = 2)]
async fn single(event: Fragile, _: Picky, seen: State<Seen<u64>>) -> Result<Answer, Shy> {
    handle_or_wait(&event).await?;
    seen.push(event.number);
    Ok(Answer::to(&event.at))
}

#[subscribe(concurrency = 2, batch = 4, linger = "1ms")]
async fn batch(events: Vec<Fragile>, _: Picky, seen: State<Seen<u64>>) -> Vec<Result<(), Shy>> {
    let mut answers = Vec::new();
    for event in &events {
        let answer = handle_or_wait(event).await;
        answers.push(answer);
    }
    let handled = events.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
    handled.for_each(|(event, _)| seen.push(event.number));
    answers
}

#[subscribe(concurrency = 2, blocking)]
fn blocking(event: Fragile, _: Picky, seen: State<Seen<u64>>) -> Result<Answer, Shy> {
    handle(&event)?;
    seen.push(event.number);
    Ok(Answer::to(&event.at))
}

/// A layer that panics where the event says.
#[derive(Clone)]
struct Brittle;

#[derive(Clone)]
struct BrittleService<S>(S);

impl<S> Layer<S> for Brittle {
    type Service = BrittleService<S>;

    fn layer(&self, inner: S) -> BrittleService<S> {
        BrittleService(inner)
    }
}

impl<S> Service<Delivery> for BrittleService<S>
where
    S: Service<Delivery, Response = Outcome, Error = std::convert::Infallible, Future: Send + Unpin>,
{
    type Response = Outcome;
    type Error = Shy;
    type Future = BrittleFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Shy>> {
        self.0.poll_ready(context).map_err(|never| match never {})
    }

    fn call(&mut self, delivery: Delivery) -> BrittleFuture<S::Future> {
        let at = match serde_json::from_slice::<serde_json::Value>(delivery.envelope().payload().unwrap()) {
            Ok(event) => event["at"].as_str().unwrap().to_owned(),
            Err(error) => panic!("{error}"),
        };
        here(LAYER_CALL, &at);
        BrittleFuture(self.0.call(delivery), Armed(LAYER_DROP, at))
    }
}

struct BrittleFuture<F>(F, Armed);

impl<F: Future<Output = Result<Outcome, std::convert::Infallible>> + Unpin> Future for BrittleFuture<F> {
    type Output = Result<Outcome, Shy>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.1.1 == LAYER_POLL {
            // What is thrown while it is polled must not throw again as it unwinds.
            here(LAYER_POLL, LAYER_POLL);
        }
        if self.1.1 == LAYER_ERROR {
            return Poll::Ready(Err(Shy(LAYER_ERROR.to_owned())));
        }
        Pin::new(&mut self.0).poll(context).map_err(|never| match never {})
    }
}

/// A closure of `bus.on`: it may panic before there is a future, and its future may do so when it is dropped.
fn closure(seen: &Seen<u64>) -> impl Fn(Arc<Fragile>) -> ClosureFuture + Send + Sync + 'static {
    let seen = seen.clone();
    move |event| {
        here(CLOSURE, &event.at);
        let armed = Armed(FUTURE, event.at.clone());
        let seen = seen.clone();
        let answer = Box::pin(async move {
            handle_or_wait(&event).await?;
            seen.push(event.number);
            Ok(Answer::to(&event.at))
        });
        ClosureFuture(answer, armed)
    }
}

struct ClosureFuture(
    Pin<Box<dyn Future<Output = Result<Answer, Shy>> + Send>>,
    #[allow(dead_code, reason = "dropped")] Armed,
);

impl Future for ClosureFuture {
    type Output = Result<Answer, Shy>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context)
    }
}

/// A kind of handler, and where its events may panic.
struct Kind {
    name: &'static str,
    places: &'static [&'static [Place]],
    /// The handler of the registry; none for a closure.
    group: Option<&'static str>,
    layered: bool,
}

const OF_EVENTS: &[Place] = &[DESERIALIZE, CLONE];
const OF_ARGUMENTS: &[Place] = &[EXTRACTOR];
const OF_HANDLERS: &[Place] = &[BODY, PAYLOAD, LOCAL, DISPLAY, SOURCE];
const OF_FUTURES: &[Place] = &[TIMEOUT];
const OF_CLOSURES: &[Place] = &[DESERIALIZE, CLOSURE, FUTURE];
const OF_ANSWERS: &[Place] = &[KEY, SUBJECT, SERIALIZE];
const OF_LAYERS: &[Place] = &[LAYER_CALL, LAYER_POLL, LAYER_DROP, LAYER_ERROR];

fn kinds() -> Vec<Kind> {
    let of = |name, group, layered, places| Kind { name, places, group, layered };
    let (one, many) = (single::SUBSCRIBER.as_ref(), batch::SUBSCRIBER.as_ref());
    vec![
        of("single", Some(one), false, &[OF_EVENTS, OF_ARGUMENTS, OF_HANDLERS, OF_FUTURES, OF_ANSWERS]),
        of(
            "layered",
            Some(one),
            true,
            &[OF_LAYERS, OF_EVENTS, OF_ARGUMENTS, OF_HANDLERS, OF_FUTURES, OF_ANSWERS],
        ),
        of("batch", Some(many), false, &[OF_EVENTS, OF_ARGUMENTS, OF_HANDLERS, OF_FUTURES]),
        of("layered batch", Some(many), true, &[OF_LAYERS, OF_EVENTS, OF_ARGUMENTS, OF_HANDLERS, OF_FUTURES]),
        of(
            "blocking",
            Some(blocking::SUBSCRIBER.as_ref()),
            false,
            &[OF_EVENTS, OF_ARGUMENTS, OF_HANDLERS, OF_ANSWERS],
        ),
        of("run-time", None, false, &[OF_CLOSURES, OF_HANDLERS, OF_FUTURES, OF_ANSWERS]),
        of("layered run-time", None, true, &[OF_LAYERS, OF_CLOSURES, OF_HANDLERS, OF_FUTURES, OF_ANSWERS]),
    ]
}

/// What every test ends with: nothing is left over, the group goes on, and the bus ends as always.
async fn goes_on(bus: &Bus, seen: &Seen<u64>) {
    const LAST: u64 = 1_000;
    settled(bus).await;
    bus.publish(Fragile::new(LAST, NOWHERE)).await.unwrap();
    settled(bus).await;
    assert!(seen.all().contains(&LAST), "the group goes on");
    bus.shutdown().await.unwrap();
}

async fn settled(bus: &Bus) {
    tokio::time::timeout(Duration::from_secs(60), bus.settled())
        .await
        .expect("everything is settled")
        .unwrap();
}

/// A bus on a broker of its own.
async fn connect(builder: BusBuilder, url: &str, folder: &tempfile::TempDir) -> Bus {
    match url {
        "memory:" => builder.connect(url).await.unwrap(),
        _ => builder.connect(&format!("{url}{}", folder.path().join("log.db").display())).await.unwrap(),
    }
}

/// Some events that panic among others that do not: the former become dead letters that say why, and the latter are
/// handled.
async fn others_are_handled(url: &str, kind: &Kind, failing: &[Place]) {
    let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
    let mut builder = Bus::builder()
        .only(kind.group)
        .state(seen.clone())
        .retries(1)
        .backoff(Backoff::parse("1ms..2ms"))
        .timeout(Duration::from_millis(20));
    if kind.layered {
        builder = builder.layer(Brittle);
    }
    let bus = connect(builder, url, &folder).await;
    if kind.group.is_none() {
        bus.on(closure(&seen)).group("closure").concurrency(2).await.unwrap();
    }
    bus.start().unwrap();
    let (mut good, mut bad) = (Vec::new(), BTreeMap::new());
    let mut numbers = 0..;
    let mut events = Vec::new();
    for place in failing {
        for at in [NOWHERE, NOWHERE, place, NOWHERE, NOWHERE] {
            let number = numbers.next().unwrap();
            if at == NOWHERE {
                good.push(number)
            } else {
                bad.extend([(number, at)])
            }
            events.push(Fragile::new(number, at));
        }
    }
    for event in events {
        if event.at == DESERIALIZE {
            let envelope = Envelope::from_json(Topic::from_static("fragile.sent"), &event).unwrap();
            bus.publish_envelope(envelope.with_key(event.lane)).await.unwrap();
        } else {
            bus.publish(event).await.unwrap();
        }
    }
    settled(&bus).await;
    let case = format!("{} on {url}, {failing:?}", kind.name);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let mut told = BTreeMap::new();
    for (_, letter) in &letters {
        let payload: serde_json::Value = serde_json::from_slice(letter.envelope.payload().unwrap()).unwrap();
        let number = payload["number"].as_u64().unwrap();
        let text = bad.get(&number).copied().map(expected_text).unwrap_or_default();
        let said = if letter.reason.ends_with(&text) { text } else { letter.reason.clone() };
        assert_eq!(told.insert(number, (letter.kind, said)), None, "{case}: one dead letter each");
    }
    let expected = bad.iter().map(|(number, place)| (*number, (expected_kind(place), expected_text(place))));
    assert_eq!(told, expected.collect(), "{case}: the dead letters");
    let mut handled = seen.all();
    handled.retain(|number| !bad.contains_key(number));
    handled.sort_unstable();
    handled.dedup();
    assert_eq!(handled, good, "{case}: what was handled");
    goes_on(&bus, &seen).await;
}

/// What a dead letter of a place says.
fn expected_kind(place: Place) -> FailureKind {
    if place == TIMEOUT { FailureKind::TimedOut } else { FailureKind::Panicked }
}

fn expected_text(place: Place) -> String {
    match place {
        PAYLOAD => "a panic with a value that is no text".to_owned(),
        _ => format!("at {place}"),
    }
}

/// The places of a kind on a broker. What the log reads from its file is decoded, and not cloned.
fn places(kind: &Kind, url: &str) -> Vec<Place> {
    let all = kind.places.iter().flat_map(|places| places.iter().copied());
    all.filter(|place| !(*place == CLONE && url == "sqlite:")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_panics_anywhere_is_one_dead_letter_and_the_others_are_handled() {
    quiet();
    for url in ["memory:", "sqlite:"] {
        for kind in kinds() {
            for place in places(&kind, url) {
                others_are_handled(url, &kind, &[place]).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_panic_everywhere_at_once_are_a_dead_letter_each() {
    quiet();
    for url in ["memory:", "sqlite:"] {
        for kind in kinds() {
            others_are_handled(url, &kind, &places(&kind, url)).await;
        }
    }
}

#[subscribe("order.placed", batch = 4, linger = "10s", retries = 1)]
async fn parted(
    orders: Vec<OrderPlaced>,
    delivery: Attempts,
    seen: State<Seen<u64>>,
) -> Result<(), &'static str> {
    assert!(orders.len() == 1, "at a batch of several");
    if orders[0].number == 1 && delivery.0 == 1 {
        return Err("try again");
    }
    seen.push(orders[0].number);
    Ok(())
}

/// Which attempt the first member of a batch is.
struct Attempts(u32);

impl FromBatch<'_> for Attempts {
    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        Ok(Self(deliveries[0].attempt()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_members_of_a_batch_that_panicked_are_handled_alone_in_the_order_of_their_key() {
    quiet();
    let seen = Seen::<u64>::new();
    let bus = Bus::builder().only([parted::SUBSCRIBER]).state(seen.clone()).connect("memory:").await.unwrap();
    for number in 0..4 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.all(), [0, 1, 2, 3]);
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
    bus.shutdown().await.unwrap();
}

/// Panics as it is told anything.
struct Nervous;

impl Observer for Nervous {
    fn published(&self, _: &Arc<Envelope>) {
        panic!("at an observer of publishes");
    }

    fn attempted(&self, _: &Delivery, _: &Attempted) {
        panic!("at an observer of attempts");
    }
}

#[tokio::test]
async fn an_observer_or_a_hook_that_panics_is_an_error_line_and_affects_nothing() {
    quiet();
    for url in ["memory:", "sqlite:"] {
        let (log, _guard) = Log::capture();
        let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
        let builder = Bus::builder()
            .only([single::SUBSCRIBER, batch::SUBSCRIBER])
            .state(seen.clone())
            .retries(0)
            .observer(Nervous)
            .on_publish(|_| panic!("at a hook"))
            .on_publish(|envelope| envelope.headers_mut().insert("tenant", "acme"));
        let bus = connect(builder, url, &folder).await;
        bus.start().unwrap();
        for (number, at) in [(0, NOWHERE), (1, BODY), (2, NOWHERE)] {
            bus.publish(Fragile::new(number, at)).await.unwrap();
        }
        settled(&bus).await;
        let letters = bus.dead_letters().unwrap().list().await.unwrap();
        for (_, letter) in letters.iter().filter(|(_, letter)| letter.group == single::SUBSCRIBER.as_ref()) {
            assert_eq!(letter.reason, "at the handler");
            assert_eq!(letter.envelope.headers().get("tenant"), Some("acme"));
        }
        goes_on(&bus, &seen).await;
        let text = log.text();
        for place in ["at an observer of publishes", "at an observer of attempts", "at a hook"] {
            let told = |line: &str| line.contains("ERROR") && line.contains(place);
            assert!(text.lines().any(told), "{place} on {url}: {text}");
        }
    }
}

/// What a publisher is answered.
fn told(result: Result<EventId, PublishError>) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(PublishError::Encode { topic, cause }) => Err(format!("{topic}: {cause}")),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_event_that_panics_as_it_is_published_is_an_error_for_its_publisher_alone() {
    struct Loud;
    impl fmt::Display for Loud {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("at a key of the publisher's own");
        }
    }

    quiet();
    for url in ["memory:", "sqlite:"] {
        let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
        let bus = connect(Bus::builder().without_subscriptions(), url, &folder).await;
        bus.on(closure(&seen)).group("closure").await.unwrap();
        let answers = Seen::<String>::new();
        let noted = answers.clone();
        let note = move |delivery: Delivery| {
            noted.push(delivery.envelope().id().to_string());
            async {}
        };
        bus.on_topic("answer.given", note).group("answers").await.unwrap();
        bus.start().unwrap();
        let borrowed = Fragile::new(0, CLONE);
        let clone = told(bus.publish(&borrowed).await);
        assert_eq!(clone, Err(format!("fragile.sent: panicked: at {CLONE}")));
        let places = [KEY, SUBJECT, SERIALIZE];
        for place in places {
            let failed = Err(format!("answer.given: panicked: at {place}"));
            assert_eq!(told(bus.publish(Answer::to(place)).await), failed);
            let mates = [NOWHERE, place, NOWHERE].map(|at| Arc::new(Answer::to(at)));
            let results: Vec<_> = bus.publish_all(mates).await.into_iter().map(told).collect();
            assert_eq!(results, [Ok(()), failed, Ok(())], "the mates of a batch on {url}");
        }
        let key = told(bus.publish(Answer::to(NOWHERE)).key(Loud).await);
        assert_eq!(key, Err("answer.given: panicked: at a key of the publisher's own".to_owned()));
        let json = told(bus.publish_to("answer.given", &Answer::to(SERIALIZE)).await);
        assert_eq!(json, Err(format!("answer.given: panicked: at {SERIALIZE}")));
        settled(&bus).await;
        assert_eq!(answers.len(), 2 * places.len(), "what was published is handled");
        goes_on(&bus, &seen).await;
    }
}

/// An event whose last copy panics as it is dropped, wherever that is.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "bomb.sent", key = number)]
struct Bomb {
    number: u64,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "at the destructor of an event");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_panics_as_it_is_dropped_is_handled_and_a_bus_drops_what_it_keeps() {
    quiet();
    for url in ["memory:", "sqlite:"] {
        let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
        let armed = |what: &str| Arc::new(Armed(FUTURE, what.to_owned()));
        let (observer, layer, state, hook) = (armed(FUTURE), armed(FUTURE), armed(FUTURE), armed(FUTURE));
        let builder = Bus::builder()
            .without_subscriptions()
            .shared_state(state)
            .observer(Keeping(observer))
            .layer(from_fn(move |delivery: Delivery, next: Next| {
                let _layer = &layer;
                next.run(delivery)
            }))
            .on_publish(move |_| {
                let _hook = &hook;
            });
        let bus = connect(builder, url, &folder).await;
        let (numbers, kept) = (seen.clone(), armed(FUTURE));
        let note = move |bomb: Arc<Bomb>| {
            let _kept = &kept;
            numbers.push(bomb.number);
            // The caller's copy is not the last one, unless the broker has let go of its own.
            std::mem::forget(bomb);
            async {}
        };
        bus.on(note).group("bombs").await.unwrap();
        let bytes = seen.clone();
        bus.on_topic("bomb.sent", move |delivery| {
            bytes.push(100 + u64::from(delivery.attempt()));
            async {}
        })
        .group("any")
        .await
        .unwrap();
        bus.start().unwrap();
        for number in 0..3 {
            bus.publish(Bomb { number }).await.unwrap();
        }
        settled(&bus).await;
        let mut all = seen.all();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 101, 101, 101], "on {url}");
        assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
        bus.shutdown().await.unwrap();
        drop(bus);
    }
}

/// An observer that keeps something whose destructor panics.
struct Keeping(#[allow(dead_code, reason = "dropped")] Arc<Armed>);

impl Observer for Keeping {}

#[tokio::test]
async fn what_is_told_of_a_replay_may_panic_and_a_swap_that_panics_leaves_the_live_subscription() {
    quiet();
    let (log, _guard) = Log::capture();
    let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
    let bus = connect(Bus::builder().without_subscriptions(), "sqlite:", &folder).await;
    bus.on(closure(&seen)).group("closure").await.unwrap();
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(Fragile::new(number, NOWHERE)).await.unwrap();
    }
    settled(&bus).await;
    let report = bus.replay("closure").on_progress(|_| panic!("at the progress of a replay")).await.unwrap();
    assert!(report.is_complete());
    let told = |line: &str| line.contains("ERROR") && line.contains("at the progress of a replay");
    assert!(log.text().lines().any(told));
    let swapped = bus.rebuild("closure").swap(|| async {
        if true {
            panic!("at a swap");
        }
        Ok::<(), Shy>(())
    });
    let error = swapped.await.unwrap_err().to_string();
    assert!(
        error.contains("`swap` could not put the new model in place") && error.ends_with("at a swap"),
        "{error}"
    );
    goes_on(&bus, &seen).await;
}

/// A layer's service that panics once, where that is asked of it: nothing that it is called for knows an event.
struct Once<S>(S, Arc<Mutex<Option<Place>>>);

const SERVICE_CLONE: Place = "the clone of a service";
const SERVICE_READY: Place = "the readiness of a service";

impl<S> Once<S> {
    fn at(&self, place: Place) {
        let burnt = self.1.lock().unwrap().take_if(|armed| *armed == place).is_some();
        assert!(!burnt, "at {place}");
    }
}

impl<S: Clone> Clone for Once<S> {
    fn clone(&self) -> Self {
        self.at(SERVICE_CLONE);
        Self(self.0.clone(), Arc::clone(&self.1))
    }
}

impl<S: Service<Delivery>> Service<Delivery> for Once<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.at(SERVICE_READY);
        self.0.poll_ready(context)
    }

    fn call(&mut self, delivery: Delivery) -> S::Future {
        self.0.call(delivery)
    }
}

#[tokio::test]
async fn a_service_that_panics_as_it_is_prepared_fails_one_attempt() {
    quiet();
    for group in [single::SUBSCRIBER.as_ref(), batch::SUBSCRIBER.as_ref()] {
        for place in [SERVICE_CLONE, SERVICE_READY] {
            let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
            let armed = Arc::new(Mutex::new(None));
            let fuse = Arc::clone(&armed);
            let layer = tower::layer::layer_fn(move |inner| Once(inner, Arc::clone(&fuse)));
            let builder = Bus::builder().only([group]).state(seen.clone()).retries(0).layer(layer);
            let bus = connect(builder, "memory:", &folder).await;
            *armed.lock().unwrap() = Some(place);
            bus.start().unwrap();
            for number in 0..5 {
                bus.publish(Fragile::new(number, NOWHERE)).await.unwrap();
            }
            settled(&bus).await;
            let letters = bus.dead_letters().unwrap().list().await.unwrap();
            let whys: Vec<_> = letters.iter().map(|(_, letter)| letter.reason.clone()).collect();
            assert_eq!((whys, seen.len()), (vec![format!("at {place}")], 4), "{group}");
            goes_on(&bus, &seen).await;
        }
    }
}

/// A log that panics once, at a line of the worker's own.
#[derive(Clone)]
struct Faulty(Arc<Mutex<bool>>);

impl std::io::Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let burnt =
            line.contains("it is tried again") && !std::mem::replace(&mut *self.0.lock().unwrap(), true);
        assert!(!burnt, "at a line of the log");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_where_nobody_foresaw_it_fails_its_delivery_and_goes_on() {
    quiet();
    for group in [single::SUBSCRIBER.as_ref(), batch::SUBSCRIBER.as_ref()] {
        let burnt = Arc::new(Mutex::new(false));
        let faulty = Faulty(Arc::clone(&burnt));
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || faulty.clone()).finish();
        let _guard = tracing::subscriber::set_default(log);
        let (folder, seen) = (tempfile::tempdir().unwrap(), Seen::<u64>::new());
        let builder = Bus::builder().only([group]).state(seen.clone()).retries(1).concurrency(1);
        let bus = connect(builder, "memory:", &folder).await;
        bus.start().unwrap();
        for (number, at) in [(0, NOWHERE), (1, DISPLAY), (2, NOWHERE), (3, NOWHERE)] {
            bus.publish(Fragile::new(number, at)).await.unwrap();
        }
        settled(&bus).await;
        assert!(*burnt.lock().unwrap());
        let letters = bus.dead_letters().unwrap().list().await.unwrap();
        let whys: Vec<_> =
            letters.iter().map(|(_, letter)| (letter.attempts, letter.reason.clone())).collect();
        assert_eq!(whys, [(2, format!("at {DISPLAY}"))], "{group}");
        let mut handled = seen.all();
        handled.sort_unstable();
        handled.dedup();
        assert_eq!(handled, [0, 2, 3], "{group}");
        goes_on(&bus, &seen).await;
    }
}
