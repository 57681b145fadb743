//! Events that cause events.

mod support;

use eventbus::{Bus, Delivery, Event, Outcome, PublishError, Publisher, subscribe};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use support::{OrderPlaced, Ping, Seen, bus, bus_with};

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.shipped", key = number)]
struct OrderShipped {
    number: u64,
}

#[subscribe]
async fn ship(order: &OrderPlaced) -> Result<OrderShipped, String> {
    Ok(OrderShipped { number: order.number })
}

#[subscribe]
async fn thank(order: &OrderPlaced, publisher: Publisher) -> Result<(), PublishError> {
    publisher.publish_to("thanks.sent", &order.number).await?;
    Ok(())
}

#[subscribe]
async fn split(order: OrderPlaced) -> Vec<OrderShipped> {
    (0..order.number).map(|number| OrderShipped { number }).collect()
}

#[subscribe]
async fn ship_large(order: OrderPlaced) -> Option<OrderShipped> {
    (order.number > 1).then_some(OrderShipped { number: order.number })
}

async fn all_envelopes(bus: &Bus) -> Seen<Arc<eventbus::Envelope>> {
    let seen = Seen::new();
    let envelopes = seen.clone();
    bus.on_topic(">", move |delivery: Delivery| {
        let envelopes = envelopes.clone();
        async move { envelopes.push(Arc::clone(delivery.envelope())) }
    })
    .group("audit")
    .await
    .unwrap();
    seen
}

async fn publish_and_list(
    subscriber: &eventbus::subscription::Subscriber,
    number: u64,
) -> Vec<Arc<eventbus::Envelope>> {
    let broker = eventbus::memory::MemoryBroker::new();
    let bus = Bus::builder().only([subscriber]).broker(broker.clone()).await.unwrap();
    let seen = all_envelopes(&bus).await;
    bus.start().unwrap();
    bus.publish(&OrderPlaced { customer: 1, number }).await.unwrap();
    broker.settled().await;
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
    seen.all()
}

#[tokio::test]
async fn a_returned_event_is_published_and_says_what_caused_it() {
    let envelopes = publish_and_list(ship::SUBSCRIBER, 7).await;
    let [order, shipped] = envelopes.as_slice() else { panic!("{envelopes:?}") };
    assert_eq!(*shipped.event::<OrderShipped>().unwrap(), OrderShipped { number: 7 });
    assert_eq!(shipped.key(), Some("7"));
    assert_eq!((order.causation_id(), order.correlation_id()), (None, order.id()));
    assert_eq!((shipped.causation_id(), shipped.correlation_id()), (Some(order.id()), order.id()));
    assert_eq!((order.causation_depth(), shipped.causation_depth()), (0, 1));
}

#[tokio::test]
async fn the_publisher_of_a_handler_says_what_caused_the_event() {
    let envelopes = publish_and_list(thank::SUBSCRIBER, 7).await;
    assert_eq!(envelopes[1].topic().as_str(), "thanks.sent");
    assert_eq!(envelopes[1].causation_id(), Some(envelopes[0].id()));
}

#[tokio::test]
async fn a_handler_may_return_none_one_or_many_events() {
    let topics = |envelopes: Vec<Arc<eventbus::Envelope>>| -> Vec<String> {
        envelopes.iter().skip(1).map(|envelope| envelope.topic().to_string()).collect()
    };
    assert_eq!(topics(publish_and_list(split::SUBSCRIBER, 3).await), ["order.shipped"; 3]);
    assert_eq!(topics(publish_and_list(ship_large::SUBSCRIBER, 2).await), ["order.shipped"]);
    assert!(publish_and_list(ship_large::SUBSCRIBER, 1).await.len() == 1);
}

#[tokio::test]
async fn a_bus_that_is_used_inside_a_handler_knows_the_cause_too() {
    let (bus, broker) = bus().await;
    let seen = all_envelopes(&bus).await;
    let inner = bus.clone();
    bus.on(move |_: Arc<OrderPlaced>| {
        let bus = inner.clone();
        async move {
            tokio::task::yield_now().await;
            bus.publish(&Ping { number: 1 }).await.map(drop)
        }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    broker.settled().await;
    let envelopes = seen.all();
    assert_eq!(envelopes[1].causation_id(), Some(envelopes[0].id()));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_causes_itself_is_stopped_and_named() {
    let (bus, broker) = bus_with(Bus::builder().causation_limit(10)).await;
    let seen = all_envelopes(&bus).await;
    bus.on(|ping: Arc<Ping>| async move { Outcome::publish(ping) }).group("loop").await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.len(), 11, "the first event, and ten that it caused");
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let [(_, letter)] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((letter.group.as_str(), letter.attempts), ("loop", 1));
    assert!(
        letter.reason.contains("\"ping.sent\"") && letter.reason.contains("causation_limit"),
        "{}",
        letter.reason
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_publish_fails_the_attempt() {
    let (bus, broker) = bus().await;
    #[derive(Event, Clone, Serialize, Deserialize)]
    #[event(topic = "unfit.made")]
    struct Unfit(std::collections::BTreeMap<Vec<u8>, u8>);
    bus.on_topic("ping.sent", |delivery: Delivery| async move {
        delivery.publisher().publish_to("never.made", &Unfit([(vec![1], 1)].into())).await.map(drop)
    })
    .retries(1)
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert!(letters[0].1.reason.contains("cannot encode the payload for \"never.made\""), "{letters:?}");
}
