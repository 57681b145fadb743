//! The end of a bus.

mod support;

use eventbus::broker::{Broker, BrokerFuture, OpenedBroker, Scheme};
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Error, Outcome, PublishError};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use support::around::{Around, reading};
use support::{Ping, Seen, bus, bus_with};
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_handlers_finish_and_takes_the_backlog_along() {
    let (bus, _broker) = bus().await;
    let done = Seen::new();
    let seen = done.clone();
    bus.on(move |ping: Arc<Ping>| {
        let seen = seen.clone();
        async move {
            sleep(Duration::from_millis(300)).await;
            seen.push(ping.number);
        }
    })
    .concurrency(4)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    sleep(Duration::from_millis(10)).await;
    bus.shutdown().await.unwrap();
    let mut numbers = done.all();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..20), "{numbers:?}");
    bus.shutdown().await.expect("to shut down twice is to shut down once");
}

#[tokio::test(start_paused = true)]
async fn handlers_may_publish_while_the_bus_drains_and_nobody_else_may() {
    let (bus, _broker) = bus().await;
    let done = Seen::new();
    let (inner, seen) = (bus.clone(), done.clone());
    bus.on(move |ping: Arc<Ping>| {
        let (bus, seen) = (inner.clone(), seen.clone());
        async move {
            sleep(Duration::from_secs(1)).await;
            seen.push(ping.number);
            if ping.number > 0 {
                bus.publish(&Ping { number: ping.number - 1 }).await?;
            }
            Ok::<_, PublishError>(())
        }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 3 }).await.unwrap();
    let shutdown = tokio::spawn({
        let bus = bus.clone();
        async move { bus.shutdown().await }
    });
    sleep(Duration::from_millis(500)).await;
    let error = bus.publish(&Ping { number: 9 }).await.unwrap_err();
    assert!(matches!(error, PublishError::Closed { .. }), "{error}");
    shutdown.await.unwrap().unwrap();
    assert_eq!(done.all(), [3, 2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn who_shuts_down_second_and_who_runs_the_bus_wait_for_the_first() {
    let (bus, _broker) = bus().await;
    let done = Seen::new();
    let seen = done.clone();
    bus.on(move |ping: Arc<Ping>| {
        let seen = seen.clone();
        async move {
            sleep(Duration::from_secs(3)).await;
            seen.push(ping.number);
        }
    })
    .await
    .unwrap();
    let run = tokio::spawn({
        let bus = bus.clone();
        async move { bus.run_until(std::future::pending()).await }
    });
    bus.publish(&Ping { number: 1 }).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    let first = tokio::spawn({
        let bus = bus.clone();
        async move { bus.shutdown().await }
    });
    tokio::task::yield_now().await;
    bus.shutdown().await.unwrap();
    assert_eq!(done.all(), [1], "the second call came back before the handler had finished");
    run.await.unwrap().unwrap();
    first.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_dropped_has_ended_the_bus() {
    let (bus, _broker) = bus().await;
    bus.on(|_: Arc<Ping>| sleep(Duration::from_secs(20))).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    tokio::time::timeout(Duration::from_secs(1), bus.shutdown()).await.unwrap_err();
    assert!(matches!(bus.publish(&Ping { number: 2 }).await, Err(PublishError::Closed { .. })));
    bus.shutdown().await.expect("it is over");
}

#[tokio::test(start_paused = true)]
async fn who_runs_the_bus_learns_what_a_shutdown_from_within_a_handler_has_left() {
    let (bus, _broker) = bus_with(Bus::builder().drain(Duration::from_secs(2))).await;
    let inner = bus.clone();
    let end = move |_: Arc<Ping>| {
        let bus = inner.clone();
        // It waits for itself, until it is cut off.
        async move { bus.shutdown().await.unwrap() }
    };
    bus.on(end).await.unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    let error = bus.run_until(std::future::pending()).await.unwrap_err();
    assert!(matches!(error, Error::Drain { unfinished: 1, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_may_have_a_time_of_its_own() {
    let (bus, _broker) = bus().await;
    bus.on(|_: Arc<Ping>| sleep(Duration::from_secs(50))).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    let start = Instant::now();
    let error = bus.shutdown_within(Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert!(error.to_string().contains("`drain` is 3s"), "{error}");
    assert_eq!(bus.shutdown().await.unwrap_err().to_string(), error.to_string(), "the first one decides");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlives_the_drain_is_cut_off_and_never_acked() {
    let (bus, broker) = bus_with(Bus::builder().drain(Duration::from_secs(2))).await;
    bus.on(|_: Arc<Ping>| sleep(Duration::from_secs(50))).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    let start = Instant::now();
    let error = bus.shutdown().await.unwrap_err();
    assert!(matches!(error, Error::Drain { unfinished: 1, .. }), "{error}");
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty(), "a cut-off is no failure");
    broker.settled().await;
}

#[tokio::test]
async fn a_bus_that_was_shut_down_says_so() {
    let (bus, _broker) = bus().await;
    bus.on(|_: Arc<Ping>| async {}).await.unwrap();
    bus.shutdown().await.unwrap();
    let error = bus.publish(&Ping { number: 1 }).await.unwrap_err();
    assert!(error.to_string().contains("\"ping.sent\": the bus was shut down"), "{error}");
    assert!(matches!(bus.start(), Err(Error::Closed)));
    assert!(matches!(bus.on(|_: Arc<Ping>| async {}).group("late").await, Err(Error::Closed)));
    let all = bus.publish_all([&Ping { number: 1 }, &Ping { number: 2 }]).await;
    assert!(all.iter().all(|result| matches!(result, Err(PublishError::Closed { .. }))), "{all:?}");
}

#[tokio::test]
async fn a_bus_without_subscriptions_publishes_and_refuses_to_run() {
    let (bus, _broker) = bus().await;
    bus.publish(&Ping { number: 1 }).await.expect("a publisher knows nobody");
    let error = bus.run().await.unwrap_err().to_string();
    assert!(error.contains("no subscriptions") && error.contains("eventbus::link!"), "{error}");
    assert!(error.contains("ends it by `bus.shutdown().await`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn two_buses_in_one_process_do_not_hear_each_other() {
    let ((left, of_left), (right, of_right)) = (bus().await, bus().await);
    let seen = Seen::new();
    for (name, bus) in [("left", &left), ("right", &right)] {
        let seen = seen.clone();
        bus.on(move |ping: Arc<Ping>| {
            let seen = seen.clone();
            async move { seen.push((name, ping.number)) }
        })
        .await
        .unwrap();
        bus.start().unwrap();
    }
    left.publish(&Ping { number: 1 }).await.unwrap();
    right.publish(&Ping { number: 2 }).await.unwrap();
    of_left.settled().await;
    of_right.settled().await;
    let mut seen = seen.all();
    seen.sort_unstable();
    assert_eq!(seen, [("left", 1), ("right", 2)]);
}

#[tokio::test(start_paused = true)]
async fn two_buses_on_one_broker_share_the_deliveries_of_a_group() {
    let broker = MemoryBroker::new();
    let seen = Seen::new();
    let mut buses = Vec::new();
    for name in ["left", "right"] {
        let bus = Bus::builder().only([] as [&str; 0]).in_flight(1).broker(broker.clone()).await.unwrap();
        let seen = seen.clone();
        bus.on(move |ping: Arc<Ping>| {
            let seen = seen.clone();
            async move {
                sleep(Duration::from_millis(1)).await;
                seen.push((name, ping.number));
            }
        })
        .group("shared")
        .await
        .unwrap();
        bus.start().unwrap();
        buses.push(bus);
    }
    for number in 0..100 {
        buses[0].publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let mut numbers: Vec<_> = seen.all().iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..100));
    assert!(["left", "right"].iter().all(|name| seen.all().iter().any(|(by, _)| by == name)));
}

#[tokio::test]
async fn a_drain_without_end_is_a_drain() {
    let (bus, _broker) = bus_with(Bus::builder().drain(Duration::MAX)).await;
    let seen = support::pings(&bus, "g").await;
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    bus.shutdown().await.unwrap();
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn times_without_end_are_waited_for() {
    let builder = Bus::builder().timeout(Duration::MAX).drain(Duration::MAX);
    let (bus, broker) = bus_with(builder).await;
    let seen = Seen::new();
    let noted = seen.clone();
    let note = move |ping: Arc<Ping>| {
        let noted = noted.clone();
        async move {
            tokio::task::yield_now().await;
            noted.push(ping.number);
            if ping.number == 2 { Outcome::RetryAfter(Duration::MAX) } else { Outcome::Ack }
        }
    };
    bus.on(note).backoff(eventbus::Backoff::new(Duration::MAX, Duration::MAX)).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    bus.publish(&Ping { number: 2 }).await.unwrap();
    while seen.len() < 2 {
        tokio::task::yield_now().await;
    }
    let waiting = tokio::time::timeout(Duration::from_millis(50), bus.shutdown()).await;
    assert!(waiting.is_err(), "it waits for the retry: {waiting:?}");
}

/// A broker that does not close, or only after a while.
fn stubborn(closes_after: Option<Duration>) -> Around {
    Around::new("stubborn", MemoryBroker::new()).close(move || match closes_after {
        Some(time) => BrokerFuture::new(async move {
            sleep(time).await;
            Ok(())
        }),
        None => BrokerFuture::new(std::future::pending()),
    })
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_does_not_close_is_not_waited_for_for_ever() {
    let builder = Bus::builder().only([] as [&str; 0]).drain(Duration::from_secs(1));
    let bus = builder.broker(stubborn(None)).await.unwrap();
    let seen = support::pings(&bus, "g").await;
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    let start = Instant::now();
    let error = bus.shutdown().await.unwrap_err().to_string();
    assert!(error.contains("the stubborn broker did not close within the drain time"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(seen.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_shuts_down_second_waits_until_the_broker_has_closed_too() {
    let builder = Bus::builder().only([] as [&str; 0]).drain(Duration::from_secs(1));
    let bus = builder.broker(stubborn(None)).await.unwrap();
    let first = tokio::spawn({
        let bus = bus.clone();
        async move { bus.shutdown().await }
    });
    tokio::task::yield_now().await;
    let start = Instant::now();
    bus.shutdown().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    first.await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_another_program_holds_does_not_hold_up_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let builder = Bus::builder().only([] as [&str; 0]).drain(Duration::from_millis(500));
    let bus = builder.connect(&format!("sqlite:{}", path.display())).await.unwrap();
    let seen = support::pings(&bus, "g").await;
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    bus.settled().await.unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("begin immediate").unwrap();
    // A publish that the log cannot answer yet.
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&Ping { number: 2 }).await }
    });
    sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    let error = bus.shutdown().await.unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(error.contains("did not close within the drain time"), "{error}");
    other.execute_batch("rollback").unwrap();
    waiting.await.unwrap().expect("it is stored, and handled when the program runs again");
    assert_eq!(seen.all(), [1]);
}

eventbus_core::register_scheme!(Scheme {
    name: "stubborn",
    // The rest of the address says after how many seconds it closes.
    open: |url| -> OpenedBroker {
        let seconds = url.split(':').nth(1).and_then(|seconds| seconds.parse().ok());
        let broker = stubborn(seconds.map(Duration::from_secs));
        BrokerFuture::ready(Ok(Arc::new(broker) as Arc<dyn Broker>))
    },
});

#[tokio::test(start_paused = true)]
async fn a_check_does_not_wait_for_ever_for_a_broker_that_does_not_close() {
    let start = Instant::now();
    let builder = Bus::builder().drain(Duration::from_secs(1));
    let error = builder.check("stubborn:").await.unwrap_err().to_string();
    assert!(error.contains("the stubborn broker did not close within the drain time"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_check_says_what_it_found_where_the_broker_takes_a_while_to_close() {
    Bus::builder().check("stubborn:20").await.expect("20 s are within the drain time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_while_the_broker_is_asked_is_counted() {
    let ((asked, is_asked), (go_on, goes_on)) = (mpsc::channel(), mpsc::channel());
    let broker = MemoryBroker::builder().capacity(8).build();
    // The first one who asks for deliveries is told when it may go on.
    let first = Arc::new(Mutex::new(Some((asked, goes_on))));
    let slow = Around::new("slow", broker).live(move |deliveries| {
        let first = Arc::clone(&first);
        reading(deliveries, move |inner, context, into, limit| {
            let first = first.lock().unwrap().take();
            let polled = inner.poll_receive(context, into, limit.min(3));
            if let Some((asked, goes_on)) = first {
                asked.send(()).unwrap();
                goes_on.recv().unwrap();
            }
            polled
        })
    });
    let builder = Bus::builder().only([] as [&str; 0]).drain(Duration::ZERO);
    let bus = builder.broker(slow).await.unwrap();
    support::pings(&bus, "g").await;
    for number in 0..8 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    let starts = std::thread::spawn({
        let bus = bus.clone();
        move || bus.start()
    });
    is_asked.recv().unwrap();
    // Three have room now; the last one learns of the end right before what is left is counted.
    for number in 8..11 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    let waits = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&Ping { number: 11 }).await }
    });
    let shutdown = tokio::spawn({
        let bus = bus.clone();
        async move { bus.shutdown().await }
    });
    waits.await.unwrap().unwrap_err();
    sleep(Duration::from_millis(20)).await;
    go_on.send(()).unwrap();
    let error = shutdown.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Drain { lost: 11, unfinished: 11, .. }), "{error:?}");
    starts.join().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_bus_waits_for_its_own_backlog_and_not_for_that_of_another_bus_on_its_broker() {
    let broker = MemoryBroker::new();
    let connect = async || Bus::builder().only([] as [&str; 0]).broker(broker.clone()).await.unwrap();
    let (leaving, staying) = (connect().await, connect().await);
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (handled, slowly) = (Seen::new(), Seen::new());
    let (inner, seen) = (leaving.clone(), handled.clone());
    leaving
        .on(move |ping: Arc<Ping>| {
            let (bus, seen) = (inner.clone(), seen.clone());
            async move {
                sleep(Duration::from_millis(10)).await;
                seen.push(ping.number);
                // A cascade of its own is waited for.
                if (1..20).contains(&ping.number) {
                    bus.publish(&Ping { number: ping.number + 1 }).await?;
                }
                Ok::<_, PublishError>(())
            }
        })
        .group("leaving")
        .await
        .unwrap();
    let (opens, seen) = (Arc::clone(&gate), slowly.clone());
    staying
        .on(move |ping: Arc<Ping>| {
            let (opens, seen) = (Arc::clone(&opens), seen.clone());
            async move {
                drop(opens.acquire().await);
                seen.push(ping.number);
            }
        })
        .group("staying")
        .await
        .unwrap();
    leaving.start().unwrap();
    staying.start().unwrap();
    staying.publish(&Ping { number: 1 }).await.unwrap();
    let start = Instant::now();
    leaving.shutdown().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(handled.all().into_iter().eq(1..=20), "{:?}", handled.all());
    assert_eq!(slowly.len(), 0);
    gate.add_permits(100);
    staying.shutdown().await.unwrap();
    let mut numbers = slowly.all();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=20), "and the other one for its own");
}

#[test]
fn a_bus_whose_runtime_has_ended_is_shut_down_at_once_and_counts_what_it_leaves() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let home = runtime();
    let entered = Seen::new();
    let bus = home.block_on(async {
        let (bus, _broker) = bus_with(Bus::builder().drain(Duration::from_secs(600))).await;
        let seen = entered.clone();
        bus.on(move |ping: Arc<Ping>| {
            seen.push(ping.number);
            std::future::pending::<()>()
        })
        .concurrency(1)
        .await
        .unwrap();
        bus.start().unwrap();
        for number in 0..5 {
            bus.publish(&Ping { number }).await.unwrap();
        }
        while entered.len() == 0 {
            tokio::task::yield_now().await;
        }
        bus
    });
    let (ending, ended) = std::sync::mpsc::channel();
    let shut_down = std::thread::spawn({
        let bus = bus.clone();
        move || {
            runtime().block_on(async {
                let mut shutdown = std::pin::pin!(bus.shutdown());
                let early = tokio::time::timeout(Duration::from_millis(1), &mut shutdown).await;
                ending.send(early.is_err()).unwrap();
                shutdown.await
            })
        }
    });
    assert!(ended.recv().unwrap(), "while there is a runtime, handlers are waited for");
    drop(home);
    // The test does not end where it waits for the drain time.
    let error = shut_down.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Drain { lost: 5, .. }), "{error:?}");
}
