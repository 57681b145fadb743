//! Analytics: what sells, and what it brings in.

use crate::database::Database;
use crate::events::OrderPlaced;
use crate::inbox;
use eventbus::{Batch, State, subscribe};
use serde::Serialize;

/// What was ordered of one product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sales {
    /// The product.
    pub sku: String,
    /// How many were ordered.
    pub ordered: u64,
    /// What they cost together.
    pub revenue_cents: u64,
}

/// Adds the items of orders to the sales of their products; as `orders_by_day` does it with days.
#[subscribe(batch = 500, linger = "10ms")]
async fn count_sales(orders: Batch<OrderPlaced>, database: State<Database>) -> rusqlite::Result<()> {
    database
        .transaction(move |transaction| {
            for (order, envelope) in orders.iter() {
                if !inbox::is_new(transaction, "count_sales", envelope)? {
                    continue;
                }
                for item in &order.items {
                    transaction
                        .prepare_cached(
                            "insert into sales (sku, ordered, revenue_cents) values (?1, ?2, ?3) \
                             on conflict do update set ordered = ordered + excluded.ordered, \
                                 revenue_cents = revenue_cents + excluded.revenue_cents",
                        )?
                        .execute((&item.sku, item.quantity, u64::from(item.quantity) * item.price_cents))?;
                }
            }
            Ok(())
        })
        .await
}

/// The sales of all products, the best first.
///
/// # Errors
/// What SQLite reports.
pub async fn sales(database: &Database) -> rusqlite::Result<Vec<Sales>> {
    database
        .read(|connection| {
            connection
                .prepare_cached(
                    "select sku, ordered, revenue_cents from sales order by revenue_cents desc, sku",
                )?
                .query_map([], |row| {
                    Ok(Sales { sku: row.get(0)?, ordered: row.get(1)?, revenue_cents: row.get(2)? })
                })?
                .collect()
        })
        .await
}
