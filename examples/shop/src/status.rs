//! The status of orders: what customers see of what the consumers did.

use crate::database::Database;
use crate::events::InventoryReserved;
use eventbus::{State, subscribe};

/// Marks orders as reserved. To do that twice is to do it once, so nothing has to be remembered here.
#[subscribe(batch = 500, linger = "10ms")]
async fn mark_reserved(reserved: Vec<InventoryReserved>, database: State<Database>) -> rusqlite::Result<()> {
    database
        .transaction(move |transaction| {
            let mut update =
                transaction.prepare_cached("update orders set status = 'reserved' where id = ?1")?;
            for InventoryReserved { order_id } in reserved {
                update.execute([order_id])?;
            }
            Ok(())
        })
        .await
}
