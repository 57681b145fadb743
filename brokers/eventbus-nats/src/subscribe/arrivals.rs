//! What comes: messages, and what the server says in place of one.

use super::Task;
use crate::intake::{Arrival, Waiting, Which};
use crate::subscription::Subscription;
use crate::tenure::{Asked, Came};
use crate::wire::{self, Place};
use async_nats::{Message, StatusCode};
use bytes::Bytes;
use eventbus_core::BrokerError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How an ask for messages may end in good order.
const ENDED: [&str; 3] = ["MaxBytes", "Batch Completed", "Interest Expired"];
/// How long nothing is asked for once the server has refused to be asked.
const REST: Duration = Duration::from_secs(1);
/// Of so many bytes a payload is kept by itself.
const LARGE: usize = 64 << 10;

impl Task {
    /// A message, or what the server says in place of one.
    pub(super) async fn take(&mut self, message: Message) {
        match message.status {
            None | Some(StatusCode::OK) => self.arrive(message).await,
            // Another program has published it with a status.
            Some(_) if wire::is_stored(&message) => self.arrive(message).await,
            Some(status) => self.hear(status, &message).await,
        }
    }

    async fn arrive(&mut self, message: Message) {
        let now = Instant::now();
        let Some(reply) = message.reply else {
            // The answer to the ack that was to be confirmed.
            let number = message.subject.rsplit(".a").next().and_then(|number| number.parse().ok());
            if let Some(number) = number {
                self.barrier = None;
                self.subscription.state.lock().intake.confirm_acks(number);
            }
            return;
        };
        let Some(place) = Place::read(&reply) else { return };
        let asked = self.pulls.came(message.length, now);
        let before = std::mem::replace(&mut self.delivered, place.delivery);
        if !self.subscription.competing {
            let pin = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Pin-Id"));
            let pin = pin.map(|pin| pin.as_str());
            let so_far = Asked { messages: self.pulls.last(), keeps: self.last_keep() };
            match self.tenure.delivered(pin, place.delivery, so_far) {
                Came::InOrder => {}
                Came::WithGap => self.wait_for_all(),
                Came::Again => self.go_on_with_group().await,
                Came::Anew => self.take_over().await,
            }
            if let Some(asked) = asked {
                self.subscription.is_sure_from(asked);
            }
        } else if place.delivery <= before {
            // The pin tells that of a group that one process has.
            self.look_whether_known();
        }
        self.latest = self.latest.max(place.sequence);
        if self.some_reply.is_none() {
            self.some_reply = Some(reply.to_string());
        }
        // A consumer that was made anew counts deliveries from the first.
        let again = place.deliveries > 1 || self.noted.remove(&place.sequence);
        let (arrival, epoch) = {
            let mut state = self.subscription.state.lock();
            let which = Which { sequence: place.sequence, stored: place.time };
            (state.intake.arrive(which, message.length, &reply, again, now), state.intake.epoch())
        };
        match arrival {
            Arrival::Known => return,
            Arrival::Settled => return self.send_acks().await,
            // It comes once more.
            Arrival::OfAnotherStream => {
                self.begin_anew();
                return self.look_whether_known();
            }
            Arrival::New | Arrival::Again => {}
        }
        let settings = &self.subscription.link.settings;
        let topic = settings.topic_of(&message.subject);
        let envelope = wire::read(
            &settings.stream,
            topic,
            place.sequence,
            place.time,
            message.headers.as_ref(),
            by_itself(message.payload),
        );
        let waiting = Waiting {
            envelope: Some(Arc::new(envelope)),
            sequence: place.sequence,
            attempt: 1,
            parked: None,
        };
        if arrival == Arrival::New {
            self.subscription.state.lock().intake.put(waiting);
        } else {
            self.lookups.queue(epoch, waiting, place.deliveries);
        }
    }

    /// The server says something about what it was asked for.
    async fn hear(&mut self, status: StatusCode, message: &Message) {
        let now = Instant::now();
        let number = message.subject.rsplit('.').next().unwrap_or_default();
        let is_keep = number.starts_with('k');
        let number: u64 = number.get(1..).and_then(|number| number.parse().ok()).unwrap_or_default();
        let sent = if is_keep {
            self.keeps.iter().find(|(other, _)| *other == number).map(|(_, sent)| *sent)
        } else if status == StatusCode::IDLE_HEARTBEAT {
            self.pulls.beat(number, now)
        } else {
            self.pulls.ended(number, now)
        };
        let description = message.description.as_deref().unwrap_or_default();
        match status {
            StatusCode::PIN_ID_MISMATCH => {
                let refused = self.tenure.refused(is_keep, number);
                self.group_was_taken(refused).await;
            }
            StatusCode::IDLE_HEARTBEAT | StatusCode::TIMEOUT => self.is_still_ours(sent),
            StatusCode::NOT_FOUND if is_keep => self.is_still_ours(sent),
            StatusCode::REQUEST_TERMINATED if ENDED.iter().any(|ended| description.contains(ended)) => {
                self.is_still_ours(sent);
            }
            StatusCode::REQUEST_TERMINATED if description.starts_with("Exceeded Max") => {
                self.refused(description)
            }
            // The server is shut down, or another one leads.
            StatusCode::REQUEST_TERMINATED if !description.contains("Deleted") => self.pulls.forget(),
            _ => self.look_for_consumer(),
        }
    }

    /// Somebody has given the consumer limits, so that the server does not let it be asked like this. To ask again at once
    /// would be refused as fast as that.
    fn refused(&mut self, description: &str) {
        self.pulls.forget();
        self.rests = Some(Instant::now() + REST);
        let Subscription { group, consumer, .. } = &*self.subscription;
        self.subscription.state.fail(BrokerError::new(format!(
            "the server lets nothing be asked for the group `{group}`: {description}; change the limits of the consumer \
             `{consumer}`"
        )));
    }

    /// The server has answered what it was asked then. As long as it has not waited for this process in vain, it has kept
    /// the group for it since.
    fn is_still_ours(&mut self, asked: Option<Instant>) {
        let Some(asked) = asked.filter(|_| self.tenure.is_ours()) else { return };
        if self.subscription.lease_left().is_zero() {
            self.unproved = self.unproved.max(Some(asked));
            self.look();
        } else {
            self.subscription.is_sure_from(asked);
        }
    }
}

/// A large payload by itself: what the client reads into is up to twice as large, and stays as long as any part of it.
fn by_itself(payload: Bytes) -> Bytes {
    if payload.len() < LARGE { payload } else { Bytes::copy_from_slice(&payload) }
}
