//! Settlement: the only place from which deliveries are acked and rejected.

use super::attempt::Broken;
use super::lanes::{self, Done, Failed, Lanes, Open, Settled};
use crate::backoff::Backoff;
use crate::broker::{BrokerFuture, DeadLetter, FailureKind, Parked, taken};
use crate::counted::counted;
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::{BrokerError, PublishError};
use crate::event::Key;
use crate::foreign::{self, Panicked};
use crate::log;
use crate::observe::Attempted;
use crate::outcome::{Outcome, Reason};
use crate::printable::printable;
use jiff::Timestamp;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

/// How long it takes until a broker is asked again that could not store a dead letter, or has panicked: somebody may have
/// to make room.
const ASK_AGAIN: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

/// How many failures of a replay are kept for its report.
const FAILURES: usize = 100;

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

/// Settles a delivery by what its handler answered. `held` is empty once the broker has been told, or it is parked.
pub(super) async fn settle(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    result: Result<Outcome, Broken>,
) -> Settled {
    let failure = match result {
        Ok(Outcome::Ack) => return ack(lanes, held, delivery).await,
        Ok(Outcome::Publish(events)) => match publish(lanes, held, delivery, events).await {
            Ok(None) => return ack(lanes, held, delivery).await,
            Ok(Some(told)) => return settled_with(lanes, held, delivery, told).await,
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
        Err(Broken::Panicked(panicked)) => panicked.into(),
        Err(Broken::Crashed(crashes)) => {
            let reason =
                format!("the process ended {} while the handler had the event", counted(crashes, "time"));
            Failure::new(FailureKind::Crashed, reason, Again::Never)
        }
        Err(Broken::Refused(kind, reason)) => Failure::new(kind, reason.to_owned(), Again::Never),
        Err(Broken::TimedOut(limit, dropped, hint)) => {
            let reason = format!("the handler did not finish within its timeout of {limit:?}{hint}");
            let reason = match dropped {
                None => reason,
                Some(panicked) => format!("{reason}; when it was dropped it {panicked}"),
            };
            Failure::new(FailureKind::TimedOut, Reason::from(reason).into_text(), Again::ByPolicy)
        }
    };
    fail(lanes, held, delivery, failure).await
}

impl Failure {
    fn new(kind: FailureKind, reason: String, again: Again) -> Self {
        Self { kind, reason, again }
    }
}

impl From<Panicked> for Failure {
    fn from(panicked: Panicked) -> Self {
        let reason = Reason::from(panicked);
        Self::new(reason.kind(), reason.into_text(), Again::ByPolicy)
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let (kind, again) = match &error {
            PublishError::Encode { cause, .. } if cause.is::<Panicked>() => {
                (FailureKind::Panicked, Again::ByPolicy)
            }
            PublishError::CausationLimit { .. }
            | PublishError::Encode { .. }
            | PublishError::Unreadable { .. } => (FailureKind::Failed, Again::Never),
            _ => (FailureKind::Failed, Again::ByPolicy),
        };
        // What an error says of itself is code of others.
        let reason = foreign::call("an error", || Reason::of(kind, &error));
        let reason = reason.unwrap_or_else(Reason::from);
        Self::new(kind, reason.into_text(), again)
    }
}

/// Publishes what a handler has returned. What the broker says to the settlement of its event, where that is one with it.
async fn publish(
    lanes: &Lanes,
    held: &Option<Open>,
    delivery: &Delivery,
    events: Vec<Envelope>,
) -> Result<Option<Told>, PublishError> {
    let (outlet, cause) = (&lanes.scope.outlet, delivery.envelope());
    if outlet.transactions {
        let ask = |events: &[Arc<Envelope>]| held.as_ref().and_then(|open| open.acker.ack_with(events));
        return outlet.publish_with(events, cause, ask).await;
    }
    let results = outlet.publish_all(events.into_iter().map(Ok).collect(), Some(cause)).await;
    results.into_iter().try_for_each(|result| result.map(drop))?;
    Ok(None)
}

/// The broker has answered for a delivery together with what its handler has returned.
async fn settled_with(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    told: Told,
) -> Settled {
    if let Some(open) = held.take() {
        drop(open.acker.forget());
    }
    finish(lanes, held, delivery, Ok(told), Done::Handled, 0).await
}

/// Settles a delivery whose handler was successful.
pub(super) async fn ack(lanes: &Arc<Lanes>, held: &mut Option<Open>, delivery: &Delivery) -> Settled {
    match tell(held) {
        Ok(Ok(())) => done(lanes, delivery, Done::Handled),
        told => finish(lanes, held, delivery, told, Done::Handled, 0).await,
    }
}

/// What a broker says to a settlement.
type Told = Result<(), BrokerError>;

/// What there is of a broker that has not said anything yet.
enum Untold {
    /// Its answer, which takes a while; and whether the in-process broker has taken the settlement.
    Later(BrokerFuture<Told>, bool),
    Panicked(Panicked),
}

/// Tells the broker that a delivery is done. Most brokers answer at once, so that nothing has to wait. Until there is an
/// answer, the delivery is held.
#[inline]
fn tell(held: &mut Option<Open>) -> Result<Told, Untold> {
    let mark = taken::mark();
    // Dropped inside of the call, as code of others is.
    let told = foreign::call("a broker", || {
        let Some(open) = held.as_mut() else { return Ok(Err(not_held())) };
        let told = open.acker.ack().at_once();
        if told.is_ok() {
            *held = None;
        }
        told
    });
    match told {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(later)) => Err(Untold::Later(later, mark.has_moved())),
        Err(_) if mark.has_moved() => Ok(Ok(())),
        Err(panicked) => Err(Untold::Panicked(panicked)),
    }
}

fn not_held() -> BrokerError {
    BrokerError::new("the delivery is not held any more")
}

/// Waits for the answer of a broker, where `make` asks it or has asked. One that is built around the in-process broker
/// may panic once that has taken the settlement: then it is done.
async fn ask(make: impl FnOnce() -> BrokerFuture<Told>, already: bool) -> Result<Told, Panicked> {
    let taken = AtomicBool::new(already);
    let (mut make, mut answer) = (Some(make), None);
    let asked = foreign::run("a broker", || {
        poll_fn(|context| {
            let _telling = taken::mark().tell(&taken);
            if let Some(make) = make.take() {
                answer = Some(make());
            }
            answer.as_mut().map_or(Poll::Pending, |answer| Pin::new(answer).poll(context))
        })
    });
    let asked = asked.await;
    if taken.load(Ordering::Relaxed) { Ok(asked.unwrap_or(Ok(()))) } else { asked }
}

/// Settles a delivery that is done, once the broker has said what it says to that. Where it panicked, what it did is not
/// known: the lane stays closed, and it is told again.
async fn finish(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    told: Result<Told, Untold>,
    what: Done,
    panics: u32,
) -> Settled {
    let told = match told {
        Ok(told) => Ok(told),
        Err(Untold::Panicked(panicked)) => Err((panicked, held.take())),
        Err(Untold::Later(later, taken)) => {
            let open = held.take();
            ask(|| later, taken).await.map_err(|panicked| (panicked, open))
        }
    };
    let (group, id) = (&lanes.scope.subscription.group, delivery.envelope().id());
    let (panicked, open) = match told {
        Ok(Ok(())) => return done(lanes, delivery, what),
        Ok(Err(error)) => {
            log::warn!(
                target: "eventbus", group = %printable(group), id = %printable(id), error = %printable(error),
                "the broker did not take the ack; it will deliver the event again"
            );
            return Settled::Unsettled(key(delivery));
        }
        Err(panicked) => panicked,
    };
    let Some(mut open) = open else { return Settled::Unsettled(key(delivery)) };
    open.acker.take_back(delivery.envelope(), delivery.offset(), delivery.attempt());
    let mut open = match lanes::held(open) {
        Ok(open) => open,
        Err(settled) => return settled,
    };
    let panics = panics.saturating_add(1);
    let delay = ASK_AGAIN.jittered(panics);
    log::error!(
        target: "eventbus", group = %printable(group), id = %printable(id), panic = %printable(panicked.into_text()),
        panics = %printable(panics), ?delay,
        "the broker has panicked as it was told that an event is done, and is told again; until then later events with \
         this key wait, and others go on"
    );
    open.failed = Some(Box::new(Failed::Untold(what, panics)));
    // In a batch it would be handled once more.
    open.alone = true;
    lanes.park(open, delay);
    Settled::Parked
}

/// The broker knows that a delivery is done: tells the others.
#[inline]
fn done(lanes: &Lanes, delivery: &Delivery, what: Done) -> Settled {
    let reason = match what {
        Done::Handled => {
            observe(lanes, delivery, || Attempted::Acked);
            return Settled::Acked(key(delivery));
        }
        Done::Dropped(reason) => reason,
        Done::LeftOut(failure) => {
            let reason = failure.reason.clone();
            if let Some(failures) = &lanes.scope.failures {
                let mut kept = failures.lock();
                if kept.len() < FAILURES {
                    kept.push(Arc::from(failure));
                }
            }
            reason
        }
    };
    observe(lanes, delivery, || Attempted::Dropped { reason });
    Settled::GivenUp(key(delivery))
}

fn broken(panicked: Panicked) -> BrokerError {
    BrokerError::new(format!("the broker {panicked}"))
}

async fn fail(lanes: &Arc<Lanes>, held: &mut Option<Open>, delivery: &Delivery, failure: Failure) -> Settled {
    let (attempt, envelope) = (delivery.attempt(), delivery.envelope());
    let now = Timestamp::now();
    let delay = match failure.again {
        Again::Never => None,
        _ if attempt > lanes.policy.retries => None,
        Again::After(delay) => Some(delay),
        Again::ByPolicy => Some(lanes.policy.backoff.jittered(attempt)),
    };
    let (Some(delay), Some(open)) = (delay, held.as_mut()) else {
        return give_up(lanes, held, delivery, failure, now).await;
    };
    log::warn!(
        target: "eventbus", group = %printable(&lanes.scope.subscription.group), topic = %printable(envelope.topic()), id = %printable(envelope.id()),
        attempt, kind = %printable(failure.kind), reason = %printable(&failure.reason), ?delay, "the handler failed; it is tried again"
    );
    let due = now.checked_add(jiff::SignedDuration::try_from(delay).unwrap_or(jiff::SignedDuration::MAX));
    let parked = Parked {
        first_failed_at: first_failed_at(open).unwrap_or(now),
        last_failed_at: now,
        due: due.unwrap_or(Timestamp::MAX),
    };
    open.failed = Some(Box::new(Failed::Parked(parked)));
    let noted = foreign::run("a broker", || open.acker.park(attempt + 1, parked)).await;
    if let Err(error) = noted.unwrap_or_else(|panicked| Err(broken(panicked))) {
        log::warn!(
            target: "eventbus", group = %printable(&lanes.scope.subscription.group), id = %printable(envelope.id()), error = %printable(error),
            "the broker did not note the retry; after a crash the attempts are counted from an earlier one"
        );
    }
    observe(lanes, delivery, || Attempted::Retrying { reason: failure.reason, delay });
    if let Some(open) = held.take() {
        lanes.park(open, delay);
    }
    Settled::Parked
}

fn first_failed_at(open: &Open) -> Option<Timestamp> {
    match open.failed.as_deref()? {
        Failed::Parked(parked) => Some(parked.first_failed_at),
        Failed::Unkept(letter, _) => Some(letter.first_failed_at),
        Failed::Untold(..) => None,
    }
}

async fn give_up(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    failure: Failure,
    now: Timestamp,
) -> Settled {
    let envelope = delivery.envelope();
    let subscription = &lanes.scope.subscription;
    let Failure { kind, reason, .. } = failure;
    // The attempts that ended the process are counted, and the one that comes next was not made.
    let unmade = match kind {
        FailureKind::Crashed => delivery.attempt() > 1,
        FailureKind::Damaged => true,
        _ => false,
    };
    let attempts = delivery.attempt().saturating_sub(unmade.into());
    if lanes.scope.failures.is_none() && !lanes.policy.dead_letter {
        log::error!(
            target: "eventbus", group = %printable(&subscription.group), topic = %printable(envelope.topic()), id = %printable(envelope.id()),
            attempts, kind = %printable(kind), reason = %printable(&reason), "the event is given up and dropped (`dead_letter = false`)"
        );
        let told = tell(held);
        return finish(lanes, held, delivery, told, Done::Dropped(reason), 0).await;
    }
    let dead_letter = DeadLetter {
        envelope: Arc::clone(envelope),
        group: subscription.group.to_string(),
        handler: subscription.handler(),
        kind,
        reason,
        attempts,
        first_failed_at: held.as_ref().and_then(first_failed_at).unwrap_or(now),
        last_failed_at: now,
        offset: delivery.offset(),
    };
    match &lanes.scope.failures {
        Some(_) => leave_out(lanes, held, delivery, dead_letter).await,
        None => keep(lanes, held, delivery, dead_letter, 0).await,
    }
}

/// Gives up an event of a replay. It becomes no dead letter: the live subscription has handled the event, or has a dead
/// letter of it already, and one more that is published again would have it handled twice.
async fn leave_out(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    failure: DeadLetter,
) -> Settled {
    log::error!(
        target: "eventbus", group = %printable(&failure.group), topic = %printable(failure.envelope.topic()),
        id = %printable(failure.envelope.id()), offset = %printable(failure.offset), attempts = failure.attempts,
        kind = %printable(failure.kind), reason = %printable(&failure.reason),
        "an event failed in a replay, which leaves it out and keeps no dead letter of it"
    );
    let told = tell(held);
    finish(lanes, held, delivery, told, Done::LeftOut(Box::new(failure)), 0).await
}

/// Tells the broker again of a delivery that is over: it could not store its dead letter, or has panicked.
pub(super) async fn tell_again(lanes: &Arc<Lanes>, held: &mut Option<Open>, delivery: &Delivery) -> Settled {
    match held.as_mut().and_then(|open| open.failed.take()).map(|failed| *failed) {
        Some(Failed::Unkept(letter, failures)) => keep(lanes, held, delivery, letter, failures).await,
        Some(Failed::Untold(what, panics)) => {
            let told = tell(held);
            finish(lanes, held, delivery, told, what, panics).await
        }
        _ => Settled::Unsettled(key(delivery)),
    }
}

/// Has a dead letter stored. Where that fails, as on a full disk, the lane stays closed and it is tried again, so that
/// nothing of its key overtakes the event and nothing is lost.
async fn keep(
    lanes: &Arc<Lanes>,
    held: &mut Option<Open>,
    delivery: &Delivery,
    letter: DeadLetter,
    failures: u32,
) -> Settled {
    let Some(mut open) = held.take() else { return Settled::Unsettled(key(delivery)) };
    // The broker has the delivery until it answers that it could not store the dead letter.
    let receipt = open.acker.receipt().clone();
    let told = ask(|| open.acker.reject(letter.clone()), false).await;
    let (group, id) = (&lanes.scope.subscription.group, delivery.envelope().id());
    let error = match told {
        Ok(Ok(())) => {
            log::error!(
                target: "eventbus", group = %printable(group), topic = %printable(letter.envelope.topic()), id = %printable(id),
                attempts = letter.attempts, kind = %printable(letter.kind), reason = %printable(&letter.reason),
                "the event is given up and kept as a dead letter"
            );
            observe(lanes, delivery, || Attempted::DeadLettered(Arc::new(letter)));
            return Settled::GivenUp(key(delivery));
        }
        Ok(Err(error)) => error,
        // It may have stored it; better twice than not at all.
        Err(panicked) => broken(panicked),
    };
    open.acker.keep(receipt);
    let mut open = match lanes::held(open) {
        Ok(open) => open,
        Err(settled) => return settled,
    };
    let failures = failures.saturating_add(1);
    let delay = ASK_AGAIN.jittered(failures);
    log::warn!(
        target: "eventbus", group = %printable(group), topic = %printable(letter.envelope.topic()), id = %printable(id),
        error = %printable(&error), reason = %printable(&letter.reason), failures = %printable(failures), ?delay,
        "the dead letter could not be stored, and is stored later: do what the error asks for, such as to make room; \
         until then later events with this key wait, and others go on"
    );
    open.failed = Some(Box::new(Failed::Unkept(letter, failures)));
    // In a batch it would be handled once more.
    open.alone = true;
    lanes.park(open, delay);
    Settled::Parked
}

pub(super) fn key(delivery: &Delivery) -> Option<Key> {
    delivery.envelope().lane_key().cloned()
}

#[inline]
fn observe(lanes: &Lanes, delivery: &Delivery, result: impl FnOnce() -> Attempted) {
    let observers = &lanes.scope.outlet.observers;
    if observers.is_empty() {
        return;
    }
    let result = result();
    for observer in observers {
        foreign::tell("an observer", || observer.attempted(delivery, &result));
    }
}
