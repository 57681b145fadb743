//! How a bus ends.

use crate::conformance::case::{Case, number, numbered, publish};
use eventbus_core::broker::DeadLetterQuery;
use eventbus_core::{Delivery, Error};
use std::sync::Arc;
use std::time::Duration;

/// A shutdown that begins while many events are being published waits for all of them, twice at once: each that was
/// confirmed is there afterwards.
pub(super) async fn a_shutdown_flushes_what_is_being_published(case: Arc<Case>) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let patient = case.builder(&*broker).drain(Duration::MAX);
    let bus = case.connect(patient, &broker).await;
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    let publishing = bus.publish_envelopes((0..case.many).map(|number| numbered(&topic, number)));
    let (published, ended) = tokio::join!(publishing, async {
        tokio::task::yield_now().await;
        let (first, second) = tokio::join!(bus.shutdown(), bus.shutdown());
        first.and(second)
    });
    ended.unwrap();
    let confirmed: Vec<_> =
        (0..case.many).zip(&published).filter(|(_, one)| one.is_ok()).map(|(number, _)| number).collect();
    assert_eq!(
        confirmed.len(),
        published.len(),
        "they were published before the end: {:?}",
        published.last()
    );
    if case.features().durable {
        let bus = case.bus().await;
        let rest = case.notes(&bus, &topic, "mail").await;
        bus.start_quietly().unwrap();
        case.until("the rest is delivered", async || seen.len() + rest.len() >= confirmed.len()).await;
        case.quiet(&bus).await;
        let mut all = [seen.all(), rest.all()].concat();
        all.sort_unstable();
        assert_eq!(all, confirmed);
    } else {
        assert_eq!(seen.sorted(), confirmed, "it is handled before the end");
    }
}

/// A delivery whose handler is cut off by the end of its bus is neither settled nor given up: the next process gets it. A
/// broker that is not durable counts it among the lost.
pub(super) async fn what_a_shutdown_cuts_off_is_not_settled(case: Arc<Case>) {
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let hasty = case.builder(&*broker).drain(Duration::from_millis(50));
    let bus = case.connect(hasty, &broker).await;
    let begun = case.seen();
    let noted = begun.clone();
    let hanging = bus.on_topic(&topic, move |delivery| {
        noted.push(number(&delivery));
        std::future::pending::<()>()
    });
    hanging.group(case.group("mail")).concurrency(2).await.unwrap();
    bus.start_quietly().unwrap();
    publish(&bus, &topic, 0..5).await;
    begun.reach(2).await;
    let ended = bus.shutdown().await;
    let Err(Error::Drain { unfinished, lost, .. }) = ended else {
        panic!("the end of the bus says: {ended:?}")
    };
    if !case.features().durable {
        return assert_eq!(lost, 5);
    }
    assert!(unfinished >= 2 && lost == 0, "{unfinished} are not finished, {lost} are lost");
    let bus = case.bus().await;
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    seen.reach(5).await;
    case.quiet(&bus).await;
    assert_eq!(seen.sorted(), [0, 1, 2, 3, 4]);
    if let Ok(letters) = bus.dead_letters() {
        let mut query = DeadLetterQuery::default();
        query.group = Some(case.group("mail"));
        assert!(letters.find(query).await.unwrap().is_empty(), "it was given up");
    }
}

/// Processes that publish and handle come and go, at moments that chance decides: what was confirmed is handled, and a
/// regular end repeats nothing. A broker that is not durable handles what it has before its end.
pub(super) async fn shutdowns_under_load_lose_nothing(case: Arc<Case>) {
    const ROUNDS: u64 = 5;
    const EACH: u64 = 300;
    let (topic, seen) = (case.topic("order.placed"), case.seen::<u64>());
    let mut chance = fastrand::Rng::with_seed(case.seed);
    let rounds = if case.features().durable { ROUNDS } else { 1 };
    for round in 0..rounds {
        let broker = case.broker().await;
        let bus = case.connect(case.builder(&*broker).drain(Duration::MAX), &broker).await;
        let noted = seen.clone();
        let handle = move |delivery: Delivery| {
            let noted = noted.clone();
            async move {
                tokio::task::yield_now().await;
                noted.push(number(&delivery));
            }
        };
        bus.on_topic(&topic, handle).group(case.group("mail")).await.unwrap();
        bus.start_quietly().unwrap();
        publish(&bus, &topic, round * EACH..(round + 1) * EACH).await;
        tokio::time::sleep(Duration::from_micros(chance.u64(..5_000))).await;
        case.in_time("the bus ends", bus.shutdown()).await.unwrap();
    }
    let all: Vec<_> = (0..rounds * EACH).collect();
    if case.features().durable {
        let bus = case.bus().await;
        bus.on_topic(&topic, seen.noting(number)).group(case.group("mail")).await.unwrap();
        bus.start_quietly().unwrap();
        seen.reach(all.len()).await;
        case.quiet(&bus).await;
    }
    assert_eq!(seen.sorted(), all);
}

/// While a bus ends, others publish on it: each publish is confirmed, and then its event is handled, or refused, and after
/// the end all are refused.
pub(super) async fn a_publish_beside_a_shutdown_is_confirmed_or_refused(case: Arc<Case>) {
    const PUBLISHERS: u64 = 10;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let bus = case.connect(case.builder(&*broker).drain(Duration::MAX), &broker).await;
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    let confirmed = case.seen::<u64>();
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let (bus, topic, confirmed) = (bus.clone(), topic.clone(), confirmed.clone());
            tokio::spawn(async move {
                for number in (publisher..).step_by(PUBLISHERS as usize) {
                    if bus.publish_envelope(numbered(&topic, number)).await.is_err() {
                        return;
                    }
                    confirmed.push(number);
                }
            })
        })
        .collect();
    confirmed.reach(50).await;
    case.in_time("the bus ends", bus.shutdown()).await.unwrap();
    for publisher in publishers {
        case.in_time("its publish is answered", publisher).await.unwrap();
    }
    assert!(bus.publish_envelope(numbered(&topic, u64::MAX)).await.is_err(), "the bus has ended");
    if case.features().durable {
        let bus = case.bus().await;
        bus.on_topic(&topic, seen.noting(number)).group(case.group("mail")).await.unwrap();
        bus.start_quietly().unwrap();
        seen.reach(confirmed.len()).await;
        case.quiet(&bus).await;
        // What was refused at the last moment may have been stored, as `PublishError::Unconfirmed` says.
        let handled = seen.sorted();
        assert!(confirmed.all().iter().all(|number| handled.binary_search(number).is_ok()));
    } else {
        assert_eq!(seen.sorted(), confirmed.sorted());
    }
}
