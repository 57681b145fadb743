//! Replay: delivering again from an earlier place.

use super::{BrokerFuture, Deliveries, Offset};
use crate::error::BrokerError;
use crate::topic::Pattern;
use jiff::Timestamp;
use std::fmt;

/// A broker that keeps events after they were handled.
///
/// Several replays may run at once, of one group too, beside the live subscription.
pub trait Replayable: Send + Sync + 'static {
    /// Opens deliveries over the history, with a cursor that is thrown away: live groups do not move, and other
    /// groups see nothing. Each delivery says that it is replayed. They come in the order of the log.
    ///
    /// Where they cannot go on, they give an error, and then their end: with no delivery in between the bus takes that for
    /// a replay that broke off, and not for a complete one.
    ///
    /// An event whose dead letter of this group was published again with another payload has that payload. `Ok` means that
    /// everything up to [`Replay::latest`] is in the deliveries, as far as it is asked for and still kept.
    ///
    /// # Errors
    /// Where the history cannot be read.
    ///
    /// # Cancel safety
    /// Nothing is kept for a replay that is dropped, before it is open or after.
    fn replay(&self, request: ReplayRequest) -> BrokerFuture<Result<Replay, BrokerError>>;
}

/// Which part of the history is delivered again, and to whom.
///
/// ```
/// use eventbus_core::Pattern;
/// use eventbus_core::broker::{Broker, ReplayFrom, ReplayRequest, ReplayUntil};
/// use eventbus_core::memory::MemoryBroker;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryBroker::builder().history(1_000).build();
/// let request = ReplayRequest {
///     group: "shop.orders_by_day".to_owned(),
///     pattern: Pattern::new("order.>")?,
///     from: ReplayFrom::Earliest,
///     until: ReplayUntil::Now,
/// };
/// let replay = broker.replayable().expect("it has a history").replay(request).await?;
/// assert_eq!((replay.events, replay.latest), (0, None));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// The group that handles the events: it gets the payloads that were mended for it.
    pub group: String,
    /// The topics that it listens on.
    pub pattern: Pattern,
    /// Where the replay begins.
    pub from: ReplayFrom,
    /// Where it ends.
    pub until: ReplayUntil,
}

/// Where a replay begins.
///
/// ```
/// use eventbus::broker::ReplayFrom;
/// use std::time::{Duration, SystemTime};
///
/// let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
/// let from = ReplayFrom::Time(an_hour_ago.try_into()?);
/// # let _ = from;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplayFrom {
    /// With the oldest event that is kept.
    #[default]
    Earliest,
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
