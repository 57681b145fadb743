//! What is asked of the server fails, each request in turn, and nothing that was promised is broken by that.

use crate::broker::NatsBroker;
use crate::notes;
use crate::subscription::BYTES;
use eventbus_core::broker::{
    Broker, DeadLetterQuery, Deliveries, Groups, Offset, Parked, Received, Start, SubscribeRequest,
};
use eventbus_core::lock::{Lock, Rank};
use eventbus_core::{BrokerError, Envelope, Pattern, Topic};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[path = "../../eventbus-server/tests/support/servers.rs"]
#[allow(unreachable_pub, reason = "tests of other kinds use it from outside")]
mod servers;

/// As long as anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What fails of what is asked of the server.
#[derive(Debug)]
pub(crate) struct Faults(Lock<Option<Fault>>);

#[derive(Debug)]
struct Fault {
    /// Only what is asked under such subjects.
    about: &'static str,
    /// After so many of them, everything fails.
    after: usize,
    /// The first that fails is done, and its answer is lost.
    is_done: bool,
    /// How many have failed.
    met: usize,
}

impl Default for Faults {
    fn default() -> Self {
        Self(Lock::new(Rank::LEAF, None))
    }
}

impl Faults {
    fn begin(&self, about: &'static str, after: usize, is_done: bool) {
        *self.0.lock() = Some(Fault { about, after, is_done, met: 0 });
    }

    fn end(&self) -> usize {
        self.0.lock().take().map_or(0, |fault| fault.met)
    }

    fn met(&self) -> usize {
        self.0.lock().as_ref().map_or(0, |fault| fault.met)
    }

    /// Something is asked. `true`: it is done, and its answer is lost.
    pub(crate) fn meet<E>(&self, subject: &str, error: E) -> Result<bool, E> {
        let mut fault = self.0.lock();
        let Some(fault) = fault.as_mut().filter(|fault| subject.contains(fault.about)) else {
            return Ok(false);
        };
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(false);
        }
        fault.met += 1;
        if fault.is_done && fault.met == 1 { Ok(true) } else { Err(error) }
    }
}

/// A stream of its own, which is removed at the end.
pub(crate) struct Place(String);

impl Place {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let since = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros();
        Self(format!("F{since:x}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) async fn broker(&self) -> NatsBroker {
        self.broker_with("2s").await
    }

    /// One whose groups nobody takes away because the machine stands still.
    async fn patient_broker(&self) -> NatsBroker {
        self.broker_with("60s").await
    }

    async fn broker_with(&self, ack_wait: &str) -> NatsBroker {
        let server = servers::setting("EVENTBUS_TEST_NATS_URL")
            .expect("`cargo xtask brokers up nats` begins a server");
        let name = &self.0;
        let url = format!("{server}?stream={name}&prefix={name}&ack_wait={ack_wait}");
        NatsBroker::builder(&url).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn remove(self) {
        let broker = self.broker().await;
        let context = async_nats::jetstream::new(broker.client());
        for stream in [self.0.clone(), format!("{}-DEAD", self.0), format!("KV_{}-PARKED", self.0)] {
            let _ = context.delete_stream(stream).await;
        }
    }
}

async fn subscribe(broker: &NatsBroker, group: &str) -> Box<dyn Deliveries> {
    let mut request = SubscribeRequest::new(group, Pattern::new(">").unwrap());
    request.start = Start::Earliest;
    broker.subscribe(request).await.unwrap()
}

async fn receive(deliveries: &mut Box<dyn Deliveries>, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    while received.len() < count {
        let left = count - received.len();
        let more = poll_fn(|context| deliveries.poll_receive(context, &mut received, left));
        tokio::time::timeout(PATIENCE, more).await.expect("something comes").unwrap();
    }
    received
}

fn number(received: &Received) -> u64 {
    serde_json::from_slice(received.receipt.envelope.payload().unwrap()).unwrap()
}

fn parked() -> Parked {
    let second = |second| Timestamp::from_second(second).unwrap();
    Parked { first_failed_at: second(1), last_failed_at: second(2), due: second(3) }
}

/// Of six events the group `g` has settled two, and the third waits for its third attempt.
async fn prepare(place: &Place) {
    let broker = place.broker().await;
    let mut deliveries = subscribe(&broker, "g").await;
    for number in 1..=6_u64 {
        let event = Envelope::from_json(Topic::from_static("a.b"), &number).unwrap().with_key("k");
        broker.publish(Arc::new(event)).await.unwrap();
    }
    for mut received in receive(&mut deliveries, 6).await {
        match number(&received) {
            1 | 2 => received.settler.ack(received.receipt).await.unwrap(),
            3 => {
                received.receipt.attempt = 3;
                received.settler.park(&received.receipt, parked()).await.unwrap();
                received.settler.release(received.receipt);
            }
            _ => received.settler.release(received.receipt),
        }
    }
    drop(deliveries);
    broker.close().await.unwrap();
    idle(place, "g").await;
}

/// Waits until no process has the group.
async fn idle(place: &Place, group: &str) {
    let broker = place.broker().await;
    let begun = Instant::now();
    loop {
        let groups = broker.groups().unwrap().list().await.unwrap();
        if groups.iter().all(|one| one.group != group || !one.active) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the group is active");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a group has yet to handle: numbers, and their attempts.
async fn backlog(broker: &NatsBroker, group: &str, count: usize) -> Vec<(u64, u32)> {
    let mut deliveries = subscribe(broker, group).await;
    let received = receive(&mut deliveries, count).await;
    received.iter().map(|one| (number(one), one.receipt.attempt)).collect()
}

/// What is left in the bucket.
async fn noted(broker: &NatsBroker) -> Vec<String> {
    let link = &broker.shared().link;
    let bucket = link.settings.parked();
    let counts = link.counts(&format!("KV_{bucket}"), &format!("$KV.{bucket}.>")).await.unwrap();
    counts.into_iter().map(|(subject, _)| subject).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Verb {
    Seek,
    Rename,
    Remove,
}

impl Verb {
    async fn run(self, broker: &NatsBroker) -> Result<bool, BrokerError> {
        let groups: Arc<dyn Groups> = broker.groups().unwrap();
        match self {
            Self::Seek => groups.seek("g", Some(Offset::new(1))).await,
            Self::Rename => groups.rename("g", "h").await,
            Self::Remove => groups.remove("g").await,
        }
    }
}

/// Cuts what is done to a group after each of its requests, done or not done, does it once more, and looks what there is.
async fn cut(verb: Verb) {
    for is_done in [false, true] {
        for after in 0.. {
            let place = Place::new();
            prepare(&place).await;
            let broker = place.broker().await;
            broker.shared().link.faults.begin("", after, is_done);
            let done = verb.run(&broker).await;
            let met = broker.shared().link.faults.end();
            assert!(met > 0 || done.as_ref().is_ok_and(|found| *found), "{done:?}");
            drop(broker);
            let broker = place.broker().await;
            if met > 0 {
                // Where it was done to the last step, there is nothing to do any more.
                verb.run(&broker).await.unwrap();
            }
            let groups = broker.groups().unwrap().list().await.unwrap();
            let named: Vec<_> = groups.iter().map(|group| group.group.as_str()).collect();
            let when = format!("cut at {after}, done: {is_done}");
            match verb {
                Verb::Seek => {
                    assert_eq!(named, ["g"], "{when}");
                    let expected = [(2, 1), (3, 1), (4, 1), (5, 1), (6, 1)];
                    assert_eq!(backlog(&broker, "g", 5).await, expected, "{when}");
                }
                Verb::Rename => {
                    assert_eq!(named, ["h"], "{when}");
                    let expected = [(3, 3), (4, 1), (5, 1), (6, 1)];
                    assert_eq!(backlog(&broker, "h", 4).await, expected, "{when}");
                }
                Verb::Remove => {
                    assert!(named.is_empty(), "{when}: {named:?}");
                    let expected: Vec<_> = (1..=6).map(|number| (number, 1)).collect();
                    assert_eq!(backlog(&broker, "g", 6).await, expected, "{when}");
                }
            }
            let left = noted(&broker).await;
            assert!(left.iter().all(|subject| !subject.contains(".moved.")), "{when}: {left:?}");
            drop(broker);
            place.remove().await;
            if met == 0 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_group_that_is_moved_may_be_cut_anywhere_and_moved_again() {
    cut(Verb::Seek).await;
}

#[tokio::test]
async fn a_group_that_is_renamed_may_be_cut_anywhere_and_renamed_again_with_its_attempts() {
    cut(Verb::Rename).await;
}

#[tokio::test]
async fn a_group_that_is_dropped_may_be_cut_anywhere_and_a_new_one_of_its_name_knows_nothing_of_it() {
    cut(Verb::Remove).await;
}

#[tokio::test]
async fn a_group_on_several_patterns_that_is_renamed_in_two_tries_has_all_of_them_and_nothing_of_the_other() {
    for after in 0.. {
        let place = Place::new();
        let broker = place.broker().await;
        for (group, pattern) in [("g", "a.*"), ("g", "b.*"), ("h", "b.*"), ("h", "c.*")] {
            let request = SubscribeRequest::new(group, Pattern::new(pattern).unwrap());
            drop(broker.subscribe(request).await.unwrap());
        }
        idle(&place, "g").await;
        idle(&place, "h").await;
        broker.shared().link.faults.begin("", after, false);
        drop(Verb::Rename.run(&broker).await);
        let met = broker.shared().link.faults.end();
        if met > 0 {
            Verb::Rename.run(&broker).await.unwrap();
        }
        let groups = broker.groups().unwrap().list().await.unwrap();
        let named: Vec<_> = groups.iter().map(|one| (one.group.as_str(), one.pattern.as_str())).collect();
        assert_eq!(named, [("h", "a.*"), ("h", "b.*")], "cut at {after}");
        drop(broker);
        place.remove().await;
        if met == 0 {
            break;
        }
    }
}

#[tokio::test]
async fn a_group_that_is_opened_after_a_cut_move_skips_nothing() {
    for after in 0.. {
        let place = Place::new();
        prepare(&place).await;
        let broker = place.broker().await;
        broker.shared().link.faults.begin("", after, true);
        drop(Verb::Seek.run(&broker).await);
        let met = broker.shared().link.faults.end();
        drop(broker);
        let broker = place.broker().await;
        let first = backlog(&broker, "g", 1).await[0];
        assert!([(2, 1), (3, 3)].contains(&first), "cut at {after}: {first:?}");
        assert!(noted(&broker).await.iter().all(|subject| !subject.contains(".moved.")));
        drop(broker);
        place.remove().await;
        if met == 0 {
            break;
        }
    }
}

#[tokio::test]
async fn nothing_is_settled_until_it_is_known_which_stream_there_is() {
    let place = Place::new();
    let (first, second) = (place.broker().await, place.broker().await);
    let mut request = SubscribeRequest::new("g", Pattern::new(">").unwrap());
    request.competing = true;
    let mut deliveries = first.subscribe(request.clone()).await.unwrap();
    let publish = async |number: u64| {
        let event = Envelope::from_json(Topic::from_static("a.b"), &number).unwrap();
        second.publish(Arc::new(event)).await.unwrap();
    };
    for number in 1..=3 {
        publish(number).await;
    }
    let mut former = receive(&mut deliveries, 3).await;
    // The first cannot find out what there is.
    let faults = &first.shared().link.faults;
    faults.begin("STREAM.INFO", 0, false);
    let context = async_nats::jetstream::new(second.client());
    let config = context.get_stream(&place.0).await.unwrap().cached_info().config.clone();
    context.delete_stream(&place.0).await.unwrap();
    context.create_stream(config).await.unwrap();
    let begun = Instant::now();
    while faults.met() == 0 {
        assert!(begun.elapsed() < PATIENCE, "it is told that its consumer is gone");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut others = second.subscribe(request).await.unwrap();
    for number in 11..=13 {
        publish(number).await;
    }
    let next = receive(&mut others, 3).await;
    assert!(next.iter().zip(&former).all(|(next, former)| next.receipt.offset == former.receipt.offset));
    // Acks, what is given back, and what is worked on.
    let one = former.remove(0);
    one.settler.ack(one.receipt).await.unwrap();
    drop(deliveries);
    let one = former.remove(0);
    one.settler.release(one.receipt);
    first.client().flush().await.unwrap();
    let consumer = second.shared().subscriptions.all().remove(0).consumer.clone();
    let open = async || second.shared().link.consumer_info(&consumer).await.unwrap().num_ack_pending;
    assert_eq!(open().await, 3);
    faults.end();
    let one = former.remove(0);
    while one.settler.holds(&one.receipt) {
        assert!(begun.elapsed() < PATIENCE, "it sees that the stream is another one");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(one.settler.ack(one.receipt).await.is_err());
    first.close().await.unwrap();
    assert_eq!(open().await, 3);
    for one in next {
        one.settler.ack(one.receipt).await.unwrap();
    }
    second.shared().settled().await;
    drop((others, first, second));
    place.remove().await;
}

#[tokio::test]
async fn many_subscriptions_ask_once_which_stream_there_is() {
    let place = Place::new();
    // The first time they make their consumers, the second time they find them.
    for _ in 0..2 {
        let broker = place.patient_broker().await;
        let asks: &str = Box::leak(format!("STREAM.INFO.{}", place.0).into_boxed_str());
        broker.shared().link.faults.begin(asks, 1, false);
        let mut open = Vec::new();
        for number in 0..40 {
            open.push(subscribe(&broker, &format!("g{number}")).await);
        }
        assert_eq!(broker.shared().link.faults.end(), 0, "it was asked more than once");
        drop(open);
        broker.close().await.unwrap();
    }
    place.remove().await;
}

#[tokio::test]
async fn what_a_takeover_finds_open_is_not_here_all_at_once() {
    const COUNT: u64 = 100;
    const AT_ONCE: u64 = 20;
    let place = Place::new();
    let broker = place.patient_broker().await;
    drop(subscribe(&broker, "g").await);
    idle(&place, "g").await;
    for number in 0..COUNT {
        let large = Envelope::from_bytes(Topic::from_static("a.b"), "x/y", vec![7; 1 << 20].into());
        broker
            .publish(Arc::new(large.with_id(eventbus_core::EventId::new(number.to_string()))))
            .await
            .unwrap();
    }
    // Somebody takes all of them at once, and is not heard of any more.
    let other = place.patient_broker().await;
    let consumer = broker.shared().link.consumers().await.unwrap().remove(0).name;
    let client = other.client();
    let inbox = client.new_inbox();
    let mut taken = client.subscribe(inbox.clone()).await.unwrap();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", place.0);
    // The server ends the connection of a client for which more than 64 MiB wait.
    let mut pin = String::new();
    for _ in 0..COUNT / AT_ONCE {
        let ask = serde_json::json!({
            "batch": AT_ONCE, "expires": 60_000_000_000_u64, "group": "eventbus", "id": pin,
        });
        client.publish_with_reply(subject.clone(), inbox.clone(), ask.to_string().into()).await.unwrap();
        let mut came = 0;
        while came < AT_ONCE {
            let message = taken.next().await.unwrap();
            // What ends an ask has no event.
            let Some(headers) = message.headers.filter(|_| message.reply.is_some()) else { continue };
            pin = headers.get("Nats-Pin-Id").map(ToString::to_string).unwrap_or(pin);
            came += 1;
        }
    }
    drop((taken, client, other));
    let mut deliveries = subscribe(&broker, "g").await;
    let unpin = serde_json::json!({ "group": "eventbus" });
    let subject = format!("CONSUMER.UNPIN.{}.{consumer}", place.0);
    broker.shared().link.api::<serde::de::IgnoredAny>(subject, &unpin).await.unwrap();
    // The group is given away with a delivery.
    let last = Envelope::from_json(Topic::from_static("a.b"), &COUNT).unwrap();
    broker.publish(Arc::new(last)).await.unwrap();
    let subscription = broker.shared().subscriptions.all().remove(0);
    let most = BYTES + 2 * broker.shared().link.client().client.max_payload() + (2 << 20);
    for number in 0..COUNT {
        let one = receive(&mut deliveries, 1).await.remove(0);
        let bytes = subscription.state.lock().intake.bytes();
        assert!(bytes <= most, "{bytes} bytes are here at {number}");
        assert_eq!(one.receipt.envelope.id().to_string(), number.to_string());
        assert_eq!(one.receipt.envelope.payload().unwrap().len(), 1 << 20);
        one.settler.ack(one.receipt).await.unwrap();
    }
    drop((deliveries, broker));
    place.remove().await;
}

#[tokio::test]
async fn an_event_that_was_tried_waits_until_it_is_known_how_often() {
    // Which events have notes, and what stands in one.
    for asked in ["STREAM.INFO.KV_", "MSG.GET.KV_"] {
        let place = Place::new();
        prepare(&place).await;
        let broker = place.broker().await;
        let link = &broker.shared().link;
        let mut deliveries = subscribe(&broker, "g").await;
        link.faults.begin(asked, 0, false);
        let begun = Instant::now();
        while link.faults.met() < 6 {
            assert!(begun.elapsed() < PATIENCE, "it is asked again and again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut none = Vec::new();
        let said =
            poll_fn(|context| deliveries.poll_receive(context, &mut none, 9)).await.unwrap_err().to_string();
        assert!(
            said.contains("look how often an event of the group `g` was tried") && none.is_empty(),
            "{said}"
        );
        link.faults.end();
        let received = receive(&mut deliveries, 4).await;
        let attempts: Vec<_> =
            received.iter().map(|one| (number(one), one.receipt.attempt, one.parked)).collect();
        assert_eq!(attempts, [(3, 3, Some(parked())), (4, 1, None), (5, 1, None), (6, 1, None)]);
        drop((received, deliveries, broker));
        place.remove().await;
    }
}

#[tokio::test]
async fn of_a_note_that_cannot_be_read_the_attempt_counts_or_how_often_the_event_was_delivered() {
    for (garbage, attempt) in [(&b"{\"attempt\":4,\"due\":7}"[..], 4), (b"\xff", 2)] {
        let place = Place::new();
        prepare(&place).await;
        let broker = place.broker().await;
        let shared = broker.shared();
        let subject = noted(&broker).await.remove(0);
        let headers = async_nats::HeaderMap::new();
        let note = crate::publish::Other { subject, headers, payload: garbage.into() };
        shared.outlet.store("garbage", note).await.unwrap();
        assert!(notes::read(garbage).is_err());
        let found = backlog(&broker, "g", 1).await[0];
        assert_eq!(found.0, 3);
        assert!(found.1 >= attempt && found.1 < attempt + 2, "{found:?}");
        place.remove().await;
    }
}

#[tokio::test]
async fn a_rename_that_cannot_read_what_was_noted_removes_nothing() {
    let place = Place::new();
    prepare(&place).await;
    let broker = place.broker().await;
    let link = &broker.shared().link;
    let before = noted(&broker).await;
    assert_eq!(before.len(), 1);
    link.faults.begin("MSG.GET.KV_", 0, false);
    let refused = Verb::Rename.run(&broker).await.unwrap_err().to_string();
    assert!(link.faults.end() > 0 && refused.contains("read `$KV."), "{refused}");
    assert_eq!(noted(&broker).await, before);
    assert_eq!(backlog(&broker, "g", 4).await[0], (3, 3));
    let letters = broker.dead_letters().unwrap().find(DeadLetterQuery::default()).await.unwrap();
    assert!(letters.is_empty());
    drop(broker);
    place.remove().await;
}
