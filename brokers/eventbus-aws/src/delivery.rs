//! Deliveries of a subscription, and what settles them.

use crate::batches::LARGEST;
use crate::calls::hide;
use crate::connection::CALL;
use crate::held::{SPARE, Turn, Waiting};
use crate::names::last_part;
use crate::subscription::Subscription;
use crate::wire::{self, Fit, Written};
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use eventbus_core::BrokerError;
use eventbus_core::broker::{
    Begin, BrokerFuture, DeadLetter, Deliveries, FailureKind, Offset, Parked, Receipt, Received, Settler,
};
use eventbus_core::log;
use eventbus_core::printable::printable;
use jiff::Timestamp;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// So long a handler waits until SQS has said that its event is hidden from others for longer.
const UNSURE: Duration = Duration::from_millis(50);
/// So long one that may have ended a process waits until it asks again for its turn.
const NEXT: Duration = Duration::from_millis(50);

/// The reader's end of a subscription.
pub(crate) struct AwsDeliveries {
    subscription: Arc<Subscription>,
    settler: Arc<dyn Settler>,
}

impl AwsDeliveries {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        let settler = Arc::new(AwsSettler(Arc::clone(&subscription)));
        Self { subscription, settler }
    }
}

impl Deliveries for AwsDeliveries {
    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        into: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), BrokerError>> {
        let has_room = ready!(self.subscription.state.poll_take(context, |state| {
            into.extend(state.held.take(limit).into_iter().map(|(token, waiting)| Received {
                receipt: Receipt {
                    envelope: waiting.envelope,
                    offset: Offset::new(waiting.offset),
                    attempt: waiting.attempt,
                    token,
                },
                replayed: false,
                parked: None,
                alone: false,
                settler: Arc::clone(&self.settler),
            }));
            state.held.ahead() <= self.subscription.ahead / 2
        }))?;
        if has_room == Some(true) {
            self.subscription.bell.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for AwsDeliveries {
    fn drop(&mut self) {
        self.subscription.close();
    }
}

/// Settles what a subscription has handed out.
struct AwsSettler(Arc<Subscription>);

impl AwsSettler {
    /// Has the message deleted.
    fn settle(&self, receipt: &Receipt) -> Result<(), BrokerError> {
        let settled = self.0.state.lock().held.settle(receipt.token, Instant::now());
        if !settled {
            return Err(lost(&self.0));
        }
        self.0.bell.notify_one();
        Ok(())
    }
}

/// Writes a dead letter, as large as its queue takes.
async fn write_dead_letter(subscription: &Subscription, letter: &DeadLetter) -> Result<Written, BrokerError> {
    let write = |largest| {
        let written = wire::write_dead_letter(letter, last_part(&subscription.queue.url), largest);
        written.map_err(|error| BrokerError::new("cannot write the dead letter").with_cause(error))
    };
    let (mut written, mut fit) = write(LARGEST)?;
    if fit != Fit::Whole {
        // SQS takes up to four times as much as SNS, where the queue says so.
        let name = QueueAttributeName::MaximumMessageSize;
        let asked = subscription.link.attributes(&subscription.dead, std::slice::from_ref(&name)).await;
        let largest = asked.ok().and_then(|attributes| attributes.get(&name)?.parse().ok());
        if let Some(largest) = largest.filter(|largest| *largest > LARGEST) {
            (written, fit) = write(largest)?;
        }
    }
    if fit == Fit::Bare {
        log::error!(
            target: "eventbus", group = %printable(&letter.group), topic = %printable(letter.envelope.topic()),
            id = %printable(letter.envelope.id()), kind = %printable(letter.kind), reason = %printable(&letter.reason),
            "a message of another program leaves no room for what is said of a dead letter: its bytes are in the queue of \
             dead letters, where it is not listed; allow larger messages there (`MaximumMessageSize`)"
        );
    }
    Ok(written)
}

fn lost(subscription: &Subscription) -> BrokerError {
    BrokerError::new(format!(
        "SQS may have given the event to another process of the group `{}`, since it did not hear of this one for {:?} \
         (`visibility_timeout`): it is delivered again",
        subscription.group, subscription.link.settings.visibility_timeout
    ))
}

impl Settler for AwsSettler {
    fn ack(&self, receipt: Receipt) -> BrokerFuture<Result<(), BrokerError>> {
        BrokerFuture::ready(self.settle(&receipt))
    }

    fn reject(&self, receipt: Receipt, letter: DeadLetter) -> BrokerFuture<Result<(), BrokerError>> {
        let subscription = Arc::clone(&self.0);
        BrokerFuture::new(async move {
            if !self::AwsSettler(Arc::clone(&subscription)).holds(&receipt) {
                return Err(lost(&subscription));
            }
            let written = write_dead_letter(&subscription, &letter).await?;
            let call = subscription.link.sqs.send_message().queue_url(&subscription.dead);
            let call = call.message_body(&written.body).set_message_attributes(attributes(&written));
            let sent = subscription.link.call(CALL, call.send()).await;
            sent.map_err(|trouble| trouble.explain("store the dead letter"))?;
            Self(subscription).settle(&receipt)
        })
    }

    fn park(&self, receipt: &Receipt, parked: Parked) -> BrokerFuture<Result<(), BrokerError>> {
        let now = Instant::now();
        let due = now + parked.delay(Timestamp::now());
        // It is hidden until then, and a while longer. There is no place to note the attempt: SQS counts deliveries.
        let parked = self.0.state.lock().held.park(receipt.token, due, now);
        BrokerFuture::ready(if parked { Ok(()) } else { Err(lost(&self.0)) })
    }

    fn holds(&self, receipt: &Receipt) -> bool {
        self.0.state.lock().held.holds(receipt.token, Instant::now())
    }

    fn begin(&self, receipt: &Receipt) -> Option<BrokerFuture<Begin>> {
        let (subscription, token, now) = (&self.0, receipt.token, Instant::now());
        let spare = subscription.link.settings.visibility_timeout.mul_f64(SPARE);
        let (turn, handle) = {
            let mut state = subscription.state.lock();
            if state.held.left(token, now) < spare {
                return Some(BrokerFuture::ready(Begin::Later(UNSURE)));
            }
            (state.held.turn(token, subscription.deliveries, now), state.held.handle(token))
        };
        let begin = match (turn, handle) {
            (Turn::Any, _) | (_, None) => return None,
            (Turn::Waits, _) => Begin::Later(NEXT),
            (Turn::TooOften, _) => Begin::Never {
                kind: FailureKind::Crashed,
                reason: "SQS has delivered it as often as the redrive policy of its queue allows, and no process has \
                         settled it: its handler may have ended them; look at what happened to these, and publish it again",
            },
            (Turn::Taken(seconds), Some(handle)) => {
                let subscription = Arc::clone(subscription);
                return Some(BrokerFuture::new(async move {
                    let hidden = hide(&subscription, &[(token, handle, seconds)]).await;
                    let until = now + Duration::from_secs(seconds.unsigned_abs().into());
                    if !hidden.is_ok_and(|failed| failed.is_empty()) {
                        return Begin::Later(NEXT);
                    }
                    subscription.state.lock().held.extended(token, Some(until));
                    Begin::Now { crashes: 0 }
                }));
            }
        };
        Some(BrokerFuture::ready(begin))
    }

    fn release(&self, receipt: Receipt) {
        let waiting =
            Waiting { envelope: receipt.envelope, offset: receipt.offset.get(), attempt: receipt.attempt };
        self.0.give_back(receipt.token, waiting);
    }
}

impl fmt::Debug for AwsSettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsSettler")
            .field("group", &self.0.group)
            .field("pattern", &self.0.pattern)
            .finish_non_exhaustive()
    }
}

/// The attributes of a message that goes to a queue.
pub(crate) fn attributes(written: &Written) -> Option<HashMap<String, MessageAttributeValue>> {
    let attributes = written.attributes.iter().map(|(name, value)| {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value);
        ((*name).to_owned(), value.build().expect("it has a type"))
    });
    (!written.attributes.is_empty()).then(|| attributes.collect())
}
