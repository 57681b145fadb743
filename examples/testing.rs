//! Tests: publish, await everything that follows, look at what happened.
//!
//! ```text
//! cargo test --example testing
//! ```

use eventbus::bus::BusBuilder;
use eventbus::{Attempt, Bus, Event, State, subscribe};
use serde::{Deserialize, Serialize};

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(topic = "order.shipped", key = id)]
struct OrderShipped {
    id: u64,
    carrier: String,
}

struct Carrier {
    name: &'static str,
    opens_at_attempt: u32,
}

/// Ships what was ordered, once the carrier is open.
#[subscribe]
async fn ship(
    order: OrderPlaced,
    carrier: State<Carrier>,
    Attempt(attempt): Attempt,
) -> Result<OrderShipped, &'static str> {
    if attempt < carrier.opens_at_attempt {
        return Err("the carrier is closed");
    }
    Ok(OrderShipped { id: order.id, carrier: carrier.name.to_owned() })
}

/// What the program runs, and what its tests run.
fn app(carrier: Carrier) -> BusBuilder {
    Bus::builder().state(carrier)
}

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let bus = app(Carrier { name: "Pony Express", opens_at_attempt: 1 }).connect("memory:").await?;
    bus.start()?;
    bus.publish(&OrderPlaced { id: 1 }).await?;
    bus.shutdown().await?;
    println!("This example is about its tests: cargo test --example testing");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventbus_testing::TestBus;

    eventbus::check!();

    #[tokio::test(start_paused = true)]
    async fn an_order_is_shipped_once_the_carrier_is_open() {
        let bus = TestBus::start(app(Carrier { name: "Pony Express", opens_at_attempt: 3 })).await;
        bus.publish(&OrderPlaced { id: 7 }).await;
        bus.assert_published(&OrderShipped { id: 7, carrier: "Pony Express".into() });
        assert_eq!(bus.attempts(ship::SUBSCRIBER), 3);
        bus.assert_no_dead_letters();
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_is_given_up_where_the_carrier_never_opens() {
        let bus = TestBus::start(app(Carrier { name: "Pony Express", opens_at_attempt: 99 })).await;
        bus.publish(&OrderPlaced { id: 7 }).await;
        assert!(bus.published::<OrderShipped>().is_empty());
        assert_eq!(bus.dead_letters()[0].reason, "the carrier is closed");
    }

    #[tokio::test]
    async fn a_handler_is_a_plain_function() {
        let carrier = State::new(Carrier { name: "Pony Express", opens_at_attempt: 2 });
        assert!(ship(OrderPlaced { id: 7 }, carrier, Attempt(1)).await.is_err());
    }
}
