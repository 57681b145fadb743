//! Handlers in an `impl` block take their receiver from the state.

#![deny(warnings)]

#[path = "../shop/mod.rs"]
mod shop;

use eventbus::{Outcome, State, subscribe, subscriber};
use shop::{OrderPlaced, OrderShipped};

struct Shop {
    name: &'static str,
}

#[subscriber]
impl Shop {
    const LIMIT: u64 = 7;

    fn new() -> Self {
        Self { name: "corner" }
    }

    #[subscribe("order.placed", retries = 2)]
    async fn on_order(&self, order: OrderPlaced) -> Outcome {
        println!("{} {}", self.name, order.id);
        if order.id > Self::LIMIT { Outcome::Reject("too many".into()) } else { Outcome::Ack }
    }

    #[subscribe]
    #[subscribe("order.shipped", group = "all")]
    fn on_shipped(&self, shipped: &OrderShipped, limit: State<u64>) {
        println!("{} {}", self.name, shipped.id + *limit);
    }

    #[cfg(any())]
    #[subscribe("no such topic")]
    async fn absent(&self, order: NoSuchType) {}

    #[subscribe(batch = 3)]
    async fn on_many(&self, orders: Vec<OrderPlaced>) -> Result<(), String> {
        if orders.is_empty() { Err(self.name.to_owned()) } else { Ok(()) }
    }

    #[subscribe(blocking)]
    fn on_disk(&self, _order: &OrderPlaced) {}
}

fn main() {
    Shop::new().on_shipped(&OrderShipped { id: 1 }, State::from(std::sync::Arc::new(3)));
    assert_eq!(Shop::ON_ORDER_SUBSCRIBER.subscription.options.retries, Some(2));
    assert_eq!(Shop::ON_SHIPPED_SUBSCRIBERS.len(), 2);
}
