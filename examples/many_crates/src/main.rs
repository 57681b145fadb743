//! Handlers in crates of their own, linked into one program.
//!
//! ```text
//! cargo run --package many-crates
//! ```
//!
//! No code here calls the crates with the handlers, and a crate that no code names is not linked: `link!` names
//! them, and `expect` fails at start-up where one is missing.

#![forbid(unsafe_code)]

use eventbus::Bus;
use many_crates_events::OrderPlaced;

eventbus::link!(many_crates_billing, many_crates_email);

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let bus = Bus::builder().expect(["many-crates-billing", "many-crates-email"]).connect("memory:").await?;
    for subscription in bus.subscriptions() {
        println!("{:<32} listens on {}", subscription.group, subscription.pattern);
    }
    bus.start()?;
    bus.publish(&OrderPlaced { id: 1, cents: 4_390 }).await?;
    bus.shutdown().await
}

#[cfg(test)]
mod tests {
    eventbus::check!();
}
