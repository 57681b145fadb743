//! What the log says. Every test here captures it first: where one thread already logs while another begins to listen,
//! `tracing` may have decided that nobody does.

#[path = "support/keeper.rs"]
mod keeper;
mod support;

use eventbus::memory::MemoryBroker;
use eventbus::{BoxError, Bus, Envelope, Error, Event, EventId, Topic, subscribe};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use support::{Log, Ping, bus, bus_with, pings};
use tokio::sync::Notify;
use tokio::time::sleep;

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "pong.sent")]
struct Pong {
    number: u64,
}

#[subscribe]
async fn play(ping: Ping) -> Pong {
    Pong { number: ping.number }
}

#[subscribe]
async fn play_back(pong: Pong) -> Ping {
    Ping { number: pong.number }
}

/// On two real threads, so that a blocked one leaves another.
#[test]
fn a_handler_that_blocks_its_thread_is_named_in_the_log_and_does_not_stop_the_others() {
    let (log, _guard) = Log::capture();
    let dispatch = tracing::dispatcher::get_default(Clone::clone);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The watchdog has a thread of its own, so the log is the whole program's.
    tracing::dispatcher::set_global_default(dispatch).unwrap();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(std::sync::Mutex::new(blocked));
    runtime.block_on(async {
        let (bus, broker) = bus().await;
        let healthy = Arc::new(Notify::new());
        bus.on(move |_: Arc<Ping>| {
            let blocked = Arc::clone(&blocked);
            async move { blocked.lock().unwrap().recv().unwrap_or_default() }
        })
        .group("blocking")
        .await
        .unwrap();
        let seen = Arc::clone(&healthy);
        bus.on(move |_: Arc<Ping>| {
            let seen = Arc::clone(&seen);
            async move { seen.notify_one() }
        })
        .group("healthy")
        .await
        .unwrap();
        bus.start().unwrap();
        bus.publish(&Ping { number: 1 }).await.unwrap();
        healthy.notified().await;
        while !log.text().contains("the handler has blocked its thread") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let warning = log.text();
        let warning = warning.lines().find(|line| line.contains("blocked its thread")).unwrap();
        assert!(warning.contains("group=blocking") && warning.contains("tests/logs.rs:"), "{warning}");
        release.send(()).unwrap();
        broker.settled().await;
    });
}

#[tokio::test(start_paused = true)]
async fn without_dead_letters_an_event_is_logged_and_dropped() {
    let (log, _guard) = Log::capture();
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("no use") }).retries(0).dead_letter(false).await.unwrap();
    bus.start().unwrap();
    let id = bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
    let text = log.text();
    let line = text.lines().find(|line| line.contains("given up and dropped")).expect("it is logged");
    assert!(line.contains("ERROR") && line.contains(&id.to_string()) && line.contains("no use"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn the_store_is_bounded_and_says_what_it_drops() {
    let (log, _guard) = Log::capture();
    let broker = MemoryBroker::builder().dead_letter_capacity(2).build();
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("no") }).retries(0).await.unwrap();
    bus.start().unwrap();
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(bus.publish(&Ping { number }).await.unwrap());
        broker.settled().await;
    }
    let kept: Vec<_> = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(kept.iter().map(|(_, letter)| letter.envelope.id().clone()).collect::<Vec<_>>(), ids[1..]);
    let text = log.text();
    assert!(
        text.lines().any(|line| line.contains("oldest dead letter") && line.contains(&ids[0].to_string()))
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_bus_that_was_not_started_is_told_so() {
    let (log, _guard) = Log::capture();
    let (bus, _broker) = bus().await;
    let seen = pings(&bus, "late").await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(2), bus.settled()).await;
    waiting.expect_err("nothing is handled");
    assert!(log.text().contains("call `bus.start()`"), "{}", log.text());
    bus.start().unwrap();
    bus.settled().await.unwrap();
    assert_eq!(seen.all(), [1]);
}

/// Its handler ignores the error of its publish.
#[tokio::test(start_paused = true)]
async fn a_circle_that_is_stopped_is_one_error_line() {
    let (log, _guard) = Log::capture();
    let (bus, broker) = bus_with(Bus::builder().causation_limit(5)).await;
    let again = bus.clone();
    bus.on(move |ping: Arc<Ping>| {
        let bus = again.clone();
        async move { drop(bus.publish(&*ping).await) }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let log = log.text();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("5 events in a row")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("ping.sent"), "{lines:?}");
}

#[tokio::test]
async fn a_circle_of_topics_is_a_warning_and_an_error_when_strict() {
    let (log, _guard) = Log::capture();
    let circle = || Bus::builder().only([play::SUBSCRIBER, play_back::SUBSCRIBER]);
    circle().connect("memory:").await.unwrap();
    let warning = "these topics cause themselves: ping.sent → pong.sent → ping.sent";
    assert!(log.text().contains(warning), "{}", log.text());
    let error = circle().strict().connect("memory:").await.unwrap_err();
    assert!(matches!(error, Error::Startup(_)) && error.to_string().contains(warning), "{error}");
}

#[tokio::test]
async fn a_circle_that_is_made_at_run_time_is_a_warning_too() {
    let (log, _guard) = Log::capture();
    let (bus, _broker) = bus().await;
    bus.on(|pong: Arc<Pong>| async move { Ping { number: pong.number } }).await.unwrap();
    bus.on(|ping: Arc<Ping>| async move { Pong { number: ping.number } }).await.unwrap();
    let warnings = log.text().matches("these topics cause themselves").count();
    assert_eq!(warnings, 1, "{}", log.text());
}

#[tokio::test]
async fn the_census_is_logged() {
    let (log, _guard) = Log::capture();
    Bus::builder().only([play::SUBSCRIBER]).connect("memory:").await.unwrap();
    let text = log.text();
    assert!(text.contains("1 subscription from 1 package"), "{text}");
    assert!(text.contains("DEBUG") && text.contains("group=eventbus.play"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn what_the_drain_could_not_handle_is_counted_in_the_log() {
    let (log, _guard) = Log::capture();
    let (bus, _broker) = bus_with(Bus::builder().drain(Duration::from_secs(2)).in_flight(1)).await;
    bus.on(|_: Arc<Ping>| sleep(Duration::from_secs(1))).concurrency(1).await.unwrap();
    bus.start().unwrap();
    for number in 0..10 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    let _ = bus.shutdown().await;
    drop(bus);
    tokio::task::yield_now().await;
    let text = log.text();
    let line = text.lines().find(|line| line.contains("they are lost")).expect("it is logged");
    assert!(line.contains("deliveries="), "{line}");
}

#[tokio::test]
async fn a_handler_runs_in_a_span_that_names_topic_group_id_and_attempt() {
    let (log, _guard) = Log::capture();
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async { tracing::info!("inside the handler") }).group("pings").await.unwrap();
    bus.start().unwrap();
    let id = bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let text = log.text();
    let line = text.lines().find(|line| line.contains("inside the handler")).expect("it is logged");
    for words in
        ["handle{", "topic=ping.sent", "group=pings", &format!("id={id}"), "attempt=1", "traceparent="]
    {
        assert!(line.contains(words), "{words}: {line}");
    }
}

#[tokio::test]
async fn a_group_that_the_broker_keeps_and_nobody_has_is_a_warning_and_an_error_when_strict() {
    let (log, _guard) = Log::capture();
    let keeper = keeper::Keeper::default();
    let one = || Bus::builder().only([play::SUBSCRIBER]);
    let bus = Bus::builder().without_subscriptions().broker(keeper.clone()).await.unwrap();
    keeper.leave("eventbus.play", "ping.sent", 0);
    keeper.leave("eventbus.return", "pong.sent", 0);
    bus.publish(&Pong { number: 1 }).await.unwrap();
    one().broker(keeper.clone()).await.unwrap();
    let text = log.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("the broker keeps the group")).collect();
    let [line] = lines.as_slice() else { panic!("a group that is only not run here is none: {text}") };
    for words in [
        "WARN",
        "`eventbus.return` on \"pong.sent\" with a backlog of 1 event",
        "was it renamed to `eventbus.play_back`",
        "`groups move eventbus.return eventbus.play_back`",
        "`groups drop eventbus.return`",
        "`bus.groups()`",
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
    let error = one().strict().broker(keeper.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Startup(_)) && error.to_string().contains("eventbus.return"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_logged_every_few_seconds_and_at_its_end() {
    let (log, _guard) = Log::capture();
    let broker = MemoryBroker::builder().history(1_000).build();
    let bus = Bus::builder().only([] as [&str; 0]).broker(broker).await.unwrap();
    support::pings(&bus, "pings").await;
    for number in 0..120 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    bus.replay("pings").rate(10).await.unwrap();
    let text = log.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("handled=")).collect();
    assert_eq!(lines.len(), 3, "{text}");
    for words in ["INFO", "replaying", "group=pings", "events=120", "percent=4", "remaining="] {
        assert!(lines[0].contains(words), "{words}: {}", lines[0]);
    }
    assert!(lines[2].contains("the replay has ended") && lines[2].contains("handled=120"), "{}", lines[2]);
}

/// A line of its own, orders to the terminal, and text that reads backwards.
const HOSTILE: &str =
    "x\n2026-01-01T00:00:00Z ERROR eventbus: forged\r\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\u{2066}\u{2028}";

#[derive(Debug, thiserror::Error)]
#[error("outer {HOSTILE}")]
struct Outer(#[source] std::io::Error);

/// Fails in the way that the event's key says.
async fn fail(envelope: Arc<Envelope>, attempt: u32, bus: Bus) -> Result<(), BoxError> {
    match envelope.headers().get("way").unwrap_or_default() {
        "panics" => panic!("{HOSTILE}"),
        "retries" if attempt == 1 => Err(HOSTILE.into()),
        "retries" => Ok(()),
        "publishes" => Ok(bus.publish_to(HOSTILE, &1).await.map(drop)?),
        _ => Err(Outer(std::io::Error::other(HOSTILE)).into()),
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_log_quotes_begins_no_line_and_orders_the_terminal_nothing() {
    let (log, _guard) = Log::capture();
    let (bus, broker) = bus().await;
    let publisher = bus.clone();
    let handler = move |delivery: eventbus::Delivery| {
        let envelope = Arc::clone(delivery.envelope());
        fail(envelope, delivery.attempt(), publisher.clone())
    };
    bus.on_topic("name.set", handler).group("names").retries(1).await.unwrap();
    bus.on(|_: Arc<Ping>| async { Err::<(), _>(HOSTILE) }).retries(0).dead_letter(false).await.unwrap();
    bus.start().unwrap();
    let name = Topic::from_static("name.set");
    for way in ["panics", "retries", "publishes", "fails"] {
        let envelope = Envelope::from_json(name.clone(), HOSTILE)
            .unwrap()
            .with_id(EventId::new(format!("{way} {HOSTILE}")))
            .with_key(HOSTILE)
            .with_source(HOSTILE)
            .with_subject(HOSTILE)
            .with_header("traceparent", HOSTILE)
            .with_header("way", way);
        bus.publish_envelope(envelope).await.unwrap();
    }
    bus.publish(&Ping { number: 1 }).id(EventId::new(HOSTILE)).await.unwrap();
    let odd = Envelope::from_json(Topic::from_static("ping.sent"), &1).unwrap();
    bus.publish_envelope(odd.clone().with_content_type(HOSTILE)).await.unwrap();
    bus.publish_envelope(odd.with_type(HOSTILE)).await.unwrap();
    broker.settled().await;

    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters.len(), 3);
    assert!(letters.iter().all(|(_, letter)| letter.reason.contains('\n')), "what is kept stays as it is");
    let text = log.text();
    let quoted = text.matches("2026-01-01T00:00:00Z ERROR eventbus: forged").count();
    assert!(quoted > 20, "{text}");
    for line in text.lines() {
        assert!(!line.starts_with("2026-01-01") && line.contains(" eventbus"), "{line:?} in {text}");
        assert!(!line.chars().any(|c| c.is_control() || "\u{202e}\u{2066}\u{2028}".contains(c)), "{line:?}");
    }
}

#[tokio::test]
async fn a_group_that_begins_behind_a_history_says_how_many_events_it_skips() {
    let (log, _guard) = Log::capture();
    let broker = MemoryBroker::builder().history(10).build();
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let begin = async |group: &str, start| {
        bus.on(async |_: Arc<Ping>| ()).group(group).start(start).await.unwrap();
        log.text().matches("skips").count()
    };
    assert_eq!(begin("quiet", eventbus::Start::Latest).await, 0, "there is nothing to skip");
    bus.publish(&Ping { number: 1 }).await.unwrap();
    bus.publish_to("pong.sent", &Pong { number: 1 }).await.unwrap();
    assert_eq!(begin("early", eventbus::Start::Earliest).await, 0);
    assert_eq!(begin("late", eventbus::Start::Latest).await, 1);
    let text = log.text();
    assert!(
        text.contains("the group `late` begins with what is published from now on")
            && text.contains("skips 1 earlier event"),
        "{text}"
    );
    bus.start().unwrap();
    assert_eq!(log.text().matches("skips").count(), 1, "it is told once");
}
