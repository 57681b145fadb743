//! The status of orders: what customers see of what the consumers did.

use crate::database::Database;
use crate::events::InventoryReserved;
use eventbus::{State, subscribe};

/// Marks an order as reserved. To do that twice is to do it once, so nothing has to be remembered here.
#[subscribe(start = "earliest")]
async fn mark_reserved(reserved: InventoryReserved, database: State<Database>) -> rusqlite::Result<()> {
    database
        .transaction(move |transaction| {
            transaction
                .prepare_cached("update orders set status = 'reserved' where id = ?1")?
                .execute([reserved.order_id])?;
            Ok(())
        })
        .await
}
