//! What a broker says of itself.

use crate::conformance::case::Case;
use eventbus_core::broker::{Attempts, Connection};
use std::sync::Arc;

/// What a broker declares does not contradict itself: only what outlives a process is shared by several, remembered after
/// a crash, or kept as a cursor; what is shared by key has an order; only what
/// knows its groups moves or renames them. One that was just opened says that it is connected.
pub(super) async fn what_a_broker_declares_does_not_contradict_itself(case: Arc<Case>) {
    let (broker, features) = (case.broker().await, case.features());
    assert!(!broker.name().is_empty());
    assert_eq!(broker.connection(), Connection::Up);
    assert!(features.multi_process || !(features.competing || features.shared_by_key), "{features:?}");
    assert!(features.key_order || !features.shared_by_key, "{features:?}");
    assert!(features.durable || !features.multi_process, "{features:?}");
    assert!(features.durable || features.attempts == Attempts::Lost, "{features:?}");
    assert!(features.durable || broker.groups().is_none(), "cursors are of use where events are kept");
    assert!(broker.groups().is_some() || !(features.seek || features.rename), "{features:?}");
    assert_ne!(features.max_payload, Some(0));
}
