//! One pass over a part of the history: lanes beside the live ones, until there is nothing left.

use super::pace::{Bucket, Paced};
use super::replay::{ReplayProgress, ReplayReport};
use super::shutdown::close;
use super::{Bus, race};
use crate::broker::{Offset, ReplayFrom, ReplayRequest, ReplayUntil, Replayable};
use crate::counted::{count, counted};
use crate::delivery::{Failures, Scope};
use crate::error::{Error, Result};
use crate::foreign;
use crate::lock::{Lock, Rank};
use crate::log;
use crate::printable::printable;
use crate::state::States;
use crate::topic::Pattern;
use crate::worker::{Lanes, Tally};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often progress is told to the program.
const TELL: Duration = Duration::from_millis(200);
/// How often it is logged.
const LOG: Duration = Duration::from_secs(5);

/// What a pass does, and how.
pub(super) struct Plan {
    pub(super) broker: Arc<dyn Replayable>,
    pub(super) from: ReplayFrom,
    pub(super) until: ReplayUntil,
    pub(super) rate: Option<u32>,
    pub(super) concurrency: Option<usize>,
    /// The states of the bus with those of the replay in their place; none where it has none of its own.
    pub(super) states: Option<Arc<States>>,
}

/// A pass under way. Dropped, it stops: handlers that run finish.
pub(super) struct Pass {
    bus: Bus,
    group: String,
    lanes: Vec<Arc<Lanes>>,
    failures: Arc<Failures>,
    events: u64,
    latest: Option<Offset>,
}

impl Pass {
    /// Opens the history at the broker for each of these subscriptions of one group, and begins.
    pub(super) async fn begin(bus: &Bus, live: &[Arc<Lanes>], plan: &Plan) -> Result<Self> {
        let bucket = plan.rate.map(Bucket::new);
        let group = live.first().map(|lanes| lanes.subscription().group.to_string()).unwrap_or_default();
        let failures = Arc::new(Lock::new(Rank::LEAF, Vec::new()));
        let mut pass = Self { bus: bus.clone(), group, lanes: Vec::new(), failures, events: 0, latest: None };
        let mut until = plan.until;
        for lanes in live {
            let subscription = lanes.subscription();
            let request = ReplayRequest {
                group: subscription.group.to_string(),
                pattern: Pattern::new(&subscription.pattern)?,
                from: plan.from,
                until,
            };
            let opened = plan.broker.replay(request).await?;
            if pass.lanes.is_empty() {
                pass.latest = opened.latest;
            }
            // All subscriptions of the group end at one place, so that there is one behind which nothing was seen.
            if let (ReplayUntil::Now, Some(latest)) = (until, opened.latest) {
                until = ReplayUntil::Offset(latest);
            }
            pass.events += opened.events;
            let source = match &bucket {
                Some(bucket) => Box::new(Paced::new(opened.deliveries, Arc::clone(bucket))),
                None => opened.deliveries,
            };
            let scope = Arc::new(Scope {
                subscription: subscription.clone(),
                states: Arc::clone(plan.states.as_ref().unwrap_or(&bus.shared.states)),
                outlet: Arc::clone(&bus.shared.outlet),
                failures: Some(Arc::clone(&pass.failures)),
            });
            pass.lanes.push(lanes.again(scope, plan.concurrency, source)?);
        }
        let mut stage = bus.shared.stage.lock();
        if stage.closed {
            return Err(Error::Closed);
        }
        stage.replays.extend(pass.lanes.iter().cloned());
        stage.replayed = true;
        drop(stage);
        pass.lanes.iter().for_each(|lanes| lanes.start());
        Ok(pass)
    }

    /// Resolves once everything was handled, retries included.
    ///
    /// # Errors
    /// The bus was shut down, or the broker could not go on: what was handled is then not all that there is.
    pub(super) async fn end(self, journal: &mut Journal) -> Result<ReplayReport> {
        {
            let mut finished = std::pin::pin!(async {
                for lanes in &self.lanes {
                    if !lanes.finished().await {
                        return Err(Error::Closed);
                    }
                }
                Ok(())
            });
            let mut ticks = interval_at(Instant::now() + TELL, TELL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let tick = async {
                    ticks.tick().await;
                    None
                };
                match race(async { Some(finished.as_mut().await) }, tick).await {
                    Some(finished) => break finished?,
                    None => journal.tell(&self, false),
                }
            }
        }
        journal.tell(&self, true);
        let Tally { received, acked, given_up, .. } = self.tally();
        if let Some(reason) = self.lanes.iter().find_map(|lanes| lanes.broke_off()) {
            let (events, had) = (counted(self.events.max(received), "event"), count(received));
            return Err(Error::Replay {
                group: self.group.clone(),
                reason: format!("it broke off after {had} of {events}: {reason}; begin it again"),
            });
        }
        journal.handled += received;
        journal.failed += given_up;
        journal.events += self.events.max(received);
        let mut failures = std::mem::take(&mut *self.failures.lock());
        failures.sort_by_key(|failure| failure.offset);
        Ok(ReplayReport {
            events: received,
            acked,
            failed: given_up,
            failures,
            // Handlers may be done before anybody waits for their end.
            elapsed: journal.started.elapsed(),
            latest: self.latest,
        })
    }

    fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in self.lanes.iter().map(|lanes| lanes.tally()) {
            sum.received += tally.received;
            sum.acked += tally.acked;
            sum.given_up += tally.given_up;
            sum.unsettled += tally.unsettled;
        }
        sum
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lanes| lanes.stop());
        let ours = |lanes: &Arc<Lanes>| self.lanes.iter().any(|own| Arc::ptr_eq(own, lanes));
        self.bus.shared.stage.lock().replays.retain(|lanes| !ours(lanes));
        close(&self.lanes);
    }
}

/// What is told to the program while it replays.
pub(super) type OnProgress = Box<dyn FnMut(&ReplayProgress) + Send>;

/// Tells how far a replay has come, over all of its passes.
pub(super) struct Journal {
    on_progress: Option<OnProgress>,
    started: Instant,
    logged: Instant,
    /// In the passes that have ended.
    handled: u64,
    failed: u64,
    events: u64,
}

impl Journal {
    pub(super) fn new(on_progress: Option<OnProgress>) -> Self {
        let now = Instant::now();
        Self { on_progress, started: now, logged: now, handled: 0, failed: 0, events: 0 }
    }

    fn tell(&mut self, pass: &Pass, last: bool) {
        let Tally { acked, given_up, unsettled, .. } = pass.tally();
        let progress = ReplayProgress {
            handled: self.handled + acked + given_up + unsettled,
            events: self.events + pass.events,
            failed: self.failed + given_up,
            elapsed: self.started.elapsed(),
        };
        if last || self.logged.elapsed() >= LOG {
            self.logged = Instant::now();
            log::info!(
                target: "eventbus", group = %printable(&pass.group), handled = progress.handled, events = progress.events,
                failed = progress.failed, percent = progress.percent() as u64,
                rate = progress.rate() as u64, elapsed = ?progress.elapsed, remaining = ?progress.remaining(),
                "{}", if last { "the replay has ended" } else { "replaying" }
            );
        }
        if let Some(tell) = &mut self.on_progress {
            foreign::tell("what is told of a replay's progress", || tell(&progress));
        }
    }
}
