//! Our own rows. Payload, latch and window are those of the other rows, so that they pair.

use super::{Flavor, drive, push};
use crate::measure::{Sample, Scenario};
use crate::order::{LATCH, Order, sample};
use bytes::Bytes;
use eventbus::middleware::{Next, from_fn};
use eventbus::bus::BusBuilder;
use eventbus::event::{EventMeta, Key};
use eventbus::{Bus, Delivery, Envelope, Event, Json, Topic};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const TOPIC: &str = "order.placed";

const fn meta(topic: &'static str, name: &'static str) -> EventMeta {
    EventMeta { topic, name, version: 1, keyed: false, schema: 0, package: env!("CARGO_PKG_NAME"), file: file!(), line: line!() }
}

impl Event for Order {
    const META: &'static EventMeta = &meta(TOPIC, "Order");
    type Codec = Json;
}

/// The same order with a key; its ids are spread over 64 lanes.
#[derive(Clone, Serialize, Deserialize)]
struct Keyed(Order);

impl Event for Keyed {
    const META: &'static EventMeta = &meta("order.keyed", "Keyed");
    type Codec = Json;

    fn key(&self) -> Option<Key> {
        Some(Key::new(self.0.id))
    }
}

#[derive(Clone, Copy)]
enum Row {
    /// A typed event to this many subscribers: nothing is encoded.
    Typed(usize),
    Keyed,
    /// A typed event through one layer that does nothing.
    Layered,
    /// A value as JSON to a subscriber that decodes it.
    Json,
    /// Bytes to a subscriber that looks at their length.
    Raw,
}

pub fn add(list: &mut Vec<Scenario>, n: usize, lat: usize) {
    for flavor in [Flavor::Current, Flavor::Multi] {
        let tag = flavor.tag();
        for (name, row, window, count) in [
            ("typed x1", Row::Typed(1), 1024, n),
            ("typed x1", Row::Typed(1), 1, lat),
            ("typed x3", Row::Typed(3), 1024, n),
            ("typed keyed x1", Row::Keyed, 1024, n),
            ("typed from_fn x1", Row::Layered, 1024, n),
            ("json x1", Row::Json, 1024, n),
            ("raw bytes x1", Row::Raw, 1024, n),
        ] {
            push(list, format!("eventbus memory {name} {tag} w{window}"), count, move |n| run(flavor, n, window, row));
        }
    }
}

async fn pass(delivery: Delivery, next: Next) -> eventbus::Outcome {
    next.run(delivery).await
}

fn builder(row: Row) -> BusBuilder {
    match row {
        Row::Layered => Bus::builder().layer(from_fn(pass)),
        _ => Bus::builder(),
    }
}

async fn subscribe(bus: &Bus, row: Row) {
    match row {
        Row::Typed(subs) => {
            for sub in 0..subs {
                typed(bus, sub).await;
            }
        }
        Row::Layered | Row::Json => typed(bus, 0).await,
        Row::Keyed => {
            bus.on(|order: Arc<Keyed>| async move { LATCH.arrive(&order.0) }).await.unwrap();
        }
        Row::Raw => {
            let raw = |delivery: Delivery| async move {
                std::hint::black_box(delivery.envelope().payload().unwrap().len());
                LATCH.arrive_raw();
            };
            bus.on_topic(TOPIC, raw).await.unwrap();
        }
    }
}

async fn typed(bus: &Bus, sub: usize) {
    let handler = |order: Arc<Order>| async move { LATCH.arrive(&order) };
    bus.on(handler).group(format!("subscriber-{sub}")).await.unwrap();
}

fn run(flavor: Flavor, n: usize, window: usize, row: Row) -> Sample {
    flavor.runtime().block_on(async move {
        let bus = builder(row).connect("memory:").await.unwrap();
        subscribe(&bus, row).await;
        bus.start().unwrap();
        let publisher = bus.publisher();
        let order = sample();
        let out = tokio::spawn(async move {
            match row {
                Row::Typed(subs) => {
                    drive(n, window, subs, || async {
                        publisher.publish(&order).await.unwrap();
                    })
                    .await
                }
                Row::Layered => {
                    drive(n, window, 1, || async {
                        publisher.publish(&order).await.unwrap();
                    })
                    .await
                }
                Row::Keyed => {
                    let orders: Vec<_> = (0..64).map(|id| Keyed(Order { id, ..order.clone() })).collect();
                    let mut orders = orders.iter().cycle();
                    drive(n, window, 1, || {
                        let publish = orders.next().map(|order| publisher.publish(order)).unwrap();
                        async {
                            publish.await.unwrap();
                        }
                    })
                    .await
                }
                Row::Json => {
                    drive(n, window, 1, || async {
                        publisher.publish_to(TOPIC, &order).await.unwrap();
                    })
                    .await
                }
                Row::Raw => {
                    const ORDER_PLACED: Topic = Topic::from_static(TOPIC);
                    let bytes = Bytes::from(serde_json::to_vec(&order).unwrap());
                    drive(n, window, 1, || async {
                        let envelope = Envelope::from_bytes(ORDER_PLACED, "application/json", bytes.clone());
                        publisher.publish_envelope(envelope).await.unwrap();
                    })
                    .await
                }
            }
        })
        .await
        .unwrap();
        bus.shutdown().await.unwrap();
        out
    })
}
