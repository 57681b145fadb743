//! Extraction: how a handler's arguments come out of a delivery.

use crate::broker::FailureKind;
use crate::codec::Json;
use crate::delivery::Delivery;
use crate::envelope::Envelope;
use crate::error::DecodeError;
use crate::event::{Event, EventMeta};
use crate::headers::Headers;
use crate::outcome::{Outcome, Reason};
use crate::publisher::Publisher;
use crate::state::State;
use crate::subscription::StateType;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// What a handler may take as an argument. Implement it for what your handlers need again and again.
///
/// ```
/// use eventbus_core::{Delivery, FromDelivery, Outcome};
///
/// struct Tenant(String);
///
/// impl FromDelivery<'_> for Tenant {
///     fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
///         match delivery.envelope().headers().get("tenant") {
///             Some(tenant) => Ok(Self(tenant.to_owned())),
///             None => Err(Outcome::Reject("the header `tenant` is missing".into())),
///         }
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a subscriber cannot take an argument of type `{Self}`",
    label = "not an event, not something a delivery carries, and not a state that handlers can share",
    note = "arguments may be: an event as `T`, `&T` or `Arc<T>`; `&Envelope`, `Json<V>`, `Bytes`; `Headers`, \
            `State<S>`, `Attempt`, `Publisher`, `&Delivery`; with the option `batch`: `Vec<T>` or `Batch<T>`",
    note = "a struct or enum of yours becomes an event with `#[derive(Event)] #[event(topic = \"…\")]`; \
            what handlers share is a `State<S>` that the bus gets by `.state(…)`, of a type that is `Send` and `Sync`, \
            as a `Mutex` is, and `Rc`, `Cell` and `RefCell` are not",
    note = "to publish, take `Publisher`; the `Bus` is no argument; axum has a `State`, a `Json` and others of its own: \
            here, write `eventbus::State`"
)]
pub trait FromDelivery<'a>: Sized {
    /// The event that this argument is, if it is one.
    const EVENT: Option<&'static EventMeta> = None;

    /// The state that this argument needs, if it needs one.
    const STATE: Option<StateType> = None;

    /// Takes the argument out of `delivery`.
    ///
    /// # Errors
    /// The outcome of the attempt: [`Outcome::Reject`] for what no other attempt would change.
    fn from_delivery(delivery: &'a Delivery) -> Result<Self, Outcome>;
}

#[diagnostic::do_not_recommend]
impl<'a, E: Event> FromDelivery<'a> for &'a E {
    const EVENT: Option<&'static EventMeta> = Some(E::META);

    fn from_delivery(delivery: &'a Delivery) -> Result<Self, Outcome> {
        delivery.event().map_err(Outcome::from)
    }
}

#[diagnostic::do_not_recommend]
impl<E: Event> FromDelivery<'_> for Arc<E> {
    const EVENT: Option<&'static EventMeta> = Some(E::META);

    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        delivery.arc_event().map_err(Outcome::from)
    }
}

#[diagnostic::do_not_recommend]
impl<'a> FromDelivery<'a> for &'a Envelope {
    fn from_delivery(delivery: &'a Delivery) -> Result<Self, Outcome> {
        Ok(delivery.envelope())
    }
}

#[diagnostic::do_not_recommend]
impl FromDelivery<'_> for Arc<Envelope> {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        Ok(Arc::clone(delivery.envelope()))
    }
}

#[diagnostic::do_not_recommend]
impl<'a> FromDelivery<'a> for &'a Delivery {
    fn from_delivery(delivery: &'a Delivery) -> Result<Self, Outcome> {
        Ok(delivery)
    }
}

/// The payload as it is, of any kind of event.
#[diagnostic::do_not_recommend]
impl FromDelivery<'_> for Bytes {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        delivery.envelope().payload().cloned().map_err(Outcome::from)
    }
}

#[diagnostic::do_not_recommend]
impl<'a> FromDelivery<'a> for &'a Headers {
    fn from_delivery(delivery: &'a Delivery) -> Result<Self, Outcome> {
        Ok(delivery.envelope().headers())
    }
}

#[diagnostic::do_not_recommend]
impl FromDelivery<'_> for Headers {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        Ok(delivery.envelope().headers().clone())
    }
}

#[diagnostic::do_not_recommend]
impl FromDelivery<'_> for Publisher {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        Ok(delivery.publisher())
    }
}

#[diagnostic::do_not_recommend]
impl<S: Send + Sync + 'static> FromDelivery<'_> for State<S> {
    const STATE: Option<StateType> = Some(Self::TYPE);

    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        delivery.state().ok_or_else(|| {
            let (name, remedy) = ((Self::TYPE.name)(), delivery.remedy_of_missing(&Self::TYPE));
            Outcome::Reject(Reason::from(format!("the bus has no state `{name}`: {remedy}")))
        })
    }
}

/// Which attempt a delivery is, from 1, as an argument of a handler.
///
/// ```
/// use eventbus_core::Attempt;
///
/// async fn on_order(Attempt(attempt): Attempt) {
///     if attempt > 1 { /* the first attempt may have got half-way */ }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u32);

#[diagnostic::do_not_recommend]
impl FromDelivery<'_> for Attempt {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        Ok(Self(delivery.attempt()))
    }
}

#[diagnostic::do_not_recommend]
impl<V: DeserializeOwned> FromDelivery<'_> for Json<V> {
    fn from_delivery(delivery: &Delivery) -> Result<Self, Outcome> {
        let payload = delivery.envelope().payload()?;
        match serde_json::from_slice(payload) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Outcome::Reject(Reason::of(FailureKind::Undecodable, &error))),
        }
    }
}

/// What a batch handler may take as an argument: the events as `Vec<T>`, `Vec<Arc<T>>` or [`Batch<T>`], and
/// `State<S>` and `Publisher` as other handlers do.
#[diagnostic::on_unimplemented(
    message = "a batch subscriber cannot take an argument of type `{Self}`",
    label = "not a batch of events",
    note = "with the option `batch`, arguments may be: `Vec<T>`, `Vec<Arc<T>>` or `Batch<T>` of an event `T`, \
            `State<S>` (`eventbus::State`, not axum's), `Publisher`"
)]
pub trait FromBatch<'a>: Sized {
    /// The event that the members are.
    const EVENT: Option<&'static EventMeta> = None;

    /// The state that this argument needs, if it needs one.
    const STATE: Option<StateType> = None;

    /// Whether `delivery` can be a member; one that cannot is settled alone, and the others go on without it.
    ///
    /// # Errors
    /// The outcome of that delivery.
    fn admit(delivery: &Delivery) -> Result<(), Outcome> {
        let _ = delivery;
        Ok(())
    }

    /// Takes the argument out of deliveries that were all admitted; there is at least one.
    ///
    /// # Errors
    /// The outcome of every member.
    fn from_batch(deliveries: &'a [Delivery]) -> Result<Self, Outcome>;
}

fn every<'a, T>(
    deliveries: &'a [Delivery],
    take: impl Fn(&'a Delivery) -> Result<T, DecodeError>,
) -> Result<Vec<T>, Outcome> {
    deliveries.iter().map(|delivery| take(delivery).map_err(Outcome::from)).collect()
}

#[diagnostic::do_not_recommend]
impl<E: Event> FromBatch<'_> for Vec<E> {
    const EVENT: Option<&'static EventMeta> = Some(E::META);

    fn admit(delivery: &Delivery) -> Result<(), Outcome> {
        Ok(delivery.event::<E>().map(drop)?)
    }

    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        every(deliveries, |delivery| delivery.event::<E>().cloned())
    }
}

#[diagnostic::do_not_recommend]
impl<E: Event> FromBatch<'_> for Vec<Arc<E>> {
    const EVENT: Option<&'static EventMeta> = Some(E::META);

    fn admit(delivery: &Delivery) -> Result<(), Outcome> {
        Ok(delivery.event::<E>().map(drop)?)
    }

    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        every(deliveries, Delivery::arc_event)
    }
}

#[diagnostic::do_not_recommend]
impl<S: Send + Sync + 'static> FromBatch<'_> for State<S> {
    const STATE: Option<StateType> = Some(Self::TYPE);

    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        Self::from_delivery(&deliveries[0])
    }
}

#[diagnostic::do_not_recommend]
impl FromBatch<'_> for Publisher {
    /// What it publishes counts as caused by the first member.
    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        Self::from_delivery(&deliveries[0])
    }
}

/// The members of a batch with their envelopes, as an argument of a batch handler.
///
/// The handler answers for all of them with `Result<(), E>`, or for each with a `Vec<Outcome>` in their order.
///
/// ```
/// use eventbus::{Batch, Event, Outcome, subscribe};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Event, Clone, Serialize, Deserialize)]
/// #[event(topic = "page.viewed")]
/// struct PageViewed { path: String }
///
/// #[subscribe(batch = 100, linger = "50ms")]
/// async fn count(views: Batch<PageViewed>) -> Vec<Outcome> {
///     let known = |path: &str| path.starts_with('/');
///     let outcome = |view: &PageViewed| {
///         if known(&view.path) { Outcome::Ack } else { Outcome::Reject("no such page".into()) }
///     };
///     views.iter().map(|(view, _)| outcome(view)).collect()
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Batch<E>(Vec<(Arc<E>, Arc<Envelope>)>);

impl<E> Batch<E> {
    /// The events with their envelopes, in the order they were published.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&E, &Envelope)> {
        self.0.iter().map(|(event, envelope)| (&**event, &**envelope))
    }

    /// How many members there are; at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[diagnostic::do_not_recommend]
impl<E: Event> FromBatch<'_> for Batch<E> {
    const EVENT: Option<&'static EventMeta> = Some(E::META);

    fn admit(delivery: &Delivery) -> Result<(), Outcome> {
        Ok(delivery.event::<E>().map(drop)?)
    }

    fn from_batch(deliveries: &[Delivery]) -> Result<Self, Outcome> {
        every(deliveries, |delivery| Ok((delivery.arc_event()?, Arc::clone(delivery.envelope())))).map(Self)
    }
}
