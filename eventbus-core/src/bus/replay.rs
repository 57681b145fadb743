//! Replay: delivers a part of the history again, to one group.

use super::Bus;
use super::home::needs_runtime;
use super::pass::{Journal, OnProgress, Pass, Plan};
use crate::broker::{DeadLetter, Offset, ReplayFrom, ReplayRequest, ReplayUntil, Replayable};
use crate::census;
use crate::counted::{count, counted};
use crate::error::{Error, Result};
use crate::handler::BoxFuture;
use crate::state::{State, States, relation};
use crate::subscription::{StateType, Subscription};
use crate::topic::Pattern;
use crate::worker::Lanes;
use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

impl Bus {
    /// Delivers events of the past again, to the subscriptions of one group, and resolves once all of them are
    /// handled, retries included.
    ///
    /// It runs beside the live subscription, by the same handler, layers and options, with a cursor that is thrown
    /// away: the live one goes on untouched, no other group sees anything, and the bus need not be started.
    /// [`Delivery::replayed`](crate::Delivery::replayed) is true. What the handler publishes is published again, so
    /// register a handler that must not do so with `replay = false`.
    ///
    /// Where the payload of an event was mended as its dead letter of this group was published again, the replay has the
    /// mended one. What fails here becomes no dead letter, since the live subscription would handle it once more when
    /// that is published again: it is an error line and stands in the error or, after
    /// [`skip_failures`](Replaying::skip_failures), in the report.
    ///
    /// ```
    /// # use eventbus::{Bus, Event, State, subscribe};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed", key = id)]
    /// # struct OrderPlaced { id: u64 }
    /// # struct Days;
    /// # impl Days { async fn add(&self, _order: OrderPlaced) {} }
    /// #[subscribe]
    /// async fn orders_by_day(order: OrderPlaced, days: State<Days>) {
    ///     days.add(order).await;
    /// }
    ///
    /// # async fn again(bus: Bus) -> eventbus::Result<()> {
    /// let report = bus
    ///     .replay(orders_by_day::SUBSCRIBER)
    ///     .rate(10_000)
    ///     .skip_failures()
    ///     .on_progress(|progress| println!("{:.0} %, {:?} left", progress.percent(), progress.remaining()))
    ///     .await?;
    /// println!("{} of {} events failed", report.failed, report.events);
    /// for failure in &report.failures {
    ///     println!("{} at {}: {}", failure.envelope.topic(), failure.offset, failure.reason);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Awaited: [`Error::Replay`] where this bus has no such group, or a subscription of it is registered with
    /// `replay = false`, and, once everything else is handled, where events failed; what the broker reports,
    /// also where it keeps no history; and [`Error::Closed`] where the bus is shut down before the end.
    ///
    /// # Cancel safety
    /// Dropped, the replay stops; handlers that run finish.
    pub fn replay(&self, group: impl AsRef<str>) -> Replaying {
        Replaying {
            bus: self.clone(),
            group: group.as_ref().to_owned(),
            from: ReplayFrom::Earliest,
            until: ReplayUntil::Now,
            rate: None,
            concurrency: None,
            insist: false,
            skip_failures: false,
            states: Overrides::default(),
            on_progress: None,
        }
    }

    /// The live lanes of a group.
    pub(super) fn lanes_of(&self, group: &str) -> Result<Vec<Arc<Lanes>>> {
        let stage = self.shared.stage.lock();
        if stage.closed {
            return Err(Error::Closed);
        }
        let of_group = |lanes: &&Arc<Lanes>| lanes.subscription().group == group;
        let lanes: Vec<_> = stage.lanes.iter().filter(of_group).cloned().collect();
        if lanes.is_empty() {
            let known = stage.lanes.iter().map(|lanes| &*lanes.subscription().group);
            return Err(Error::Replay {
                group: group.to_owned(),
                reason: census::unknown_group(group, known),
            });
        }
        Ok(lanes)
    }

    pub(super) fn replayable(&self) -> Result<Arc<dyn Replayable>> {
        self.shared.broker.replayable().ok_or_else(|| {
            self.lacks_history("keeps no events after they were handled, so there is nothing to replay")
        })
    }
}

/// A replay that is about to begin: set what it is to do, then `.await` it. [`Bus::replay`] makes it.
///
/// ```
/// use eventbus::Bus;
/// use eventbus::broker::{ReplayFrom, ReplayUntil};
/// # use eventbus::jiff::Timestamp;
///
/// # async fn again(bus: Bus, morning: Timestamp, noon: Timestamp) -> eventbus::Result<()> {
/// let report = bus
///     .replay("shop.orders_by_day")
///     .from(ReplayFrom::Time(morning))
///     .until(ReplayUntil::Time(noon))
///     .concurrency(8)
///     .skip_failures()
///     .await?;
/// for failure in &report.failures {
///     println!("{}: {}", failure.offset, failure.reason);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is replayed until you `.await` this"]
pub struct Replaying {
    bus: Bus,
    group: String,
    from: ReplayFrom,
    until: ReplayUntil,
    rate: Option<u32>,
    concurrency: Option<usize>,
    insist: bool,
    skip_failures: bool,
    states: Overrides,
    on_progress: Option<OnProgress>,
}

impl Replaying {
    /// Where it begins. Default: with the oldest event that is kept.
    pub fn from(mut self, from: ReplayFrom) -> Self {
        self.from = from;
        self
    }

    /// Where it ends. Default: with the latest event there is when it begins. [`ReplayUntil::Live`] never ends: it
    /// goes on with what is published, until the future is dropped or the bus is shut down.
    pub fn until(mut self, until: ReplayUntil) -> Self {
        self.until = until;
        self
    }

    /// How many events are delivered in a second at most. Default: no limit.
    pub fn rate(mut self, events_per_second: u32) -> Self {
        self.rate = Some(events_per_second);
        self
    }

    /// How many deliveries are handled at once. Default: as the live subscription.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = Some(concurrency.max(1));
        self
    }

    /// Runs subscriptions that are registered with `replay = false` all the same.
    pub fn insist(mut self) -> Self {
        self.insist = true;
        self
    }

    /// Takes events that fail for no error: they are left out, counted and listed in the [report](ReplayReport).
    /// Default: where some fail, the replay ends with an [`Error::Replay`] that names the first ones.
    pub fn skip_failures(mut self) -> Self {
        self.skip_failures = true;
        self
    }

    /// Gives the handlers of this replay a value of their own as `State<S>`, in place of the one of the bus: to
    /// build a read model beside the live one. A subscription that takes no `State<S>` is refused, since it would
    /// write to the live one.
    pub fn state<S: Send + Sync + 'static>(mut self, state: S) -> Self {
        self.states.insert(Arc::new(state));
        self
    }

    /// As [`state`](Self::state), with a value that the program keeps sharing.
    pub fn shared_state<S: Send + Sync + 'static>(mut self, state: Arc<S>) -> Self {
        self.states.insert(state);
        self
    }

    /// Calls `tell` about every 200 ms, and once at the end. It must not block.
    pub fn on_progress(mut self, tell: impl FnMut(&ReplayProgress) + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(tell));
        self
    }

    /// How many events it would deliver now, without those that are published later.
    #[doc(hidden)]
    pub async fn events(&self) -> Result<u64> {
        let broker = self.bus.replayable()?;
        let mut events = 0;
        for lanes in self.bus.lanes_of(&self.group)? {
            let subscription = lanes.subscription();
            let request = ReplayRequest {
                group: subscription.group.to_string(),
                pattern: Pattern::new(&subscription.pattern)?,
                from: self.from,
                until: self.until,
            };
            events += broker.replay(request).await?.events;
        }
        Ok(events)
    }

    async fn run(self) -> Result<ReplayReport> {
        needs_runtime("replay")?;
        let live = self.bus.lanes_of(&self.group)?;
        let refuse = |reason| Error::Replay { group: self.group.clone(), reason };
        if !self.insist {
            refused(&live).map_or(Ok(()), |refused| {
                Err(refuse(format!("{refused}; `.insist()` runs it all the same")))
            })?;
        }
        let plan = Plan {
            broker: self.bus.replayable()?,
            from: self.from,
            until: self.until,
            rate: self.rate,
            concurrency: self.concurrency,
            states: self.states.over(&self.bus, &live).map_err(refuse)?,
        };
        let mut journal = Journal::new(self.on_progress);
        let report = Pass::begin(&self.bus, &live, &plan).await?.end(&mut journal).await?;
        if report.failed > 0 && !self.skip_failures {
            return Err(refuse(format!(
                "{}; the others are handled. Mend the handler or the payloads, and replay these again, or leave them \
                 out with `.skip_failures()`",
                failed(&report)
            )));
        }
        Ok(report)
    }
}

impl IntoFuture for Replaying {
    type Output = Result<ReplayReport>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for Replaying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replaying")
            .field("group", &self.group)
            .field("from", &self.from)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Why a group may not be replayed, where a subscription of it says so.
pub(super) fn refused(live: &[Arc<Lanes>]) -> Option<String> {
    let refusing = live.iter().find(|lanes| !lanes.policy().replay)?;
    let Subscription { name, .. } = refusing.subscription();
    Some(format!(
        "`{name}` ({}) is registered with `replay = false`, as a handler with effects outside is",
        refusing.subscription().location()
    ))
}

/// How many events of a replay failed, and what the first ones were.
pub(super) fn failed(report: &ReplayReport) -> String {
    const NAMED: usize = 3;
    /// How many characters of a reason are told.
    const TOLD: usize = 200;
    let named = report.failures.iter().take(NAMED).map(|failure| {
        let mut reason: String = failure.reason.chars().take(TOLD).collect();
        if reason.len() < failure.reason.len() {
            reason.push('…');
        }
        format!("\"{}\" at {} ({}: {reason})", failure.envelope.topic(), failure.offset, failure.kind)
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let more = if report.failed > NAMED as u64 { ", …" } else { "" };
    let events = counted(report.events, "event");
    format!("{} of {events} failed: {named}{more}", count(report.failed))
}

/// States that handlers take in place of those of the bus.
#[derive(Default)]
pub(super) struct Overrides {
    states: States,
    types: Vec<StateType>,
}

impl Overrides {
    pub(super) fn insert<S: Send + Sync + 'static>(&mut self, state: Arc<S>) {
        self.states.insert(state);
        self.types.push(State::<S>::TYPE);
    }

    /// The states of the bus with these in their place, where each is taken by every subscription.
    pub(super) fn over(self, bus: &Bus, live: &[Arc<Lanes>]) -> Result<Option<Arc<States>>, String> {
        for lanes in live {
            let subscription = lanes.subscription();
            let takes =
                |state: &StateType| subscription.states.iter().flatten().any(|own| own.id == state.id);
            // What a closure takes is not known.
            if !subscription.package.is_empty()
                && let Some(state) = self.types.iter().find(|state| !takes(state))
            {
                let given = (state.name)();
                let taken = subscription.states.iter().flatten();
                let remedy = taken.map(|taken| (taken.name)()).find_map(|taken| relation(taken, given));
                return Err(format!(
                    "`{}` ({}) takes no `State<{given}>`, so it would not use the value that is given to the replay: {}",
                    subscription.name,
                    subscription.location(),
                    remedy.as_deref().unwrap_or("make it an argument of the handler")
                ));
            }
        }
        if self.types.is_empty() {
            return Ok(None);
        }
        let mut states = States::clone(&bus.shared.states);
        states.extend(self.states);
        Ok(Some(Arc::new(states)))
    }
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReplayProgress {
    /// How many events are handled.
    pub handled: u64,
    /// How many events there were to handle when the replay began.
    pub events: u64,
    /// How many events have failed so far.
    pub failed: u64,
    /// How long it has taken.
    pub elapsed: Duration,
}

impl ReplayProgress {
    /// How much is handled, up to 100; a replay of nothing is complete.
    #[must_use]
    pub fn percent(&self) -> f64 {
        if self.handled >= self.events { 100.0 } else { 100.0 * self.handled as f64 / self.events as f64 }
    }

    /// How many events are handled in a second, on the average so far.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.handled as f64 / seconds } else { 0.0 }
    }

    /// How long the rest takes at this rate; unknown before the first event is handled.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.events.saturating_sub(self.handled);
        if left == 0 {
            return Some(Duration::ZERO);
        }
        Duration::try_from_secs_f64(left as f64 / self.rate()).ok()
    }
}

/// What became of a replay.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReplayReport {
    /// How many events were delivered.
    pub events: u64,
    /// How many were handled with success.
    pub acked: u64,
    /// How many failed, after as many attempts as the subscription makes, and were left out.
    pub failed: u64,
    /// What failed and why, by place: the first 100. They are in no store of dead letters.
    pub failures: Vec<Arc<DeadLetter>>,
    /// How long it took, from its beginning on.
    pub elapsed: Duration,
    /// The place of the latest event in the log, whatever its topic, when the replay began.
    pub latest: Option<Offset>,
}

impl ReplayReport {
    /// Whether each event that was delivered was handled with success.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.acked == self.events
    }
}
