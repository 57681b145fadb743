//! HTTP, handlers and the command line in one program.
//!
//! ```text
//! cargo run --package eventbus-cli --example http                 # serves, and handles events
//! curl --json '{"id":1}' http://127.0.0.1:3000/orders
//! cargo run --package eventbus-cli --example http -- log          # and every other verb
//! ```

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use eventbus::bus::{Health, shutdown_signal};
use eventbus::{BoxError, Bus, Event, subscribe};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use tokio::net::TcpListener;

#[derive(Event, Clone, Serialize, Deserialize)]
#[event(topic = "order.placed", key = id)]
struct OrderPlaced {
    id: u64,
}

/// Mails the customer. A state of the bus would be an `eventbus::State` here, since `State` is axum's.
#[subscribe("order.placed")]
async fn send_confirmation(order: OrderPlaced) {
    println!("order {} confirmed", order.id);
}

/// `POST /orders`: the order is taken once its event is stored.
async fn place(State(bus): State<Bus>, Json(order): Json<OrderPlaced>) -> StatusCode {
    match bus.publish(order).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// `GET /healthz`: whether each subscription gets on.
async fn healthz(State(bus): State<Bus>) -> (StatusCode, Json<Health>) {
    let health = bus.health().await;
    let status = if health.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    if std::env::args().len() > 1 {
        return Ok(eventbus_cli::main(Bus::builder()).await);
    }
    let bus = Bus::from_env().await?;
    let routes = Router::new().route("/orders", post(place)).route("/healthz", get(healthz));
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let server = axum::serve(listener, routes.with_state(bus.clone()));
    // Requests get their answers first; then the bus ends, whose handlers finish.
    let mut served = Ok(());
    bus.run_until(async { served = server.with_graceful_shutdown(shutdown_signal()).await }).await?;
    Ok(served.map(|()| ExitCode::SUCCESS)?)
}
