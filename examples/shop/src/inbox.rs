//! The inbox: which events a consumer has handled already.
//!
//! The bus delivers at least once. After a crash between a handler's commit and its ack, or in a replay, a handler
//! sees an event again, and what adds up would count it twice. So a consumer writes the event's source and id down in
//! the transaction in which it counts the event: both are there after a crash, or neither.
//!
//! To keep only the last offset would be shorter, and wrong here: events with different keys are handled side by side,
//! and one that waits for a retry is overtaken by later ones.

use eventbus::Envelope;
use rusqlite::Transaction;

/// Writes down that `consumer` handles the event in this transaction. `false`: it has done so before.
pub(crate) fn is_new(
    transaction: &Transaction<'_>,
    consumer: &str,
    envelope: &Envelope,
) -> rusqlite::Result<bool> {
    let written = transaction
        .prepare_cached(
            "insert into inbox (consumer, source, event_id) values (?1, ?2, ?3) on conflict do nothing",
        )?
        .execute((consumer, envelope.source(), envelope.id().to_string()))?;
    Ok(written == 1)
}
