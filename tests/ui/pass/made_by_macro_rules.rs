//! What a `macro_rules!` puts in place of `$topic:literal`, `$event:ty` or `$group:expr` means what it does when it is
//! written out.

#![deny(warnings)]

use eventbus::__private::subscribers;
use eventbus::subscription::{Options, Subscription};
use eventbus::{Batch, Bus, Envelope, Event, State, subscribe, subscriber};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

eventbus::topics! { ORDER_PLACED = "order.placed", ORDER_SHIPPED = "order.shipped" }

macro_rules! fact {
    ($(#[$meta:meta])* $vis:vis $name:ident($($ty:ty),*) on $topic:literal, v $version:literal $(from $old:ty)?, key $key:tt) => {
        #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
        $(#[$meta])*
        #[event(topic = $topic, version = $version $(, upcast_from = $old)?, key = $key, subject = $key)]
        $vis struct $name($($ty),*);
    };
}
fact!(OrderPlacedV1(u64) on "order.placed", v 1, key 0);
fact!(/** Placed. */ pub(crate) OrderPlaced(u64, Vec<u8>) on "order.placed", v 2 from OrderPlacedV1, key 0);

impl From<OrderPlacedV1> for OrderPlaced {
    fn from(old: OrderPlacedV1) -> Self {
        Self(old.0, Vec::new())
    }
}

macro_rules! fact_by_path {
    ($name:ident, $topic:path, $codec:ty, $facade:path) => {
        #[derive(Event, Clone, Serialize, Deserialize)]
        #[event(topic = $topic, codec = $codec, crate = $facade)]
        struct $name;
    };
}
fact_by_path!(OrderShipped, crate::ORDER_SHIPPED, eventbus::Json, ::eventbus);

macro_rules! fact_by_expression {
    ($name:ident, $topic:expr, $meta:meta) => {
        #[derive(Event, Clone, Serialize, Deserialize)]
        #[event(topic = $topic)]
        #[$meta]
        struct $name;
    };
}
fact_by_expression!(OrderPaid, "order.paid", event(version = 1));
fact_by_expression!(OrderSent, concat!("order", ".sent"), event(version = 1));

macro_rules! handler {
    (
        $vis:vis $name:ident($($pattern:pat => $argument:ty),*) -> $answer:ty $body:block
        $topic:literal, $group:expr, $retries:literal, $backoff:literal, $timeout:expr, $dead_letter:expr, $called:literal, $facade:path
    ) => {
        #[subscribe(
            $topic,
            group = $group,
            retries = $retries,
            backoff = $backoff,
            timeout = $timeout,
            start = "earliest",
            dead_letter = $dead_letter,
            name = $called,
            concurrency = $retries + 1,
            crate = $facade
        )]
        $vis async fn $name($($pattern: $argument),*) -> $answer $body
    };
}
handler!(by_value(OrderPlaced(_, _) => OrderPlaced, State(_limit) => State<u32>) -> () {}
    "order.placed", "first", 3, "100ms..1s", "3s", true, "value", ::eventbus);
handler!(pub(crate) by_reference(_ => &OrderPlaced) -> Result<Option<OrderShipped>, String> { Ok(None) }
    "order.placed", concat!("sec", "ond"), 3, "100ms..1s", Duration::from_secs(3), !false, "reference", eventbus);
handler!(any(_ => &Envelope) -> Vec<OrderShipped> { Vec::new() }
    "order.*", "third", 3, "100ms..1s", "3s", true, "any", ::eventbus);

macro_rules! handlers {
    ($event:ty, $topic:path, $many:literal, $flag:ident, $attribute:meta) => {
        #[subscribe($topic, batch = $many, linger = "1s")]
        async fn gathers(_orders: Batch<$event>) {}
        #[subscribe($topic, $flag)]
        fn blocks(_order: Arc<$event>) {}
        #[subscribe]
        #[$attribute]
        async fn twice(_order: &$event) {}
    };
}
handlers!(OrderPlaced, ORDER_PLACED, 10, blocking, subscribe("order.placed", group = "twice"));

struct Shop;
macro_rules! methods {
    ($shop:ty, $event:ty, $topic:literal, $retries:literal, $facade:path) => {
        #[subscriber(crate = $facade)]
        impl $shop {
            #[subscribe($topic, retries = $retries)]
            async fn on_order(&self, _order: $event) {}
        }
    };
}
methods!(Shop, OrderPlaced, "order.placed", 7, ::eventbus);

macro_rules! catalog {
    ($name:ident, $topic:literal, $facade:path, $other:path) => {
        mod catalog {
            eventbus::topics! { extends $other; crate = $facade; $name = $topic }
        }
    };
}
catalog!(ORDER_LOST, "order.lost", ::eventbus, crate);

macro_rules! publish {
    ($bus:expr, $topic:literal, $count:expr, $facade:path) => {{
        eventbus::publish!($bus, $topic, { "count": $count }).await.unwrap();
        eventbus::publish!(crate = $facade; $bus, $topic, { "count": $count }).await.unwrap();
    }};
}

macro_rules! link {
    ($name:ident) => {
        eventbus::link!($name);
    };
}
link!(serde);

fn subscription(name: &str) -> &'static Subscription {
    &subscribers().iter().find(|subscriber| subscriber.subscription.name == name).unwrap().subscription
}

macro_rules! main {
    ($facade:path, $answer:ty, $body:block) => {
        #[eventbus::main(crate = $facade)]
        async fn main() -> $answer $body
    };
}
main!(::eventbus, Result<(), eventbus::Error>, {
    let key = OrderPlaced(7, Vec::new()).key().unwrap();
    assert_eq!((OrderPlaced::META.topic, OrderPlaced::META.version, key.as_str()), ("order.placed", 2, "7"));
    assert_eq!((OrderShipped::META.topic, OrderPaid::META.topic), ("order.shipped", "order.paid"));
    assert_eq!((OrderSent::META.topic, catalog::ORDER_LOST), ("order.sent", "order.lost"));
    for (name, group, pattern) in
        [("value", "first", "order.placed"), ("reference", "second", "order.placed"), ("any", "third", "order.*")]
    {
        let found = subscription(name);
        assert_eq!((&*found.group, &*found.pattern), (group, pattern));
        let Options { retries, concurrency, timeout, dead_letter, .. } = found.options;
        assert_eq!((retries, concurrency, dead_letter), (Some(3), Some(4), Some(true)));
        assert_eq!(timeout, Some(Duration::from_secs(3)));
    }
    assert_eq!(subscription("gathers").options.batch, Some(10));
    assert_eq!(subscription("blocks").event.unwrap().name, "OrderPlaced");
    assert_eq!(twice::SUBSCRIBERS.len(), 2);
    assert_eq!(Shop::ON_ORDER_SUBSCRIBER.subscription.options.retries, Some(7));
    let bus = Bus::builder().without_subscriptions().connect("memory:").await?;
    publish!(&bus, "order.placed", 1 + 2, ::eventbus);
    Ok(())
});
