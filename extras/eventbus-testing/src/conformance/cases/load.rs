//! Many at once.

use crate::conformance::case::{Case, number, numbered, publish};
use crate::conformance::process::{Orders, Process, Step};
use eventbus_core::{Envelope, Topic};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Fifty publish at once, and each of fifty groups gets everything.
pub(super) async fn fifty_publishers_and_fifty_subscribers_miss_nothing(case: Arc<Case>) {
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    let each = case.many / 500;
    let mut groups = Vec::new();
    for group in 0..50 {
        groups.push(case.notes(&bus, &topic, &format!("group-{group}")).await);
    }
    bus.start_quietly().unwrap();
    let publishers: Vec<_> = (0..50)
        .map(|publisher| {
            let (bus, topic) = (bus.clone(), topic.clone());
            tokio::spawn(async move {
                for number in publisher * each..(publisher + 1) * each {
                    bus.publish_envelope(numbered(&topic, number)).await.unwrap();
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    let all: Vec<_> = (0..50 * each).collect();
    for seen in &groups {
        seen.reach(all.len()).await;
    }
    case.quiet(&bus).await;
    for seen in groups {
        assert_eq!(seen.sorted(), all);
    }
}

/// Subscriptions of one group that come and go lose nothing that they had not settled. What is not durable is lost with
/// the last one of its group, so there each waits until it has everything.
pub(super) async fn many_subscriptions_that_come_and_go_lose_nothing(case: Arc<Case>) {
    const ROUNDS: u64 = 25;
    const EACH: u64 = 8;
    let (bus, topic) = (case.bus().await, case.topic("order.placed"));
    case.notes(&bus, &case.topic("another"), "keeps-it-running").await;
    bus.start_quietly().unwrap();
    let seen = case.seen();
    for round in 0..ROUNDS {
        let subscribed = bus.on_topic(&topic, seen.noting(number)).group(case.group("mail"));
        let subscribed = subscribed.concurrency(1).await.unwrap();
        publish(&bus, &topic, round * EACH..(round + 1) * EACH).await;
        if !case.features().durable {
            seen.reach(((round + 1) * EACH) as usize).await;
        } else if round % 2 == 0 {
            seen.find("it handles something", |_| true).await;
        }
        case.in_time("the subscription ends", subscribed.stop()).await;
    }
    bus.on_topic(&topic, seen.noting(number)).group(case.group("mail")).await.unwrap();
    let all: Vec<_> = (0..ROUNDS * EACH).collect();
    case.until("everything is handled", async || {
        let mut handled = seen.sorted();
        handled.dedup();
        handled == all
    })
    .await;
}

/// However much waits for a handler that is slow, a process holds no more of it than its options say: the rest stays at a
/// durable broker, and one in memory makes publishers wait, or refuses.
pub(super) async fn what_waits_for_a_slow_handler_stays_at_the_broker(case: Arc<Case>) {
    /// What may be held, runtime and buffers included.
    const LIMIT: u64 = 24 << 20;
    let topic = case.topic("scan.stored");
    let broker = case.broker().await;
    let bus = case.bus_on(&broker).await;
    if !case.features().durable {
        return publishers_wait(&case, &bus, &topic).await;
    }
    let mut orders = Orders::new(&case, &topic, "scans");
    // From the first one on.
    (orders.hangs_from, orders.competing) = (0, true);
    let process = Process::begin(&case, &orders).await;
    process.steps.find("it says how much memory it has", |step| matches!(step, Step::Memory(_))).await;
    let memory = || {
        let steps = process.steps.all();
        steps.iter().rev().find_map(|step| if let Step::Memory(bytes) = step { Some(*bytes) } else { None })
    };
    let before = memory().unwrap_or_default();
    for some in 0..case.many.div_ceil(100) {
        publish_scans(&bus, &topic, some * 100..(some + 1) * 100).await;
    }
    case.until("its handlers hang", async || {
        process.steps.all().iter().filter(|step| matches!(step, Step::Begun(..))).count() >= 4
    })
    .await;
    // It takes more, if it takes more, at once.
    let steps = process.steps.len();
    process.steps.reach(steps + 10).await;
    let grown = memory().unwrap_or_default().saturating_sub(before);
    let backlog = case.many * SCAN as u64;
    assert!(grown < LIMIT, "of a backlog of {backlog} bytes the process has taken {grown}");
}

/// The size of an event that waits: all of them are far more than may be held.
const SCAN: usize = 8 << 10;

async fn publish_scans(bus: &eventbus_core::Bus, topic: &Topic, numbers: std::ops::Range<u64>) {
    // A number, and white space.
    let scan = |number| {
        let payload = format!("{number:<SCAN$}").into();
        Envelope::from_bytes(topic.clone(), "application/json", payload)
    };
    for published in bus.publish_envelopes(numbers.map(scan)).await {
        published.unwrap();
    }
}

async fn publishers_wait(case: &Case, bus: &eventbus_core::Bus, topic: &Topic) {
    let (gate, seen) = (Arc::new(Semaphore::new(0)), case.seen());
    let (closed, noted) = (Arc::clone(&gate), seen.clone());
    let slow = bus.on_topic(topic, move |delivery| {
        let (closed, noted) = (Arc::clone(&closed), noted.clone());
        async move {
            drop(closed.acquire().await);
            noted.push(number(&delivery));
        }
    });
    slow.group(case.group("scans")).await.unwrap();
    bus.start_quietly().unwrap();
    let many = case.many * 10;
    let mut publishing = Box::pin(bus.publish_envelopes((0..many).map(|number| numbered(topic, number))));
    let published = match tokio::time::timeout(Duration::from_secs(2), &mut publishing).await {
        Ok(published) => {
            assert!(
                published.iter().any(Result::is_err),
                "{many} events are kept in memory for a handler that hangs"
            );
            gate.add_permits(Semaphore::MAX_PERMITS);
            published
        }
        Err(_) => {
            gate.add_permits(Semaphore::MAX_PERMITS);
            case.in_time("there is room", publishing).await
        }
    };
    let taken: Vec<_> =
        (0..many).zip(&published).filter(|(_, one)| one.is_ok()).map(|(number, _)| number).collect();
    seen.reach(taken.len()).await;
    assert_eq!(seen.sorted(), taken);
}
