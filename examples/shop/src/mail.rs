//! Mail: confirms orders. It writes to the table `sent_mail`; there is no mail server in this example.

use crate::database::Database;
use crate::events::OrderPlaced;
use eventbus::{Attempt, State, subscribe};

/// A domain whose mail server asks every sender to come again later, as a protection against spam.
pub const GREYLISTING: &str = "@greylisting.example";

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// The other side wants it later.
    #[error("451 greylisted, try again later")]
    Greylisted,
    /// The table cannot be written.
    #[error("the mail could not be stored")]
    Database(#[from] rusqlite::Error),
}

/// Confirms an order to its customer, who must not get another mail when somebody replays the log.
///
/// A redelivery after a crash sends nothing either: the order's id is the key of the table. A real mail server is not
/// part of a transaction; there the id goes along as the idempotency key that mail services take.
#[subscribe(retries = 5, backoff = "200ms..1m", timeout = "30s", replay = false)]
async fn send_confirmation(
    order: OrderPlaced,
    Attempt(attempt): Attempt,
    database: State<Database>,
) -> Result<(), MailError> {
    if order.customer.email.ends_with(GREYLISTING) && attempt == 1 {
        return Err(MailError::Greylisted);
    }
    let text = format!(
        "Hello {}, thank you for order {}: {}.{:02} € for {} item(s).",
        order.customer.name,
        order.order_id,
        order.total_cents / 100,
        order.total_cents % 100,
        order.items.iter().map(|item| item.quantity).sum::<u32>()
    );
    database
        .transaction(move |transaction| {
            transaction
                .prepare_cached(
                    "insert into sent_mail (order_id, recipient, text) values (?1, ?2, ?3) \
                     on conflict do nothing",
                )?
                .execute((order.order_id, order.customer.email, text))?;
            Ok(())
        })
        .await
}
