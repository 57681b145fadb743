//! `Ok` of a publish means that the event is handled, or that somebody is told that it was not.

mod support;

use eventbus::memory::{MemoryBroker, Overflow};
use eventbus::{Bus, Error, Outcome, PublishError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use support::{Log, Ping, Seen, bus_with, pings};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const NONE: [&str; 0] = [];

/// What a shutdown says is lost.
fn lost(ended: Result<(), Error>) -> usize {
    match ended {
        Ok(()) => 0,
        Err(Error::Drain { unfinished, lost, .. }) => {
            assert_eq!(unfinished, lost);
            lost
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_publish_beside_a_shutdown_is_handled_or_an_error() {
    let runtime = Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for round in 0..300 {
        runtime.block_on(async {
            let capacity = if round % 2 == 0 { 16_384 } else { 4 };
            let broker = MemoryBroker::builder().capacity(capacity).build();
            let bus = Bus::builder().only(NONE).broker(broker).await.unwrap();
            let handled = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&handled);
            let note = move |_: Arc<Ping>| {
                count.fetch_add(1, SeqCst);
                async {}
            };
            bus.on(note).await.unwrap();
            bus.start().unwrap();
            let mut publishers = JoinSet::new();
            for _ in 0..8 {
                let bus = bus.clone();
                publishers.spawn(async move {
                    let mut accepted = 0;
                    loop {
                        let pings = [Ping { number: 1 }, Ping { number: 2 }];
                        let answers = match accepted % 3 {
                            0 => bus.publish_all(&pings).await,
                            _ => vec![bus.publish(&pings[0]).await],
                        };
                        accepted += answers.iter().filter(|answer| answer.is_ok()).count() as u64;
                        if answers.iter().any(Result::is_err) {
                            return accepted;
                        }
                        if fastrand::u8(..) < 64 {
                            tokio::task::yield_now().await;
                        }
                    }
                });
            }
            sleep(Duration::from_micros(fastrand::u64(0..2_000))).await;
            bus.shutdown().await.unwrap();
            let accepted: u64 = publishers.join_all().await.into_iter().sum();
            assert_eq!(accepted, handled.load(SeqCst), "round {round}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn publishers_that_wait_for_room_are_let_in_before_the_bus_ends() {
    let broker = MemoryBroker::builder().capacity(1).build();
    let bus = Bus::builder().only(NONE).in_flight(1).broker(broker).await.unwrap();
    let seen = Seen::new();
    let noted = seen.clone();
    let note = move |ping: Arc<Ping>| {
        let noted = noted.clone();
        async move {
            sleep(Duration::from_millis(10)).await;
            noted.push(ping.number);
        }
    };
    bus.on(note).concurrency(1).await.unwrap();
    bus.start().unwrap();
    let mut waiting = JoinSet::new();
    for number in 0..5 {
        let bus = bus.clone();
        waiting.spawn(async move { bus.publish(&Ping { number }).await });
    }
    tokio::task::yield_now().await;
    bus.shutdown().await.unwrap();
    assert!(waiting.join_all().await.iter().all(Result::is_ok));
    assert_eq!(seen.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn publishers_that_wait_for_room_learn_of_the_end_of_the_bus() {
    for started in [true, false] {
        let broker = MemoryBroker::builder().capacity(1).build();
        let builder = Bus::builder().only(NONE).in_flight(1).drain(Duration::from_millis(300));
        let bus = builder.broker(broker.clone()).await.unwrap();
        bus.on(|_: Arc<Ping>| std::future::pending::<()>()).group("g").concurrency(1).await.unwrap();
        // A queue that another bus keeps open.
        let other = Bus::builder().only(NONE).broker(broker.clone()).await.unwrap();
        let _other = pings(&other, "other").await;
        if started {
            bus.start().unwrap();
        }
        let mut waiting = JoinSet::new();
        for number in 0..5 {
            let bus = bus.clone();
            waiting.spawn(async move {
                match number {
                    4 => bus.publish_all([&Ping { number }]).await.remove(0),
                    _ => bus.publish(&Ping { number }).await,
                }
            });
        }
        sleep(Duration::from_millis(20)).await;
        let ended = bus.shutdown().await;
        let answers = timeout(Duration::from_secs(5), waiting.join_all()).await.expect("all are answered");
        let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!(
            answers
                .iter()
                .flat_map(|answer| answer.as_ref().err())
                .all(|error| { matches!(error, PublishError::Closed { .. }) })
        );
        assert_eq!(accepted, 1, "the queue of the other bus holds one");
        assert_eq!(lost(ended), accepted);
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_retry_or_in_a_queue_at_the_end_is_counted() {
    // Parked.
    let (bus, _broker) = bus_with(Bus::builder().drain(Duration::from_millis(300))).await;
    bus.on(|_: Arc<Ping>| async { Outcome::RetryAfter(Duration::from_secs(60)) }).await.unwrap();
    bus.start().unwrap();
    for number in 0..50 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    sleep(Duration::from_millis(50)).await;
    let error = bus.shutdown().await.unwrap_err();
    assert!(error.to_string().starts_with("50 deliveries were not finished"), "{error}");
    assert!(error.to_string().contains("lost, since the broker keeps them in memory only"), "{error}");
    // Queued behind a handler that does not end, and in the hands of it.
    let (bus, _broker) = bus_with(Bus::builder().in_flight(2).drain(Duration::from_millis(300))).await;
    bus.on(|_: Arc<Ping>| std::future::pending::<()>()).concurrency(1).await.unwrap();
    bus.start().unwrap();
    for number in 0..10 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    sleep(Duration::from_millis(50)).await;
    assert_eq!(lost(bus.shutdown().await), 10);
    // Never begun.
    let (bus, _broker) = bus_with(Bus::builder()).await;
    let handle = bus.on(|_: Arc<Ping>| async {}).await.unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    assert_eq!(lost(bus.shutdown().await), 1);
    drop(handle);
    // A dead letter that was published again.
    let (bus, broker) = bus_with(Bus::builder().drain(Duration::from_millis(300))).await;
    let fail = Arc::new(AtomicU64::new(0));
    let failed = Arc::clone(&fail);
    bus.on(move |_: Arc<Ping>| {
        let first = failed.fetch_add(1, SeqCst) == 0;
        async move { if first { Outcome::Reject("once".into()) } else { std::future::pending().await } }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap();
    assert!(letters.republish(&letters.list().await.unwrap()[0].0, None).await.unwrap());
    assert_eq!(lost(bus.shutdown().await), 1);
}

#[tokio::test(start_paused = true)]
async fn what_another_bus_still_reads_is_not_lost() {
    let broker = MemoryBroker::new();
    let builder = || Bus::builder().only(NONE).drain(Duration::from_millis(300));
    let (first, second) =
        (builder().broker(broker.clone()).await.unwrap(), builder().broker(broker.clone()).await.unwrap());
    first.on(|_: Arc<Ping>| std::future::pending::<()>()).group("g").concurrency(1).await.unwrap();
    first.start().unwrap();
    for number in 0..10 {
        first.publish(&Ping { number }).await.unwrap();
    }
    tokio::task::yield_now().await;
    let seen = pings(&second, "g").await;
    let ended = first.shutdown().await;
    assert!(matches!(ended, Err(Error::Drain { unfinished: 1, lost: 0, .. })), "{ended:?}");
    second.start().unwrap();
    broker.settled().await;
    assert_eq!(seen.len(), 10);
    second.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_log_keeps_what_was_not_handled_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let bus = Bus::builder().only(NONE).drain(Duration::from_millis(100)).connect(&url).await.unwrap();
    bus.on(|_: Arc<Ping>| async { Outcome::RetryAfter(Duration::from_secs(3_600)) })
        .group("g")
        .await
        .unwrap();
    bus.start().unwrap();
    for number in 0..10 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    bus.shutdown().await.expect("nothing is lost: what waits is in the log");
}

/// Waits until a line of the log has these words: that line.
async fn line_with(log: &Log, words: &str) -> String {
    let began = std::time::Instant::now();
    loop {
        if let Some(line) = log.text().lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{words}: {}", log.text());
        sleep(Duration::from_millis(1)).await;
    }
}

const DROPPED: &str = "the bus was dropped before";

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_dropped_says_once_its_handlers_have_ended_what_is_lost() {
    let (log, _guard) = Log::capture();
    let (bus, _broker) = bus_with(Bus::builder().in_flight(1)).await;
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    for group in ["mail", "stock"] {
        let go_on = Arc::clone(&go_on);
        let wait = move |_: Arc<Ping>| {
            let go_on = Arc::clone(&go_on);
            async move { go_on.acquire().await.unwrap().forget() }
        };
        bus.on(wait).group(group).concurrency(1).await.unwrap();
    }
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    // Both handlers run.
    sleep(Duration::from_millis(1)).await;
    drop(bus);
    sleep(Duration::from_millis(1)).await;
    assert!(!log.text().contains(DROPPED), "handlers that run may finish: {}", log.text());
    go_on.add_permits(2);
    let line = line_with(&log, DROPPED).await;
    assert!(line.contains("WARN") && line.contains("4 deliveries were handled"), "{line}");
    assert!(
        line.contains("(2 for `mail`, 2 for `stock`): lost") && line.contains("`bus.shutdown().await`"),
        "{line}"
    );
    assert!(!line.contains("bus.start()"), "{line}");
    assert_eq!(log.text().matches("WARN").count(), 1, "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_dropped_with_nothing_left_or_after_a_shutdown_says_nothing() {
    let (log, _guard) = Log::capture();
    for shut_down in [false, true] {
        let (bus, broker) = bus_with(Bus::builder()).await;
        let seen = pings(&bus, "g").await;
        bus.start().unwrap();
        bus.publish(&Ping { number: 1 }).await.unwrap();
        broker.settled().await;
        if shut_down {
            bus.shutdown().await.unwrap();
        }
        drop(bus);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(seen.len(), 1);
    }
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_dropped_and_was_never_started_says_so() {
    let (log, _guard) = Log::capture();
    let (bus, _broker) = bus_with(Bus::builder()).await;
    pings(&bus, "g").await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    drop(bus);
    let line = line_with(&log, DROPPED).await;
    assert!(line.contains("1 delivery was handled (1 for `g`): lost"), "{line}");
    assert!(line.contains("start it with `bus.start()?`"), "{line}");
}

#[tokio::test]
async fn a_bus_on_a_log_that_is_dropped_says_what_is_delivered_again() {
    let (log, _guard) = Log::capture();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let bus = Bus::builder().only(NONE).connect(&url).await.unwrap();
    bus.on(|_: Arc<Ping>| async { Outcome::RetryAfter(Duration::from_secs(3_600)) })
        .group("g")
        .await
        .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    line_with(&log, "it is tried again").await;
    drop(bus);
    let line = line_with(&log, DROPPED).await;
    assert!(line.contains("1 delivery was handled (1 for `g`): delivered again"), "{line}");
}

/// A bus that was connected on a runtime, and that runtime.
fn connected(runtime: Runtime, url: &str) -> (Bus, Runtime, Seen<u64>) {
    let (bus, seen) = runtime.block_on(async {
        let bus = Bus::builder().only(NONE).connect(url).await.unwrap();
        let seen = pings(&bus, "g").await;
        (bus, seen)
    });
    (bus, runtime, seen)
}

#[test]
fn a_bus_whose_runtime_has_ended_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = format!("sqlite:{}", folder.path().join("log.db").display());
    for url in ["memory:", &log] {
        for flavor in [Builder::new_multi_thread, Builder::new_current_thread] {
            for started in [false, true] {
                let (bus, first, _) = connected(flavor().enable_all().build().unwrap(), url);
                if started {
                    bus.start().unwrap();
                }
                drop(first);
                Runtime::new().unwrap().block_on(async {
                    let error = bus.publish(&Ping { number: 1 }).await.unwrap_err().to_string();
                    assert!(error.contains("has ended") && error.contains("lasts as long"), "{error}");
                    let all = bus.publish_all([&Ping { number: 1 }]).await;
                    assert!(all[0].is_err());
                    for error in [
                        bus.start().unwrap_err(),
                        bus.on(|_: Arc<Ping>| async {}).group("late").await.unwrap_err(),
                    ] {
                        assert!(
                            error.to_string().contains("the tokio runtime on which the bus was connected")
                        );
                    }
                });
            }
        }
    }
}

#[test]
fn a_bus_works_from_another_runtime_and_from_none() {
    let (bus, home, seen) = connected(Runtime::new().unwrap(), "memory:");
    bus.start().expect("a start needs no runtime around it");
    let more = Runtime::new().unwrap().block_on(async {
        bus.publish(&Ping { number: 1 }).await.unwrap();
        let more = pings(&bus, "more").await;
        bus.publish(&Ping { number: 2 }).await.unwrap();
        more
    });
    // That runtime has ended, and the subscription lives where the bus lives.
    home.block_on(async {
        bus.publish(&Ping { number: 3 }).await.unwrap();
        bus.settled().await.unwrap();
    });
    assert_eq!((seen.len(), more.len()), (3, 2));
}

#[test]
fn a_bus_that_only_publishes_needs_no_runtime_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let first = Runtime::new().unwrap();
    let bus = first.block_on(async { Bus::builder().only(NONE).connect(&url).await.unwrap() });
    drop(first);
    Runtime::new().unwrap().block_on(async {
        bus.publish(&Ping { number: 1 }).await.expect("it is stored, and handled by who runs");
    });
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_waits_for_a_bus_that_nobody_started_is_told_within_a_second() {
    let (log, _guard) = Log::capture();
    let broker = MemoryBroker::builder().capacity(2).build();
    let bus = Bus::builder().only(NONE).broker(broker.clone()).await.unwrap();
    let seen = pings(&bus, "import").await;
    let publisher = bus.clone();
    let mut import = JoinSet::new();
    for _ in 0..3 {
        let bus = publisher.clone();
        import.spawn(async move {
            for number in 0..4 {
                bus.publish(&Ping { number }).await.unwrap();
            }
        });
    }
    sleep(Duration::from_millis(900)).await;
    let told = |log: &Log| log.text().matches("nobody reads it").count();
    assert_eq!(told(&log), 1, "once for all who wait: {}", log.text());
    let line = log.text();
    for word in ["import", "bus.start()", "capacity", "Overflow::Error"] {
        assert!(line.contains(word), "{line}");
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(told(&log), 1);
    bus.start().unwrap();
    import.join_all().await;
    broker.settled().await;
    assert_eq!(seen.len(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_waits_for_handlers_is_told_when_nothing_moves() {
    let (log, _guard) = Log::capture();
    let broker = MemoryBroker::builder().capacity(1).build();
    let bus = Bus::builder().only(NONE).in_flight(1).broker(broker).await.unwrap();
    bus.on(|_: Arc<Ping>| sleep(Duration::from_secs(20))).group("slow").concurrency(1).await.unwrap();
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    let waits = log.text();
    assert!(waits.contains("`slow` is full") && waits.contains("slow, blocked"), "{waits}");
    assert!(!waits.contains("nobody reads it"), "{waits}");
}

#[tokio::test]
async fn a_subscription_after_the_end_of_a_bus_is_refused_before_the_broker_knows_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("log.db").display());
    let bus = Bus::builder().only(NONE).connect(&url).await.unwrap();
    let groups = bus.groups().unwrap();
    bus.shutdown().await.unwrap();
    assert!(matches!(bus.on(|_: Arc<Ping>| async {}).group("late").await, Err(Error::Closed)));
    drop(groups);
    let again = Bus::builder().only(NONE).connect(&url).await.unwrap();
    let states = again.groups().unwrap().list().await.unwrap();
    assert!(states.iter().all(|state| state.group != "late"), "{states:?}");
}

#[tokio::test]
async fn with_overflow_error_nothing_waits_at_the_end() {
    let broker = MemoryBroker::builder().capacity(1).overflow(Overflow::Error).build();
    let bus = Bus::builder().only(NONE).broker(broker).await.unwrap();
    let seen = pings(&bus, "g").await;
    bus.publish(&Ping { number: 1 }).await.unwrap();
    assert!(matches!(bus.publish(&Ping { number: 2 }).await, Err(PublishError::Full { .. })));
    bus.start().unwrap();
    bus.shutdown().await.unwrap();
    assert_eq!(seen.all(), [1]);
    let (idle, _broker) = support::bus().await;
    idle.shutdown().await.expect("there was nothing");
}
