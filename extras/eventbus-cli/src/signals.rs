//! Signals that end a verb which does something in the meantime: it says how far it came, and ends within a second.
//!
//! A verb that only looks ends as the system ends a program. `run` has the signals of its bus.

use crate::failure::{Failure, Result};
use eventbus_core::signals::Listener;
use std::io;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a verb has to come to its end by itself.
const GRACE: Duration = Duration::from_millis(800);

/// What a program that a signal ended answers to its shell.
pub(crate) fn exit_code(signal: u8) -> u8 {
    128 + signal
}

/// Tells of the first signal.
pub(crate) struct Signals(watch::Receiver<Option<u8>>);

impl Signals {
    /// Listens from when this resolves. Whatever holds up the program then, a signal ends it.
    pub(crate) async fn listen() -> Result<Self> {
        let (tell, told) = watch::channel(None);
        let (ready, listens) = oneshot::channel();
        let listen = move || listen(&tell, ready);
        let thread = std::thread::Builder::new().name("eventbus-signals".to_owned()).spawn(listen);
        thread.map_err(failed)?;
        match listens.await {
            Ok(Ok(())) => Ok(Self(told)),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed(io::Error::other("the thread that listens has ended"))),
        }
    }

    /// Resolves with the number of the first signal.
    pub(crate) async fn first(&mut self) -> u8 {
        match self.0.wait_for(Option::is_some).await.map(|signal| *signal) {
            Ok(Some(signal)) => signal,
            _ => std::future::pending().await,
        }
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::new(format_args!("cannot listen for signals: {error}"))
}

/// The thread: handlers may hold up every thread of the program's runtime.
fn listen(tell: &watch::Sender<Option<u8>>, ready: oneshot::Sender<io::Result<()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let signal = runtime.block_on(async {
        match Listener::new() {
            Ok(mut listener) => ready.send(Ok(())).is_ok().then_some(listener.next().await),
            Err(error) => {
                drop(ready.send(Err(error)));
                None
            }
        }
    });
    let Some(signal) = signal else { return };
    // Where the verb is over, whatever comes after it has not asked for signals.
    if tell.send(Some(signal)).is_ok() {
        std::thread::sleep(GRACE);
    }
    std::process::exit(exit_code(signal).into())
}

/// From now on, Ctrl-C belongs to whoever has the terminal, such as an editor.
pub(crate) fn leave_interrupts() {
    // What has registered once stays; where it cannot, Ctrl-C ends the program as it always did.
    #[cfg(unix)]
    drop(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()));
}
