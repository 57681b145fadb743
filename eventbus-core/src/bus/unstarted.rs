//! A bus that has subscriptions and that nobody has started: what is said of it. A call that was forgotten must not be
//! silent, so it is said on standard error where nobody listens to the log, although the bus has not begun to speak.

use super::Bus;
use super::health::known_of;
use crate::broker::{GroupState, Standing};
use crate::counted::{count, counted};
use crate::foreign;
use crate::log;
use crate::printable::printable;
use crate::stderr;
use crate::worker::Lanes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long `settled` waits for a bus to be started, before it says what it waits for.
const SETTLED: Duration = Duration::from_secs(1);

impl Bus {
    /// Warns after a while, where `settled` waits for a bus that was not started.
    pub(super) async fn warn_unstarted(&self) {
        // Where there are no timers, nobody is warned.
        let Some(while_it_waits) = foreign::timer(SETTLED) else { return };
        while_it_waits.await;
        if self.shared.stage.lock().waits_for_start() {
            warn(
                "`settled` waits for a bus that was not started, so that nothing is handled; call `bus.start()`",
            );
        }
    }

    /// Warns of what a durable broker keeps for these, where the bus ends and was never started. What another broker has
    /// lost by that is an error already.
    pub(super) async fn tell_unstarted(&self, lanes: &[Arc<Lanes>], deadline: Instant) {
        if !self.shared.outlet.durable || lanes.is_empty() {
            return;
        }
        // Whoever looks again meets the error.
        let Ok(Ok(known)) = timeout_at(deadline, self.ask_groups(lanes)).await else { return };
        // Another process handles the group, and this one has nothing to do with it.
        let elsewhere =
            |lanes: &Lanes, state: &GroupState| state.active && self.standing(lanes) == Standing::StandingBy;
        let waiting = lanes.iter().filter_map(|lanes| {
            let group = &lanes.subscription().group;
            let state = known_of(lanes.subscription(), &known)?;
            let waits = state.backlog > 0 && !elsewhere(lanes, state);
            waits.then(|| (&**group, state.backlog))
        });
        if let Some(said) = ended_unstarted(&waiting.collect::<Vec<_>>()) {
            warn(&said);
        }
    }
}

fn warn(said: &str) {
    stderr::insist(|| log::warn!(target: "eventbus", "{}", printable(said)));
}

/// What is said of groups that a bus has not handled, each with its backlog.
fn ended_unstarted(waiting: &[(&str, u64)]) -> Option<String> {
    let [(first, events), others @ ..] = waiting else { return None };
    let mut groups = format!("{} for `{first}`", counted(events, "event"));
    others.iter().for_each(|(group, events)| groups += &format!(", {} for `{group}`", count(events)));
    let wait = if *events == 1 && others.is_empty() { "waits" } else { "wait" };
    Some(format!(
        "the bus was never started, so nothing was handled: {groups} {wait} at the broker; call `bus.start()?` or \
         `bus.run()` to handle them, or connect with `Bus::builder().without_subscriptions()` where this program only \
         publishes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_that_ends_and_was_never_started_says_what_waits_and_what_to_call() {
        let told = ended_unstarted(&[("mail", 1)]).unwrap();
        assert!(
            told.starts_with("the bus was never started, so nothing was handled: 1 event for `mail` waits")
        );
        assert!(told.contains("`bus.start()?`") && told.contains("without_subscriptions()"), "{told}");
        let told = ended_unstarted(&[("mail", 1_200), ("stock", 1)]).unwrap();
        assert!(told.contains("1,200 events for `mail`, 1 for `stock` wait at the broker"), "{told}");
        assert_eq!(ended_unstarted(&[]), None, "whoever has nothing to handle need not start");
    }
}
