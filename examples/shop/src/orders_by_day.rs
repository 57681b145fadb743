//! A projection: how many orders there are for each day, and what they bring in.

use crate::database::Database;
use crate::events::OrderPlaced;
use crate::inbox;
use eventbus::{Batch, State, subscribe};
use serde::Serialize;

/// A day of the read model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Day {
    /// The day, in UTC.
    pub day: String,
    /// How many orders were placed on it.
    pub orders: u64,
    /// What they cost together.
    pub revenue_cents: u64,
}

/// Adds orders to their days: many with one transaction, each of them once. If the transaction fails, all of them
/// are delivered again. The day on which this consumer is added to a running shop, it begins with the first order, where
/// the broker has that still; see [`bus`](crate::bus).
#[subscribe(batch = 500, linger = "10ms")]
async fn orders_by_day(orders: Batch<OrderPlaced>, database: State<Database>) -> rusqlite::Result<()> {
    database
        .transaction(move |transaction| {
            for (order, envelope) in orders.iter() {
                if inbox::is_new(transaction, "orders_by_day", envelope)? {
                    transaction
                        .prepare_cached(
                            "insert into orders_by_day (day, orders, revenue_cents) values (?1, 1, ?2) \
                             on conflict do update set orders = orders + 1, \
                                 revenue_cents = revenue_cents + excluded.revenue_cents",
                        )?
                        .execute((order.placed_at.strftime("%F").to_string(), order.total_cents))?;
                }
            }
            Ok(())
        })
        .await
}

/// The read model: the latest days, the newest first.
///
/// # Errors
/// What SQLite reports.
pub async fn latest(database: &Database, days: u32) -> rusqlite::Result<Vec<Day>> {
    database
        .read(move |connection| {
            connection
                .prepare_cached(
                    "select day, orders, revenue_cents from orders_by_day order by day desc limit ?1",
                )?
                .query_map([days], |row| {
                    Ok(Day { day: row.get(0)?, orders: row.get(1)?, revenue_cents: row.get(2)? })
                })?
                .collect()
        })
        .await
}
