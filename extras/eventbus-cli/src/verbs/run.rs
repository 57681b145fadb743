//! `run`: handles events until somebody ends it.

use crate::failure::Result;
use crate::session::Session;
use crate::text::counted;
use eventbus_core::stderr::log_to;
use tracing::Level;

pub(super) async fn execute(session: &mut Session) -> Result {
    let remarks = session.out.beside_handlers()?;
    // The stream takes colour out where it is not wanted.
    log_to(move || remarks.clone(), true, Level::INFO);
    let bus = session.connect().await?;
    let subscriptions = counted(bus.subscriptions().len() as u64, "subscription");
    session.out.remark(&format!("running {subscriptions}; Ctrl-C ends it"));
    bus.run().await?;
    Ok(())
}
