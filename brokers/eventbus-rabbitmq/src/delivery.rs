//! Deliveries of a subscription, and what settles them.

use crate::held::{Identity, Waiting};
use crate::names::hash;
use crate::subscription::Subscription;
use crate::wire;
use eventbus_core::broker::{
    Begin, BrokerFuture, DeadLetter, Deliveries, Offset, Parked, Receipt, Received, Settler,
};
use eventbus_core::{BrokerError, Envelope, PublishError};
use jiff::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// When to ask again for what is on its way back to the queue, and maybe to others.
const AWAY: Duration = Duration::from_millis(50);

/// The reader's end of a subscription.
pub(crate) struct RabbitMqDeliveries {
    subscription: Arc<Subscription>,
    settler: Arc<dyn Settler>,
}

impl RabbitMqDeliveries {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        let settler = Arc::new(RabbitMqSettler(Arc::clone(&subscription)));
        Self { subscription, settler }
    }
}

impl Deliveries for RabbitMqDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let taken = self.subscription.state.poll_take(context, |state| {
            into.extend(state.held.take(limit).into_iter().map(|(token, waiting)| Received {
                receipt: Receipt {
                    envelope: waiting.envelope,
                    offset: number(token),
                    attempt: waiting.attempt,
                    token,
                },
                replayed: false,
                parked: None,
                alone: false,
                settler: Arc::clone(&self.settler),
            }));
        });
        taken.map_ok(drop)
    }

    fn stands_by_for(&mut self) -> Option<String> {
        (!self.subscription.state.lock().active).then(|| "another process".to_owned())
    }
}

impl Drop for RabbitMqDeliveries {
    fn drop(&mut self) {
        self.subscription.close();
    }
}

/// Settles what a subscription has handed out.
struct RabbitMqSettler(Arc<Subscription>);

impl RabbitMqSettler {
    /// Has the message acked.
    fn settle(&self, receipt: &Receipt) -> Result<(), BrokerError> {
        let settled = self.0.state.lock().held.settle(receipt.token, Instant::now());
        if !settled {
            return Err(lost(&self.0));
        }
        self.0.bell.notify_one();
        Ok(())
    }

    /// The same for what is stored elsewhere by now. If the channel has gone meanwhile, it may come again to this process.
    fn settle_stored(&self, receipt: &Receipt, identity: Identity) -> Result<(), BrokerError> {
        let settled = self.settle(receipt);
        if settled.is_err() {
            self.0.state.lock().held.remember(identity);
        }
        settled
    }

    /// Nobody handles it any more, and it waits.
    fn rest(&self, receipt: &Receipt) {
        self.0.state.lock().held.rest(receipt.token);
        self.0.bell.notify_one();
    }

    fn identity(&self, receipt: &Receipt) -> Option<Identity> {
        self.0.state.lock().held.identity(receipt.token)
    }

    async fn store(&self, letter: &DeadLetter) -> Result<(), BrokerError> {
        let subscription = &self.0;
        let name = letter_name(&subscription.dead, &any_name(&letter.envelope));
        let written = wire::write_dead_letter(letter, &name, &subscription.queue);
        let written =
            written.map_err(|error| BrokerError::new("cannot write the dead letter").with_cause(error))?;
        let (outlet, dead, topic) =
            (&subscription.outlet, &subscription.dead, letter.envelope.topic().as_str());
        let mut sent = outlet.send(dead, topic, written.clone()).await;
        if let Err(PublishError::Broker { .. }) = sent {
            // It is stored nowhere; somebody may have removed the queue.
            let link = &subscription.link;
            let made = link.queue(dead, link.dead_arguments()).await;
            made.map_err(|trouble| trouble.explain(format_args!("make the queue of dead letters `{dead}`")))?;
            sent = outlet.send(dead, topic, written).await;
        }
        sent.map_err(|error| BrokerError::new("cannot store the dead letter").with_cause(error))
    }

    /// Has an event come again so much later, by way of the server, which knows it then, and acks it.
    async fn send_later(&self, receipt: &Receipt, delay: Duration) -> Result<(), BrokerError> {
        let subscription = &self.0;
        let Some(identity) = self.identity(receipt) else { return Err(lost(subscription)) };
        // There is a queue for each number of seconds, so there are not to be too many of them.
        let step = (delay.as_secs() / 64).max(1).next_power_of_two();
        let seconds = (delay.as_secs() + 1).next_multiple_of(step);
        let made = subscription.link.delay_queue(&subscription.queue, seconds).await;
        let later = made.map_err(|trouble| {
            trouble.explain(format_args!("make a queue in which the event waits for {seconds} s"))
        })?;
        let name = format!("later-{}", any_name(&receipt.envelope));
        let written = wire::write_again(&receipt.envelope, &name, receipt.attempt);
        let written =
            written.map_err(|error| BrokerError::new("cannot write the event").with_cause(error))?;
        let sent = subscription.outlet.send(&later, receipt.envelope.topic().as_str(), written).await;
        sent.map_err(|error| BrokerError::new("cannot have the event come later").with_cause(error))?;
        self.settle_stored(receipt, identity)
    }
}

/// A name that nothing else has.
pub(crate) fn any_name(envelope: &Envelope) -> String {
    let fresh = Envelope::from_bytes(envelope.topic().clone(), "", bytes::Bytes::new());
    fresh.id().to_string()
}

fn lost(subscription: &Subscription) -> BrokerError {
    BrokerError::new(format!(
        "the connection by which the event came to the group `{}` is gone, and RabbitMQ may have given it to another process: \
         it is delivered again",
        subscription.request.group
    ))
}

impl Settler for RabbitMqSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(self.settle(&receipt))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let this = Self(Arc::clone(&self.0));
        BrokerFuture::new(async move {
            let Some(identity) = this.identity(&receipt) else {
                // Settled before, it is so; somebody else's, it is not.
                return this.settle(&receipt);
            };
            let stored = this.store(&letter).await;
            if stored.is_err() {
                this.rest(&receipt);
            }
            stored?;
            this.settle_stored(&receipt, identity)
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        if !self.holds(receipt) {
            return BrokerFuture::ready(Err(lost(&self.0)));
        }
        self.rest(receipt);
        let delay = parked.delay(Timestamp::now());
        let settings = &self.0.link.settings;
        // There is no place to note the attempt: the server counts deliveries. What is far off goes to it, and the rest is
        // renewed while it waits.
        if delay + self.0.request.timeout < settings.consumer_timeout / 2 {
            return BrokerFuture::ready(Ok(()));
        }
        let (this, receipt) = (Self(Arc::clone(&self.0)), receipt.clone());
        BrokerFuture::new(async move { this.send_later(&receipt, delay).await })
    }

    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        // Who handles the group alone may hold what is on its way back, and has it after all.
        let may = !self.0.request.competing || self.0.state.lock().held.begin(receipt.token);
        (!may).then(|| BrokerFuture::ready(Begin::Later(AWAY)))
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        self.0.state.lock().held.holds(receipt.token)
    }

    fn release(&self, receipt: Receipt) {
        let waiting = Waiting { envelope: receipt.envelope, attempt: receipt.attempt };
        self.0.give_back(receipt.token, waiting);
    }
}

/// A queue has no places: it is the order in which they came. Each number is beyond any place of the stream of all events, so
/// that none is taken for one.
fn number(token: u64) -> Offset {
    Offset::new((1 << 64) + u128::from(token))
}

/// The name of a dead letter: the time, so that names sort, the queue and something that no other has.
pub(crate) fn letter_name(queue: &str, any: &str) -> String {
    let micros = u128::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
    format!("{micros}-{:016x}-{:016x}", hash(&[queue]), hash(&[any]))
}

impl fmt::Debug for RabbitMqSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqSettler")
            .field("group", &self.0.request.group)
            .field("pattern", &self.0.request.pattern)
            .finish_non_exhaustive()
    }
}
