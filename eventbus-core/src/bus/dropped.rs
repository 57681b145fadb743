//! The end of a bus that nobody holds any more and that was not shut down: what it has not handled is one line of the
//! log.

use super::shutdown::idle;
use crate::counted::count;
use crate::error::deliveries;
use crate::log;
use crate::printable::printable;
use crate::stderr;
use crate::worker::Lanes;
use std::sync::Arc;

/// What a bus leaves behind, counted once its last handler has ended: when this is dropped, with the runtime at the
/// latest.
pub(super) struct Dropped {
    lanes: Vec<Left>,
    started: bool,
    durable: bool,
}

/// The lanes of one subscription, which take nothing more.
struct Left {
    lanes: Arc<Lanes>,
    /// How many deliveries were unsettled before.
    unsettled: u64,
}

impl Dropped {
    /// Stops lanes; what is not being handled goes back to the broker.
    pub(super) fn stop(lanes: Vec<Arc<Lanes>>, started: bool, durable: bool) -> Self {
        let stop = |lanes: Arc<Lanes>| {
            let unsettled = lanes.tally().unsettled;
            lanes.stop();
            Left { lanes, unsettled }
        };
        Self { lanes: lanes.into_iter().map(stop).collect(), started, durable }
    }

    /// Lets the handlers that run finish.
    pub(super) async fn finish(self) {
        for left in &self.lanes {
            idle(std::slice::from_ref(&left.lanes)).await;
        }
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let (mut unfinished, mut lost, mut groups) = (0, 0, Vec::new());
        for Left { lanes, unsettled } in self.lanes.drain(..) {
            // Those that the end of the runtime cuts off, or has cut off.
            let cut_off = lanes.handled() as u64 + lanes.tally().unsettled.saturating_sub(unsettled);
            let lost_here = lanes.leave();
            // What went back to memory is lost, or another reader of the group has it.
            let given_back = if self.durable { lanes.given_back() } else { 0 };
            let here = lost_here.max(given_back + cut_off as usize);
            if here > 0 {
                groups.push(format!("{} for `{}`", count(here), lanes.subscription().group));
            }
            unfinished += here;
            lost += lost_here;
        }
        if unfinished > 0 {
            let said = said(unfinished, lost, &groups, self.started);
            stderr::insist(|| log::warn!(target: "eventbus", "{}", printable(said)));
            // The program is likely to end now.
            stderr::wait();
        }
    }
}

/// What is said of deliveries that are not handled.
fn said(unfinished: usize, lost: usize, groups: &[String], started: bool) -> String {
    let fate = match lost {
        0 => "delivered again, to another process or at the next start".to_owned(),
        all if all == unfinished => "lost, since the broker keeps events in memory only".to_owned(),
        some => format!("{} of them lost, since the broker keeps events in memory only", count(some)),
    };
    let begin = if started { "" } else { "start it with `bus.start()?`, and " };
    let end =
        if lost == 0 { "lets handlers finish" } else { "handles what was published before it ends the bus" };
    format!(
        "the bus was dropped before {} handled ({}): {fate}; {begin}end the program with `bus.shutdown().await`, which \
         {end}",
        deliveries(unfinished),
        groups.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_that_is_dropped_says_how_many_deliveries_are_left_and_what_to_write() {
        let groups = ["2 for `mail`".to_owned(), "1 for `stock`".to_owned()];
        assert_eq!(
            said(3, 3, &groups, true),
            "the bus was dropped before 3 deliveries were handled (2 for `mail`, 1 for `stock`): lost, since the broker \
             keeps events in memory only; end the program with `bus.shutdown().await`, which handles what was published \
             before it ends the bus"
        );
        let kept = said(1, 0, &groups[1..], true);
        assert!(
            kept.contains("1 delivery was handled (1 for `stock`): delivered again, to another"),
            "{kept}"
        );
        let some = said(3, 2, &groups, false);
        assert!(
            some.contains(": 2 of them lost, since") && some.contains("; start it with `bus.start()?`"),
            "{some}"
        );
    }
}
