//! The inventory: takes what was ordered out of the stock, or gives the order up.

use crate::database::Database;
use crate::events::{InventoryReserved, OrderPlaced};
use eventbus::{Permanent, State, subscribe};
use rusqlite::{OptionalExtension, Transaction};
use serde::Serialize;

/// How many of a product are left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stock {
    /// The product.
    pub sku: String,
    /// How many are left.
    pub left: u64,
}

/// Why the items of an order were not reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// It will not appear by trying again, so this goes to the dead letters at once. When the shop has bought more,
    /// `shop dead-letters republish` lets the inventory have the order again.
    #[error("the order cannot be reserved")]
    OutOfStock(#[source] Permanent),
    /// Tried again.
    #[error("the stock cannot be read")]
    Database(#[from] rusqlite::Error),
}

/// Reserves all items of an order or none, and publishes that it did.
///
/// A redelivery finds the reservation and publishes again; its consumers are as idempotent as this one.
///
/// `competing`: an order is one event, and which one comes first to the stock means nothing. So all machines that have
/// this role reserve at once, also on brokers that let one at a time handle what has an order.
#[subscribe(competing = true, replay = false)]
async fn reserve(order: OrderPlaced, database: State<Database>) -> Result<InventoryReserved, ReserveError> {
    database
        .transaction(move |transaction| {
            let reserved = transaction
                .prepare_cached("insert into reservation (order_id) values (?1) on conflict do nothing")?
                .execute([&order.order_id])?;
            if reserved == 1 {
                for item in &order.items {
                    take(transaction, &item.sku, item.quantity)?;
                }
            }
            Ok(InventoryReserved { order_id: order.order_id })
        })
        .await
}

/// Takes items out of the stock, in a transaction that is rolled back where that fails.
fn take(transaction: &Transaction<'_>, sku: &str, quantity: u32) -> Result<(), ReserveError> {
    let taken = transaction
        .prepare_cached("update stock set left = left - ?2 where sku = ?1 and left >= ?2")?
        .execute((sku, quantity))?;
    if taken == 1 {
        return Ok(());
    }
    let left: Option<u64> = transaction
        .prepare_cached("select left from stock where sku = ?1")?
        .query_row([sku], |row| row.get(0))
        .optional()?;
    let left = left.unwrap_or(0);
    Err(ReserveError::OutOfStock(Permanent::new(format!("{sku}: {quantity} ordered, {left} in stock"))))
}

/// What is left of all products.
///
/// # Errors
/// What SQLite reports.
pub async fn stock(database: &Database) -> rusqlite::Result<Vec<Stock>> {
    database
        .read(|connection| {
            connection
                .prepare_cached("select sku, left from stock order by sku")?
                .query_map([], |row| Ok(Stock { sku: row.get(0)?, left: row.get(1)? }))?
                .collect()
        })
        .await
}
