//! The shop's own database, `shop-data.db`.

use crate::catalogue;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One connection to the database, shared by all who have a clone. SQLite has one writer at a time in any case.
#[derive(Clone)]
pub struct Database(Arc<Mutex<Connection>>);

impl Database {
    /// Opens the database, and creates it where there is none.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn open(path: impl AsRef<Path>) -> rusqlite::Result<Self> {
        let mut connection = Connection::open(path)?;
        // The server and an import may have it open at once.
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A handler that returns has its event acked, for ever. So what it wrote has to survive a power cut, too.
        connection.pragma_update(None, "synchronous", "full")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(include_str!("schema.sql"))?;
        for product in catalogue::PRODUCTS {
            transaction.execute(
                "insert into stock (sku, left) values (?1, ?2) on conflict do nothing",
                (product.sku, product.stock),
            )?;
        }
        transaction.commit()?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Does `work` in a transaction, which is committed if it succeeds and rolled back otherwise, on a thread where
    /// it may block.
    ///
    /// # Errors
    /// Those of `work`, and what SQLite reports.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the transaction ends all the same, one way or the other.
    pub async fn transaction<T, E>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<rusqlite::Error> + Send + 'static,
    {
        let connection = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            // Who panicked in here has rolled back, so the connection is good.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&mut transaction)?;
            transaction.commit()?;
            Ok(result)
        });
        task.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
    }

    /// Reads something, on a thread where that may block.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        let connection = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || {
            work(&connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        task.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
    }
}
