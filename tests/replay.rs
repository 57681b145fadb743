//! Replays: a part of the history again, for one group, beside what is live.

mod support;

use eventbus::broker::{Offset, ReplayFrom, ReplayUntil};
use eventbus::error::BrokerError;
use eventbus::memory::MemoryBroker;
use eventbus::{Bus, Delivery, Error, State, subscribe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use support::around::{Around, reading};
use support::{OrderPlaced, Ping, Seen, pings};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// A read model: which pings there were.
#[subscribe(group = "model")]
async fn model(ping: Ping, seen: State<Seen<u64>>) {
    seen.push(ping.number);
}

#[subscribe(group = "mail", replay = false)]
async fn mail(ping: Ping, seen: State<Seen<u64>>) {
    seen.push(ping.number);
}

#[subscribe("order.placed", group = "both")]
#[subscribe("ping.sent", group = "both")]
async fn both(delivery: &Delivery, seen: State<Seen<u64>>) {
    seen.push(delivery.offset().get() as u64);
}

struct Unused;

fn kept(events: usize) -> MemoryBroker {
    MemoryBroker::builder().history(events).build()
}

/// A bus that runs the chosen groups of this file, one delivery after the other, and the state that they write to.
async fn bus_of(groups: &[&str]) -> (Bus, MemoryBroker, Seen<u64>) {
    let (broker, seen) = (kept(10_000), Seen::new());
    let builder = Bus::builder().state(seen.clone()).concurrency(1).only(groups);
    (builder.broker(broker.clone()).await.unwrap(), broker, seen)
}

async fn publish(bus: &Bus, numbers: std::ops::Range<u64>) {
    for number in numbers {
        bus.publish(&Ping { number }).await.unwrap();
    }
}

#[tokio::test]
async fn a_replay_delivers_the_part_of_the_history_that_is_asked_for() {
    let (bus, _broker, seen) = bus_of(&["model"]).await;
    publish(&bus, 0..3).await;
    sleep(Duration::from_millis(2)).await;
    let middle = jiff::Timestamp::now();
    sleep(Duration::from_millis(2)).await;
    publish(&bus, 3..6).await;
    let replayed = async |from, until| {
        let before = seen.len();
        let report = bus.replay(model::SUBSCRIBER).from(from).until(until).await.unwrap();
        let numbers = seen.all().split_off(before);
        assert_eq!((report.events, report.acked), (numbers.len() as u64, numbers.len() as u64));
        assert_eq!((report.failed, report.latest), (0, Some(Offset::new(5))));
        assert!(report.is_complete());
        numbers
    };
    let (earliest, now) = (ReplayFrom::Earliest, ReplayUntil::Now);
    assert_eq!(replayed(earliest, now).await, [0, 1, 2, 3, 4, 5]);
    let offsets = (ReplayFrom::Offset(Offset::new(1)), ReplayUntil::Offset(Offset::new(4)));
    assert_eq!(replayed(offsets.0, offsets.1).await, [1, 2, 3, 4]);
    assert_eq!(replayed(ReplayFrom::After(Offset::new(3)), now).await, [4, 5]);
    assert_eq!(replayed(ReplayFrom::After(Offset::new(5)), now).await, [0; 0]);
    assert_eq!(replayed(ReplayFrom::Time(middle), now).await, [3, 4, 5]);
    assert_eq!(replayed(earliest, ReplayUntil::Time(middle)).await, [0, 1, 2]);
    assert_eq!(replayed(ReplayFrom::Time(jiff::Timestamp::MAX), now).await, [0; 0]);
}

#[tokio::test]
async fn every_subscription_of_the_group_takes_part() {
    let (bus, _broker, seen) = bus_of(&["both"]).await;
    publish(&bus, 0..1).await;
    bus.publish(&OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    let report = bus.replay("both").await.unwrap();
    let mut places = seen.all();
    places.sort_unstable();
    assert_eq!((report.events, places), (2, vec![0, 1]));
}

#[tokio::test]
async fn a_replay_moves_neither_the_live_subscription_nor_another_group() {
    let (bus, broker, _) = bus_of(&[]).await;
    let (live, again, other) = (Seen::new(), Seen::new(), pings(&bus, "other").await);
    let (seen, seen_again) = (live.clone(), again.clone());
    bus.on_topic("ping.sent", move |delivery: Delivery| {
        let seen = if delivery.replayed() { seen_again.clone() } else { seen.clone() };
        async move {
            seen.push(delivery.event::<Ping>()?.number);
            Ok::<(), eventbus::error::DecodeError>(())
        }
    })
    .group("made.at-run-time")
    .concurrency(1)
    .await
    .unwrap();
    publish(&bus, 0..3).await;
    bus.replay("made.at-run-time").await.unwrap();
    assert_eq!(again.all(), [0, 1, 2], "the bus need not be started");
    bus.start().unwrap();
    publish(&bus, 3..5).await;
    broker.settled().await;
    bus.replay("made.at-run-time").from(ReplayFrom::Offset(Offset::new(4))).await.unwrap();
    assert_eq!(again.all(), [0, 1, 2, 4]);
    publish(&bus, 5..6).await;
    broker.settled().await;
    assert_eq!(live.all(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(other.all(), [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_replay_ends_after_retries_and_in_the_order_of_a_key() {
    let (bus, _broker, _) = bus_of(&[]).await;
    let seen = Seen::new();
    let numbers = seen.clone();
    bus.on_topic("order.placed", move |delivery: Delivery| {
        let numbers = numbers.clone();
        async move {
            let order = delivery.arc_event::<OrderPlaced>()?;
            if order.number % 3 == 0 && delivery.attempt() < 3 {
                return Err(eventbus::BoxError::from("not yet"));
            }
            numbers.push(order.number);
            Ok(())
        }
    })
    .group("orders")
    .backoff(eventbus::Backoff::parse("1ms..1ms"))
    .await
    .unwrap();
    for number in 0..100 {
        bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    }
    let report = bus.replay("orders").concurrency(8).await.unwrap();
    assert_eq!((report.events, report.acked), (100, 100));
    assert_eq!(seen.all(), (0..100).collect::<Vec<_>>());
}

/// Subscribes a group that refuses every other ping and notes the others.
async fn half(bus: &Bus) -> Seen<u64> {
    let numbers = Seen::new();
    let noted = numbers.clone();
    bus.on(move |ping: Arc<Ping>| {
        let (noted, odd) = (noted.clone(), !ping.number.is_multiple_of(2));
        async move {
            if !odd {
                return Err(format!("{} is even", ping.number));
            }
            noted.push(ping.number);
            Ok(())
        }
    })
    .group("half")
    .retries(0)
    .concurrency(1)
    .await
    .unwrap();
    numbers
}

#[tokio::test]
async fn what_fails_in_a_replay_is_named_in_its_error_and_is_no_dead_letter() {
    let (bus, broker, _) = bus_of(&[]).await;
    let seen = half(&bus).await;
    bus.start().unwrap();
    publish(&bus, 0..9).await;
    broker.settled().await;
    let before = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(before.len(), 5, "those of the live subscription");
    let error = bus.replay("half").await.unwrap_err();
    assert!(matches!(error, Error::Replay { .. }), "{error}");
    let error = error.to_string();
    for words in ["5 of 9 events failed", "\"ping.sent\" at 4 (failed: 4 is even), …", ".skip_failures()"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(!error.contains("6 is even"), "only the first ones: {error}");
    assert_eq!(seen.all(), [1, 3, 5, 7, 1, 3, 5, 7], "the others are handled");
    let after = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(
        after.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        before.iter().map(|(id, _)| id).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn what_a_replay_skips_is_counted_and_listed_with_the_reasons() {
    let (bus, _broker, _) = bus_of(&[]).await;
    half(&bus).await;
    publish(&bus, 0..5).await;
    let told = Seen::new();
    let tell = told.clone();
    let replay = bus.replay("half").concurrency(8).on_progress(move |progress| tell.push(*progress));
    let report = replay.skip_failures().await.unwrap();
    assert_eq!((report.events, report.acked, report.failed), (5, 2, 3));
    let told = told.all();
    let last = told.last().unwrap();
    assert_eq!(last.failed, 3);
    assert!(report.elapsed >= last.elapsed, "it took as long as was told: {report:?} {last:?}");
    assert!(!report.is_complete());
    let listed = report.failures.iter().map(|failure| (failure.offset.get(), failure.reason.as_str()));
    assert_eq!(listed.collect::<Vec<_>>(), [(0, "0 is even"), (2, "2 is even"), (4, "4 is even")]);
    assert!(report.failures.iter().all(|failure| failure.group == "half" && failure.attempts == 1));
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 0);
}

#[tokio::test]
async fn the_report_of_a_replay_lists_a_hundred_failures_and_counts_all() {
    let (bus, _broker, _) = bus_of(&[]).await;
    half(&bus).await;
    publish(&bus, 0..500).await;
    let report = bus.replay("half").skip_failures().await.unwrap();
    assert_eq!((report.failed, report.failures.len()), (250, 100));
}

#[tokio::test]
async fn a_replay_delivers_the_payload_that_a_dead_letter_was_mended_with_to_that_group_alone() {
    let (bus, broker, _) = bus_of(&[]).await;
    let seen = half(&bus).await;
    let other = pings(&bus, "other").await;
    bus.start().unwrap();
    publish(&bus, 0..4).await;
    broker.settled().await;
    let letters = bus.dead_letters().unwrap();
    // Mended twice: the first time in vain.
    for payload in ["{\"number\":44}", "{\"number\":45}"] {
        let (id, _) =
            letters.list().await.unwrap().into_iter().min_by_key(|(_, letter)| letter.offset).unwrap();
        assert!(letters.republish(&id, Some(payload.into())).await.unwrap());
        broker.settled().await;
    }
    assert_eq!(seen.all(), [1, 3, 45]);
    let log = bus.audit_log().unwrap();
    let mended = async |place| log.mended(Offset::new(place)).await.unwrap();
    assert_eq!(mended(0).await, [("half".to_owned(), "{\"number\":45}".into())], "the audit log tells of it");
    assert_eq!(mended(1).await, []);
    let report = bus.replay("half").skip_failures().await.unwrap();
    assert_eq!(seen.all()[3..], [45, 1, 3], "in the place of the event");
    assert_eq!((report.failed, report.failures[0].reason.as_str()), (1, "2 is even"));
    bus.replay("other").await.unwrap();
    assert_eq!(other.all(), [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[tokio::test]
async fn a_replay_writes_to_a_state_of_its_own() {
    let (bus, _broker, live) = bus_of(&["model"]).await;
    publish(&bus, 0..3).await;
    let beside = Seen::<u64>::new();
    bus.replay("model").state(beside.clone()).await.unwrap();
    assert_eq!((beside.all(), live.all()), (vec![0, 1, 2], vec![]));
    let error = bus.replay("model").state(Unused).await.unwrap_err().to_string();
    for words in ["`model`", "State<replay::Unused>", &model::SUBSCRIBER.subscription.location()] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(live.len(), 0, "a state that the handler does not take leaves the live one alone");
}

#[tokio::test]
async fn a_handler_that_must_not_replay_is_refused_unless_one_insists() {
    let (bus, _broker, seen) = bus_of(&["mail"]).await;
    publish(&bus, 0..2).await;
    let error = bus.replay(mail::SUBSCRIBER).await.unwrap_err();
    assert!(matches!(error, Error::Replay { .. }), "{error}");
    let error = error.to_string();
    for words in ["`mail`", &mail::SUBSCRIBER.subscription.location(), "replay = false", ".insist()"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(seen.len(), 0);
    bus.replay(mail::SUBSCRIBER).insist().await.unwrap();
    assert_eq!(seen.all(), [0, 1]);
}

#[tokio::test]
async fn an_unknown_group_is_refused_with_the_nearest_one_and_with_those_there_are() {
    let (bus, _broker, _) = bus_of(&["model"]).await;
    let error = bus.replay("modle").await.unwrap_err().to_string();
    assert!(error.contains("did you mean \"model\"?") && error.contains("there are: `model`"), "{error}");
    let error = bus.replay("mail").await.unwrap_err().to_string();
    assert!(error.contains("`only`"), "{error}");
}

#[tokio::test]
async fn a_broker_without_a_history_is_named() {
    let bus = Bus::builder().only([] as [&str; 0]).connect("memory:").await.unwrap();
    pings(&bus, "pings").await;
    let error = bus.replay("pings").await.unwrap_err().to_string();
    assert!(error.contains("in-process") && error.contains(".history("), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_rate_of_a_replay_is_kept() {
    let (bus, _broker, seen) = bus_of(&["model"]).await;
    publish(&bus, 0..1_000).await;
    let begun = Instant::now();
    bus.replay("model").rate(100).await.unwrap();
    assert_eq!(seen.len(), 1_000);
    let seconds = begun.elapsed().as_secs_f64();
    assert!((9.8..10.5).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_five_times_a_second_and_at_the_end() {
    let (bus, _broker, _) = bus_of(&["model"]).await;
    publish(&bus, 0..100).await;
    let told = Seen::new();
    let tell = told.clone();
    bus.replay("model").rate(100).on_progress(move |progress| tell.push(*progress)).await.unwrap();
    let told = told.all();
    assert!((4..=7).contains(&told.len()), "{told:?}");
    assert!(told.iter().all(|progress| progress.events == 100));
    let (middle, end) = (told[1], told[told.len() - 1]);
    assert!((20.0..=60.0).contains(&middle.percent()), "{middle:?}");
    assert!((80.0..=120.0).contains(&middle.rate()), "{middle:?}");
    let remaining = middle.remaining().unwrap();
    assert!((Duration::from_millis(400)..Duration::from_secs(1)).contains(&remaining), "{remaining:?}");
    assert_eq!((end.handled, end.percent(), end.remaining()), (100, 100.0, Some(Duration::ZERO)));
}

#[tokio::test]
async fn a_live_replay_goes_on_with_what_is_published_without_gap_or_repeat() {
    let (bus, broker, live) = bus_of(&["model"]).await;
    bus.start().unwrap();
    publish(&bus, 0..100).await;
    let (beside, publisher) = (Seen::<u64>::new(), bus.clone());
    let publishing = tokio::spawn(async move {
        for number in 100..2_000 {
            publisher.publish(&Ping { number }).await.unwrap();
            if number % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    tokio::task::yield_now().await;
    let replay = bus.replay("model").state(beside.clone()).until(ReplayUntil::Live).into_future();
    let replay = tokio::spawn(replay);
    publishing.await.unwrap();
    while beside.len() < 2_000 {
        sleep(Duration::from_millis(1)).await;
    }
    broker.settled().await;
    assert_eq!(beside.all(), (0..2_000).collect::<Vec<_>>());
    assert_eq!(live.all(), (0..2_000).collect::<Vec<_>>());
    assert!(!replay.is_finished(), "it never ends by itself");
    replay.abort();
    assert!(replay.await.unwrap_err().is_cancelled());
    publish(&bus, 2_000..2_001).await;
    broker.settled().await;
    assert_eq!((beside.len(), live.len()), (2_000, 2_001), "the live group goes on without it");
}

/// A subscription whose first delivery waits until it is let go.
async fn held_up(bus: &Bus) -> (Arc<Notify>, Arc<Notify>, Seen<u64>) {
    let (begun, go, seen) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Seen::new());
    let (handler_begun, handler_go, numbers) = (Arc::clone(&begun), Arc::clone(&go), seen.clone());
    let first = Arc::new(AtomicBool::new(true));
    bus.on(move |ping: Arc<Ping>| {
        let (begun, go, numbers) = (Arc::clone(&handler_begun), Arc::clone(&handler_go), numbers.clone());
        let first = first.swap(false, Ordering::SeqCst);
        async move {
            if first {
                begun.notify_one();
                go.notified().await;
            }
            numbers.push(ping.number);
        }
    })
    .group("held.up")
    .concurrency(1)
    .await
    .unwrap();
    (begun, go, seen)
}

#[tokio::test]
async fn a_replay_that_is_dropped_stops() {
    let (bus, broker, _) = bus_of(&[]).await;
    let (begun, go, seen) = held_up(&bus).await;
    publish(&bus, 0..10).await;
    let replay = tokio::spawn(bus.replay("held.up").into_future());
    begun.notified().await;
    replay.abort();
    assert!(replay.await.unwrap_err().is_cancelled());
    go.notify_one();
    while seen.len() == 0 {
        tokio::task::yield_now().await;
    }
    bus.start().unwrap();
    broker.settled().await;
    assert_eq!(seen.len(), 11, "the one that was being handled, and then all of them live");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_replay_with_an_error() {
    let (bus, _broker, _) = bus_of(&[]).await;
    let (begun, go, seen) = held_up(&bus).await;
    publish(&bus, 0..10).await;
    let replay = tokio::spawn(bus.replay("held.up").into_future());
    begun.notified().await;
    let shutdown = tokio::spawn({
        let bus = bus.clone();
        async move { bus.shutdown().await }
    });
    let error = replay.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
    go.notify_one();
    // The handler of the replay finishes, and the rest is not waited for. The live subscription has never begun.
    let left = shutdown.await.unwrap().unwrap_err();
    assert!(matches!(left, Error::Drain { unfinished: 10, lost: 10, .. }), "{left}");
    assert_eq!(seen.len(), 1);
    assert!(matches!(bus.replay("held.up").await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_a_shutdown_ends_while_only_a_retry_is_left_is_no_success() {
    let (bus, _broker, _) = bus_of(&[]).await;
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("not yet") })
        .group("slow")
        .backoff(eventbus::Backoff::parse("1h..1h"))
        .await
        .unwrap();
    publish(&bus, 0..1).await;
    let replay = tokio::spawn(bus.replay("slow").into_future());
    sleep(Duration::from_secs(60)).await;
    assert!(!replay.is_finished());
    let left = bus.shutdown().await.unwrap_err();
    assert!(
        matches!(left, Error::Drain { unfinished: 1, lost: 1, .. }),
        "the live one has never begun: {left}"
    );
    assert!(matches!(replay.await.unwrap(), Err(Error::Closed)));
}

/// What the reader of a history says in turn.
#[derive(Clone, Copy, Debug)]
enum Says {
    OneEvent,
    Fails,
    Ends,
}

/// The in-process broker, with a history that says what it was told to.
fn breaking(says: &'static [Says]) -> Around {
    Around::new("breaking", kept(10_000)).replayed(move |deliveries| {
        let mut said = says.iter();
        reading(deliveries, move |inner, context, into, limit| match said.next() {
            Some(Says::OneEvent) => inner.poll_receive(context, into, limit.min(1)),
            Some(Says::Fails) => Poll::Ready(Err(BrokerError::new("the connection is lost"))),
            Some(Says::Ends) | None => Poll::Ready(Ok(())),
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_breaks_off_is_not_complete() {
    use Says::{Ends, Fails, OneEvent};
    for (says, complete) in [
        (&[OneEvent, Fails, Ends][..], false),
        (&[Fails, Ends], false),
        (&[OneEvent, Fails, Fails, OneEvent, OneEvent, Ends], true),
        (&[OneEvent, OneEvent, OneEvent, Ends], true),
    ] {
        let seen = Seen::<u64>::new();
        let builder = Bus::builder().state(seen.clone()).concurrency(1).only(["model"]);
        let bus = builder.broker(breaking(says)).await.unwrap();
        publish(&bus, 0..3).await;
        let replayed = bus.replay(model::SUBSCRIBER).await;
        if complete {
            assert_eq!(replayed.unwrap().acked, 3, "{says:?}");
        } else {
            let said = replayed.unwrap_err().to_string();
            let had = seen.len();
            let expected =
                format!("it broke off after {had} of 3 events: the connection is lost; begin it again");
            assert!(said.ends_with(&expected), "{said}");
        }
    }
}
