//! The producer: it saves orders and says so, and knows none of the consumers.

use crate::database::Database;
use crate::events::OrderPlaced;
use crate::order::{Customer, Order};
use eventbus::{PublishError, Publisher};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

/// The orders of the shop.
#[derive(Clone)]
pub struct Orders {
    database: Database,
    publisher: Publisher,
}

/// An order that is saved, and what has become of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SavedOrder {
    /// The order.
    #[serde(flatten)]
    pub order: Order,
    /// `placed`, and `reserved` once the inventory has put its items aside.
    pub status: String,
}

/// What came of placing an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Placed {
    /// It is new.
    Now(Order),
    /// It was placed before, by a request whose answer got lost.
    Before(Order),
}

/// Why an order was not placed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The id is taken.
    #[error("there is another order with the id `{0}`")]
    OtherOrder(String),
    /// Nothing is saved.
    #[error("the order could not be saved")]
    Database(#[from] rusqlite::Error),
    /// The order is saved, and nobody knows of it yet.
    #[error("the order is saved but not published; send it again")]
    Publish(#[from] PublishError),
}

impl Orders {
    /// Orders that are saved in `database`, and published with `publisher`.
    pub fn new(database: Database, publisher: Publisher) -> Self {
        Self { database, publisher }
    }

    /// Saves an order, then publishes that it was placed. To place an order twice is to place it once.
    ///
    /// Between the two there is a gap: if the program ends there, the order is saved and nobody hears of it. A client
    /// that got no answer sends its order again; then it is found to be saved, and is published. Its event has the
    /// same id each time, so the log keeps one of them, and publishing a second time does no harm. Where clients
    /// cannot be relied on for that, a transactional outbox closes the gap: the event is a row of the same
    /// transaction, and something else publishes what is in that table.
    ///
    /// # Errors
    /// [`PlaceError`] says how far it came.
    ///
    /// # Cancel safety
    /// Dropped before it is done, as axum does when a client hangs up, the order may be saved and not published: the
    /// gap, once more.
    pub async fn place(&self, order: Order) -> Result<Placed, PlaceError> {
        let placed = self.database.transaction(move |transaction| save(transaction, order)).await?;
        let (Placed::Now(order) | Placed::Before(order)) = &placed;
        self.publisher.publish_envelope(OrderPlaced::envelope(order.clone())).await?;
        Ok(placed)
    }

    /// Places several orders with one transaction and one batch, and answers for each in their order.
    ///
    /// # Errors
    /// Where none of them could be saved; otherwise each has its own.
    pub async fn place_all(&self, orders: Vec<Order>) -> rusqlite::Result<Vec<Result<Placed, PlaceError>>> {
        let saved: Vec<_> = self
            .database
            .transaction(move |transaction| {
                let save = |order| match save(transaction, order) {
                    Err(PlaceError::Database(error)) => Err(error),
                    other => Ok(other),
                };
                orders.into_iter().map(save).collect::<rusqlite::Result<_>>()
            })
            .await?;
        let to_publish = saved.iter().flatten().map(|placed| {
            let (Placed::Now(order) | Placed::Before(order)) = placed;
            OrderPlaced::envelope(order.clone())
        });
        let mut published = self.publisher.publish_envelopes(to_publish).await.into_iter();
        let answers = saved.into_iter().map(|saved| {
            let placed = saved?;
            published.next().expect("one answer for each event")?;
            Ok(placed)
        });
        Ok(answers.collect())
    }

    /// An order, as it stands.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn find(&self, id: String) -> rusqlite::Result<Option<SavedOrder>> {
        self.database.read(move |connection| find(connection, &id)).await
    }
}

/// Saves an order, unless it is saved already.
fn save(connection: &Connection, order: Order) -> Result<Placed, PlaceError> {
    let new = connection
        .prepare_cached(
            "insert into orders (id, name, email, items, placed_at) values (?1, ?2, ?3, ?4, ?5) \
             on conflict do nothing",
        )?
        .execute((
            &order.id,
            &order.customer.name,
            &order.customer.email,
            serde_json::to_string(&order.items).expect("items have a form in JSON"),
            order.placed_at.to_string(),
        ))?;
    if new == 1 {
        return Ok(Placed::Now(order));
    }
    match find(connection, &order.id)? {
        // The one who sends an order again may not know when it arrived at first.
        Some(SavedOrder { order: saved, .. })
            if saved.customer == order.customer && saved.items == order.items =>
        {
            Ok(Placed::Before(saved))
        }
        _ => Err(PlaceError::OtherOrder(order.id)),
    }
}

fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<SavedOrder>> {
    connection
        .prepare_cached("select id, name, email, items, placed_at, status from orders where id = ?1")?
        .query_row([id], read)
        .optional()
}

fn read(row: &Row<'_>) -> rusqlite::Result<SavedOrder> {
    let (items, placed_at): (String, String) = (row.get(3)?, row.get(4)?);
    Ok(SavedOrder {
        order: Order {
            id: row.get(0)?,
            customer: Customer { name: row.get(1)?, email: row.get(2)? },
            items: serde_json::from_str(&items).map_err(|error| unreadable(3, error))?,
            placed_at: placed_at.parse().map_err(|error: jiff::Error| unreadable(4, error))?,
        },
        status: row.get(5)?,
    })
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
