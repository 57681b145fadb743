//! Handlers: what a worker calls for each delivery.

use crate::delivery::Delivery;
use crate::event::Event;
use crate::foreign::Kept;
use crate::outcome::{IntoOutcome, Outcome};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

/// A future of any type.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a worker calls for each delivery. A worker is compiled for each handler, so that the call is direct and
/// its future is not boxed.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Handles one delivery.
    fn call<'a>(&'a self, delivery: &'a Delivery) -> impl Future<Output = Outcome> + Send + 'a;
}

/// What a worker calls for each batch of deliveries.
pub(crate) trait BatchHandler: Send + Sync + 'static {
    /// Whether a delivery can be a member of a batch.
    ///
    /// # Errors
    /// The outcome of a delivery that cannot.
    fn admit(&self, delivery: &Delivery) -> Result<(), Outcome>;

    /// Handles a batch, and answers for each member in its order.
    fn call<'a>(&'a self, deliveries: &'a [Delivery]) -> impl Future<Output = Vec<Outcome>> + Send + 'a;
}

/// A handler without data of its own: what `#[subscribe]` makes of a function.
pub trait StaticHandler: 'static {
    /// Whether it runs on a thread of its own, where it goes on when its future is dropped.
    const BLOCKING: bool = false;

    /// Handles one delivery.
    fn call(delivery: &Delivery) -> impl Future<Output = Outcome> + Send;
}

/// A batch handler without data of its own: what `#[subscribe(batch = …)]` makes of a function.
pub trait StaticBatchHandler: 'static {
    /// Whether the members of a batch succeed or fail together.
    const TOGETHER: bool;

    /// Whether a delivery can be a member of a batch.
    ///
    /// # Errors
    /// The outcome of a delivery that cannot.
    fn admit(delivery: &Delivery) -> Result<(), Outcome>;

    /// Handles a batch, and answers for each member in its order.
    fn call(deliveries: &[Delivery]) -> impl Future<Output = Vec<Outcome>> + Send;
}

/// The bridge from functions without data to handlers.
pub(crate) struct Static<H>(PhantomData<fn() -> H>);

impl<H> Static<H> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<H: StaticHandler> Handler for Static<H> {
    fn call<'a>(&'a self, delivery: &'a Delivery) -> impl Future<Output = Outcome> + Send + 'a {
        H::call(delivery)
    }
}

impl<H: StaticBatchHandler> BatchHandler for Static<H> {
    fn admit(&self, delivery: &Delivery) -> Result<(), Outcome> {
        H::admit(delivery)
    }

    fn call<'a>(&'a self, deliveries: &'a [Delivery]) -> impl Future<Output = Vec<Outcome>> + Send + 'a {
        H::call(deliveries)
    }
}

/// A closure that takes a typed event: what `bus.on` makes a subscription of.
pub(crate) struct OnEvent<E, F>(Kept<F>, PhantomData<fn(E)>);

impl<E, F> OnEvent<E, F> {
    pub(crate) fn new(closure: F) -> Self {
        Self(Kept::new(closure), PhantomData)
    }
}

impl<E, F, R> Handler for OnEvent<E, F>
where
    E: Event,
    F: Fn(std::sync::Arc<E>) -> R + Send + Sync + 'static,
    R: Future<Output: IntoOutcome> + Send + 'static,
{
    async fn call(&self, delivery: &Delivery) -> Outcome {
        match delivery.arc_event() {
            Ok(event) => (self.0)(event).await.into_outcome(),
            Err(error) => error.into(),
        }
    }
}

/// A closure that takes any delivery: what `bus.on_topic` makes a subscription of.
pub(crate) struct OnDelivery<F>(Kept<F>);

impl<F> OnDelivery<F> {
    pub(crate) fn new(closure: F) -> Self {
        Self(Kept::new(closure))
    }
}

impl<F, R> Handler for OnDelivery<F>
where
    F: Fn(Delivery) -> R + Send + Sync + 'static,
    R: Future<Output: IntoOutcome> + Send + 'static,
{
    async fn call(&self, delivery: &Delivery) -> Outcome {
        (self.0)(delivery.clone()).await.into_outcome()
    }
}
