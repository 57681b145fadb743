//! Middleware out of a function.

use super::HandlerService;
use crate::delivery::Delivery;
use crate::handler::BoxFuture;
use crate::outcome::Outcome;
use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// A layer out of a function that takes the delivery and what comes next.
///
/// ```
/// use eventbus_core::middleware::{Next, from_fn};
/// use eventbus_core::{Delivery, Outcome};
///
/// /// Lets a tenant's events pass only while the tenant is active.
/// async fn active_tenants_only(delivery: Delivery, next: Next) -> Outcome {
///     match delivery.envelope().headers().get("tenant") {
///         Some("acme") => next.run(delivery).await,
///         _ => Outcome::Reject("unknown tenant".into()),
///     }
/// }
///
/// let layer = from_fn(active_tenants_only);
/// ```
pub fn from_fn<F, R>(function: F) -> FromFn<F>
where
    F: Fn(Delivery, Next) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    FromFn { function }
}

/// What comes after a function of [`from_fn`]: the other layers, and the handler.
#[derive(Clone, Debug)]
pub struct Next(HandlerService);

impl Next {
    /// Goes on with `delivery`.
    ///
    /// # Cancel safety
    /// Dropped, the handler is dropped where it waits, as by a timeout, and what becomes of the delivery is the layer's
    /// to say. One that blocks on a thread of its own goes on.
    pub async fn run(self, delivery: Delivery) -> Outcome {
        self.0.deliver(delivery).await
    }
}

/// The layer that [`from_fn`] makes.
#[derive(Clone, Copy, Debug)]
pub struct FromFn<F> {
    function: F,
}

impl<F: Clone> Layer<HandlerService> for FromFn<F> {
    type Service = FromFnService<F>;

    fn layer(&self, inner: HandlerService) -> FromFnService<F> {
        FromFnService { function: self.function.clone(), inner }
    }
}

/// The service that [`from_fn`]'s layer makes of a handler.
#[derive(Clone, Debug)]
pub struct FromFnService<F> {
    function: F,
    inner: HandlerService,
}

impl<F, R> Service<Delivery> for FromFnService<F>
where
    F: Fn(Delivery, Next) -> R,
    R: Future<Output = Outcome> + Send + 'static,
{
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxFuture<Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let outcome = (self.function)(delivery, Next(self.inner.clone()));
        Box::pin(async move { Ok(outcome.await) })
    }
}
