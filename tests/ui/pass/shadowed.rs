//! A handler in a module hides one of its name that a glob import brings along, as any function does.

#![deny(warnings)]

#[path = "../shop/mod.rs"]
mod shop;

use shop::{OrderPlaced, OrderShipped};

#[eventbus::subscribe]
fn notify(_order: OrderPlaced) {}

#[eventbus::subscribe]
fn count(_order: OrderPlaced) {}

macro_rules! handler {
    ($event:ty) => {
        #[eventbus::subscribe]
        pub fn on_event(_event: $event) {}
    };
}

handler!(OrderPlaced);

mod shipping {
    use super::*;

    #[eventbus::subscribe(group = "shipping", as = OnShipped)]
    pub fn notify(_order: OrderShipped) {}

    handler!(OrderShipped);

    #[eventbus::subscribe]
    pub fn count(_order: OrderShipped) {}
}

fn main() {
    count(OrderPlaced { id: 1 });
    shipping::count(OrderShipped { id: 1 });
    notify(OrderPlaced { id: 1 });
    shipping::notify(OrderShipped { id: 1 });
    on_event(OrderPlaced { id: 1 });
    shipping::on_event(OrderShipped { id: 1 });
    assert_eq!(shipping::OnShipped::SUBSCRIBER.subscription.pattern, "order.shipped");
    assert_eq!(notify::SUBSCRIBER.subscription.pattern, "order.placed");
    assert_eq!(on_event::SUBSCRIBER.subscription.pattern, "order.placed");
}
