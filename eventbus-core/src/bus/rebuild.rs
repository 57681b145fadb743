//! Rebuild: a read model is built anew beside the live one, and takes its place.

use super::Bus;
use super::home::needs_runtime;
use super::pass::{Journal, OnProgress, Pass, Plan};
use super::replay::{Overrides, ReplayProgress, ReplayReport, failed, refused};
use super::sharing::Sharing;
use super::shutdown::{close, idle};
use super::stage::Stage;
use crate::broker::{Groups, ReplayFrom, ReplayUntil};
use crate::counted::{count, counted};
use crate::error::{BoxError, BrokerError, Error, Result};
use crate::foreign;
use crate::handler::BoxFuture;
use crate::log;
use crate::printable::printable;
use crate::worker::Lanes;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

/// While more events than this are left, they are handled beside the live subscription.
const REST: u64 = 500;
/// How long to wait until the broker has noticed that nobody handles the group any more.
const RELEASE: Duration = Duration::from_secs(5);
/// After the live subscription could not be opened again, it is tried again this much later.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

impl Bus {
    /// Builds the read model of a group anew, beside the live one, and puts it in its place.
    ///
    /// 1. The history is [replayed](Self::replay) to the group's handlers, with the states that are given here.
    ///    This is repeated over what was published meanwhile, until little is left. The live subscription goes on,
    ///    and readers read the old model.
    /// 2. The live subscription stops: handlers that run finish, the rest goes back to the broker. What is left of
    ///    the log is replayed too.
    /// 3. `swap` puts the new model in place of the old one.
    /// 4. The group's cursor moves to behind the last event that was replayed, and the live subscription begins
    ///    again there.
    ///
    /// ```
    /// # use eventbus::{Bus, Event, State, subscribe};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    /// # #[event(topic = "order.placed", key = id)]
    /// # struct OrderPlaced { id: u64 }
    /// # struct Days { table: &'static str }
    /// # impl Days {
    /// #     fn on(table: &'static str) -> Self { Self { table } }
    /// #     async fn add(&self, _order: OrderPlaced) {}
    /// # }
    /// # async fn sql(_text: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// #[subscribe]
    /// async fn orders_by_day(order: OrderPlaced, days: State<Days>) {
    ///     days.add(order).await;
    /// }
    ///
    /// # async fn anew(bus: Bus) -> eventbus::Result<()> {
    /// bus.rebuild(orders_by_day::SUBSCRIBER)
    ///     .state(Days::on("days_new"))
    ///     .swap(async || sql("alter table days rename to days_old; alter table days_new rename to days").await)
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Rebuild`] says whether the new model is in place. Where it is not, nothing has changed: the live
    /// subscription goes on, with the old model. This is so for all that fails before the end of `swap`: a group
    /// that cannot be replayed or is being rebuilt already, an event that fails (the new model would lack it; see
    /// [`skip_failures`](Rebuilding::skip_failures)), a group that another process
    /// handles as well, and an error of `swap` itself. Where it is, only the cursor could not be moved; then the
    /// live subscription goes on from where it stopped, as after a crash (see below). Beyond that what the broker
    /// reports, also where it keeps no history, or no cursors that can be moved, and [`Error::Closed`] where the bus is shut down
    /// meanwhile.
    ///
    /// # Cancel safety
    /// Dropped, the replay stops, and a live subscription that was stopped begins again, in the background.
    ///
    /// The cursor moves after `swap`, so that no event is missed by the new model. Should the program end, or this
    /// be dropped, between the two, then the group goes on from where the live subscription stopped, and the new
    /// model gets the events from there to the end of the rebuild a second time: at least once, as ever.
    pub fn rebuild(&self, group: impl AsRef<str>) -> Rebuilding {
        Rebuilding {
            bus: self.clone(),
            group: group.as_ref().to_owned(),
            states: Overrides::default(),
            on_progress: None,
            swap: None,
            skip_failures: false,
        }
    }

    /// Opens the subscription of lanes that were stopped again, in their place; unless it, or the bus, has ended.
    async fn reopen(&self, stopped: &Arc<Lanes>) -> Result<()> {
        let shared = &self.shared;
        let place = |stage: &Stage| {
            let place = stage.lanes.iter().position(|lanes| Arc::ptr_eq(lanes, stopped));
            place.filter(|_| !stage.closed)
        };
        if place(&shared.stage.lock()).is_none() {
            return Ok(());
        }
        let subscription = stopped.subscription();
        let request = subscription.request(stopped.policy())?;
        let opened = foreign::run("a broker", || shared.broker.subscribe(request)).await;
        let mut source = opened.unwrap_or_else(|panicked| {
            Err(BrokerError::new("the broker could not subscribe").with_cause(panicked))
        })?;
        shared.warn(foreign::call("a broker", || source.warnings()).unwrap_or_default());
        let mut sharing = Sharing::default();
        let owner = foreign::call("a broker", || source.stands_by_for()).unwrap_or_default();
        sharing.note(subscription, owner, None);
        shared.tell(&sharing);
        let _entered = shared.home.enter()?;
        let lanes = stopped.again(Arc::clone(stopped.scope()), None, source)?;
        let mut stage = shared.stage.lock();
        let place = place(&stage);
        if let Some(place) = place {
            stage.lanes[place] = Arc::clone(&lanes);
        }
        let running = place.is_some() && stage.running;
        drop(stage);
        if running {
            lanes.start();
        }
        Ok(())
    }
}

/// A rebuild that is about to begin: say where the handlers write meanwhile and how the result is put in place, then
/// `.await` it. [`Bus::rebuild`] makes it.
///
/// ```
/// use eventbus::{Bus, Error};
/// # use std::io;
/// # struct Table(&'static str);
/// # async fn rename_tables() -> Result<(), io::Error> { Ok(()) }
///
/// # async fn anew(bus: Bus) -> eventbus::Result<()> {
/// let rebuild = bus
///     .rebuild("shop.orders_by_day")
///     .state(Table("days_new"))
///     .on_progress(|progress| println!("{:.0} %", progress.percent()))
///     .swap(|| rename_tables());
/// match rebuild.await {
///     Ok(report) => println!("{} events in the new table", report.acked),
///     Err(Error::Rebuild { swapped: false, reason, .. }) => println!("the old table stays: {reason}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is rebuilt until you `.await` this"]
pub struct Rebuilding {
    bus: Bus,
    group: String,
    states: Overrides,
    on_progress: Option<OnProgress>,
    swap: Option<Swap>,
    skip_failures: bool,
}

type Swap = Box<dyn FnOnce() -> BoxFuture<Result<(), BoxError>> + Send>;

impl Rebuilding {
    /// Gives the handlers a value of their own as `State<S>` meanwhile, in place of the one of the bus: where the
    /// new model is built. A subscription that takes no `State<S>` is refused.
    pub fn state<S: Send + Sync + 'static>(self, state: S) -> Self {
        self.shared_state(Arc::new(state))
    }

    /// As [`state`](Self::state), with a value that the program keeps sharing.
    pub fn shared_state<S: Send + Sync + 'static>(mut self, state: Arc<S>) -> Self {
        self.states.insert(state);
        self
    }

    /// Calls `tell` about every 200 ms, and at the end of each pass over the log. It must not block.
    pub fn on_progress(mut self, tell: impl FnMut(&ReplayProgress) + Send + 'static) -> Self {
        self.on_progress = Some(Box::new(tell));
        self
    }

    /// Puts the new model in place of the live one: renames tables, exchanges a pointer. It either does so wholly,
    /// or fails.
    pub fn swap<R, E>(mut self, swap: impl FnOnce() -> R + Send + 'static) -> Self
    where
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.swap = Some(Box::new(move || {
            let swapped = swap();
            Box::pin(async move { swapped.await.map_err(Into::into) })
        }));
        self
    }

    /// Builds the new model without the events that fail; they are counted and listed in the
    /// [report](ReplayReport). Default: an event that fails ends the rebuild before the swap, with an error that names
    /// it.
    pub fn skip_failures(mut self) -> Self {
        self.skip_failures = true;
        self
    }

    async fn run(self) -> Result<ReplayReport> {
        needs_runtime("rebuild")?;
        let Self { bus, group, states, on_progress, swap, skip_failures } = self;
        let started = Instant::now();
        let live = bus.lanes_of(&group)?;
        let refuse = |reason| Error::Rebuild { group: group.clone(), swapped: false, reason, cause: None };
        if let Some(refused) = refused(&live) {
            return Err(refuse(refused));
        }
        let swap = swap.ok_or_else(|| {
            refuse("say with `.swap(…)` how the new model takes the place of the live one".to_owned())
        })?;
        let groups = bus.groups()?;
        if !bus.features().seek {
            return Err(bus.lacks("cannot move a group, as the end of a rebuild does"));
        }
        let alone = Alone::begin(&bus, &group)
            .ok_or_else(|| refuse("it is being rebuilt already; wait for that one".to_owned()))?;
        let mut plan = Plan {
            broker: bus.replayable()?,
            from: ReplayFrom::Earliest,
            until: ReplayUntil::Now,
            rate: None,
            concurrency: None,
            states: states.over(&bus, &live).map_err(refuse)?,
        };
        let mut journal = Journal::new(on_progress);
        let mut sum = ReplayReport::default();
        let mut pass = async |sum: &mut ReplayReport| {
            let report = Pass::begin(&bus, &live, &plan).await?.end(&mut journal).await?;
            sum.events += report.events;
            sum.acked += report.acked;
            sum.failed += report.failed;
            sum.elapsed = started.elapsed();
            let unsettled = report.events - report.acked - report.failed;
            sum.failures.extend(report.failures);
            if sum.failed > 0 && !skip_failures {
                return Err(refuse(format!(
                    "{}; the new model would lack them, so the live subscription goes on with the old one. Mend the \
                     handler; or publish their dead letters again with payloads that it takes, which a rebuild has from \
                     then on; or leave them out with `.skip_failures()`",
                    failed(sum)
                )));
            }
            if unsettled > 0 {
                return Err(refuse(format!(
                    "the broker did not take the answers to {} of {}, so the live subscription goes on \
                     with the old model; look at the log, and rebuild again",
                    count(unsettled),
                    counted(sum.events, "event")
                )));
            }
            if let Some(latest) = report.latest {
                sum.latest = Some(latest);
                plan.from = ReplayFrom::After(latest);
            }
            Ok(report.events)
        };
        let mut left = pass(&mut sum).await?;
        while left > REST {
            let before = left;
            left = pass(&mut sum).await?;
            if left >= before {
                // As much is published as can be handled, so that it would not become less: the rest is handled
                // while the live subscription waits.
                break;
            }
        }
        let pause = Pause::begin(&bus, &live, alone).await;
        let swapped = async {
            released(&*groups, &group).await?.map_err(refuse)?;
            pass(&mut sum).await?;
            let swapped = foreign::run("`swap`", swap).await;
            swapped.unwrap_or_else(|panicked| Err(panicked.into())).map_err(|error| Error::Rebuild {
                group: group.clone(),
                swapped: false,
                reason: "`swap` could not put the new model in place".to_owned(),
                cause: Some(error),
            })?;
            Ok(match groups.seek(&group, sum.latest).await {
                Ok(true) => None,
                Ok(false) => Some("the broker does not know the group any more".into()),
                Err(error) => Some(error.into()),
            })
        };
        let swapped: Result<Option<BoxError>> = swapped.await;
        let resumed = pause.end().await;
        let in_place = |reason: &str, cause| Error::Rebuild {
            group: group.clone(),
            swapped: true,
            reason: format!("the new model is in place, but {reason}"),
            cause: Some(cause),
        };
        if let Some(error) = swapped? {
            let reason = "the cursor could not be moved, so the latest events are handled a second time";
            return Err(in_place(reason, error));
        }
        resumed.map_err(|error| {
            in_place("the live subscription cannot be opened again, which is tried again", error.into())
        })?;
        Ok(sum)
    }
}

impl IntoFuture for Rebuilding {
    type Output = Result<ReplayReport>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for Rebuilding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rebuilding").field("group", &self.group).finish_non_exhaustive()
    }
}

/// Waits until nobody handles the group: while somebody does, its cursor cannot be moved.
async fn released(groups: &dyn Groups, group: &str) -> Result<Result<(), String>> {
    let deadline = Instant::now() + RELEASE;
    loop {
        let states = groups.list().await?;
        if !states.iter().any(|state| state.group == group && state.active) {
            return Ok(Ok(()));
        }
        if Instant::now() >= deadline {
            return Ok(Err("another process handles the group as well; stop it there first".to_owned()));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// A group that is being rebuilt, until this is dropped: two at once would begin the live subscription again under each
/// other's hands.
struct Alone {
    bus: Bus,
    group: String,
}

impl Alone {
    /// None: it is being rebuilt already.
    fn begin(bus: &Bus, group: &str) -> Option<Self> {
        let mut stage = bus.shared.stage.lock();
        if stage.rebuilt.iter().any(|other| other == group) {
            return None;
        }
        stage.rebuilt.push(group.to_owned());
        drop(stage);
        Some(Self { bus: bus.clone(), group: group.to_owned() })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.bus.shared.stage.lock().rebuilt.retain(|group| *group != self.group);
    }
}

/// Live lanes that are stopped. Dropped, they begin again in the background.
struct Pause {
    bus: Bus,
    stopped: Vec<Arc<Lanes>>,
    runtime: Handle,
    /// Until they have begun again.
    alone: Option<Alone>,
}

impl Pause {
    async fn begin(bus: &Bus, live: &[Arc<Lanes>], alone: Alone) -> Self {
        let (stopped, runtime) = (live.to_vec(), Handle::current());
        let pause = Self { bus: bus.clone(), stopped, runtime, alone: Some(alone) };
        pause.stopped.iter().for_each(|lanes| lanes.stop());
        idle(&pause.stopped).await;
        close(&pause.stopped);
        pause
    }

    async fn end(mut self) -> Result<()> {
        resume(&self.bus, &mut self.stopped).await
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let (bus, mut stopped) = (self.bus.clone(), std::mem::take(&mut self.stopped));
        if stopped.is_empty() {
            return;
        }
        let alone = self.alone.take();
        self.runtime.spawn(async move {
            let _alone = alone;
            while let Err(error) = resume(&bus, &mut stopped).await {
                log::error!(
                    target: "eventbus", group = %printable(&stopped[0].subscription().group), error = %printable(error),
                    "the live subscription cannot be opened again; trying again in {OPEN_AGAIN:?}"
                );
                sleep(OPEN_AGAIN).await;
            }
        });
    }
}

/// Opens what was stopped again; what could not be opened is still in the list then.
async fn resume(bus: &Bus, stopped: &mut Vec<Arc<Lanes>>) -> Result<()> {
    // Deliveries of one key must not be handled here and there.
    idle(stopped).await;
    while let Some(lanes) = stopped.last() {
        lanes.close();
        bus.reopen(lanes).await?;
        stopped.pop();
    }
    Ok(())
}
