//! The signals that ask a program to end: Ctrl-C, and SIGTERM where there is one.

use std::io;
#[cfg(unix)]
use std::task::Poll;

/// The number of the signal that Ctrl-C sends.
pub const SIGINT: u8 = 2;

/// Hears them on the tokio runtime on which it was made.
pub struct Listener {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the system does not tell of signals.
    pub fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The number of the next signal.
    pub async fn next(&mut self) -> u8 {
        const SIGTERM: u8 = 15;
        std::future::poll_fn(|context| {
            if self.interrupt.poll_recv(context).is_ready() {
                return Poll::Ready(SIGINT);
            }
            self.terminate.poll_recv(context).map(|_| SIGTERM)
        })
        .await
    }
}

#[cfg(not(unix))]
impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the system does not tell of signals.
    pub fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// The number of the next signal.
    pub async fn next(&mut self) -> u8 {
        match tokio::signal::ctrl_c().await {
            Ok(()) => SIGINT,
            Err(_) => std::future::pending().await,
        }
    }
}
