//! Middleware: layers around all handlers, and around one.
//!
//! ```text
//! cargo run --example middleware
//! ```

use eventbus::middleware::{Next, from_fn};
use eventbus::{Bus, Delivery, Event, Outcome, subscribe};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "report.requested")]
struct ReportRequested {
    name: String,
}

#[subscribe]
async fn draw(report: &ReportRequested) {
    tokio::time::sleep(Duration::from_millis(20)).await;
    println!("drawn:    {}", report.name);
}

#[subscribe(retries = 0)]
async fn archive(report: &ReportRequested) {
    println!("archived: {}", report.name);
}

/// Measures every handler.
async fn measure(delivery: Delivery, next: Next) -> Outcome {
    let (handler, started) = (delivery.subscription().name.clone(), Instant::now());
    let outcome = next.run(delivery).await;
    println!("measured: {handler} took {} ms", started.elapsed().as_millis());
    outcome
}

/// Lets only events of a known tenant pass.
async fn known_tenants_only(delivery: Delivery, next: Next) -> Outcome {
    match delivery.envelope().headers().get("tenant") {
        Some("acme") => next.run(delivery).await,
        tenant => Outcome::Reject(format!("the tenant {tenant:?} is unknown").into()),
    }
}

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let bus = Bus::builder()
        .layer(from_fn(measure))
        // Any layer of tower serves, too.
        .layer(tower::timeout::TimeoutLayer::new(Duration::from_secs(5)))
        .layer_for(archive::SUBSCRIBER, from_fn(known_tenants_only))
        .connect("memory:")
        .await?;
    bus.start()?;
    bus.publish(&ReportRequested { name: "sales".into() }).header("tenant", "acme").await?;
    bus.publish(&ReportRequested { name: "costs".into() }).await?;
    bus.shutdown().await?;
    for (_, letter) in bus.dead_letters()?.list().await? {
        println!("given up: by {}: {}", letter.group, letter.reason);
    }
    Ok(())
}
