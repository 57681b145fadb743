//! The HTTP API.

mod error;

pub use error::ApiError;

use crate::analytics::{self, Sales};
use crate::database::Database;
use crate::inventory::{self, Stock};
use crate::order::NewOrder;
use crate::orders::{Orders, Placed, SavedOrder};
use crate::orders_by_day::{self, Day};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use eventbus::Bus;
use eventbus::broker::{DeadLetterId, DeadLetterQuery};
use eventbus::bus::Health;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What the handlers of requests work with.
#[derive(Clone)]
struct App {
    orders: Orders,
    database: Database,
    bus: Bus,
}

/// All routes of the shop.
pub fn router(database: Database, bus: Bus) -> Router {
    let orders = Orders::new(database.clone(), bus.publisher());
    Router::new()
        .route("/orders", post(place_order))
        .route("/orders/{id}", get(order))
        .route("/orders-by-day", get(orders_by_day))
        .route("/sales", get(sales))
        .route("/stock", get(stock))
        .route("/dead-letters", get(dead_letters))
        .route("/health", get(health))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .with_state(App { orders, database, bus })
}

/// What a customer gets for an order.
#[derive(Serialize)]
struct Receipt {
    id: String,
    total_cents: u64,
    placed_at: Timestamp,
}

/// 201 where the order is new, and 200 where it was placed before: a client may send it until it gets an answer.
async fn place_order(
    State(app): State<App>,
    order: Result<Json<NewOrder>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Json(order) = order?;
    let (status, order) = match app.orders.place(order.check()?).await? {
        Placed::Now(order) => (StatusCode::CREATED, order),
        Placed::Before(order) => (StatusCode::OK, order),
    };
    let location = [(header::LOCATION, format!("/orders/{}", order.id))];
    let total_cents = order.total_cents();
    Ok((status, location, Json(Receipt { id: order.id, total_cents, placed_at: order.placed_at })))
}

async fn order(State(app): State<App>, Path(id): Path<String>) -> Result<Json<SavedOrder>, ApiError> {
    app.orders.find(id).await?.map(Json).ok_or(ApiError::NotFound)
}

#[derive(Deserialize)]
struct Days {
    days: Option<u32>,
}

async fn orders_by_day(
    State(app): State<App>,
    query: Result<Query<Days>, QueryRejection>,
) -> Result<Json<Vec<Day>>, ApiError> {
    let Query(Days { days }) = query?;
    Ok(Json(orders_by_day::latest(&app.database, days.unwrap_or(30)).await?))
}

async fn sales(State(app): State<App>) -> Result<Json<Vec<Sales>>, ApiError> {
    Ok(Json(analytics::sales(&app.database).await?))
}

async fn stock(State(app): State<App>) -> Result<Json<Vec<Stock>>, ApiError> {
    Ok(Json(inventory::stock(&app.database).await?))
}

/// Which dead letters to list.
#[derive(Deserialize)]
struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

/// What a consumer gave up on, and why.
#[derive(Serialize)]
struct Letter {
    id: String,
    group: String,
    topic: String,
    key: Option<String>,
    kind: &'static str,
    reason: String,
    attempts: u32,
    last_failed_at: Timestamp,
}

async fn dead_letters(
    State(app): State<App>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Vec<Letter>>, ApiError> {
    let Query(Page { after, limit }) = page?;
    let mut query = DeadLetterQuery::default();
    query.after = after.map(DeadLetterId::new);
    query.limit = limit.unwrap_or(100).min(1_000);
    let found = app.bus.dead_letters()?.find(query).await.map_err(eventbus::Error::from)?;
    let letters = found.into_iter().map(|(id, letter)| Letter {
        id: id.to_string(),
        group: letter.group.clone(),
        topic: letter.envelope.topic().to_string(),
        key: letter.envelope.key().map(str::to_owned),
        kind: letter.kind.as_str(),
        reason: letter.reason.clone(),
        attempts: letter.attempts,
        last_failed_at: letter.last_failed_at,
    });
    Ok(Json(letters.collect()))
}

/// Whether the database answers, and every subscription gets on.
async fn health(State(app): State<App>) -> Result<(StatusCode, Json<Health>), ApiError> {
    app.database.read(|connection| connection.query_row("select 1", [], |_| Ok(()))).await?;
    let health = app.bus.health().await;
    let status = if health.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(health)))
}
