//! The facade under another name.

#![deny(warnings)]

extern crate eventbus as bus;

use serde::{Deserialize, Serialize};

mod eventbus {}

bus::topics! { crate = ::bus; ORDER_PLACED = "order.placed", ORDER_COUNTED = "order.counted" }

#[derive(bus::Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", crate = crate::bus)]
struct OrderPlaced(u64);

#[derive(bus::Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", version = 2, upcast_from = OrderPlaced, crate = ::bus)]
struct OrderPlacedV2(u64, u64);

impl From<OrderPlaced> for OrderPlacedV2 {
    fn from(old: OrderPlaced) -> Self {
        Self(old.0, 0)
    }
}

#[bus::subscribe(crate = ::bus)]
async fn on_order(_order: OrderPlaced) {}

#[bus::subscribe("order.placed", retries = 3, timeout = "5s", crate = crate::bus)]
#[bus::subscribe("order.*", group = "again", crate = crate::bus)]
async fn on_any(_envelope: &bus::Envelope) {}

struct Shop;

#[bus::subscriber(crate = ::bus)]
impl Shop {
    #[bus::subscribe]
    async fn on_order(&self, _order: OrderPlacedV2) {}
}

async fn publish(bus: &bus::Bus) {
    let _ = bus::publish!(crate = ::bus; bus, "order.counted", { "count": 7 }).await;
}

#[bus::main(crate = ::bus)]
async fn main() {
    let _ = publish;
    assert_eq!(on_any::SUBSCRIBERS.len(), 2);
    assert_eq!(Shop::ON_ORDER_SUBSCRIBER.subscription.name, "Shop.on_order");
}
