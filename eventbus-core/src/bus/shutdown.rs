//! The end of a bus: who may still publish, what is still handled, and what is said of the rest.

use super::home::needs_runtime;
use super::stage::{Closing, Left};
use super::{Bus, race, signal};
use crate::broker::{Broker, SubscribeRequest};
use crate::error::{BrokerError, Error, Result};
use crate::foreign;
use crate::log;
use crate::paused::Wait;
use crate::printable::printable;
use crate::stderr;
use crate::worker::Lanes;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::Level;

/// How long a broker that is asked may take to come back once a shutdown is cut short.
const COME_BACK: Duration = Duration::from_millis(100);

/// How long the broker may take to close beyond the drain time.
pub(super) const CLOSE: Duration = Duration::from_millis(500);

impl Bus {
    /// Handles deliveries until Ctrl-C or SIGTERM, then [shuts down](Self::shutdown). A second signal cuts the
    /// shutdown short.
    ///
    /// When the drain time is over, or on the second signal, the program ends within a second, whatever runs: a handler
    /// that blocks its thread keeps a tokio runtime from ending, so where one does, the process is ended from another
    /// thread, with the exit code 1 and a line that names it. Once the bus has ended, by a signal or otherwise, the
    /// next one ends the process at once, as it would without a bus; a program that goes on and listens for signals
    /// by itself uses [`run_until`](Self::run_until).
    ///
    /// Where the program has set up no `tracing` subscriber by now, this sets one up, which writes warnings and errors to
    /// standard error: what [`start`](Self::start) would write there, and whatever else the program logs of that weight.
    ///
    /// # Errors
    /// Where there is no subscription, where the bus was shut down before, and as `shutdown`.
    ///
    /// # Cancel safety
    /// As `shutdown`.
    pub async fn run(&self) -> Result<()> {
        needs_runtime("run")?;
        stderr::log_to_stderr(Level::WARN);
        // A signal that comes with the first deliveries is a shutdown already.
        let mut signals = signal::Signals::listen(self).await?;
        self.start()?;
        race(signals.first(), self.ended()).await;
        let forced = async {
            signals.forced().await;
            Err(self.cut_short().await)
        };
        race(self.shutdown(), forced).await
    }

    /// Handles deliveries until `stop` resolves, then [shuts down](Self::shutdown).
    ///
    /// ```no_run
    /// # async fn stopped_by_an_operator() {}
    /// # async fn run(bus: eventbus::Bus) -> eventbus::Result<()> {
    /// bus.run_until(stopped_by_an_operator()).await
    /// # }
    /// ```
    ///
    /// A server of HTTP that publishes is to end first: `stop` is the server itself, which ends at a
    /// [`shutdown_signal`](crate::shutdown_signal).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As `shutdown`.
    pub async fn run_until(&self, stop: impl Future<Output = ()>) -> Result<()> {
        needs_runtime("run_until")?;
        self.start()?;
        race(stop, self.ended()).await;
        self.shutdown().await
    }

    /// Ends the bus: takes nothing more, lets the handlers that run finish, settles, and closes the broker.
    ///
    /// A publish that has begun before this is waited for; one that begins later is an error, unless a handler that
    /// still runs makes it. A broker that is not durable handles its backlog first. All of it may take as long as the
    /// bus's `drain` allows, as far as there is a runtime to handle it on, and the broker half a second more to close;
    /// deliveries that are not done by then stay unsettled and are never acked. To shut down twice is to shut
    /// down once: the second call waits for the first, and says what it has left. A handler of this bus that
    /// awaits this waits for itself, and is cut off: let it tell whoever ends the program instead.
    ///
    /// Where the bus was never started, and a durable broker keeps events for its subscriptions that nobody else handles,
    /// a warning says so, on standard error where nobody listens to the log.
    ///
    /// # Errors
    /// [`Error::Drain`] where something was accepted and not handled: handlers were cut off, retries were waiting, or
    /// the bus was never started, and the broker keeps nothing. What the broker reports, also where it does not close
    /// in time. [`Error::NoRuntime`] outside of a tokio runtime, [`Error::NoTimers`] on one without timers, and then nothing has
    /// ended.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the bus has ended all the same; handlers that run are not waited for.
    pub async fn shutdown(&self) -> Result<()> {
        self.shutdown_within(self.shared.drain).await
    }

    /// As [`shutdown`](Self::shutdown), with a time of its own in place of the bus's `drain`. Of two shutdowns, the one
    /// that comes first decides.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # async fn stop(bus: eventbus::Bus) -> eventbus::Result<()> {
    /// bus.shutdown_within(Duration::from_secs(5)).await
    /// # }
    /// ```
    ///
    /// # Errors
    /// As `shutdown`.
    ///
    /// # Cancel safety
    /// As `shutdown`.
    pub async fn shutdown_within(&self, drain: Duration) -> Result<()> {
        needs_runtime("shutdown")?;
        let shared = &self.shared;
        let (began, wait) = (Instant::now(), Wait::begin(drain));
        let Some(Closing { lanes, replays, running, replayed }) = shared.stage.lock().close(began, wait)
        else {
            self.ended().await;
            let left = shared.stage.lock().left;
            return left.map_or(Ok(()), |left| Err(left.error()));
        };
        let ending = Ending(self);
        let deadline = after(began, drain);
        shared.outlet.drain();
        // A replay can be made again, so it is not part of what is handled before the end.
        replays.iter().for_each(|lanes| lanes.stop());
        let _ = timeout_at(deadline, race(idle(&replays), shared.home.ended())).await;
        close(&replays);
        if running {
            let drained = async {
                shared.outlet.passed().await;
                let own = requests(&lanes);
                if let Err(panicked) = foreign::run("a broker", || shared.broker.drain(&own)).await {
                    log::error!(target: "eventbus", panicked = %printable(panicked), "the broker could not drain");
                }
            };
            // What is left after the deadline is dealt with below.
            let _ = timeout_at(deadline, race(drained, shared.home.ended())).await;
        } else if !replayed {
            // Before anything is let go of, while the broker still tells who has which group.
            self.tell_unstarted(&lanes, deadline.max(Instant::now() + CLOSE)).await;
        }
        lanes.iter().for_each(|lanes| lanes.stop());
        let finished = async {
            idle(&replays).await;
            idle(&lanes).await;
        };
        let _ = timeout_at(deadline, race(finished, shared.home.ended())).await;
        let last = deadline.max(Instant::now() + CLOSE);
        let left = self.cut_off((began, wait), last, false).await;
        self.let_go();
        drop((lanes, replays));
        let closed = close_broker(&*shared.broker, last, "within the drain time").await;
        drop(ending);
        let Some(left) = left else { return closed };
        if let Err(error) = closed {
            log::error!(target: "eventbus", error = %printable(error), "the broker did not close");
        }
        Err(left)
    }

    /// Resolves once a shutdown is over.
    pub(super) async fn ended(&self) {
        self.shared.ended.until(|| self.shared.stage.lock().ended.then_some(())).await;
    }

    /// The shutdown is over.
    fn end(&self) {
        self.let_go();
        stderr::wait();
        self.shared.stage.lock().ended = true;
        self.shared.ended.tell();
    }

    /// Nothing is published and nothing is handled any more.
    fn let_go(&self) {
        self.shared.outlet.close();
        let mut stage = self.shared.stage.lock();
        let mut lanes = std::mem::take(&mut stage.lanes);
        lanes.append(&mut stage.replays);
        drop(stage);
        lanes.iter().for_each(|lanes| lanes.stop());
        close(&lanes);
    }

    /// A second signal has come.
    async fn cut_short(&self) -> Error {
        let now = Instant::now();
        let closing = self.shared.stage.lock().closing.unwrap_or((now, Wait::begin(self.shared.drain)));
        let left = self.cut_off(closing, now + COME_BACK, true).await;
        left.unwrap_or_else(|| did_not_close(&*self.shared.broker, "before a second signal came", ""))
    }

    /// Ends what is left: what is still being handled is dropped, unsettled, and the broker learns that nobody reads
    /// any more. What to say of it, where there was something. Replays do not count: they can be made again.
    ///
    /// What a broker has lost is not known while it is asked, so that is waited for until `last`.
    async fn cut_off(
        &self,
        (began, drain): (Instant, Wait),
        last: Instant,
        cut_short: bool,
    ) -> Option<Error> {
        // Who waits for room is told before it is counted what the queues hold.
        self.shared.outlet.close();
        let (live, replays) = {
            let stage = self.shared.stage.lock();
            (stage.lanes.clone(), stage.replays.clone())
        };
        let handled: Vec<_> = live
            .iter()
            .map(|lanes| {
                lanes.stop();
                let handled = lanes.handled();
                lanes.close();
                handled
            })
            .collect();
        live.iter().chain(&replays).for_each(|lanes| lanes.abort());
        let (mut unfinished, mut lost) = (0, 0);
        for (lanes, handled) in live.iter().zip(handled) {
            let group = &lanes.subscription().group;
            let lost_here = timeout_at(last, lanes.lost()).await.unwrap_or_else(|_| {
                log::warn!(
                    target: "eventbus", group = %printable(group),
                    "the broker has not come back since it was asked for deliveries; what it lost is not counted"
                );
                0
            });
            if handled > lost_here {
                log::warn!(
                    target: "eventbus", group = %printable(group), deliveries = handled - lost_here,
                    "handlers had not finished when the bus ended; a broker that keeps events delivers these again"
                );
            }
            // Those that are being handled are among those that are lost.
            unfinished += handled.max(lost_here);
            lost += lost_here;
        }
        let left = (unfinished > 0).then(|| Left {
            unfinished,
            lost,
            cut_short,
            after: began.elapsed(),
            real: drain.real(),
            drain: drain.time(),
        });
        let left = {
            let mut stage = self.shared.stage.lock();
            // Whoever began this may be among those that were cut off, so others tell of it as well.
            stage.left = stage.left.or(left);
            stage.left
        };
        left.map(Left::error)
    }
}

/// What a bus has subscribed to.
fn requests(lanes: &[Arc<Lanes>]) -> Vec<SubscribeRequest> {
    lanes.iter().filter_map(|lanes| lanes.subscription().request(lanes.policy()).ok()).collect()
}

/// Closes a broker, until `deadline`.
pub(super) async fn close_broker(broker: &dyn Broker, deadline: Instant, when: &str) -> Result<()> {
    let wait = Wait::begin(deadline.saturating_duration_since(Instant::now()));
    match timeout_at(deadline, foreign::run("a broker", || broker.close())).await {
        Ok(Ok(closed)) => Ok(closed?),
        Ok(Err(panicked)) => Err(BrokerError::new("the broker could not close").with_cause(panicked).into()),
        Err(_) => Err(did_not_close(broker, when, &wait.hint())),
    }
}

fn did_not_close(broker: &dyn Broker, when: &str, hint: &str) -> Error {
    BrokerError::new(format!(
        "the {} broker did not close {when}; what it has confirmed is stored, and what it has not may be handled \
         once more (look whether another program holds its store, or whether it can be reached){hint}",
        broker.name()
    ))
    .into()
}

/// Ends the bus when a shutdown is over, or is dropped before.
struct Ending<'a>(&'a Bus);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Resolves once nothing is being handled in any of these.
pub(super) async fn idle(lanes: &[Arc<Lanes>]) {
    for lanes in lanes {
        lanes.idle().await;
    }
}

/// Lets go of what these read; they were stopped before.
pub(super) fn close(lanes: &[Arc<Lanes>]) {
    for lanes in lanes {
        lanes.close();
    }
}

/// The end of a time that may be as long as can be said.
pub(super) fn after(began: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    began.checked_add(duration).unwrap_or_else(|| began + FAR)
}
