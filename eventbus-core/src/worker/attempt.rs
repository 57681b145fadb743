//! One attempt: a handler's future with its time limit, its panic caught, and its cause known to publishers.

use super::lanes::Lanes;
use super::watchdog::Pulse;
use crate::causation;
use crate::delivery::Delivery;
use crate::printable::printable;
use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How a handler failed to answer.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// It panicked with this message.
    Panicked(String),
    /// It did not finish within this time, and was dropped.
    TimedOut(Duration),
}

/// Runs a handler's future. The clock starts when the future first waits: one that answers at once costs none.
pub(super) async fn attempt<T>(
    call: impl Future<Output = T>,
    delivery: &Delivery,
    lanes: &Arc<Lanes>,
    pulse: &Pulse,
) -> Result<T, Broken> {
    let timeout = lanes.policy.timeout;
    let mut call = pin!(call);
    let mut clock = pin!(None::<tokio::time::Sleep>);
    let mut cause = Some(Arc::clone(delivery.envelope()));
    let span = span(delivery);
    poll_fn(move |context| {
        let polled = {
            let _entered = span.enter();
            let _beating = pulse.beat();
            catch_unwind(AssertUnwindSafe(|| causation::during(&mut cause, || call.as_mut().poll(context))))
        };
        match polled {
            Ok(Poll::Ready(answer)) => return Poll::Ready(Ok(answer)),
            Ok(Poll::Pending) => lanes.handler_waits(pulse),
            Err(panic) => return Poll::Ready(Err(Broken::Panicked(message(&*panic)))),
        }
        if clock.is_none() {
            clock.set(Some(tokio::time::sleep(timeout)));
        }
        match clock.as_mut().as_pin_mut().map(|clock| clock.poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(Broken::TimedOut(timeout))),
            _ => Poll::Pending,
        }
    })
    .await
}

fn span(delivery: &Delivery) -> tracing::Span {
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

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => (*message).to_owned(),
        (_, Some(message)) => message.clone(),
        _ => "the handler panicked with a value that is no text".to_owned(),
    }
}
