//! Handlers stand where functions stand.

#![deny(warnings)]

use eventbus::{Attempt, Event, State, subscribe};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", key = r#type)]
struct OrderPlaced {
    r#type: u64,
}

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "loop.ended")]
#[allow(non_camel_case_types)]
struct r#loop;

mod private {
    mod deeper {
        #[eventbus::subscribe]
        async fn on_order(_order: super::super::OrderPlaced) {}
    }
}

#[subscribe]
async fn r#type(order: &OrderPlaced) {
    println!("{}", order.r#type);
}

#[subscribe]
async fn r#match(_event: r#loop) {}

#[subscribe]
async fn destructured(OrderPlaced { r#type }: OrderPlaced, Attempt(attempt): Attempt, limit: State<u64>) {
    println!("{} {attempt} {}", r#type, *limit);
}

#[subscribe]
async fn with_mut(mut order: OrderPlaced) {
    order.r#type += 1;
    println!("{}", order.r#type);
}

#[cfg(any())]
#[subscribe("no such topic")]
async fn absent(order: NoSuchType) {}

#[subscribe]
#[cfg(any())]
async fn absent_below(order: NoSuchType) {}

#[cfg(all())]
#[subscribe]
async fn present(_order: OrderPlaced) {}

fn main() {
    #[subscribe]
    async fn inside(_order: OrderPlaced) {}

    let _ = async {
        #[subscribe]
        async fn inside(_order: OrderPlaced) {}
        inside(OrderPlaced { r#type: 1 }).await;
    };
    drop(inside(OrderPlaced { r#type: 1 }));
    for subscriber in [r#type::SUBSCRIBER, r#match::SUBSCRIBER, destructured::SUBSCRIBER, present::SUBSCRIBER] {
        assert!(!subscriber.subscription.name.contains('#'));
    }
    assert_eq!(r#type::SUBSCRIBER.subscription.name, "type");
    assert_eq!(r#loop::META.topic, "loop.ended");
    assert!(with_mut::SUBSCRIBER.subscription.event.is_some());
}
