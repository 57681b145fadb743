//! `run`: handles events until somebody ends it.

use crate::failure::Result;
use crate::session::Session;
use crate::text::counted;
use std::io::IsTerminal;

pub(super) async fn execute(session: &mut Session) -> Result {
    log_to_stderr();
    let bus = session.connect().await?;
    let subscriptions = counted(bus.subscriptions().len() as u64, "subscription");
    session.out.remark(&format!("running {subscriptions}; Ctrl-C ends it"));
    bus.run().await?;
    Ok(())
}

/// Writes what happens on the bus to standard error, where the program has set up no `tracing` subscriber of its own.
fn log_to_stderr() {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing::Level::INFO);
    // An error means that there is one.
    let _ = subscriber.try_init();
}
