//! What there was no room for: it was left to the server, and is read again by its place.

use super::{Fetched, Task, UNANSWERED};
use crate::subscription::Subscription;
use crate::{unreadable, wire};
use eventbus_core::broker::BrokerFuture;
use std::sync::Arc;

impl Task {
    /// Leaves to the server what there is no room for, and asks for it once there is.
    pub(super) fn keep_within(&mut self) {
        let room = self.subscription.most_bytes();
        let most = room + self.largest();
        let (left, missing, epoch) = {
            let mut state = self.subscription.state.lock();
            let left = state.intake.leave(most);
            let missing = if self.fetches.is_empty() { state.intake.missing(room) } else { None };
            (left, missing, state.intake.epoch())
        };
        // Events are dropped without the lock.
        drop(left);
        let Some(which) = missing.filter(|_| self.subscription.is_known()) else { return };
        let subscription = Arc::clone(&self.subscription);
        self.fetches.push(BrokerFuture::new(async move {
            let Subscription { link, .. } = &*subscription;
            let stream = &link.settings.stream;
            let stored = loop {
                if let Some(stored) = link.stored_as_it_is(stream, which.sequence).await {
                    break Some(stored);
                }
                let asked = unreadable::Which { seq: which.sequence, next_by_subj: None };
                match link.stored(stream, asked).await {
                    Ok(stored) => break stored,
                    Err(_) if !subscription.is_of(epoch) => break None,
                    Err(_) => tokio::time::sleep(UNANSWERED).await,
                }
            };
            let event = stored.map(|stored| {
                let topic = link.settings.topic_of(&stored.subject);
                let (place, headers) = ((which.sequence, stored.time), Some(&stored.headers));
                let event = wire::read(stream, topic, place.0, place.1, headers, stored.payload);
                (stored.time, Arc::new(event))
            });
            Fetched { epoch, which, event }
        }));
    }

    /// What was left to the server came, or is gone there.
    pub(super) async fn fetched(&mut self, Fetched { epoch, which, event }: Fetched) {
        if !self.subscription.is_of(epoch) {
            return;
        }
        match event {
            Some((stored, _)) if stored != which.stored => {
                self.begin_anew();
                self.look_whether_known();
            }
            Some((_, event)) => {
                let restored = self.subscription.state.lock().intake.restore(epoch, which.sequence, event);
                drop(restored);
                self.subscription.state.wake();
            }
            None => {
                // Somebody has removed it, or it was too old: there is nothing to handle.
                let gone = self.subscription.state.lock().intake.settle(epoch, which.sequence);
                drop(gone);
                self.send_acks().await;
                self.subscription.state.wake();
            }
        }
    }
}
