//! Deliveries: one attempt to hand an envelope to a subscription, as handlers and middleware see it.

use crate::blocking::Calls;
use crate::broker::{DeadLetter, Offset, Receipt};
use crate::envelope::Envelope;
use crate::error::DecodeError;
use crate::event::Event;
use crate::foreign::Kept;
use crate::lock::Lock;
use crate::publisher::{Outlet, Publisher};
use crate::state::{State, States};
use crate::subscription::{StateType, Subscription};
use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// One attempt to hand an envelope to a subscription.
///
/// It is cheap to clone and does not settle anything: what becomes of the delivery is decided by the handler's
/// [`Outcome`](crate::Outcome) alone.
///
/// ```
/// use eventbus::{Delivery, subscribe};
///
/// #[subscribe("order.>")]
/// async fn audit(delivery: &Delivery) {
///     println!("{} at {}, attempt {}", delivery.envelope().topic(), delivery.offset(), delivery.attempt());
/// }
/// ```
#[derive(Clone)]
pub struct Delivery {
    envelope: Arc<Envelope>,
    offset: Offset,
    attempt: u32,
    replayed: bool,
    scope: Arc<Scope>,
    decoded: OnceLock<Kept<Arc<dyn Any + Send + Sync>>>,
    /// The calls of a handler that blocks, which go on when their future is dropped.
    calls: Option<Arc<Calls>>,
}

/// What all deliveries of a subscription share.
pub(crate) struct Scope {
    pub(crate) subscription: Subscription,
    pub(crate) states: Arc<States>,
    pub(crate) outlet: Arc<Outlet>,
    /// What a replay has given up; none for a live subscription, which keeps dead letters instead.
    pub(crate) failures: Option<Arc<Failures>>,
}

/// The first events that a replay has given up.
pub(crate) type Failures = Lock<Vec<Arc<DeadLetter>>>;

impl Delivery {
    pub(crate) fn new(receipt: &Receipt, replayed: bool, scope: Arc<Scope>) -> Self {
        Self {
            envelope: Arc::clone(&receipt.envelope),
            offset: receipt.offset,
            attempt: receipt.attempt,
            replayed,
            scope,
            decoded: OnceLock::new(),
            calls: None,
        }
    }

    /// This delivery, for a handler that blocks.
    pub(crate) fn with_calls(mut self) -> Self {
        self.calls = Some(Arc::default());
        self
    }

    /// The calls on threads that this delivery has led to, where its handler blocks.
    pub(crate) fn calls(&self) -> Option<&Arc<Calls>> {
        self.calls.as_ref()
    }

    /// The envelope.
    #[must_use]
    pub fn envelope(&self) -> &Arc<Envelope> {
        &self.envelope
    }

    /// The event's place in its topic.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether this delivery is part of a replay.
    #[must_use]
    pub fn replayed(&self) -> bool {
        self.replayed
    }

    /// The subscription that it is handed to.
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.scope.subscription
    }

    /// A state of the bus.
    #[must_use]
    pub fn state<S: Send + Sync + 'static>(&self) -> Option<State<S>> {
        self.scope.states.get()
    }

    /// What to do where the bus has not this state.
    pub(crate) fn remedy_of_missing(&self, state: &StateType) -> String {
        self.scope.states.remedy(state)
    }

    /// Publishes events that are caused by this one.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        Publisher::new(Arc::clone(&self.scope.outlet), Some(Arc::clone(&self.envelope)))
    }

    /// The event, shared with other subscribers where it was published in this process.
    ///
    /// # Errors
    /// Where the payload is not an `E`.
    pub fn event<E: Event>(&self) -> Result<&E, DecodeError> {
        match self.envelope.value() {
            Some(event) => Ok(event),
            None => self.decoded::<E>()?.downcast_ref().ok_or_else(|| self.is_no::<E>()),
        }
    }

    /// The event, to be kept beyond the call.
    ///
    /// # Errors
    /// Where the payload is not an `E`.
    pub fn arc_event<E: Event>(&self) -> Result<Arc<E>, DecodeError> {
        match self.envelope.shared_value() {
            Some(event) => Ok(event),
            None => Arc::clone(&**self.decoded::<E>()?).downcast().map_err(|_| self.is_no::<E>()),
        }
    }

    /// A copy of the event; decoded from bytes it is made only once.
    ///
    /// # Errors
    /// Where the payload is not an `E`.
    pub fn owned_event<E: Event>(&self) -> Result<E, DecodeError> {
        match self.envelope.value::<E>() {
            Some(event) => Ok(event.clone()),
            None => self.envelope.decode(),
        }
    }

    /// The event that was decoded from bytes, once for all arguments of a handler.
    fn decoded<E: Event>(&self) -> Result<&Kept<Arc<dyn Any + Send + Sync>>, DecodeError> {
        match self.decoded.get() {
            Some(event) => Ok(event),
            None => {
                let event: Arc<dyn Any + Send + Sync> = Arc::new(self.envelope.decode::<E>()?);
                Ok(self.decoded.get_or_init(|| Kept::new(event)))
            }
        }
    }

    fn is_no<E: Event>(&self) -> DecodeError {
        DecodeError::UnknownType { event: E::META, found: self.envelope.event_type().to_owned() }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("group", &self.scope.subscription.group)
            .field("attempt", &self.attempt)
            .field("offset", &self.offset)
            .field("replayed", &self.replayed)
            .field("envelope", &self.envelope)
            .finish()
    }
}
