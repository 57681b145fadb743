//! The past again: to one group, and into a read model that is built anew beside the live one.
//!
//! ```text
//! cargo run --example replay
//! ```

use eventbus::{Bus, Event, State, subscribe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
    day: String,
    cents: u64,
}

/// What was sold on each day: in a real program a table.
#[derive(Clone, Default)]
struct Days(Arc<Mutex<BTreeMap<String, u64>>>);

impl Days {
    fn add(&self, day: &str, cents: u64) {
        *self.0.lock().unwrap().entry(day.to_owned()).or_default() += cents;
    }

    /// Of tables, one would be renamed to the other.
    fn becomes(&self, next: &Self) -> std::io::Result<()> {
        *self.0.lock().unwrap() = next.0.lock().unwrap().clone();
        Ok(())
    }
}

/// A read model: what handlers make of the events, to be read by others.
#[subscribe]
async fn orders_by_day(order: &OrderPlaced, days: State<Days>) {
    println!("order {} of {}", order.id, order.day);
    days.add(&order.day, order.cents);
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite:{}/shop.db", folder.path().display());
    let live = Days::default();
    let bus = Bus::builder().state(live.clone()).connect(&url).await?;
    bus.start()?;
    for (id, day) in [(1, "monday"), (2, "monday"), (3, "tuesday")] {
        bus.publish(OrderPlaced { id, day: day.into(), cents: 1_000 }).await?;
    }
    bus.settled().await?;

    println!("\nEvery order again, into days of their own:");
    let report = bus.replay(orders_by_day::SUBSCRIBER).state(Days::default()).rate(10_000).await?;
    println!("{} orders replayed", report.acked);

    println!("\nThe read model anew, from the beginning:");
    let next = Days::default();
    let (old, new) = (live.clone(), next.clone());
    bus.rebuild(orders_by_day::SUBSCRIBER).state(next).swap(async move || old.becomes(&new)).await?;
    println!("\n{:?}", live.0.lock().unwrap());
    bus.shutdown().await?;
    Ok(())
}
