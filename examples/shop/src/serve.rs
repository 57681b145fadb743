//! `shop serve`: the HTTP API and the consumers in one process.

use crate::database::Database;
use crate::http;
use eventbus::{BoxError, Bus};
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// How long requests that are under way may take once the server stops.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves requests and handles events until `stop` resolves.
///
/// Then no connection is accepted any more, and requests that are under way get their answers; after that the bus
/// ends, whose handlers finish. So nothing is published on a bus that has ended. What is not handled by then stays in
/// the log until the next start.
///
/// # Errors
/// What the bus reports at its start and its end, and what the listener reports.
pub async fn serve(
    listener: TcpListener,
    database: Database,
    bus: Bus,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), BoxError> {
    bus.start()?;
    let stopping = Arc::new(Notify::new());
    let stopped = Arc::clone(&stopping);
    let server =
        axum::serve(listener, http::router(database, bus.clone())).with_graceful_shutdown(async move {
            stop.await;
            tracing::info!("shutting down");
            stopped.notify_one();
        });
    let out_of_patience = async {
        stopping.notified().await;
        tokio::time::sleep(PATIENCE).await;
    };
    let served = tokio::select! {
        served = server.into_future() => served,
        () = out_of_patience => {
            tracing::warn!("requests took longer than {PATIENCE:?} and were cut off");
            Ok(())
        }
    };
    bus.shutdown().await?;
    Ok(served?)
}

/// Resolves at Ctrl-C, and at SIGTERM where there is one.
///
/// # Errors
/// Where the system does not tell of signals.
pub fn signals() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        #[cfg(unix)]
        let terminated = terminate.recv();
        #[cfg(not(unix))]
        let terminated = std::future::pending::<()>();
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated => {}
        }
    })
}
