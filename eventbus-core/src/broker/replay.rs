//! Replay: delivering again from an earlier place.

use super::{BrokerFuture, Deliveries, Offset};
use crate::error::BrokerError;
use crate::topic::Pattern;
use jiff::Timestamp;
use std::fmt;

/// A broker that keeps events after they were handled.
pub trait Replayable: Send + Sync + 'static {
    /// Opens deliveries over the history, with a cursor that is thrown away: live groups do not move, and other
    /// groups see nothing. Each delivery says that it is replayed.
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>>;
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
    /// Where it ends.
    pub until: ReplayUntil,
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplayFrom {
    /// With the oldest event that is kept.
    #[default]
    Beginning,
    /// With the event at this place, or the next one that is kept.
    Offset(Offset),
    /// With the next event behind this place, such as [`ReplayReport::latest`](crate::ReplayReport::latest).
    After(Offset),
    /// With the first event that happened at this time or later.
    Time(Timestamp),
}

/// Where a replay ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplayUntil {
    /// With the latest event there is when it begins.
    #[default]
    Now,
    /// With the event at this place.
    Offset(Offset),
    /// Before the first event that happened at this time or later.
    Time(Timestamp),
    /// Never: after the history come the events that are published meanwhile.
    Live,
}

/// A replay that was opened at a broker.
pub struct Replay {
    /// What is delivered again. After the last one the deliveries end, unless the replay goes on live.
    pub deliveries: Box<dyn Deliveries>,
    /// How many events there are to deliver, without those that are published later.
    pub events: u64,
    /// The place of the latest event in the log, whatever its topic, when the replay was opened.
    pub latest: Option<Offset>,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("events", &self.events)
            .field("latest", &self.latest)
            .finish_non_exhaustive()
    }
}
