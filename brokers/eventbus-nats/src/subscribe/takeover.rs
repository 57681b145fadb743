//! Whose the group is: it is taken over with all that is open, lost, or in doubt.

use super::{Takeover, Task};
use crate::subscription::{NAK, Subscription};
use crate::tenure::Refused;
use crate::wire::Place;
use async_nats::jetstream::consumer::Info;
use eventbus_core::log;
use eventbus_core::printable::printable;

/// Of how many deliveries another process may have had open, so that they are asked for one by one. Others come when
/// the server has waited for that process.
const RECALL: u64 = 20_000;

impl Task {
    /// The server has given the group to this process, and what is open of it may have been another one's.
    pub(super) async fn take_over(&mut self) {
        self.lookups.clear();
        self.subscription.lose(true);
        self.begin_takeover();
        self.go_on_with_group().await;
    }

    /// The server has given the group to this process.
    pub(super) async fn go_on_with_group(&mut self) {
        // How long ago that was is not known.
        self.unproved = None;
        self.keep().await;
        let Subscription { stance, group, pattern, .. } = &*self.subscription;
        stance.is_ours(group, pattern.as_str());
        self.look_if_waiting();
    }

    /// Something was lost on its way, as when a connection is cut. It comes again, and what is newer waits for it.
    pub(super) fn wait_for_all(&mut self) {
        self.subscription.state.lock().intake.wait_for_all();
        self.begin_takeover();
        self.look();
    }

    /// What is open, and is not here, comes again, all of it at once.
    pub(super) fn begin_takeover(&mut self) {
        self.takeover = Some(Takeover::new());
        self.lookups.begin_takeover();
    }

    /// The server has taken the group away. Until it is known whether another process has had anything since, no handler
    /// is begun, and nothing is given up: a process that is short of time would do everything again and again, and be the
    /// shorter of it.
    pub(super) async fn group_was_taken(&mut self, refused: Refused) {
        match refused {
            Refused::Known => {}
            Refused::Doubted => {
                self.ahead.was_late();
                self.pulls.forget();
                self.subscription.is_unsure();
                self.settle_doubts().await;
            }
            Refused::Lost => self.lost_the_group(),
        }
    }

    /// Finds out who has the group that was this process's a moment ago.
    pub(super) async fn settle_doubts(&mut self) {
        self.look();
        // The server gives a group to somebody only with a delivery, and perhaps everything that is open is here. Behind the
        // ask it reaches this process, if nobody else waits for it.
        self.ask().await;
        let one = self.subscription.state.lock().intake.some_reply();
        if let Some(reply) = one {
            self.subscription.tell(reply, NAK).await;
        }
    }

    /// Another process may have what is here.
    pub(super) fn lost_the_group(&mut self) {
        log::info!(
            target: "eventbus", group = %printable(&self.subscription.group),
            pattern = %printable(&self.subscription.pattern),
            "the server did not keep the group for this process; what was not settled is delivered again"
        );
        self.lookups.clear();
        self.takeover = None;
        self.unproved = None;
        self.pulls.forget();
        self.subscription.is_unsure();
        self.subscription.lose(false);
    }

    /// Asks for what another process had open, instead of waiting until the server has waited for that process.
    pub(super) async fn recall(&mut self, info: &Info) {
        let (from, to) = (info.ack_floor.stream_sequence + 1, info.delivered.stream_sequence);
        let Some(some) = self.some_reply.clone().filter(|_| to.saturating_sub(from) < RECALL) else { return };
        for sequence in from..=to {
            let is_here = self.subscription.state.lock().intake.holds(sequence);
            let reply = Place::reply_of(&some, sequence, info.delivered.consumer_sequence);
            if let Some(reply) = reply.filter(|_| !is_here) {
                self.subscription.tell(reply, NAK).await;
            }
        }
    }
}
