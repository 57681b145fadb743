//! The end of a bus: who may still publish, what is still handled, and what is said of the rest.

use super::stage::Closing;
use super::{Bus, race, signal};
use crate::error::{BrokerError, Error, Result};
use crate::foreign;
use crate::log;
use crate::printable::printable;
use crate::stderr::log_to_stderr;
use crate::worker::Lanes;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::Level;

/// How long the broker may take to close beyond the drain time.
const CLOSE: Duration = Duration::from_millis(500);

impl Bus {
    /// Handles deliveries until Ctrl-C or SIGTERM, then [shuts down](Self::shutdown). A second signal cuts the
    /// shutdown short.
    ///
    /// When the drain time is over, or on the second signal, the program ends within a second, whatever runs: a handler
    /// that blocks its thread keeps a tokio runtime from ending, so where one does, the process is ended from another
    /// thread, with the exit code 1 and a line that names it. Once a signal has ended the bus, one more ends the
    /// process at once.
    ///
    /// Where the program has set up no `tracing` subscriber by now, this sets one up, which writes warnings and errors to
    /// standard error: failed attempts, dead letters, and whatever else the program logs of that weight.
    ///
    /// # Errors
    /// Where there is no subscription, where the bus was shut down before, and as `shutdown`.
    ///
    /// # Cancel safety
    /// As `shutdown`.
    pub async fn run(&self) -> Result<()> {
        log_to_stderr(Level::WARN);
        // A signal that comes with the first deliveries is a shutdown already.
        let mut signals = signal::Signals::listen(self).await?;
        self.start()?;
        race(signals.first(), self.ended()).await;
        let forced = async {
            signals.forced().await;
            Err(self.cut_short())
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
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As `shutdown`.
    pub async fn run_until(&self, stop: impl Future<Output = ()>) -> Result<()> {
        self.start()?;
        race(stop, self.ended()).await;
        self.shutdown().await
    }

    /// Ends the bus: takes nothing more, lets the handlers that run finish, settles, and closes the broker.
    ///
    /// A publish that has begun before this is waited for; one that begins later is an error, unless a handler that
    /// still runs makes it. A broker that is not durable handles its backlog first. All of it may take as long as the
    /// bus's `drain` allows, and the broker half a second more to close; deliveries that are not done by then stay
    /// unsettled and are never acked. To shut down twice is to shut down once: the second call waits for the first,
    /// and says what it has left. A handler of this bus that awaits this waits for itself, and is cut off: let it
    /// tell whoever ends the program instead.
    ///
    /// # Errors
    /// [`Error::Drain`] where something was accepted and not handled: handlers were cut off, retries were waiting, or
    /// the bus was never started, and the broker keeps nothing. What the broker reports, also where it does not close
    /// in time.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the bus has ended all the same; handlers that run are not waited for.
    pub async fn shutdown(&self) -> Result<()> {
        let shared = &self.shared;
        let began = Instant::now();
        let Some(Closing { lanes, replays, running }) = shared.stage.lock().close(began) else {
            self.ended().await;
            let left = shared.stage.lock().left;
            return left.map_or(Ok(()), |left| Err(self.drain_error(left)));
        };
        let ending = Ending(self);
        let deadline = after(began, shared.drain);
        shared.outlet.drain();
        // A replay can be made again, so it is not part of what is handled before the end.
        replays.iter().for_each(|lanes| lanes.stop());
        let _ = timeout_at(deadline, idle(&replays)).await;
        close(&replays);
        if running {
            let drained = async {
                shared.outlet.passed().await;
                if let Err(panicked) = foreign::run("a broker", || shared.broker.drain()).await {
                    log::error!(target: "eventbus", panicked = %printable(panicked), "the broker could not drain");
                }
            };
            // What is left after the deadline is dealt with below.
            let _ = timeout_at(deadline, drained).await;
        }
        lanes.iter().for_each(|lanes| lanes.stop());
        let finished = async {
            idle(&replays).await;
            idle(&lanes).await;
        };
        let _ = timeout_at(deadline, finished).await;
        let left = self.cut_off(began);
        self.let_go();
        drop((lanes, replays));
        let closed = self.close_broker(deadline).await;
        drop(ending);
        let Some(left) = left else { return closed };
        if let Err(error) = closed {
            log::error!(target: "eventbus", error = %printable(error), "the broker did not close");
        }
        Err(left)
    }

    async fn close_broker(&self, deadline: Instant) -> Result<()> {
        let broker = &self.shared.broker;
        let deadline = deadline.max(Instant::now() + CLOSE);
        let close = foreign::run("a broker", || broker.close());
        match timeout_at(deadline, close).await {
            Ok(Ok(closed)) => Ok(closed?),
            Ok(Err(panicked)) => {
                Err(BrokerError::new("the broker could not close").with_cause(panicked).into())
            }
            Err(_) => Err(self.did_not_close("within the drain time")),
        }
    }

    fn did_not_close(&self, when: &str) -> Error {
        BrokerError::new(format!(
            "the {} broker did not close {when}; what it has confirmed is stored, and what it has not may be handled \
             once more (look whether another program holds its store, or whether it can be reached)",
            self.shared.broker.name()
        ))
        .into()
    }

    /// Resolves once a shutdown is over.
    pub(super) async fn ended(&self) {
        let mut ended = std::pin::pin!(self.shared.ended.notified());
        ended.as_mut().enable();
        if !self.shared.stage.lock().ended {
            ended.await;
        }
    }

    /// The shutdown is over.
    fn end(&self) {
        self.let_go();
        self.shared.stage.lock().ended = true;
        self.shared.ended.notify_waiters();
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
    fn cut_short(&self) -> Error {
        let began = self.shared.stage.lock().closing_since.unwrap_or_else(Instant::now);
        self.cut_off(began).unwrap_or_else(|| self.did_not_close("before a second signal came"))
    }

    /// Ends what is left: what is still being handled is dropped, unsettled, and the broker learns that nobody reads
    /// any more. What to say of it, where there was something. Replays do not count: they can be made again.
    fn cut_off(&self, began: Instant) -> Option<Error> {
        // Who waits for room is told before it is counted what the queues hold.
        self.shared.outlet.close();
        let stage = self.shared.stage.lock();
        let (live, replays) = (stage.lanes.clone(), stage.replays.clone());
        drop(stage);
        let (mut unfinished, mut lost) = (0, 0);
        for lanes in &live {
            lanes.stop();
            let handled = lanes.handled();
            let lost_here = lanes.close();
            if handled > lost_here {
                log::warn!(
                    target: "eventbus", group = %printable(&lanes.subscription().group), deliveries = handled - lost_here,
                    "handlers had not finished when the bus ended; a broker that keeps events delivers these again"
                );
            }
            // Those that are being handled are among those that are lost.
            unfinished += handled.max(lost_here);
            lost += lost_here;
        }
        live.iter().chain(&replays).for_each(|lanes| lanes.abort());
        let left = (unfinished > 0).then(|| (unfinished, lost, began.elapsed()))?;
        // Whoever began this may be among those that were cut off, so others tell of it as well.
        self.shared.stage.lock().left.get_or_insert(left);
        Some(self.drain_error(left))
    }

    fn drain_error(&self, (unfinished, lost, after): (usize, usize, Duration)) -> Error {
        Error::Drain { unfinished, lost, after, drain: self.shared.drain }
    }
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
fn after(began: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    began.checked_add(duration).unwrap_or_else(|| began + FAR)
}
