//! `run`: handles events until somebody ends it.

use crate::failure::Result;
use crate::session::Session;
use crate::text::counted;
use eventbus_core::stderr::log_to_stderr;
use tracing::Level;

pub(super) async fn execute(session: &mut Session) -> Result {
    log_to_stderr(Level::INFO);
    let bus = session.connect().await?;
    let subscriptions = counted(bus.subscriptions().len() as u64, "subscription");
    session.out.remark(&format!("running {subscriptions}; Ctrl-C ends it"));
    bus.run().await?;
    Ok(())
}
