//! One subscription changes nothing for another.

mod support;

use eventbus::broker::FailureKind;
use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{OrderPlaced, Ping, Seen, bus, pings};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_failing_subscriber_does_not_delay_the_others() {
    let (bus, broker) = bus().await;
    let (healthy, start) = (Seen::new(), tokio::time::Instant::now());
    bus.on(|_: Arc<Ping>| async { Err::<(), _>("always") }).group("failing").await.unwrap();
    let seen = healthy.clone();
    bus.on(move |ping: Arc<Ping>| {
        let seen = seen.clone();
        async move { seen.push((ping.number, start.elapsed())) }
    })
    .group("healthy")
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(healthy.len(), 20);
    assert!(healthy.all().iter().all(|(_, after)| after.is_zero()), "{:?}", healthy.all());
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_subscriber_hurts_nobody_and_its_event_is_kept() {
    let (bus, broker) = bus().await;
    bus.on(|ping: Arc<Ping>| async move {
        if ping.number == 1 {
            panic!("number {}", ping.number)
        }
    })
    .group("panicking")
    .retries(0)
    .await
    .unwrap();
    let healthy = pings(&bus, "healthy").await;
    bus.start().unwrap();
    for number in 0..3 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(healthy.all(), [0, 1, 2]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let [(_, letter)] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.kind, letter.reason.as_str()), (FailureKind::Panicked, "number 1"));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_never_finishes_holds_up_only_itself_and_times_out() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| pending::<()>())
        .group("stuck")
        .timeout(Duration::from_secs(5))
        .retries(1)
        .await
        .unwrap();
    let healthy = pings(&bus, "healthy").await;
    bus.start().unwrap();
    let start = tokio::time::Instant::now();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(healthy.all(), [1]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters[0].1.kind, letters[0].1.attempts), (FailureKind::TimedOut, 2));
    // Two attempts of 5 s, and one delay of 100 to 200 ms between them.
    assert!((10_100..10_500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_panics_are_ten_thousand_dead_letters_and_nothing_else() {
    std::panic::set_hook(Box::new(|_| {}));
    let (bus, broker) = bus().await;
    bus.on(|ping: Arc<Ping>| async move { assert!(ping.number > u64::MAX - 1, "again") })
        .group("panicking")
        .retries(0)
        .await
        .unwrap();
    bus.start().unwrap();
    for number in 0..10_000 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    let _ = std::panic::take_hook();
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 10_000);
    bus.shutdown().await.unwrap();
}

/// A handler that needs its events in time, though whoever publishes goes on to block the thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_blocks_its_thread_does_not_keep_the_handler_from_running() {
    let (bus, _broker) = bus().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    bus.on(move |ping: Arc<Ping>| {
        let sender = sender.clone();
        async move { sender.send(ping.number).unwrap() }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    let receiver = Arc::new(Mutex::new(receiver));
    // Once with a worker that is new, then with one that sleeps, then with one that took the place of a late one.
    for number in 0..3 {
        let (bus, receiver) = (bus.clone(), Arc::clone(&receiver));
        let publishing = tokio::spawn(async move {
            bus.publish(&Ping { number }).await.unwrap();
            let handled = receiver.lock().unwrap().recv_timeout(Duration::from_secs(60));
            assert_eq!(handled, Ok(number), "the handler waits for the thread of its publisher");
        });
        publishing.await.unwrap();
    }
    bus.shutdown().await.unwrap();
}

/// Spends its budget in each poll, as a handler does that reads from a busy channel.
async fn spend_budgets() {
    loop {
        tokio::task::consume_budget().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_spends_its_budget_in_each_poll_is_timed_out_all_the_same() {
    let (bus, broker) = bus().await;
    let limit = Duration::from_millis(200);
    bus.on(|_: Arc<Ping>| spend_budgets()).group("busy").timeout(limit).retries(0).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), broker.settled()).await.expect("it is timed out");
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!(letters[0].1.kind, FailureKind::TimedOut);
}

/// `groups` of this test's own block a thread for a while with each of twenty events, and one more needs sixty
/// milliseconds in all. How long that one took.
async fn beside_groups_that_block<F>(
    groups: usize,
    concurrency: usize,
    block: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Duration
where
    F: Future<Output = ()> + Send,
{
    let (bus, _broker) = bus().await;
    let (began, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for group in 0..groups {
        let (counted, ends, block) = (Arc::clone(&began), Arc::clone(&over), block.clone());
        bus.on_topic("ping.sent", move |_| {
            let (counted, ends, block) = (Arc::clone(&counted), Arc::clone(&ends), block.clone());
            async move {
                counted.fetch_add(1, SeqCst);
                // The rest is of no interest once the other group is done.
                if !ends.load(SeqCst) {
                    block().await;
                }
            }
        })
        .group(format!("blocking-{group}"))
        .concurrency(concurrency)
        .await
        .unwrap();
    }
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    bus.on(move |_: Arc<OrderPlaced>| {
        let count = Arc::clone(&count);
        async move {
            sleep(Duration::from_millis(3)).await;
            count.fetch_add(1, SeqCst);
        }
    })
    .group("other")
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    while began.load(SeqCst) < groups {
        sleep(Duration::from_millis(1)).await;
    }
    let start = Instant::now();
    for number in 0..20 {
        bus.publish(&OrderPlaced { customer: number, number }).await.unwrap();
    }
    while handled.load(SeqCst) < 20 {
        sleep(Duration::from_millis(1)).await;
    }
    over.store(true, SeqCst);
    let took = start.elapsed();
    bus.shutdown().await.unwrap();
    took
}

/// Less than three of the handlers that block take: nobody has waited for one after the other.
const SOON: Duration = Duration::from_millis(1_400);

async fn block() {
    std::thread::sleep(Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_handlers_block_their_threads_leaves_one_to_the_others() {
    for (groups, concurrency) in [(1, 2), (1, 4), (1, 16), (3, 4)] {
        let took = beside_groups_that_block(groups, concurrency, block).await;
        assert!(took < SOON, "{took:?} beside {groups} groups with {concurrency} handlers that block");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_handlers_block_after_they_have_waited_leaves_a_thread_to_the_others() {
    // The longer wait is one in which nothing happens, so that nobody looks any more.
    for wait in [5, 100].map(Duration::from_millis) {
        let took = beside_groups_that_block(1, 8, move || async move {
            sleep(wait).await;
            block().await;
        });
        let took = took.await;
        assert!(took < SOON, "{took:?} after a wait of {wait:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn timers_go_on_beside_handlers_that_never_return_to_their_thread() {
    let stop = Arc::new(AtomicBool::new(false));
    let spinning = Arc::clone(&stop);
    let took = beside_groups_that_block(1, 4, move || {
        let stop = Arc::clone(&spinning);
        async move {
            let began = Instant::now();
            while !stop.load(SeqCst) && began.elapsed() < Duration::from_millis(500) {
                std::hint::spin_loop();
            }
        }
    });
    let took = took.await;
    stop.store(true, SeqCst);
    assert!(took < SOON, "{took:?}");
}

/// A runtime of one thread has none to leave to others; but nothing may break there, and others get their turns.
#[tokio::test]
async fn on_a_runtime_of_one_thread_handlers_that_block_take_turns_with_others() {
    let (bus, broker) = bus().await;
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    bus.on(move |_: Arc<Ping>| {
        let count = Arc::clone(&count);
        async move {
            std::thread::sleep(Duration::from_millis(20));
            count.fetch_add(1, SeqCst);
        }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..20 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    sleep(Duration::from_millis(1)).await;
    assert!(handled.load(SeqCst) < 20, "a timer waits until all of them are handled");
    broker.settled().await;
    assert_eq!(handled.load(SeqCst), 20);
}

/// Computing is no fault: as many handlers do so at once as there are workers, as long as there are cores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_compute_for_long_have_as_many_threads_as_workers() {
    let (bus, broker) = bus().await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, seen) = (Arc::clone(&running), Arc::clone(&most));
    bus.on(move |_: Arc<Ping>| {
        let (now, seen) = (Arc::clone(&now), Arc::clone(&seen));
        async move {
            seen.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            let began = Instant::now();
            // Until four compute at once.
            while seen.load(SeqCst) < 4 && began.elapsed() < Duration::from_secs(5) {
                std::thread::yield_now();
            }
            now.fetch_sub(1, SeqCst);
        }
    })
    .concurrency(4)
    .await
    .unwrap();
    bus.start().unwrap();
    for number in 0..12 {
        bus.publish(&Ping { number }).await.unwrap();
    }
    broker.settled().await;
    assert_eq!(most.load(SeqCst), 4);
}

/// The limit counts from the start of the handler, also where that computes before it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_that_a_handler_computes_before_it_waits_counts_against_its_timeout() {
    let (bus, broker) = bus().await;
    bus.on(|_: Arc<Ping>| async {
        std::thread::sleep(Duration::from_millis(400));
        sleep(Duration::from_millis(400)).await;
    })
    .timeout(Duration::from_millis(600))
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters.len(), letters[0].1.kind), (1, FailureKind::TimedOut));
}
