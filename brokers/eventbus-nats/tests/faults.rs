//! Servers that are killed and paused, connections that are cut and swallowed, processes that end and stand still: each
//! under load. Names are promises.

#![cfg(target_os = "linux")]

mod support;

use eventbus::broker::{Begin, Broker, Connection, SubscribeRequest};
use eventbus::{Bus, Event, PublishError};
use eventbus_nats::{NatsBroker, NatsBrokerBuilder};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::cpu::cpu_time;
use support::proxy::Proxy;
use support::servers::Server;
use support::{PATIENCE, ack, event, number, receive, receive_all, request, until};
use tokio::task::JoinSet;

/// CPU time is that of the process, so one test at a time measures it, and loads the machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How many keys publishers have.
const KEYS: u64 = 8;
/// In how much time after a server is back events have to be handled.
const RECOVERY: Duration = Duration::from_secs(10);

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "load.counted", key = key)]
struct Counted {
    key: u64,
    number: u64,
}

/// What was confirmed, and what was handled, in order.
#[derive(Clone, Default)]
struct Books {
    confirmed: Arc<Mutex<BTreeSet<(u64, u64)>>>,
    handled: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Books {
    fn handled(&self) -> usize {
        self.handled.lock().unwrap().len()
    }

    /// Nothing confirmed is lost, and those of a key came in order, but for repeats; how many those were.
    fn check(&self) -> usize {
        let (confirmed, handled) = (self.confirmed.lock().unwrap(), self.handled.lock().unwrap());
        let distinct: BTreeSet<_> = handled.iter().copied().collect();
        let lost: Vec<_> = confirmed.difference(&distinct).take(5).collect();
        assert!(lost.is_empty(), "confirmed and never handled: {lost:?} of {}", confirmed.len());
        let mut latest = BTreeMap::new();
        for (at, (key, number)) in handled.iter().enumerate() {
            let next = latest.entry(*key).or_insert(0);
            assert!(*number <= *next, "at {at}: {number} of the key {key} overtook {next}");
            *next = (*next).max(number + 1);
        }
        handled.len() - distinct.len()
    }
}

/// A bus that handles everything.
async fn consumer(broker: NatsBroker, books: &Books) -> Bus {
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let handled = Arc::clone(&books.handled);
    bus.on(move |counted: Arc<Counted>| {
        let handled = Arc::clone(&handled);
        async move { handled.lock().unwrap().push((counted.key, counted.number)) }
    })
    .group("load")
    .await
    .unwrap();
    bus.start().unwrap();
    bus
}

/// Publishers, one for each key, each with one event after the other, until they are told to stop.
struct Load {
    publishers: JoinSet<()>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn begin(bus: &Bus, books: &Books) -> Self {
        let (mut publishers, stop) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        for key in 0..KEYS {
            let (bus, stop, confirmed) = (bus.clone(), Arc::clone(&stop), Arc::clone(&books.confirmed));
            publishers.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    bus.publish(Counted { key, number }).await.unwrap();
                    confirmed.lock().unwrap().insert((key, number));
                    number += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        Self { publishers, stop }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(publisher) = self.publishers.join_next().await {
            publisher.expect("each publish is confirmed in the end");
        }
    }
}

async fn until_more(what: &str, count: impl Fn() -> usize) {
    let before = count();
    until(what, || async { count() >= before + 50 }).await;
}

fn near(
    place: &support::Place,
    set: impl FnOnce(NatsBrokerBuilder) -> NatsBrokerBuilder,
) -> NatsBrokerBuilder {
    set(place.builder())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_begun_again_loses_nothing_and_is_seen() {
    let _alone = ALONE.lock().await;
    let server = Server::up("nats", "nats-faults-kill");
    let place = support::Place::at(server.url());
    let books = Books::default();
    let broker = place.broker().await;
    let bus = consumer(broker.clone(), &books).await;
    let load = Load::begin(&bus, &books);
    for _ in 0..2 {
        until_more("events are handled", || books.handled()).await;
        server.order("kill");
        until("the loss is seen", || async { matches!(broker.connection(), Connection::Lost { .. }) }).await;
        let before = cpu_time();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let spent = cpu_time() - before;
        assert!(spent < Duration::from_millis(200), "{spent:?} of CPU time in 2 s without a server");
        server.order("restart");
        let back = Instant::now();
        until_more("events are handled again", || books.handled()).await;
        assert!(back.elapsed() < RECOVERY, "{:?}", back.elapsed());
        assert_eq!(broker.connection(), Connection::Up);
    }
    load.end().await;
    tokio::time::timeout(PATIENCE, bus.settled()).await.unwrap().unwrap();
    let repeats = books.check();
    assert!(repeats <= 2 * 1_024, "{repeats} repeats of {}", books.handled());
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_a_while_loses_nothing() {
    let _alone = ALONE.lock().await;
    let server = Server::up("nats", "nats-faults-pause");
    let place = support::Place::at(server.url());
    let books = Books::default();
    let bus = consumer(place.broker().await, &books).await;
    let load = Load::begin(&bus, &books);
    until_more("events are handled", || books.handled()).await;
    server.order("pause");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_time();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cpu_time() - before < Duration::from_millis(200));
    server.order("continue");
    let back = Instant::now();
    until_more("events are handled again", || books.handled()).await;
    assert!(back.elapsed() < RECOVERY, "{:?}", back.elapsed());
    load.end().await;
    tokio::time::timeout(PATIENCE, bus.settled()).await.unwrap().unwrap();
    let repeats = books.check();
    assert!(repeats <= 1_024, "{repeats} repeats");
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_again_and_again_loses_nothing_and_repeats_nothing_that_was_settled() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let books = Books::default();
    let bus = consumer(place.broker().await, &books).await;
    let load = Load::begin(&bus, &books);
    for _ in 0..5 {
        until_more("events are handled", || books.handled()).await;
        proxy.cut();
    }
    until_more("events are handled again", || books.handled()).await;
    load.end().await;
    tokio::time::timeout(PATIENCE, bus.settled()).await.unwrap().unwrap();
    let repeats = books.check();
    // What a handler had as the connection was cut is all that may come again, since the group stays with this process.
    assert!(repeats <= 5 * 64, "{repeats} repeats of {}", books.handled());
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_swallows_everything_is_found_out_and_made_anew() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let books = Books::default();
    let broker = place.broker().await;
    let bus = consumer(broker.clone(), &books).await;
    let load = Load::begin(&bus, &books);
    until_more("events are handled", || books.handled()).await;
    proxy.swallow(true);
    until("the loss is seen", || async { matches!(broker.connection(), Connection::Lost { .. }) }).await;
    proxy.swallow(false);
    let back = Instant::now();
    until_more("events are handled again", || books.handled()).await;
    assert!(back.elapsed() < RECOVERY, "{:?}", back.elapsed());
    load.end().await;
    tokio::time::timeout(PATIENCE, bus.settled()).await.unwrap().unwrap();
    books.check();
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_confirmation_is_lost_is_stored_once() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let broker = place.broker().await;
    let direct = place.by_way_of(support::server());
    let looking = direct.broker().await;
    proxy.mute(true);
    let publishing: Vec<_> = (0..100).map(|number| event("a.b", "k", number)).collect();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish_all(publishing).await }
    });
    let log = looking.audit_log().unwrap();
    until("they are stored", || async {
        log.query(eventbus::broker::AuditQuery::default()).await.unwrap().len() == 100
    })
    .await;
    assert!(!publishing.is_finished());
    proxy.cut();
    proxy.mute(false);
    let answers = tokio::time::timeout(PATIENCE, publishing).await.unwrap().unwrap();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let stored = log.query(eventbus::broker::AuditQuery::default()).await.unwrap();
    let numbers: Vec<u64> =
        stored.iter().map(|one| serde_json::from_slice(one.envelope.payload().unwrap()).unwrap()).collect();
    assert!(numbers.into_iter().eq(0..100), "each once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_on_its_way_as_a_connection_was_cut_comes_before_what_is_newer() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let broker = place.broker().await;
    let mut deliveries = broker.subscribe(request("g", ">")).await.unwrap();
    let direct = place.by_way_of(support::server());
    let other = direct.broker().await;
    other.publish(event("a.b", "k", 0)).await.unwrap();
    ack(receive_all(&mut deliveries, 1).await.remove(0)).await;
    proxy.mute(true);
    let batch = (1..=20).map(|number| event("a.b", "k", number)).collect();
    assert!(other.publish_all(batch).await.iter().all(Result::is_ok));
    let context = async_nats::jetstream::new(other.client());
    let stream = context.get_stream(&place.name).await.unwrap();
    let name = futures_util::StreamExt::next(&mut stream.consumer_names()).await.unwrap().unwrap();
    until("the server has sent them", || async {
        stream.consumer_info(&name).await.unwrap().num_ack_pending == 20
    })
    .await;
    proxy.cut();
    proxy.mute(false);
    let batch = (21..=40).map(|number| event("a.b", "k", number)).collect();
    assert!(other.publish_all(batch).await.iter().all(Result::is_ok));
    let received = receive_all(&mut deliveries, 40).await;
    assert!(received.iter().map(number).eq(1..=40), "{:?}", received.iter().map(number).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_without_a_server_ends_in_time_and_says_what_is_not_known() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let broker =
        near(&place, |builder| builder.publish_timeout(Duration::from_secs(1))).connect().await.unwrap();
    proxy.refuse(true);
    proxy.cut();
    until("the loss is seen", || async { matches!(broker.connection(), Connection::Lost { .. }) }).await;
    let begun = Instant::now();
    let error = broker.publish(event("a.b", "k", 1)).await.unwrap_err();
    assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
    assert!(error.to_string().contains("the connection has been lost for"), "{error}");
    assert!((900..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let many = (0..5_000).map(|number| event("a.b", "k", number)).collect();
    let answers = broker.publish_all(many).await;
    assert!(answers.iter().all(Result::is_err) && begun.elapsed() < Duration::from_secs(8));
    let begun = Instant::now();
    let _ = broker.close().await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    proxy.refuse(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_without_a_server_ends_within_its_drain_time() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let books = Books::default();
    let broker = place.broker().await;
    let bus = consumer(broker.clone(), &books).await;
    bus.publish(Counted { key: 0, number: 0 }).await.unwrap();
    until("it is handled", || async { books.handled() == 1 }).await;
    proxy.refuse(true);
    proxy.cut();
    until("the loss is seen", || async { matches!(broker.connection(), Connection::Lost { .. }) }).await;
    let begun = Instant::now();
    let _ = bus.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    proxy.refuse(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_handles_nothing_of_what_another_one_has_by_now() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let stuck = place.broker().await;
    let mut deliveries = stuck.subscribe(request("g", ">")).await.unwrap();
    let direct = place.by_way_of(support::server());
    let other = direct.broker().await;
    let batch = (0..30).map(|number| event("a.b", "k", number)).collect();
    assert!(other.publish_all(batch).await.iter().all(Result::is_ok));
    let held = receive_all(&mut deliveries, 10).await;
    assert!(held.iter().all(|one| one.settler.holds(&one.receipt)));
    let mut standing_by = other.subscribe(request("g", ">")).await.unwrap();
    proxy.swallow(true);
    let taken = receive_all(&mut standing_by, 30).await;
    assert!(taken.iter().map(number).eq(0..30), "from the first one that is not settled, in order");
    for one in &held {
        let begin = one.settler.begin(&one.receipt).expect("the lease is over").await;
        assert!(matches!(begin, Begin::Later(_)), "{begin:?}");
    }
    proxy.swallow(false);
    until("the loss is known", || async {
        let begun = held.iter().any(|one| one.settler.begin(&one.receipt).is_none());
        assert!(!begun, "a handler is begun with what another process has");
        held.iter().all(|one| !one.settler.holds(&one.receipt))
    })
    .await;
    for received in held {
        let error = received.settler.ack(received.receipt).await.unwrap_err().to_string();
        assert!(error.contains("another process may have taken over the group `g`"), "{error}");
    }
    for received in taken {
        ack(received).await;
    }
    other.publish(event("a.b", "k", 30)).await.unwrap();
    assert_eq!(number(&receive(&mut standing_by, 1).await[0]), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_silent_while_nobody_else_took_the_group_goes_on_with_all_that_it_has() {
    let _alone = ALONE.lock().await;
    let proxy = Proxy::to(&support::server()).await;
    let place = support::Place::at(proxy.url());
    let direct = place.by_way_of(support::server());
    let other = direct.broker().await;
    let silent = place.broker().await;
    let mut deliveries = silent.subscribe(request("g", ">")).await.unwrap();
    // So many that the process asks for no more.
    let batch = (0..700).map(|number| event("a.b", "k", number)).collect();
    assert!(other.publish_all(batch).await.iter().all(Result::is_ok));
    let held = receive_all(&mut deliveries, 100).await;
    let context = async_nats::jetstream::new(other.client());
    let stream = context.get_stream(&place.name).await.unwrap();
    let name = futures_util::StreamExt::next(&mut stream.consumer_names()).await.unwrap().unwrap();
    let state = || async { stream.consumer_info(&name).await.unwrap() };
    let is_given = || async {
        state().await.priority_groups[0].pinned_client_id.as_ref().is_some_and(|id| !id.is_empty())
    };
    until("what it asks for is there", || async { state().await.num_ack_pending > 500 }).await;
    proxy.swallow(true);
    until("the server gives it up", || async { !is_given().await }).await;
    let before = state().await.delivered.consumer_sequence;
    let may_begin = || held[0].settler.begin(&held[0].receipt).is_none();
    assert!(!may_begin());
    proxy.swallow(false);
    until("it may go on", || async { may_begin() }).await;
    assert!(is_given().await, "it goes on without the group");
    assert!(held.iter().all(|one| one.settler.holds(&one.receipt)), "nobody else had it");
    let mut numbers = Vec::new();
    for received in held {
        numbers.push(number(&received));
        ack(received).await;
    }
    while numbers.len() < 700 {
        for received in receive(&mut deliveries, 100).await {
            numbers.push(number(&received));
            ack(received).await;
        }
    }
    assert!(numbers.into_iter().eq(0..700), "each once, in order");
    other.publish(event("a.b", "k", 700)).await.unwrap();
    assert_eq!(number(&receive(&mut deliveries, 1).await[0]), 700);
    // What the server has waited for in vain it delivers again, and not again and again.
    let deliveries = state().await.delivered.consumer_sequence - before;
    assert!(deliveries <= 1_600, "{deliveries} deliveries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_dropped_in_a_long_outage_is_delivered_again_afterwards() {
    let _alone = ALONE.lock().await;
    for competes in [false, true] {
        let proxy = Proxy::to(&support::server()).await;
        let place = support::Place::at(proxy.url());
        let broker = place.broker().await;
        let mut asked = request("g", ">");
        asked.competing = competes;
        let mut deliveries = broker.subscribe(asked).await.unwrap();
        let batch = (0..20).map(|number| event("a.b", "k", number)).collect();
        assert!(broker.publish_all(batch).await.iter().all(Result::is_ok));
        let held = receive_all(&mut deliveries, 20).await;
        proxy.refuse(true);
        proxy.cut();
        until("the lease is over", || async { !held[0].settler.holds(&held[0].receipt) }).await;
        // As a bus does with what no handler has: it is dropped without another call.
        drop(held);
        proxy.refuse(false);
        let again = receive_all(&mut deliveries, 20).await;
        let mut numbers: Vec<_> = again.iter().map(number).collect();
        assert!(competes || numbers.is_sorted());
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..20), "competes: {competes}");
        for received in again {
            ack(received).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_handler_has_for_longer_than_the_lease_is_not_delivered_once_more() {
    let _alone = ALONE.lock().await;
    let place = support::Place::new();
    let broker = place.broker().await;
    let mut competing: SubscribeRequest = request("several", ">");
    competing.competing = true;
    let mut one = broker.subscribe(request("one", ">")).await.unwrap();
    let mut several = broker.subscribe(competing.clone()).await.unwrap();
    let other = place.broker().await;
    let mut beside = other.subscribe(competing).await.unwrap();
    broker.publish(event("a.b", "k", 1)).await.unwrap();
    let held = receive_all(&mut one, 1).await.remove(0);
    // One of the two has it; which one is the server's choice.
    let shared = tokio::select! {
        received = receive(&mut several, 1) => received,
        received = receive(&mut beside, 1) => received,
    };
    // More than twice the lease of 2 s.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut more = Vec::new();
    for deliveries in [&mut one, &mut several, &mut beside] {
        assert!(!support::has_some(deliveries, &mut more).await, "{more:?}");
    }
    assert!(held.settler.holds(&held.receipt));
    ack(held).await;
    for received in shared {
        ack(received).await;
    }
    broker.settled().unwrap().await;
}
