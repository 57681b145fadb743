//! One attempt: a handler's future with its time limit, its panics caught, and its cause known to publishers.

use super::lanes::Lanes;
use super::pulse::Pulse;
use crate::blocking::Calls;
use crate::broker::FailureKind;
use crate::causation;
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::foreign::{Kept, Panicked, Running};
use crate::log;
use crate::paused::Wait;
use crate::printable::printable;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::coop::{Unconstrained, unconstrained};
use tokio::time::{Instant, Sleep, sleep};
use tracing::Span;

/// What is not worth to be counted against a time limit: so long a thread may be held up by anything.
const FEW: Duration = Duration::from_millis(20);

/// How a handler failed to answer.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// It panicked.
    Panicked(Panicked),
    /// It did not finish within this time, and was dropped; its destructors may have panicked then. Last a hint, where a
    /// paused clock has jumped over the time.
    TimedOut(Duration, Option<Panicked>, String),
    /// It was not asked again: the process ended so often while it had the event.
    Crashed(u32),
    /// It was not asked at all: the broker says that this is not what was published.
    Refused(FailureKind, &'static str),
}

impl From<Panicked> for Broken {
    fn from(panicked: Panicked) -> Self {
        Self::Panicked(panicked)
    }
}

/// Runs the future of a handler that `call` makes. The clock starts when the future first waits: one that answers at
/// once costs none.
///
/// A handler on a thread of its own cannot be stopped. It is waited for, however long it takes, so that no other
/// attempt runs beside it, and its answer counts.
pub(super) async fn attempt<F: Future>(
    call: impl FnOnce() -> F,
    delivery: &Delivery,
    lanes: &Arc<Lanes>,
    pulse: &Pulse,
) -> Result<F::Output, Broken> {
    let limit = lanes.policy.timeout;
    let (mut place, mut clock) = (pin!(None), pin!(None));
    let mut call = Call {
        wait: None,
        running: Running::new("a handler", call, place.as_mut()),
        cause: Some(Arc::clone(delivery.envelope())),
        span: log::span(|| span(delivery)),
        lanes,
        pulse,
    };
    let mut answer = poll_fn(|context| call.poll_within(limit, clock.as_mut(), context)).await;
    // On a busy machine the time limit is noticed late, and the thread may have returned meanwhile.
    if let (Ok(None), Some(calls)) = (&answer, delivery.calls())
        && call.wait.and_then(Wait::due).is_some_and(|due| calls.were_running(due))
    {
        answer = call.late(limit, calls).await;
    }
    let discarded = call.discard();
    if let Some(calls) = delivery.calls() {
        // A layer may have answered before the thread did.
        calls.returned().await;
    }
    let hint = || call.wait.map(Wait::hint).unwrap_or_default();
    answer?.ok_or_else(|| Broken::TimedOut(limit, discarded.err(), hint()))
}

/// A handler's future with what is around it.
struct Call<'a, F, M> {
    running: Running<'a, F, M>,
    cause: Option<Arc<Envelope>>,
    span: Kept<Span>,
    lanes: &'a Arc<Lanes>,
    pulse: &'a Pulse,
    /// Since its clock runs.
    wait: Option<Wait>,
}

impl<F: Future, M: FnOnce() -> F> Call<'_, F, M> {
    /// The answer, if it comes within `limit`.
    #[inline]
    fn poll_within(
        &mut self,
        limit: Duration,
        mut clock: Pin<&mut Option<Unconstrained<Sleep>>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<F::Output>, Broken>> {
        if let Poll::Ready(answer) = self.poll(context)? {
            return Poll::Ready(Ok(Some(answer)));
        }
        if clock.is_none() {
            // The handler may have spent the budget of this poll, as it may that of the next.
            let left = self.left(limit);
            self.wait = Some(Wait::begin(left));
            clock.set(Some(unconstrained(sleep(left))));
        }
        match clock.as_mut().as_pin_mut().map(|clock| clock.poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(Ok(None)),
            _ => Poll::Pending,
        }
    }

    /// The answer of a handler on a thread that takes longer than `limit`; none, where layers do not pass it on within
    /// as much again.
    async fn late(&mut self, limit: Duration, calls: &Calls) -> Result<Option<F::Output>, Broken> {
        let subscription = self.lanes.subscription();
        let overdue = Instant::now();
        let hint = self.wait.map(Wait::hint).unwrap_or_default();
        log::warn!(
            target: "eventbus", parent: &*self.span, handler = %printable(&subscription.name),
            location = %printable(subscription.location()), timeout = ?limit,
            "the blocking handler has not returned within its timeout; it cannot be stopped, so the events of its \
             key wait until it has{}", printable(hint)
        );
        let mut returned = pin!(calls.returned());
        let mut clock = pin!(None::<Unconstrained<Sleep>>);
        let answer = poll_fn(|context| {
            // Looked at first: once the thread has returned, its answer is there.
            if clock.is_none() && returned.as_mut().poll(context).is_ready() {
                clock.set(Some(unconstrained(sleep(limit))));
            }
            if let Poll::Ready(answer) = self.poll(context)? {
                return Poll::Ready(Ok(Some(answer)));
            }
            match clock.as_mut().as_pin_mut().map(|clock| clock.poll(context)) {
                Some(Poll::Ready(())) => Poll::Ready(Ok(None)),
                _ => Poll::Pending,
            }
        })
        .await;
        log::warn!(
            target: "eventbus", parent: &*self.span, handler = %printable(&subscription.name),
            location = %printable(subscription.location()), late = ?overdue.elapsed(),
            "the blocking handler has returned after its timeout"
        );
        answer
    }

    /// What is left of `limit` after the first poll, if the handler computed for a good part of it before it waited.
    fn left(&self, limit: Duration) -> Duration {
        let spent = self.pulse.spent();
        if spent < FEW.max(limit / 10) { limit } else { limit.saturating_sub(spent) }
    }

    #[inline]
    fn poll(&mut self, context: &mut Context<'_>) -> Result<Poll<F::Output>, Panicked> {
        let Self { running, cause, span, lanes, pulse, .. } = self;
        lanes.mind();
        let polled = lanes.threads.poll(pulse, context, |context| {
            let _entered = log::enter(span);
            let _beating = pulse.beat();
            causation::during(cause, || running.poll(context))
        });
        let Some(polled) = polled else {
            context.waker().wake_by_ref();
            return Ok(Poll::Pending);
        };
        if let Ok(Poll::Pending) = polled {
            lanes.handler_waits(pulse);
        }
        polled
    }

    /// Drops the future, if it has not answered: its destructors may panic, and may publish.
    fn discard(&mut self) -> Result<(), Panicked> {
        let Self { running, cause, span, pulse, .. } = self;
        if running.is_over() {
            return Ok(());
        }
        let _entered = log::enter(span);
        let _beating = pulse.beat();
        causation::during(cause, || running.discard())
    }
}

fn span(delivery: &Delivery) -> Span {
    let envelope = delivery.envelope();
    tracing::info_span!(
        target: "eventbus", "handle",
        topic = %printable(envelope.topic()),
        group = %printable(&delivery.subscription().group),
        id = %printable(envelope.id()),
        attempt = delivery.attempt(),
        traceparent = envelope.headers().get("traceparent").map(|parent| tracing::field::display(printable(parent))),
    )
}
