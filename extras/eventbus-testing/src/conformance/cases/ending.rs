//! How a bus ends.

use crate::conformance::case::{Case, number, numbered, publish};
use eventbus_core::Error;
use eventbus_core::broker::DeadLetterQuery;
use std::sync::Arc;
use std::time::Duration;

/// A shutdown that begins while 10,000 events are being published waits for all of them, twice at once: each that was
/// confirmed is there afterwards.
pub(super) async fn a_shutdown_flushes_what_is_being_published(case: Arc<Case>) {
    const EVENTS: u64 = 10_000;
    let (broker, topic) = (case.broker().await, case.topic("order.placed"));
    let patient = case.builder(&*broker).drain(Duration::MAX);
    let bus = case.connect(patient, &broker).await;
    let seen = case.notes(&bus, &topic, "mail").await;
    bus.start_quietly().unwrap();
    let publishing = bus.publish_envelopes((0..EVENTS).map(|number| numbered(&topic, number)));
    let (published, ended) = tokio::join!(publishing, async {
        tokio::task::yield_now().await;
        let (first, second) = tokio::join!(bus.shutdown(), bus.shutdown());
        first.and(second)
    });
    ended.unwrap();
    let confirmed: Vec<_> =
        (0..EVENTS).zip(&published).filter(|(_, one)| one.is_ok()).map(|(number, _)| number).collect();
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
