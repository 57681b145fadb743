//! `Box<dyn Error>` is an error, and cannot go to another thread.

use eventbus::{Envelope, subscribe};
use std::error::Error;

#[subscribe("order.placed")]
async fn ship(envelope: &Envelope) -> Result<(), Box<dyn Error>> {
    let _: u64 = envelope.key().unwrap_or_default().parse()?;
    Ok(())
}

fn main() {}
