//! The stage of a bus: which subscriptions it has, and how far it is between its start and its end.
//!
//! Everything here is decided under one lock, and nothing is called under it: lanes reach brokers.

use super::Shared;
use super::sharing::Sharing;
use crate::census::{self, Findings};
use crate::error::{Error, Result, StartupError};
use crate::log;
use crate::paused::Wait;
use crate::printable::printable;
use crate::stderr;
use crate::subscription::Subscription;
use crate::worker::Lanes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Stage {
    pub(super) running: bool,
    /// A shutdown has begun.
    pub(super) closed: bool,
    /// When it has begun, how long it may take, and what that is on the real clock.
    pub(super) closing: Option<(Instant, Wait)>,
    /// A shutdown is over.
    pub(super) ended: bool,
    pub(super) left: Option<Left>,
    pub(super) lanes: Vec<Arc<Lanes>>,
    /// The lanes of replays that are under way.
    pub(super) replays: Vec<Arc<Lanes>>,
    /// The groups that are being rebuilt.
    pub(super) rebuilt: Vec<String>,
    /// The past was handled, so that a bus that was not started has done what it is for.
    pub(super) replayed: bool,
    /// Warnings of the start-up that nobody could read yet: the program had no log.
    untold: Vec<String>,
    /// What is being opened at the broker.
    opening: Vec<Arc<Subscription>>,
}

/// What a shutdown has left; see [`Error::Drain`].
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) unfinished: usize,
    pub(super) lost: usize,
    pub(super) cut_short: bool,
    pub(super) after: Duration,
    pub(super) real: Duration,
    pub(super) drain: Duration,
}

impl Left {
    pub(super) fn error(self) -> Error {
        let Self { unfinished, lost, cut_short, after, real, drain } = self;
        Error::Drain { unfinished, lost, cut_short, after, real, drain }
    }
}

/// What a shutdown ends.
pub(super) struct Closing {
    pub(super) lanes: Vec<Arc<Lanes>>,
    pub(super) replays: Vec<Arc<Lanes>>,
    pub(super) running: bool,
    pub(super) replayed: bool,
}

impl Stage {
    /// Begins the shutdown: what is to be ended. Nothing, where it has begun before.
    pub(super) fn close(&mut self, now: Instant, drain: Wait) -> Option<Closing> {
        self.closing.get_or_insert((now, drain));
        let first = !std::mem::replace(&mut self.closed, true);
        first.then(|| Closing {
            lanes: self.lanes.clone(),
            replays: self.replays.clone(),
            running: self.running,
            replayed: self.replayed,
        })
    }

    /// Whether there are subscriptions that nobody has started.
    pub(super) fn waits_for_start(&self) -> bool {
        !self.running && !self.closed && !self.lanes.is_empty()
    }

    /// The subscriptions of the bus, those included that are being opened.
    pub(super) fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        let opened = self.lanes.iter().map(|lanes| lanes.subscription());
        opened.chain(self.opening.iter().map(|subscription| &**subscription))
    }
}

impl Shared {
    /// Logs warnings of the start-up: now, or where the program has no log yet, once the bus starts, since
    /// lines go to standard error from then on.
    pub(super) fn warn(&self, warnings: Vec<String>) {
        let untold = {
            let mut stage = self.stage.lock();
            stage.untold.extend(warnings);
            let heard = stage.running || stderr::is_heard();
            if heard { std::mem::take(&mut stage.untold) } else { Vec::new() }
        };
        untold.iter().for_each(|warning| log::warn!(target: "eventbus", "{}", printable(warning)));
    }

    /// Tells how groups are shared that were opened.
    pub(super) fn tell(&self, sharing: &Sharing) {
        // Where a program runs several times this is as it should be.
        for line in sharing.elsewhere() {
            log::info!(target: "eventbus", "{}", printable(line));
        }
        for (way, groups) in sharing.ways() {
            log::info!(
                target: "eventbus", groups = %printable(groups), "of the processes that have a group, {}", printable(way)
            );
        }
    }
}

/// A subscription that is being opened at the broker: its group is taken until this is dropped, so that of two that are
/// made at once with one group the second is refused.
pub(super) struct Opening<'a> {
    shared: &'a Shared,
    subscription: Arc<Subscription>,
}

impl<'a> Opening<'a> {
    /// Takes the group of `new`, if the checks find nothing against it beside those that there are.
    pub(super) fn begin(shared: &'a Shared, new: &Subscription) -> Result<Self> {
        let subscription = Arc::new(new.clone());
        let unfit = census::check_fit(&[new], shared.policy, &shared.states, &*shared.broker);
        let mut stage = shared.stage.lock();
        if stage.closed {
            return Err(Error::Closed);
        }
        let known: Vec<_> = stage.subscriptions().collect();
        let Findings { mut mistakes, warnings } = census::check_new(&known, new);
        mistakes.extend(unfit);
        let opening = mistakes.is_empty().then(|| Self { shared, subscription: Arc::clone(&subscription) });
        if opening.is_some() {
            stage.opening.push(subscription);
        }
        drop(stage);
        shared.warn(warnings);
        opening.ok_or_else(|| StartupError::of_subscription(mistakes).into())
    }

    /// The subscription is open: these are its lanes. They begin at once where the bus runs.
    pub(super) fn end(self, lanes: &Arc<Lanes>) -> Result<()> {
        let mut stage = self.shared.stage.lock();
        if stage.closed {
            return Err(Error::Closed);
        }
        stage.lanes.push(Arc::clone(lanes));
        let running = stage.running;
        drop(stage);
        if running {
            let _entered = self.shared.home.enter()?;
            lanes.start();
        }
        Ok(())
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.shared.stage.lock().opening.retain(|opening| !Arc::ptr_eq(opening, &self.subscription));
    }
}
