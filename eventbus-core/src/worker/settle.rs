//! Settlement: the only place from which deliveries are acked and rejected.

use super::attempt::Broken;
use super::lanes::{Lanes, Open, Settled};
use crate::broker::{Acker, DeadLetter, FailureKind, Parked};
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::PublishError;
use crate::event::Key;
use crate::observe::Attempted;
use crate::outcome::{Outcome, Reason};
use crate::printable::printable;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// A failed attempt: why, and whether another one is of use.
struct Failure {
    kind: FailureKind,
    reason: String,
    again: Again,
}

/// What a failure says about another attempt.
enum Again {
    ByPolicy,
    After(Duration),
    Never,
}

/// Settles a delivery by what its handler answered.
pub(super) async fn settle(
    lanes: &Arc<Lanes>,
    open: Open,
    delivery: &Delivery,
    result: Result<Outcome, Broken>,
) -> Settled {
    let failure = match result {
        Ok(Outcome::Ack) => return ack(lanes, delivery, open.acker).await,
        Ok(Outcome::Publish(events)) => match publish(lanes, delivery, events).await {
            Ok(()) => return ack(lanes, delivery, open.acker).await,
            Err(error) => error.into(),
        },
        Ok(Outcome::Retry(reason)) => Failure::new(reason.kind(), reason.into_text(), Again::ByPolicy),
        Ok(Outcome::RetryAfter(delay)) => {
            let reason = format!("the handler asked for another attempt in {delay:?}");
            Failure::new(FailureKind::Failed, reason, Again::After(delay))
        }
        Ok(Outcome::Reject(reason)) => {
            let kind =
                if reason.kind() == FailureKind::Failed { FailureKind::Rejected } else { reason.kind() };
            Failure::new(kind, reason.into_text(), Again::Never)
        }
        Err(Broken::Panicked(message)) => {
            let text = Reason::new(FailureKind::Panicked, message).into_text();
            Failure::new(FailureKind::Panicked, text, Again::ByPolicy)
        }
        Err(Broken::TimedOut(limit)) => {
            let reason = format!("the handler did not finish within its timeout of {limit:?}");
            Failure::new(FailureKind::TimedOut, reason, Again::ByPolicy)
        }
    };
    fail(lanes, open, delivery, failure).await
}

impl Failure {
    fn new(kind: FailureKind, reason: String, again: Again) -> Self {
        Self { kind, reason, again }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let again = match error {
            PublishError::CausationLimit { .. } | PublishError::Encode { .. } => Again::Never,
            _ => Again::ByPolicy,
        };
        Self::new(FailureKind::Failed, Reason::of(FailureKind::Failed, &error).into_text(), again)
    }
}

async fn publish(lanes: &Lanes, delivery: &Delivery, events: Vec<Envelope>) -> Result<(), PublishError> {
    let results = lanes.scope.outlet.publish_all(events, Some(delivery.envelope())).await;
    results.into_iter().try_for_each(|result| result.map(drop))
}

/// Settles a delivery whose handler was successful.
pub(super) async fn ack(lanes: &Lanes, delivery: &Delivery, acker: Acker) -> Settled {
    match acker.ack().await {
        Ok(()) => {
            observe(lanes, delivery, || Attempted::Acked);
            Settled::Acked(key(delivery))
        }
        Err(error) => {
            tracing::warn!(
                target: "eventbus", group = %printable(&lanes.scope.subscription.group), id = %printable(delivery.envelope().id()), error = %printable(error),
                "the broker did not take the ack; it will deliver the event again"
            );
            Settled::Unsettled(key(delivery))
        }
    }
}

async fn fail(lanes: &Arc<Lanes>, mut open: Open, delivery: &Delivery, failure: Failure) -> Settled {
    let (attempt, envelope) = (delivery.attempt(), delivery.envelope());
    let now = Timestamp::now();
    let delay = match failure.again {
        Again::Never => None,
        _ if attempt > lanes.policy.retries => None,
        Again::After(delay) => Some(delay),
        Again::ByPolicy => Some(lanes.policy.backoff.jittered(attempt)),
    };
    let Some(delay) = delay else { return give_up(lanes, open, delivery, failure, now).await };
    tracing::warn!(
        target: "eventbus", group = %printable(&lanes.scope.subscription.group), topic = %printable(envelope.topic()), id = %printable(envelope.id()),
        attempt, kind = %printable(failure.kind), reason = %printable(&failure.reason), ?delay, "the handler failed; it is tried again"
    );
    let due = now.checked_add(jiff::SignedDuration::try_from(delay).unwrap_or(jiff::SignedDuration::MAX));
    let parked = Parked {
        first_failed_at: open.parked.map_or(now, |parked| parked.first_failed_at),
        last_failed_at: now,
        due: due.unwrap_or(Timestamp::MAX),
    };
    open.parked = Some(parked);
    if let Err(error) = open.acker.park(attempt + 1, parked).await {
        tracing::warn!(
            target: "eventbus", group = %printable(&lanes.scope.subscription.group), id = %printable(envelope.id()), error = %printable(error),
            "the broker did not note the retry; after a crash the attempts are counted from an earlier one"
        );
    }
    observe(lanes, delivery, || Attempted::Retrying { reason: failure.reason, delay });
    lanes.park(open, delay);
    Settled::Parked
}

async fn give_up(
    lanes: &Lanes,
    open: Open,
    delivery: &Delivery,
    failure: Failure,
    now: Timestamp,
) -> Settled {
    let Open { acker, parked, .. } = open;
    let envelope = delivery.envelope();
    let subscription = &lanes.scope.subscription;
    let Failure { kind, reason, .. } = failure;
    if !lanes.policy.dead_letter {
        tracing::error!(
            target: "eventbus", group = %printable(&subscription.group), topic = %printable(envelope.topic()), id = %printable(envelope.id()),
            attempts = delivery.attempt(), kind = %printable(kind), reason = %printable(&reason), "the event is given up and dropped (`dead_letter = false`)"
        );
        if acker.ack().await.is_err() {
            return Settled::Unsettled(key(delivery));
        }
        observe(lanes, delivery, || Attempted::Dropped { reason });
        return Settled::GivenUp(key(delivery));
    }
    let dead_letter = DeadLetter {
        envelope: Arc::clone(envelope),
        group: subscription.group.to_string(),
        handler: subscription.handler(),
        kind,
        reason,
        attempts: delivery.attempt(),
        first_failed_at: parked.map_or(now, |parked| parked.first_failed_at),
        last_failed_at: now,
        offset: delivery.offset(),
    };
    match acker.reject(dead_letter.clone()).await {
        Ok(()) => {
            tracing::error!(
                target: "eventbus", group = %printable(&subscription.group), topic = %printable(envelope.topic()), id = %printable(envelope.id()),
                attempts = dead_letter.attempts, kind = %printable(kind), reason = %printable(&dead_letter.reason),
                "the event is given up and kept as a dead letter"
            );
            observe(lanes, delivery, || Attempted::DeadLettered(Arc::new(dead_letter)));
            Settled::GivenUp(key(delivery))
        }
        Err(error) => {
            tracing::error!(
                target: "eventbus", group = %printable(&subscription.group), id = %printable(envelope.id()), error = %printable(error),
                "the dead letter could not be stored; the broker will deliver the event again"
            );
            Settled::Unsettled(key(delivery))
        }
    }
}

fn key(delivery: &Delivery) -> Option<Key> {
    delivery.envelope().lane_key().cloned()
}

fn observe(lanes: &Lanes, delivery: &Delivery, result: impl FnOnce() -> Attempted) {
    let observers = &lanes.scope.outlet.observers;
    if observers.is_empty() {
        return;
    }
    let result = result();
    observers.iter().for_each(|observer| observer.attempted(delivery, &result));
}
