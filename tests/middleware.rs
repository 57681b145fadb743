//! Layers around handlers, spans, and trace context.

mod support;

use eventbus::middleware::{Next, from_fn};
use eventbus::{Bus, Delivery};
use std::sync::Arc;
use std::time::Duration;
use support::{OrderPlaced, Ping, Seen, bus, bus_with};

/// A layer that notes when it is entered and left.
macro_rules! noting {
    ($name:literal, $seen:expr) => {{
        let seen = $seen.clone();
        from_fn(move |delivery: Delivery, next: Next| {
            let seen = seen.clone();
            async move {
                seen.push(concat!($name, " in").to_owned());
                let outcome = next.run(delivery).await;
                seen.push(concat!($name, " out").to_owned());
                outcome
            }
        })
    }};
}

#[tokio::test]
async fn layers_wrap_every_handler_the_first_one_outermost_and_one_group_where_it_is_named() {
    let seen = Seen::new();
    let builder = Bus::builder()
        .layer(noting!("first", seen))
        .layer_for("orders", noting!("second", seen))
        .layer(noting!("third", seen));
    let (bus, broker) = bus_with(builder).await;
    let handled = seen.clone();
    bus.on(move |_: Arc<OrderPlaced>| {
        let handled = handled.clone();
        async move { handled.push("handled".to_owned()) }
    })
    .group("orders")
    .await
    .unwrap();
    bus.on(|_: Arc<Ping>| async {}).group("pings").await.unwrap();
    bus.start().unwrap();
    bus.publish(&OrderPlaced { customer: 1, number: 1 }).await.unwrap();
    broker.settled().await;
    let order = ["first in", "second in", "third in", "handled", "third out", "second out", "first out"];
    assert_eq!(seen.all(), order);
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(seen.all()[order.len()..], ["first in", "third in", "third out", "first out"]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_of_tower_serves_and_its_error_is_a_failed_attempt() {
    let layer = tower::timeout::TimeoutLayer::new(Duration::from_secs(1));
    let (bus, broker) = bus_with(Bus::builder().layer(layer).retries(1)).await;
    bus.on(|_: Arc<Ping>| tokio::time::sleep(Duration::from_secs(5))).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    assert_eq!((letters[0].1.attempts, letters[0].1.reason.as_str()), (2, "request timed out"));
}

#[tokio::test]
async fn a_layer_that_panics_fails_one_attempt() {
    let layer = from_fn(|_: Delivery, _: Next| async { panic!("in the layer") });
    let (bus, broker) = bus_with(Bus::builder().layer(layer).retries(0)).await;
    bus.on(|_: Arc<Ping>| async {}).await.unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    broker.settled().await;
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap()[0].1.reason, "in the layer");
}

#[tokio::test]
async fn a_trace_goes_from_publish_to_handle_to_publish() {
    const INCOMING: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (bus, broker) = bus().await;
    let seen = Seen::new();
    let parents = seen.clone();
    bus.on_topic("ping.sent", |delivery: Delivery| async move {
        delivery.publisher().publish_to("pong.sent", &1).await.map(drop)
    })
    .await
    .unwrap();
    bus.on_topic("pong.sent", move |delivery: Delivery| {
        let parents = parents.clone();
        async move { parents.push(delivery.envelope().headers().get("traceparent").unwrap().to_owned()) }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).header("Traceparent", INCOMING).await.unwrap();
    broker.settled().await;
    let parent = &seen.all()[0];
    assert!(parent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && parent != INCOMING, "{parent}");
}

#[tokio::test]
async fn a_hook_sees_every_envelope_before_it_is_published() {
    let builder = Bus::builder().on_publish(|envelope| envelope.headers_mut().insert("tenant", "acme"));
    let (bus, broker) = bus_with(builder).await;
    let seen = Seen::new();
    let tenants = seen.clone();
    bus.on_topic(">", move |delivery: Delivery| {
        let tenants = tenants.clone();
        async move { tenants.push(delivery.envelope().headers().get("tenant").map(str::to_owned)) }
    })
    .await
    .unwrap();
    bus.start().unwrap();
    bus.publish(&Ping { number: 1 }).await.unwrap();
    bus.publish_all([&Ping { number: 2 }]).await.pop().unwrap().unwrap();
    broker.settled().await;
    assert_eq!(seen.all(), [Some("acme".to_owned()), Some("acme".to_owned())]);
}
