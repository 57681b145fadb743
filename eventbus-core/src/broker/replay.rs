//! Replay: delivering again from an earlier place.

use super::{BrokerFuture, Deliveries, Offset};
use crate::error::BrokerError;
use crate::topic::Pattern;
use jiff::Timestamp;

/// A broker that keeps events after they were handled.
pub trait Replayable: Send + Sync + 'static {
    /// Opens deliveries over the history, with a cursor that is thrown away: live groups do not move, and other
    /// groups see nothing. Each delivery says that it is replayed; after the last one the deliveries end.
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Box<dyn Deliveries>, BrokerError>>;
}

/// Which part of the history is delivered again, and to whom.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// The group that handles the events, for their dead letters.
    pub group: String,
    /// The topics that it listens on.
    pub pattern: Pattern,
    /// Where the replay begins.
    pub from: ReplayFrom,
    /// The last place that is delivered; none means up to now.
    pub until: Option<Offset>,
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplayFrom {
    /// With the oldest event that is kept.
    Beginning,
    /// With the event at this place, or the next one that is kept.
    Offset(Offset),
    /// With the first event that happened at this time or later.
    Time(Timestamp),
}
