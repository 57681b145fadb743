//! Outcomes: try again, later, never; and what becomes of an event that is given up.
//!
//! ```text
//! cargo run --example retries
//! ```

use eventbus::{Attempt, Bus, Event, Outcome, subscribe};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "payment.due", key = account)]
struct PaymentDue {
    account: String,
    cents: u64,
}

/// Whether the bank is open; a real program would ask it.
static BANK_IS_OPEN: AtomicBool = AtomicBool::new(false);

/// An error is tried again by `retries` and `backoff`; an outcome says more.
#[subscribe(retries = 2, backoff = "20ms..1s", timeout = "5s")]
async fn charge(payment: &PaymentDue, Attempt(attempt): Attempt) -> Result<Outcome, String> {
    println!("{}: attempt {attempt}", payment.account);
    match payment.account.as_str() {
        "closed" => Ok(Outcome::Reject("the account is closed".into())),
        "busy" if attempt == 1 => Ok(Outcome::RetryAfter(Duration::from_millis(100))),
        _ if !BANK_IS_OPEN.load(Ordering::Relaxed) => Err("the bank does not answer".to_owned()),
        _ => {
            println!("{}: charged {} cents", payment.account, payment.cents);
            Ok(Outcome::Ack)
        }
    }
}

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let broker = eventbus::memory::MemoryBroker::new();
    let bus = Bus::builder().broker(broker.clone()).await?;
    bus.start()?;
    for account in ["closed", "busy", "ada"] {
        bus.publish(&PaymentDue { account: account.into(), cents: 1_200 }).await?;
    }
    broker.settled().await;

    println!("\nThe bank opens, and what failed is published again to the group that failed:");
    BANK_IS_OPEN.store(true, Ordering::Relaxed);
    let dead_letters = bus.dead_letters()?;
    for (id, letter) in dead_letters.list().await? {
        println!("dead letter {id}: {} after {} attempt(s), {}", letter.kind, letter.attempts, letter.reason);
        if letter.kind == eventbus::broker::FailureKind::Rejected {
            dead_letters.purge(&id).await?;
        } else {
            dead_letters.republish(&id, None).await?;
        }
    }
    bus.shutdown().await
}
