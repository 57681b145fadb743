//! What goes back to the queue, so that others get it at once and its message group is free.

use crate::calls::{Ask, ask_for, hide};
use crate::connection::{Trouble, slow_down};
use crate::subscription::Subscription;
use crate::together;
use std::sync::Arc;
use std::time::Duration;

/// How often it is tried to give something back. What remains, the queue gives out when it was hidden for its time.
const TRIES: usize = 3;
/// So long the answer to a call may take at the end, beyond what SQS waits for events.
pub(crate) const LAST_CALL: Duration = Duration::from_secs(2);

/// Has SQS hide these no longer: one batch.
pub(crate) async fn give_back(subscription: &Subscription, handles: impl IntoIterator<Item = Arc<str>>) {
    let mut left: Vec<_> = handles.into_iter().map(|handle| (0, handle, 0)).collect();
    for tries in 1..=TRIES {
        if left.is_empty() {
            return;
        }
        match hide(subscription, &left).await {
            Ok(failed) => {
                let again = failed.iter().filter(|failed| !failed.lasting);
                left = again.filter_map(|failed| left.get(failed.number).cloned()).collect();
            }
            Err(Trouble::Refused { .. }) => return,
            Err(Trouble::Passing(_) | Trouble::Slow(_)) => {}
        }
        if !left.is_empty() && tries < TRIES {
            tokio::time::sleep(slow_down(tries)).await;
        }
    }
}

/// At the end: what SQS has given out, and what has not arrived here, since the answers to these calls are lost. With it its
/// message groups would be closed until it was hidden for its time.
pub(crate) async fn give_back_unanswered(
    subscription: &Arc<Subscription>,
    asks: impl IntoIterator<Item = Ask>,
) {
    let known = asks.into_iter().filter(|ask| ask.name.is_some()).collect();
    let fetched = together::each(known, |ask| {
        let subscription = Arc::clone(subscription);
        async move {
            let messages = ask_for(&subscription, Duration::ZERO, &ask).await?;
            let handles = messages.into_iter().filter_map(|message| message.receipt_handle);
            give_back(&subscription, handles.map(Arc::from)).await;
            Ok(None::<()>)
        }
    });
    // Where it fails, the queue gives it out again when it was hidden for its time.
    let _ = tokio::time::timeout(LAST_CALL, fetched).await;
}
