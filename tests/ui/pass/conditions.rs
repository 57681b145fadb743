//! `#[cfg]` and `#[cfg_attr]` decide of arguments, fields, methods and attributes as they do without eventbus.

#![deny(warnings)]

use eventbus::__private::subscribers;
use eventbus::{Batch, Envelope, Event, State, subscribe, subscriber};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Serialize, Deserialize)]
#[cfg_attr(all(), event(topic = "order.placed", key = id))]
#[cfg_attr(any(), event(topic = "order.lost", key = number))]
struct OrderPlaced {
    #[cfg(any())]
    id: NoSuchType,
    #[cfg(all())]
    id: u64,
    #[cfg_attr(all(), serde(default))]
    total: u64,
}

#[cfg_attr(all(), derive(Event, Clone, Serialize, Deserialize), event(topic = "order.shipped"))]
struct OrderShipped;

#[subscribe]
async fn arguments(
    _order: &OrderPlaced,
    #[cfg(any())] _absent: NoSuchType,
    #[cfg(all())] _limit: State<u32>,
    #[cfg_attr(all(), cfg(any()))] _absent: NoSuchType,
    #[cfg_attr(any(), cfg(any()))]
    #[allow(unused_variables)]
    count: State<u64>,
) {
}

#[subscribe(blocking)]
fn blocks(#[cfg(false)] _order: Batch<OrderPlaced>, #[cfg(true)] _order: &OrderPlaced) {}

#[subscribe(batch = 3)]
async fn gathers(#[cfg(any())] _orders: Vec<NoSuchType>, #[cfg(not(any()))] _orders: Batch<OrderPlaced>) {}

#[cfg_attr(all(), subscribe)]
async fn is_one(_order: &OrderPlaced) {}

#[cfg_attr(any(), subscribe)]
async fn is_none(_order: &Shop) {}

#[cfg_attr(any(), subscribe("order.>", group = "absent"))]
#[cfg_attr(all(), subscribe("order.placed"), expect(clippy::unused_async))]
#[cfg_attr(all(), subscribe("order.shipped", group = "second"))]
#[cfg_attr(all(), cfg_attr(all(), subscribe("order.paid", group = "third")))]
#[cfg_attr(any(), cfg_attr(all(), subscribe("order.>", group = "absent")))]
#[cfg_attr(all(), cfg_attr(any(), subscribe("order.>", group = "absent")))]
async fn is_three(_event: &Envelope) {}

#[subscribe]
#[cfg_attr(all(), cfg(any()))]
async fn absent(_order: NoSuchType) {}

#[cfg(all())]
#[subscribe("order.placed")]
async fn one_of_two(_event: &Envelope) {}

#[cfg(not(all()))]
#[subscribe("order.placed")]
async fn one_of_two(_order: NoSuchType) {}

#[subscribe("order.placed")]
#[cfg(not(all()))]
async fn two_of_two(_order: NoSuchType) {}

#[subscribe("order.placed")]
#[cfg(all())]
async fn two_of_two(_event: &Envelope) {}

struct Shop;

#[subscriber]
impl Shop {
    #[subscribe]
    #[cfg(any())]
    async fn absent(&self, _order: NoSuchType) {}

    #[subscribe]
    #[cfg_attr(all(), cfg(any()))]
    async fn absent_too(&self, _order: NoSuchType) {}

    #[cfg_attr(all(), subscribe)]
    async fn is_one(&self, _order: &OrderPlaced, #[cfg(any())] _absent: NoSuchType) {}

    #[cfg_attr(any(), subscribe)]
    async fn is_none(&self, _order: &Self) {}

    #[cfg_attr(any(), subscribe)]
    #[cfg_attr(all(), subscribe("order.placed", group = "second-method"))]
    async fn is_second(&self, _order: &OrderPlaced) {}
}

#[subscriber]
#[cfg(any())]
impl NoSuchType {
    #[subscribe]
    async fn absent(&self, _order: &OrderPlaced) {}
}

#[subscriber]
#[cfg_attr(all(), cfg(any()))]
impl NoSuchType {
    #[subscribe]
    async fn absent(&self, _order: &OrderPlaced) {}
}

#[eventbus::main]
async fn main() {
    let _ = (is_none, Shop::is_none);
    assert_eq!(OrderPlaced { id: 7, total: 0 }.key().unwrap().as_str(), "7");
    assert_eq!((OrderPlaced::META.topic, OrderShipped::META.topic), ("order.placed", "order.shipped"));
    let states = arguments::SUBSCRIBER.subscription.states.iter().flatten();
    let states: Vec<_> = states.map(|state| (state.name)()).collect();
    assert_eq!(states, ["u32", "u64"]);
    let groups: Vec<_> = is_three::SUBSCRIBERS.iter().map(|one| &*one.subscription.group).collect();
    assert_eq!(groups[1..], ["second", "third"]);
    assert_eq!(Shop::IS_SECOND_SUBSCRIBER.subscription.group, "second-method");
    let names: Vec<_> = subscribers().iter().map(|subscriber| &*subscriber.subscription.name).collect();
    let expected = [
        "arguments",
        "blocks",
        "gathers",
        "is_one",
        "is_three",
        "is_three",
        "is_three",
        "one_of_two",
        "two_of_two",
        "Shop.is_one",
        "Shop.is_second",
    ];
    assert_eq!(names, expected);
}
