//! Publishing: by value, by reference, shared, in batches, and without a type.

mod support;

use eventbus::{Delivery, Envelope, EventId, PublishError, Topic, publish};
use std::sync::Arc;
use support::{OrderPlaced, Seen, bus};

#[tokio::test]
async fn an_event_is_published_by_value_by_reference_and_shared() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let orders = seen.clone();
    bus.on(move |order: Arc<OrderPlaced>| {
        let orders = orders.clone();
        async move { orders.push(order.number) }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    let order = |number| OrderPlaced { customer: 1, number };
    bus.publish(order(1)).await.unwrap();
    let second = order(2);
    bus.publish(&second).await.unwrap();
    bus.publish(Arc::new(order(3))).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), [1, second.number, 3]);
}

#[tokio::test]
async fn a_batch_is_answered_event_by_event_in_order() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let ids = seen.clone();
    bus.on_topic("order.placed", move |delivery: Delivery| {
        let ids = ids.clone();
        async move { ids.push(delivery.envelope().id().clone()) }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    let orders: Vec<_> = (0..10).map(|number| OrderPlaced { customer: 1, number }).collect();
    let published: Result<Vec<EventId>, PublishError> = bus.publish_all(&orders).await.into_iter().collect();
    broker.settled().await;
    assert_eq!(published.unwrap(), seen.all());
}

#[tokio::test]
async fn a_batch_of_envelopes_keeps_the_ids_that_they_were_given() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let ids = seen.clone();
    bus.on_topic(">", move |delivery: Delivery| {
        let ids = ids.clone();
        async move { ids.push(delivery.envelope().id().to_string()) }
    })
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    let placed = |number| {
        Envelope::from_event(OrderPlaced { customer: 1, number })
            .with_id(EventId::new(format!("order-{number}/placed")))
    };
    let published = bus.publish_envelopes([placed(1), placed(2)]).await;
    broker.settled().await;
    let published: Vec<_> = published.into_iter().map(|id| id.unwrap().to_string()).collect();
    assert_eq!(published, ["order-1/placed", "order-2/placed"]);
    assert_eq!(published, seen.all());
}

#[tokio::test]
async fn what_the_type_does_not_say_can_be_set() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let envelopes = seen.clone();
    bus.on_topic(">", move |delivery: Delivery| {
        let envelopes = envelopes.clone();
        async move { envelopes.push(Arc::clone(delivery.envelope())) }
    })
    .concurrency(1)
    .await
    .unwrap();
    bus.start().unwrap();
    let id = EventId::new("order-1/placed");
    let order = OrderPlaced { customer: 1, number: 1 };
    let time = "2026-01-02T03:04:05.123456789Z".parse().unwrap();
    let publish = bus.publish(&order).key("vip").subject("one").header("tenant", "acme");
    let answer = publish.id(id.clone()).time(time).await;
    assert_eq!(answer.unwrap(), id);
    publish!(bus, "note.taken", { "text": "hello" }).await.unwrap();
    let image = Envelope::from_bytes(
        Topic::from_static("image.taken"),
        "image/png",
        bytes::Bytes::from_static(b"\x89"),
    );
    bus.publish_envelope(image.with_source("/camera")).await.unwrap();
    broker.settled().await;
    let [order, note, image] = seen.all().try_into().unwrap();
    assert_eq!((order.id(), order.key(), order.subject()), (&id, Some("vip"), Some("one")));
    assert_eq!((order.time(), order.headers().get("tenant")), (time, Some("acme")));
    assert_eq!(note.payload().unwrap().as_ref(), br#"{"text":"hello"}"#);
    assert_eq!((image.source(), image.content_type()), ("/camera", "image/png"));
    assert!(order.source().starts_with('/'), "the bus sets its own source: {}", order.source());
}

#[tokio::test]
async fn an_event_that_is_not_awaited_is_not_published() {
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let topics = seen.clone();
    bus.on_topic(">", move |delivery: Delivery| {
        let topics = topics.clone();
        async move { topics.push(delivery.envelope().topic().to_string()) }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    drop(bus.publish(&OrderPlaced { customer: 1, number: 1 }));
    bus.publish_to("second.one", &1).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), ["second.one"]);
}
