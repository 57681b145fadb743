//! Which stream and which consumer the server has: looking at them, making them again, and going on.

use super::{Found, Look, Looked, Task, UNANSWERED};
use crate::birth::Birth;
use crate::subscription::Subscription;
use crate::tenure::Tenure;
use crate::topology::{PRIORITY_GROUP, Wanted};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, Info};
use eventbus_core::broker::BrokerFuture;
use eventbus_core::printable::printable;
use eventbus_core::{BrokerError, log};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The process that has the group, by the name that the server has given it.
pub(super) fn pinned(info: &Info) -> Option<&str> {
    let group = info.priority_groups.iter().find(|group| group.group == PRIORITY_GROUP)?;
    group.pinned_client_id.as_deref().filter(|id| !id.is_empty())
}

impl Task {
    /// Asks what the server counts as open.
    pub(super) fn look(&mut self) {
        self.next_look = None;
        if !self.looks.is_empty() {
            return;
        }
        let subscription = Arc::clone(&self.subscription);
        let look = Look {
            epoch: subscription.epoch.load(Ordering::Acquire),
            pin: self.tenure.pin().map(str::to_owned),
            unproved: self.unproved,
        };
        self.looks.push(BrokerFuture::new(async move {
            Looked::State(look, subscription.link.consumer_info(&subscription.consumer).await.map(Box::new))
        }));
    }

    pub(super) fn look_if_waiting(&mut self) {
        if self.takeover.is_some() {
            self.look();
        }
    }

    /// Finds out whether the server has the stream and the consumer that it had; nothing is said of them until then.
    pub(super) fn look_whether_known(&mut self) {
        self.subscription.doubts();
        self.look();
    }

    pub(super) async fn looked(&mut self, looked: Looked) {
        let (look, info) = match looked {
            Looked::State(look, Ok(info)) => (look, info),
            Looked::State(_, Err(refusal))
                if refusal.is(ErrorCode::CONSUMER_NOT_FOUND) || refusal.is(ErrorCode::STREAM_NOT_FOUND) =>
            {
                return self.make_again();
            }
            Looked::State(_, Err(_)) => {
                if self.takeover.is_some() || !self.subscription.is_known() {
                    self.next_look = Some(tokio::time::Instant::now() + UNANSWERED);
                }
                return;
            }
            Looked::Made(Ok(found)) => return self.go_on(found),
            Looked::Made(Err(error)) => return self.subscription.state.fail(error),
        };
        if info.created != self.made {
            // Somebody has made it again, and the stream perhaps as well.
            return self.make_again();
        }
        if !self.subscription.is_known() {
            self.subscription.knows(self.connection);
            self.go_on_telling(&info).await;
        }
        self.floor = self.floor.max(info.ack_floor.stream_sequence);
        let owner = pinned(&info);
        if !self.tenure.is_ours() {
            let Subscription { stance, group, pattern, .. } = &*self.subscription;
            match owner {
                Some(_) => stance.stands_by(group, pattern.as_str()),
                None => stance.is_free(),
            }
            // Where it was asked for before that was in doubt, it is asked for again.
            if look.pin.is_none() && self.tenure.looked(owner.is_some(), info.delivered.consumer_sequence) {
                self.lost_the_group();
            }
        } else if look.pin.as_deref() == self.tenure.pin() && owner != self.tenure.pin() {
            let refused = self.tenure.taken();
            self.group_was_taken(refused).await;
        } else if let Some(unproved) = look.unproved.filter(|_| owner == self.tenure.pin()) {
            self.subscription.is_sure_from(unproved);
        }
        if self.unproved == look.unproved || !self.subscription.lease_left().is_zero() {
            self.unproved = None;
        } else {
            self.look();
        }
        if look.epoch != self.subscription.epoch.load(Ordering::Acquire) {
            // That was before the takeover.
            return self.look_if_waiting();
        }
        let Some(takeover) = &mut self.takeover else { return };
        takeover.open = info.num_ack_pending;
        takeover.asked += 1;
        let all = {
            let mut state = self.subscription.state.lock();
            let all = state.intake.has_all(info.num_ack_pending);
            if all {
                state.intake.go_on();
            }
            all
        };
        if all {
            self.takeover = None;
            self.lookups.end_takeover();
            return self.subscription.state.wake();
        }
        let pause = Duration::from_millis(10 << takeover.asked.min(5));
        self.next_look = Some(tokio::time::Instant::now() + pause);
        if takeover.asked == 2 && !self.mends.is_empty() {
            takeover.asked -= 1;
        } else if takeover.asked == 2 {
            self.recall(&info).await;
        }
    }

    /// The consumer may be gone: somebody has removed it, or the server has lost it.
    pub(super) fn look_for_consumer(&mut self) {
        self.pulls.forget();
        self.broken = true;
        self.make_again();
    }

    pub(super) fn make_again(&mut self) {
        self.broken = true;
        self.subscription.doubts();
        if !self.looks.is_empty() {
            return;
        }
        self.raise_floor();
        let (subscription, birth, floor) = (Arc::clone(&self.subscription), self.birth.clone(), self.floor);
        self.looks.push(BrokerFuture::new(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Looked::Made(subscription.make_again(&birth, floor).await)
        }));
    }

    /// What is settled, as far as this process knows it by itself: it has everything that is open.
    pub(super) fn raise_floor(&mut self) {
        if self.tenure.is_ours() && self.takeover.is_none() {
            let lowest = self.subscription.state.lock().intake.lowest();
            self.floor = self.floor.max(lowest.map_or(self.latest, |lowest| lowest.saturating_sub(1)));
        }
    }

    /// The consumer is there again, made here or by another process.
    pub(super) fn go_on(&mut self, found: Found) {
        self.broken = false;
        self.pulls.forget();
        let is_another = std::mem::replace(&mut self.made, found.made) != found.made;
        self.noted = found.noted;
        if found.birth != self.birth {
            self.birth = found.birth;
            self.begin_anew();
            (self.latest, self.floor) = (0, 0);
        } else if is_another && self.tenure.interrupt() {
            self.lost_the_group();
        }
        self.look_whether_known();
    }

    /// The stream is another one: nothing of what is here is of it.
    pub(super) fn begin_anew(&mut self) {
        self.lookups.clear();
        self.tenure = Tenure::default();
        (self.takeover, self.barrier, self.some_reply, self.unproved) = (None, None, None, None);
        if !self.subscription.competing {
            self.subscription.is_unsure();
        }
        self.subscription.begin_anew();
    }

    /// The server has the same stream and the same consumer: what was not said of them is said now.
    async fn go_on_telling(&mut self, info: &Info) {
        self.subscription.state.lock().intake.doubt_acks();
        // Whether the group is still ours is asked first.
        self.keep().await;
        self.send_acks().await;
        self.beat(Duration::ZERO).await;
        self.mend(Box::new(info.clone()));
        if self.tenure.is_ours() {
            // What was on its way is not waited for until the server has waited for an ack of it.
            self.subscription.state.lock().intake.wait_for_all();
            self.begin_takeover();
        }
    }

    /// Looks for what the client cannot read: it comes no other way, and ends the connection each time.
    fn mend(&mut self, info: Box<Info>) {
        if !self.mends.is_empty() {
            return;
        }
        let subscription = Arc::clone(&self.subscription);
        self.mends.push(BrokerFuture::new(async move {
            let is_here = |sequence| subscription.state.lock().intake.holds(sequence);
            subscription.link.mend_unreadable(&subscription.outlet, &info, is_here).await
        }));
    }

    pub(super) fn mended(&mut self, mended: Result<(), BrokerError>) {
        if let Err(error) = mended {
            log::warn!(
                target: "eventbus", group = %printable(&self.subscription.group), error = %printable(&error.to_string()),
                "it is not known whether there is something that the client cannot read"
            );
        }
        self.look_if_waiting();
    }
}

impl Subscription {
    /// Makes the consumer again that is gone: behind the event up to which all are settled, or from the first one on, where
    /// the stream is another one by now.
    async fn make_again(&self, birth: &Birth, settled: u64) -> Result<Found, BrokerError> {
        let Self { link, group, pattern, consumer, competing, .. } = self;
        link.make_streams_again().await?;
        let found = link.birth().await;
        let found =
            found.map_err(|refusal| link.explain(format_args!("go on with the group `{group}`"), refusal))?;
        let from = match found == *birth {
            true => DeliverPolicy::ByStartSequence { start_sequence: settled + 1 },
            false => DeliverPolicy::All,
        };
        if found != *birth {
            // They are of events that had the same numbers.
            link.remove_notes_of_former(consumer).await?;
        }
        let wanted = Wanted { group, pattern, from, again: true, competing: *competing };
        let (is_new, info) = link.ensure_consumer(&wanted).await?;
        if is_new && found == *birth {
            log::warn!(
                target: "eventbus", group = %printable(group), pattern = %printable(pattern),
                "the consumer of the group was gone; it was made again, and goes on with the first event that is not settled"
            );
        } else if is_new {
            log::warn!(
                target: "eventbus", group = %printable(group), pattern = %printable(pattern),
                "the stream of the events is another one by now; the group begins with its first event"
            );
        }
        let noted = if found == *birth { link.noted_sequences(consumer).await? } else { HashSet::new() };
        Ok(Found { birth: found, made: info.created, noted })
    }
}
