//! Deliveries of a subscription, and what settles them.

use crate::dead_letters::{dead_letter, id_of};
use crate::intake::{Settled, Waiting, Which};
use crate::notes;
use crate::subscription::{ACK, AHEAD, Stale, Subscription};
use crate::suspects::After;
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    Begin, BrokerFuture, DeadLetter, Deliveries, Offset, Parked, Receipt, Received, Settler,
};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// So long a handler waits for the server to say that the group is ours, before it is asked again.
const UNSURE: Duration = Duration::from_millis(50);

/// The reader's end of a subscription.
pub(crate) struct NatsDeliveries {
    subscription: Arc<Subscription>,
    settler: Arc<dyn Settler>,
    warnings: Vec<String>,
    /// Who handles the group, where that is somebody else.
    owner: Option<String>,
}

impl NatsDeliveries {
    pub(crate) fn new(subscription: Arc<Subscription>, warnings: Vec<String>, owner: Option<String>) -> Self {
        let settler = Arc::new(NatsSettler(Arc::clone(&subscription)));
        Self { subscription, settler, warnings, owner }
    }
}

impl Deliveries for NatsDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let has_room = ready!(self.subscription.state.poll_take(context, |state| {
            let (epoch, suspects) = (state.intake.epoch(), &state.suspects);
            into.extend(state.intake.take(limit).map(|(envelope, waiting)| Received {
                receipt: Receipt {
                    envelope,
                    offset: Offset::new(waiting.sequence.into()),
                    attempt: waiting.attempt.saturating_add(suspects.crashes(waiting.sequence)),
                    token: epoch,
                },
                replayed: false,
                parked: waiting.parked,
                alone: suspects.contains(waiting.sequence),
                settler: Arc::clone(&self.settler),
            }));
            state.intake.at_hand() <= AHEAD / 2
        }))?;
        if has_room == Some(true) {
            self.subscription.bell.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn stands_by_for(&mut self) -> Option<String> {
        self.owner.take()
    }
}

impl Drop for NatsDeliveries {
    fn drop(&mut self) {
        self.subscription.close();
    }
}

/// Settles what a subscription has handed out.
struct NatsSettler(Arc<Subscription>);

impl NatsSettler {
    /// Takes a delivery out of what is held, to be acked.
    fn settle(&self, receipt: &Receipt) -> Result<(), BrokerError> {
        let Self(subscription) = self;
        let sequence = sequence(receipt);
        let (settled, was_full) = {
            let mut state = subscription.state.lock();
            let was_full = state.intake.has_left() || state.intake.bytes() >= subscription.most_bytes();
            let may_settle = subscription.may_settle(&state.intake, receipt.token);
            (if may_settle { state.intake.settle(receipt.token, sequence) } else { None }, was_full)
        };
        let Some(Settled { reply, noted }) = settled else { return Err(lost(subscription)) };
        if subscription.tell_now(reply, ACK) {
            subscription.state.lock().intake.ack_was_sent(sequence);
            if was_full {
                subscription.bell.notify_one();
            }
        } else {
            subscription.bell.notify_one();
        }
        // The task ends after the last delivery is settled.
        if noted {
            let _ = subscription.settled_notes.send(Stale::Retry(sequence));
        }
        if subscription.end_attempt(sequence) {
            let _ = subscription.settled_notes.send(Stale::Begun(sequence, After::Ended));
        }
        Ok(())
    }
}

fn sequence(receipt: &Receipt) -> u64 {
    u64::try_from(receipt.offset.get()).unwrap_or_default()
}

fn lost(subscription: &Subscription) -> BrokerError {
    BrokerError::new(format!(
        "another process may have taken over the group `{}`, since the server did not hear of this one for a while: it \
         delivers the event again",
        subscription.group
    ))
}

impl Settler for NatsSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(self.settle(&receipt))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let subscription = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            if !subscription.competing && !subscription.is_sure(receipt.token) {
                return Err(lost(&subscription));
            }
            let stored = {
                let state = subscription.state.lock();
                let may_settle = subscription.may_settle(&state.intake, receipt.token);
                state.intake.stored_in(receipt.token, sequence(&receipt)).filter(|_| may_settle)
            };
            let Some(stored) = stored else { return Err(lost(&subscription)) };
            let consumer = &subscription.consumer;
            let id = id_of(consumer, Which { sequence: sequence(&receipt), stored });
            let message = dead_letter(&subscription.link, &letter, consumer, id)?;
            subscription.outlet.store("the dead letter", message).await?;
            Self(subscription).settle(&receipt)
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let (subscription, sequence) = (Arc::clone(&self.0), sequence(receipt));
        let (attempt, epoch) = (receipt.attempt, receipt.token);
        BrokerFuture::new(async move {
            let stored = {
                let mut state = subscription.state.lock();
                let may_settle = subscription.may_settle(&state.intake, epoch);
                // It is removed once the delivery is settled, wherever the writing of it has come by then.
                if may_settle {
                    state.intake.note(sequence);
                }
                state.intake.stored_in(epoch, sequence).filter(|_| may_settle)
            };
            let Some(stored) = stored else { return Err(lost(&subscription)) };
            let which = Which { sequence, stored };
            let note =
                notes::write(&subscription.link.settings, &subscription.consumer, which, attempt, parked);
            let parked = subscription.outlet.store("the time of the next attempt", note).await;
            // Whatever became of that, the attempt has ended, and with it the process has not.
            if subscription.end_attempt(sequence) {
                subscription.take_back(sequence, After::Ended).await;
            }
            parked
        })
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        // While it is not known whose the group is, nothing is dropped, and `begin` lets nothing be handled.
        self.0.is_of(receipt.token)
    }

    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        // With several processes at once nothing is weakened where two have an event after a silence.
        if !self.0.competing && !self.0.may_begin() {
            return Some(BrokerFuture::ready(Begin::Later(UNSURE)));
        }
        self.0.note_attempt(sequence(receipt))
    }

    fn release(&self, receipt: Receipt) {
        let sequence = sequence(&receipt);
        // The crashes are added when it is handed out again.
        let attempt = self.0.state.lock().suspects.uncounted(sequence, receipt.attempt);
        if let Some(after) = self.0.cut_off(sequence) {
            let _ = self.0.settled_notes.send(Stale::Begun(sequence, after));
        }
        let waiting = Waiting { sequence, envelope: Some(receipt.envelope), attempt, parked: None };
        self.0.give_back(receipt.token, waiting);
    }
}

impl fmt::Debug for NatsSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSettler")
            .field("group", &self.0.group)
            .field("pattern", &self.0.pattern)
            .finish_non_exhaustive()
    }
}
