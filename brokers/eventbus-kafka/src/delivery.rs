//! Deliveries of a subscription, and what settles them.

use crate::connection::cannot;
use crate::held::{Noted, Waiting};
use crate::place::{Origin, hash};
use crate::publish::Outlet;
use crate::subscribe::AHEAD;
use crate::subscription::Subscription;
use crate::transaction::{Answering, Told};
use crate::wire;
use eventbus_core::broker::{
    Begin, BrokerFuture, DeadLetter, Deliveries, Parked, Receipt, Received, Settler,
};
use eventbus_core::{BrokerError, Envelope, PublishError};
use eventbus_server::connection::Lost;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// So long a handler waits until it is known again whose its event is.
const UNSURE: Duration = Duration::from_millis(50);

/// The reader's end of a subscription.
pub(crate) struct KafkaDeliveries {
    subscription: Arc<Subscription>,
    settler: Arc<dyn Settler>,
    pub(crate) warnings: Vec<String>,
}

impl KafkaDeliveries {
    pub(crate) fn new(subscription: Arc<Subscription>, outlet: Arc<Outlet>) -> Self {
        let settler = Arc::new(KafkaSettler { subscription: Arc::clone(&subscription), outlet });
        Self { subscription, settler, warnings: Vec::new() }
    }
}

impl Deliveries for KafkaDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let was_full = ready!(self.subscription.state.poll_take(context, |state| {
            let (at_hand, bytes) = state.held.at_hand();
            into.extend(state.held.take(limit).into_iter().map(|(token, waiting)| Received {
                receipt: Receipt {
                    envelope: waiting.envelope,
                    offset: waiting.offset,
                    attempt: waiting.attempt,
                    token,
                },
                replayed: false,
                parked: waiting.parked,
                alone: false,
                settler: Arc::clone(&self.settler),
            }));
            AHEAD.is_reached(at_hand, bytes)
        }))?;
        if was_full == Some(true) {
            self.subscription.bell.ring();
        }
        Poll::Ready(Ok(()))
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

impl Drop for KafkaDeliveries {
    fn drop(&mut self) {
        self.subscription.close();
    }
}

/// Settles what a subscription has handed out.
struct KafkaSettler {
    subscription: Arc<Subscription>,
    outlet: Arc<Outlet>,
}

/// The event is somebody else's by now.
fn lost(subscription: &Subscription) -> BrokerError {
    BrokerError::new(format!(
        "the partition of the event is no longer what this process has of the group `{}`: it is delivered again, here or in \
         another process",
        subscription.group
    ))
}

/// No transaction was committed in time.
fn late(subscription: &Subscription, event: &Envelope) -> PublishError {
    let link = &subscription.link;
    let within = link.settings.publish_timeout;
    let cause = BrokerError::new(format!(
        "Kafka has committed no transaction within {within:?} (`publish_timeout`), and nothing of it is stored"
    ));
    let cause = Lost::explain(link.state.lost(), cause);
    PublishError::Broker { topic: event.topic().to_string(), cause: cause.into() }
}

fn settle(subscription: &Subscription, receipt: &Receipt) -> Result<(), BrokerError> {
    let (settled, idle) = {
        let mut state = subscription.state.lock();
        let settled = state.held.settle(receipt.token);
        (settled, state.is_closed() || state.held.is_idle())
    };
    if !settled {
        return Err(lost(subscription));
    }
    if idle {
        // It may be what a partition that is given away waits for.
        subscription.bell.ring();
    }
    Ok(())
}

impl Settler for KafkaSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(settle(&self.subscription, &receipt))
    }

    fn ack_with(
        &self,
        receipt: &Receipt,
        events: &[Arc<Envelope>],
    ) -> Option<BrokerFuture<Result<Result<(), BrokerError>, PublishError>>> {
        if !self.subscription.link.settings.transactions {
            return None;
        }
        let (subscription, outlet) = (Arc::clone(&self.subscription), Arc::clone(&self.outlet));
        let (token, events) = (receipt.token, events.to_vec());
        Some(BrokerFuture::new(async move {
            let mut records = Vec::with_capacity(events.len());
            for event in &events {
                records.push(outlet.written(event).await?);
            }
            let (answering, hears) = Answering::new(token, records.into());
            let too_late = {
                let mut state = subscription.state.lock();
                if state.is_finished() {
                    Some(answering)
                } else {
                    state.answers.push_back(answering);
                    None
                }
            };
            drop(too_late);
            subscription.bell.ring();
            match hears.await {
                Ok(Told::Done) => Ok(Ok(())),
                Ok(Told::Refused(place, error)) => Err(outlet.not_taken(&events[place], &error)),
                Ok(Told::Late) => Err(late(&subscription, &events[0])),
                Ok(Told::Lost) | Err(_) => Ok(Err(lost(&subscription))),
            }
        }))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let (subscription, outlet) = (Arc::clone(&self.subscription), Arc::clone(&self.outlet));
        BrokerFuture::new(async move {
            let origin = subscription.state.lock().held.origin(receipt.token).cloned();
            let Some(origin) = origin else { return Err(lost(&subscription)) };
            let Subscription { link, topics, group, .. } = &*subscription;
            link.has_dead_letters(topics, group).await?;
            let name = dead_letter_name(&letter, &origin);
            let written = wire::write_dead_letter(&letter, &origin, &name)
                .map_err(|error| BrokerError::new("cannot write the dead letter").with_cause(error))?;
            let explain = |error| cannot("store the dead letter", &error);
            let topic = link.dead_letters_topic(group);
            let sent = outlet.send(&topic, &written).await.map_err(explain)?;
            if let Err(error) = outlet.stored(sent).await {
                topics.forget(&topic);
                return Err(explain(error));
            }
            settle(&subscription, &receipt)
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let subscription = Arc::clone(&self.subscription);
        let (token, attempt) = (receipt.token, receipt.attempt);
        let note = subscription.state.lock().held.park(token, attempt, parked);
        let Some(note) = note else { return BrokerFuture::ready(Err(lost(&subscription))) };
        subscription.bell.ring();
        BrokerFuture::new(async move {
            match subscription.noted(token, note).await {
                Noted::Yes | Noted::Gone => Ok(()),
                Noted::TooLong => Err(BrokerError::new(format!(
                    "more retries and gaps of the group `{}` are open in this partition than fit into the {} bytes that \
                     Kafka keeps with an offset",
                    subscription.group,
                    subscription.link.longest_text()
                ))),
            }
        })
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        self.subscription.state.lock().held.holds(receipt.token)
    }

    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        let mut state = self.subscription.state.lock();
        if state.doubt.is_open(Instant::now(), self.subscription.silence()) {
            return Some(BrokerFuture::ready(Begin::Later(UNSURE)));
        }
        if state.held.begin(receipt.token) {
            return None;
        }
        // Its partition has gone since it was asked whether it is held. It is asked again later, and then dropped.
        Some(BrokerFuture::ready(Begin::Later(UNSURE)))
    }

    fn release(&self, receipt: Receipt) {
        let waiting = Waiting {
            envelope: receipt.envelope,
            offset: receipt.offset,
            attempt: receipt.attempt,
            parked: None,
        };
        self.subscription.give_back(receipt.token, waiting);
    }
}

impl fmt::Debug for KafkaSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSettler")
            .field("group", &self.subscription.group)
            .field("pattern", &self.subscription.pattern)
            .finish_non_exhaustive()
    }
}

/// What a dead letter is called: the same name whenever it is stored, and later ones behind earlier ones.
fn dead_letter_name(letter: &DeadLetter, origin: &Origin) -> String {
    let Origin { topic, partition, offset, .. } = origin;
    let failed = letter.last_failed_at.as_millisecond().max(0);
    format!("{failed}-{partition}-{offset}-{:08x}", hash(&format!("{topic} {}", letter.group)) as u32)
}
