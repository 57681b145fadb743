//! Start here: an order service, and three consumers that it does not know.
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! It runs in the memory of the process, or on the broker that `EVENTBUS_URL` names, such as `sqlite:demo.db`.
//!
//! Mail fails twice and recovers; an order for something that is not in stock ends as a dead letter of the
//! inventory, while its confirmation and its statistics are not touched by that.

use eventbus::{Attempt, Bus, Event, Permanent, State, subscribe};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(topic = "order.placed", key = order_id)]
struct OrderPlaced {
    order_id: u64,
    email: String,
    items: Vec<String>,
    total_cents: u64,
}

/// The producer: it saves an order and says so, and knows none of the consumers below.
struct OrderService {
    orders: Mutex<Vec<OrderPlaced>>,
    bus: Bus,
}

impl OrderService {
    async fn place(
        &self,
        order_id: u64,
        email: &str,
        items: &[&str],
        total_cents: u64,
    ) -> eventbus::Result<()> {
        let items = items.iter().map(|item| (*item).to_owned()).collect();
        let order = OrderPlaced { order_id, email: email.to_owned(), items, total_cents };
        println!("orders     #{order_id} saved, and order.placed published");
        self.orders.lock().unwrap().push(order.clone());
        self.bus.publish(order).await?;
        Ok(())
    }
}

/// Mails the customer. The mail server of this example refuses its first two connections.
#[subscribe("order.placed", retries = 4, backoff = "50ms..1s")]
async fn send_confirmation(
    order: OrderPlaced,
    Attempt(attempt): Attempt,
    mailer: State<Mailer>,
) -> Result<(), MailError> {
    mailer.send(&order.email).inspect_err(|error| {
        println!("mail       #{} attempt {attempt} failed: {error}", order.order_id);
    })?;
    println!("mail       #{} attempt {attempt}: confirmation sent to {}", order.order_id, order.email);
    Ok(())
}

/// Counts what was sold.
#[subscribe("order.placed")]
async fn track(order: &OrderPlaced, analytics: State<Analytics>) {
    let revenue = analytics.revenue_cents.fetch_add(order.total_cents, Ordering::Relaxed) + order.total_cents;
    println!("analytics  #{}: revenue is now {}.{:02}", order.order_id, revenue / 100, revenue % 100);
}

/// Takes every item out of the stock. An item that is not there will not appear by trying again.
#[subscribe("order.placed")]
async fn reserve_inventory(order: &OrderPlaced, stock: State<Stock>) -> Result<(), Permanent> {
    for item in &order.items {
        let left = stock.take(item).map_err(Permanent::new)?;
        println!("inventory  #{}: {item} reserved, {left} left", order.order_id);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> eventbus::Result<()> {
    let url = std::env::var("EVENTBUS_URL").unwrap_or_else(|_| "memory:".to_owned());
    let bus = Bus::builder()
        .state(Mailer { refusals: AtomicU64::new(2) })
        .state(Analytics { revenue_cents: AtomicU64::new(0) })
        .state(Stock::of(&[("book", 2), ("pen", 10)]))
        .connect(&url)
        .await?;
    bus.start()?;

    let service = OrderService { orders: Mutex::default(), bus: bus.clone() };
    service.place(1, "ada@example.com", &["book", "pen"], 4_390).await?;
    service.place(2, "alan@example.com", &["unicorn"], 99_900).await?;

    // A server would call `bus.run()`, which ends with Ctrl-C or SIGTERM. This ends when everything is handled.
    bus.settled().await?;

    println!("\ndead letters:");
    for (id, letter) in bus.dead_letters()?.list().await? {
        println!(
            "  {id}  {} by {}, {} after {} attempt(s): {}",
            letter.envelope.topic(),
            letter.group,
            letter.kind,
            letter.attempts,
            letter.reason
        );
    }
    bus.shutdown().await
}

// What the consumers work with, in a real program a mail client, a statistics client and a database.

struct Mailer {
    refusals: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
#[error("connection refused")]
struct MailError;

impl Mailer {
    fn send(&self, _to: &str) -> Result<(), MailError> {
        let refuse = |left: u64| left.checked_sub(1);
        match self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, refuse) {
            Ok(_) => Err(MailError),
            Err(_) => Ok(()),
        }
    }
}

struct Analytics {
    revenue_cents: AtomicU64,
}

struct Stock(Mutex<HashMap<String, u64>>);

impl Stock {
    fn of(items: &[(&str, u64)]) -> Self {
        Self(Mutex::new(items.iter().map(|(item, count)| ((*item).to_owned(), *count)).collect()))
    }

    fn take(&self, item: &str) -> Result<u64, String> {
        match self.0.lock().unwrap().get_mut(item) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Ok(*left)
            }
            _ => Err(format!("`{item}` is not in stock")),
        }
    }
}
