//! What a subscription asks of a broker.

use super::Start;
use crate::topic::Pattern;
use std::time::Duration;

/// What a subscription asks of a broker.
///
/// ```
/// use eventbus_core::Pattern;
/// use eventbus_core::broker::{Start, SubscribeRequest};
///
/// let mut request = SubscribeRequest::new("billing.charge", Pattern::new("order.>")?);
/// request.start = Start::Earliest;
/// # Ok::<(), eventbus_core::TopicError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscribeRequest {
    /// The logical subscriber; subscriptions of one group and pattern share the deliveries.
    pub group: String,
    /// The topics that it listens on.
    pub pattern: Pattern,
    /// Where a group that the broker does not know yet begins. Default: [`Start::Latest`].
    pub start: Start,
    /// All processes that have the group may handle it at once: order by key holds within each of them only. Otherwise
    /// deliveries of one key are handled in order wherever they are, be it that one process at a time has the group.
    /// Default: false.
    pub competing: bool,
    /// How many deliveries this subscription may hold at once, handled or waiting. Default: 17,408.
    pub hold: usize,
    /// How many attempts may follow the first. A server that counts as well, and gives up by itself, must allow more.
    /// Default: 4.
    pub retries: u32,
    /// How long one attempt may take. Default: 60 s.
    pub timeout: Duration,
}

impl SubscribeRequest {
    /// Asks for what `group` is to get of `pattern`, with the defaults of a subscription for the rest.
    #[must_use]
    pub fn new(group: impl Into<String>, pattern: Pattern) -> Self {
        Self {
            group: group.into(),
            pattern,
            start: Start::Latest,
            competing: false,
            hold: 1_024 + 16_384,
            retries: 4,
            timeout: Duration::from_secs(60),
        }
    }
}
