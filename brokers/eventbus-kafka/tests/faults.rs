//! Faults under load: what becomes of events when the server, the connection or a process fails.

mod support;

use eventbus::broker::{AuditQuery, Broker, Connection, Received, Start};
use eventbus::subscription::Pattern;
use eventbus::{Envelope, PublishError, Topic};
use eventbus_kafka::KafkaBroker;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::cpu::cpu_time;
use support::load::{Load, Publishing, RECOVERY};
use support::proxy::Proxy;
use support::servers::Server;
use support::{PATIENCE, event, receive, request, until};

/// CPU time is that of the process, so one test at a time measures it, and loads the machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn connect(url: &str) -> KafkaBroker {
    let builder = KafkaBroker::builder(url).expect("an address");
    let builder = builder.partitions(4).session_timeout(support::SESSION).publish_timeout(PATIENCE * 3);
    builder.connect().await.expect("the server answers")
}

/// A server, and what stands between it and clients: they are sent on to wherever the server says that it is, and that is
/// the proxy.
async fn behind_proxy(instance: &'static str) -> (Server, Proxy) {
    let server = Server::up("kafka", instance);
    let at = server.setting("EVENTBUS_TEST_KAFKA_PROXY");
    let proxy = Proxy::at(&at, &server.setting("EVENTBUS_TEST_KAFKA_PROXIED_URL")).await;
    (server, proxy)
}

async fn until_lost(broker: &KafkaBroker) {
    until("the loss is noticed", async || matches!(broker.connection(), Connection::Lost { .. })).await;
}

/// What is stored, in its order.
async fn stored(broker: &KafkaBroker) -> Vec<u64> {
    let mut query = AuditQuery::default();
    query.limit = 100_000;
    let recorded = broker.audit_log().expect("it has one").query(query).await.unwrap();
    recorded.iter().map(|one| serde_json::from_slice(one.envelope.payload().unwrap()).unwrap()).collect()
}

/// Whoever waits for a server does not compute.
async fn idles(time: Duration) {
    let before = cpu_time();
    tokio::time::sleep(time).await;
    let spent = cpu_time() - before;
    assert!(spent < time / 5, "{spent:?} of the processor in {time:?}");
}

/// What is published while something fails.
const PUBLISHING: Publishing = Publishing { topics: &["load.a"], again: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_or_paused_and_goes_on_loses_nothing_that_was_confirmed() {
    let _alone = ALONE.lock().await;
    let server = Server::up("kafka", "eventbus-kafka-killed");
    let load = Load::begin(connect(&server.url()).await, PUBLISHING).await;
    load.goes_on(1_000).await;
    server.order("kill");
    load.is_lost().await;
    idles(Duration::from_secs(2)).await;
    server.order("restart");
    load.goes_on(1_000).await;
    server.order("pause");
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.order("continue");
    until("the connection is back", async || load.broker.connection() == Connection::Up).await;
    load.end().await;
}

/// A server of Kafka that cannot write its log ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_since_its_disk_is_full_loses_nothing_and_goes_on_once_there_is_room() {
    let _alone = ALONE.lock().await;
    let server = Server::up("kafka", "eventbus-kafka-full");
    let load = Load::begin(connect(&server.url()).await, PUBLISHING).await;
    load.goes_on(1_000).await;
    let timeout = Duration::from_secs(3);
    let builder = KafkaBroker::builder(&server.url()).expect("an address").publish_timeout(timeout);
    let filling = builder.connect().await.expect("the server answers");
    let large = || {
        let topic = Topic::new("filling").unwrap();
        Arc::new(
            Envelope::from_bytes(topic, "application/octet-stream", vec![7; 900_000].into()).with_key("k"),
        )
    };
    server.order("starve");
    let mut confirmed = 0;
    let error = loop {
        let begun = Instant::now();
        let answer = filling.publish(large()).await;
        assert!(begun.elapsed() < timeout + Duration::from_secs(1), "{:?}", begun.elapsed());
        match answer {
            Ok(()) => confirmed += 1,
            Err(error) => break error,
        }
        assert!(confirmed < 64, "the disk has more room than it may");
    };
    assert!(confirmed > 0, "there was some room: {error}");
    assert!(matches!(error, PublishError::Unconfirmed { .. }), "{error}");
    load.is_lost().await;
    idles(Duration::from_secs(2)).await;
    server.order("restart");
    load.recovers_within(RECOVERY).await;
    until("what had no room is taken", async || filling.publish(large()).await.is_ok()).await;
    load.end().await;
    let mut query = AuditQuery::default();
    query.pattern = Some(Pattern::new("filling").unwrap());
    let kept = filling.audit_log().expect("it has one").query(query).await.unwrap().len();
    assert!(kept > confirmed, "{confirmed} were confirmed, and one more now, and {kept} are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_during_an_outage_ends_in_time_and_says_what_is_not_known() {
    let _alone = ALONE.lock().await;
    let server = Server::up("kafka", "eventbus-kafka-ended");
    let broker = connect(&server.url()).await;
    let mut deliveries = broker.subscribe(request("group", "load.a")).await.unwrap();
    broker.publish(event("load.a", "k", 1)).await.unwrap();
    let received = receive(&mut deliveries, 1).await.remove(0);
    server.order("kill");
    received.settler.ack(received.receipt).await.unwrap();
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish(event("load.a", "k", 2)).await }
    });
    until_lost(&broker).await;
    let begun = Instant::now();
    let error = broker.close().await.unwrap_err().to_string();
    assert!(error.contains("may be delivered again"), "{error}");
    let answer = publishing.await.unwrap();
    assert!(matches!(answer, Err(PublishError::Unconfirmed { .. })), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_again_and_again_loses_nothing_and_stores_nothing_twice() {
    let _alone = ALONE.lock().await;
    let (server, proxy) = behind_proxy("eventbus-kafka-cut").await;
    let load = Load::begin(connect(&proxy.url()).await, PUBLISHING).await;
    for part in 1..6 {
        load.goes_on(500).await;
        // Every other time with answers lost, so that it is not known what was stored and what was committed.
        proxy.mute(part % 2 == 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
        proxy.cut();
        proxy.mute(false);
        load.recovers_within(RECOVERY).await;
    }
    proxy.refuse(true);
    proxy.cut();
    load.is_lost().await;
    idles(Duration::from_secs(3)).await;
    proxy.refuse(false);
    load.recovers_within(RECOVERY).await;
    let handled = load.end().await;
    assert_eq!(stored(&connect(&server.url()).await).await.len() as u64, handled.events());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_swallows_everything_is_found_out_and_loses_nothing() {
    let _alone = ALONE.lock().await;
    let (_server, proxy) = behind_proxy("eventbus-kafka-swallowed").await;
    let load = Load::begin(connect(&proxy.url()).await, PUBLISHING).await;
    for is_cut in [false, true] {
        load.goes_on(1_000).await;
        let begun = Instant::now();
        proxy.swallow(true);
        load.is_lost().await;
        assert!(begun.elapsed() < RECOVERY, "{:?}", begun.elapsed());
        // Until its session is over as well.
        idles(support::SESSION).await;
        if is_cut {
            proxy.cut();
        }
        proxy.swallow(false);
        load.recovers_within(RECOVERY).await;
    }
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_on_which_nothing_is_heard_any_more_are_made_anew() {
    let _alone = ALONE.lock().await;
    let (_server, proxy) = behind_proxy("eventbus-kafka-stalled").await;
    let load = Load::begin(connect(&proxy.url()).await, PUBLISHING).await;
    load.goes_on(1_000).await;
    proxy.stall();
    load.recovers_within(RECOVERY * 2).await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_confirmation_is_lost_is_stored_once() {
    let _alone = ALONE.lock().await;
    let (server, proxy) = behind_proxy("eventbus-kafka-unconfirmed").await;
    let (broker, direct) = (connect(&proxy.url()).await, connect(&server.url()).await);
    broker.publish(event("load.a", "k", 0)).await.unwrap();
    proxy.mute(true);
    let publishing = tokio::spawn({
        let broker = broker.clone();
        async move { broker.publish_all((1..=100).map(|number| event("load.a", "k", number)).collect()).await }
    });
    // No batch is sent before the one before it is confirmed.
    until("a part is stored", async || stored(&direct).await.len() > 1).await;
    assert!(!publishing.is_finished(), "and nobody has heard of it");
    let cut = Instant::now();
    proxy.cut();
    proxy.mute(false);
    let answers = tokio::time::timeout(PATIENCE, publishing).await.expect("it ends").unwrap();
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(cut.elapsed() < RECOVERY, "{:?}", cut.elapsed());
    let stored = stored(&direct).await;
    assert!(stored.iter().copied().eq(0..=100), "each once, in order: {stored:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_publishes_ends_in_time_on_a_connection_that_is_mute() {
    let _alone = ALONE.lock().await;
    let (_server, proxy) = behind_proxy("eventbus-kafka-mute").await;
    let timeout = Duration::from_secs(1);
    let builder = KafkaBroker::builder(&proxy.url()).expect("an address").publish_timeout(timeout);
    let broker = builder.connect().await.unwrap();
    broker.publish(event("load.a", "k", 0)).await.unwrap();
    proxy.mute(true);
    let mut publishing = Vec::new();
    // The client looks for what is too late once a second, so it would find one of them too late.
    for number in 1..=8 {
        let broker = broker.clone();
        publishing.push(tokio::spawn(async move {
            let begun = Instant::now();
            // Of a topic that is not known it is not even known where to send it.
            let topic = if number % 4 == 0 { "load.unknown" } else { "load.a" };
            let error = broker.publish(event(topic, "k", number)).await.unwrap_err();
            (topic, error, begun.elapsed())
        }));
        tokio::time::sleep(timeout / 8).await;
    }
    for one in publishing {
        let (topic, error, took) = one.await.unwrap();
        let (is_late, said) = (took > timeout + Duration::from_millis(700), error.to_string());
        assert!(took >= timeout && !is_late, "{took:?}: {said}");
        assert!(said.contains("within 1s (`publish_timeout`)"), "{said}");
        let is_unconfirmed = matches!(error, PublishError::Unconfirmed { .. });
        assert_eq!(is_unconfirmed, topic == "load.a", "what was not sent is not stored: {said}");
    }
    proxy.mute(false);
    until("it goes on", async || broker.publish(event("load.a", "k", 9)).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_reader_is_gone_fetches_nothing_more_while_a_handler_has_an_event() {
    const EVENTS: u64 = 512;
    const SIZE: usize = 64 << 10;
    let _alone = ALONE.lock().await;
    let (_server, proxy) = behind_proxy("eventbus-kafka-left").await;
    let broker = connect(&proxy.url()).await;
    let filling = "x".repeat(SIZE);
    let events = (0..EVENTS).map(|number| {
        let event = Envelope::from_json(Topic::from_static("load.a"), &(number, &filling)).unwrap();
        Arc::new(event.with_key("key"))
    });
    for stored in broker.publish_all(events.collect()).await {
        stored.unwrap();
    }
    let place = |received: &Received| {
        let (number, _): (u64, String) =
            serde_json::from_slice(received.receipt.envelope.payload().unwrap()).unwrap();
        number
    };
    let early = |group: &str| {
        let mut request = request(group, "load.*");
        request.start = Start::Earliest;
        request
    };
    let mut deliveries = broker.subscribe(early("group")).await.unwrap();
    let first = receive(&mut deliveries, 1).await.remove(0);
    drop(deliveries);
    // Meanwhile another group reads everything on the same way: so much would the first one have read as well.
    let before = proxy.passed();
    let mut others = broker.subscribe(early("other")).await.unwrap();
    for number in 0..EVENTS {
        let received = receive(&mut others, 1).await.remove(0);
        assert_eq!(place(&received), number);
        received.settler.ack(received.receipt).await.unwrap();
    }
    let (passed, all) = (proxy.passed() - before, EVENTS * SIZE as u64);
    assert!(passed < all + all / 2, "{passed} bytes, where one group reads {all}");
    assert!(first.settler.holds(&first.receipt));
    first.settler.ack(first.receipt).await.unwrap();
    let mut deliveries = broker.subscribe(early("group")).await.unwrap();
    assert_eq!(place(&receive(&mut deliveries, 1).await[0]), 1, "it is settled, and what follows comes");
    broker.close().await.unwrap();
}
