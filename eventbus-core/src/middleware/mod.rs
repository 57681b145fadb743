//! Middleware: what runs around handlers. Any [`tower`](https://docs.rs/tower) layer serves; [`from_fn`] makes one
//! of a function.

mod batch;
mod from_fn;

pub(crate) use batch::BatchLayers;
pub use from_fn::{FromFn, Next, from_fn};

use crate::delivery::Delivery;
use crate::error::BoxError;
use crate::foreign::Kept;
use crate::handler::{BoxFuture, Handler};
use crate::outcome::{Outcome, Reason};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// A subscription's handler with the layers around it so far: the service that a layer wraps.
///
/// It is always ready; an error of a layer above it counts as a failed attempt.
#[derive(Clone)]
pub struct HandlerService(Arc<dyn Call>);

impl HandlerService {
    pub(crate) fn deliver(&self, delivery: Delivery) -> BoxFuture<Outcome> {
        Arc::clone(&self.0).call(delivery)
    }
}

impl Service<Delivery> for HandlerService {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxFuture<Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let outcome = self.deliver(delivery);
        Box::pin(async move { Ok(outcome.await) })
    }
}

impl fmt::Debug for HandlerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerService")
    }
}

/// A handler, or a handler with layers around it, of any type.
trait Call: Send + Sync {
    fn call(self: Arc<Self>, delivery: Delivery) -> BoxFuture<Outcome>;
}

/// A handler as a service, so that layers can be put around it.
pub(crate) fn service_of(handler: Arc<impl Handler>) -> HandlerService {
    struct Innermost<H>(Arc<H>);

    impl<H: Handler> Call for Innermost<H> {
        fn call(self: Arc<Self>, delivery: Delivery) -> BoxFuture<Outcome> {
            Box::pin(async move { self.0.call(&delivery).await })
        }
    }

    HandlerService(Arc::new(Innermost(handler)))
}

/// A layer that can be put around handlers: every layer of `tower` whose service takes a [`Delivery`], answers with an
/// [`Outcome`], and is `Clone + Send + Sync + 'static`. An error of that service counts as a failed attempt.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be put around handlers",
    label = "not a layer for `Service<Delivery, Response = Outcome>`",
    note = "its service must be `Clone + Send + Sync + 'static`, have a `Send` future, and an error that turns into \
            `BoxError`; `middleware::from_fn` makes a layer of a function"
)]
pub trait HandlerLayer: Send + Sync + 'static {
    /// Puts the layer around a handler.
    fn around(&self, handler: HandlerService) -> HandlerService;
}

#[diagnostic::do_not_recommend]
impl<L, S> HandlerLayer for L
where
    L: Layer<HandlerService, Service = S> + Send + Sync + 'static,
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn around(&self, handler: HandlerService) -> HandlerService {
        HandlerService(Arc::new(Layered(Kept::new(self.layer(handler)))))
    }
}

/// A layer that is kept by a bus.
impl<L: HandlerLayer> HandlerLayer for Kept<L> {
    fn around(&self, handler: HandlerService) -> HandlerService {
        (**self).around(handler)
    }
}

/// The service of a layer, as a handler.
struct Layered<S>(Kept<S>);

impl<S> Call for Layered<S>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn call(self: Arc<Self>, delivery: Delivery) -> BoxFuture<Outcome> {
        Box::pin(async move {
            let mut service = S::clone(&self.0);
            if let Err(error) = poll_fn(|context| service.poll_ready(context)).await {
                return failed(error);
            }
            service.call(delivery).await.unwrap_or_else(failed)
        })
    }
}

/// What the error of a layer means: a failed attempt.
fn failed(error: impl Into<BoxError>) -> Outcome {
    Outcome::Retry(Reason::from(error.into()))
}

impl Handler for HandlerService {
    fn call<'a>(&'a self, delivery: &'a Delivery) -> impl Future<Output = Outcome> + Send + 'a {
        self.deliver(delivery.clone())
    }
}
