#![doc = include_str!("docs/tour.md")]
#![forbid(unsafe_code)]

#[doc(hidden)]
pub use eventbus_core::__private;
#[doc(inline)]
pub use eventbus_core::{
    Attempt, Backoff, Batch, BoxError, Bus, Delivery, Envelope, Error, Event, EventId, FromDelivery, Headers,
    Json, Outcome, Permanent, PublishError, Publisher, Result, Start, State, Topic, broker, census, memory,
    middleware, register_scheme,
};
// They stand in signatures: payloads, and times.
#[doc(no_inline)]
pub use eventbus_core::{bytes, jiff};

/// What builds a [`Bus`], and what its methods return.
pub mod bus {
    #[doc(inline)]
    pub use eventbus_core::{
        BusBuilder, Health, On, Rebuilding, ReplayProgress, ReplayReport, Replaying, SubscriptionHandle,
        SubscriptionHealth, SubscriptionState, shutdown_signal,
    };
}

/// Errors that stand inside of [`Error`] and [`PublishError`].
pub mod error {
    #[doc(inline)]
    pub use eventbus_core::{BrokerError, DecodeError, StartupError, TopicError};
}

/// What [`#[derive(Event)]`](derive@Event) makes of a type.
pub mod event {
    #[doc(inline)]
    pub use eventbus_core::{Codec, EventMeta, IntoEvent, Key};
}

/// What a handler takes beyond [`FromDelivery`].
pub mod extract {
    #[doc(inline)]
    pub use eventbus_core::{FromBatch, StateType};
}

/// Who is told of every publish and every attempt.
pub mod observe {
    #[doc(inline)]
    pub use eventbus_core::{Attempted, Observer};
}

/// What a handler may return, and how it becomes an [`Outcome`].
pub mod outcome {
    #[doc(inline)]
    pub use eventbus_core::{IntoOutcome, IntoOutcomes, Reason, SubscriberError};
}

/// What the methods of a [`Publisher`] return.
pub mod publisher {
    #[doc(inline)]
    pub use eventbus_core::{Publish, Publishing};
}

/// What [`#[subscribe]`](macro@subscribe) leaves behind, as plain data.
pub mod subscription {
    #[doc(inline)]
    pub use eventbus_core::{Catalog, Options, Pattern, Policy, Subscriber, Subscription};
}

#[cfg(feature = "aws")]
#[doc(inline)]
pub use eventbus_aws as aws;
#[cfg(feature = "kafka")]
#[doc(inline)]
pub use eventbus_kafka as kafka;
#[cfg(feature = "nats")]
#[doc(inline)]
pub use eventbus_nats as nats;
#[cfg(feature = "rabbitmq")]
#[doc(inline)]
pub use eventbus_rabbitmq as rabbitmq;
#[cfg(feature = "redis")]
#[doc(inline)]
pub use eventbus_redis as redis;

#[cfg(feature = "sqlite")]
#[doc(inline)]
pub use eventbus_sqlite as sqlite;

#[doc = include_str!("docs/event.md")]
#[doc(inline)]
pub use eventbus_macros::Event;
#[doc = include_str!("docs/link_all.md")]
#[doc(inline)]
pub use eventbus_macros::link_all;
#[doc = include_str!("docs/main.md")]
#[doc(inline)]
pub use eventbus_macros::main;
#[doc = include_str!("docs/publish.md")]
#[doc(inline)]
pub use eventbus_macros::publish;
#[doc = include_str!("docs/subscribe.md")]
#[doc(inline)]
pub use eventbus_macros::subscribe;
#[doc = include_str!("docs/subscriber.md")]
#[doc(inline)]
pub use eventbus_macros::subscriber;
#[doc = include_str!("docs/topics.md")]
#[doc(inline)]
pub use eventbus_macros::topics;

#[doc = include_str!("docs/link.md")]
#[macro_export]
macro_rules! link {
    ($($name:ident),+ $(,)?) => { $(#[allow(unused_imports)] use ::$name as _;)+ };
    ($($other:tt)*) => {
        ::core::compile_error! {
            "`link!` takes the names of crates as `use` does, with `_` in place of `-`: `link!(shop_email, shop_stock)`"
        }
    };
}

#[doc = include_str!("docs/check.md")]
#[macro_export]
macro_rules! check {
    () => {
        $crate::__private::check_test!();
    };
}

#[cfg(doctest)]
#[doc = include_str!("docs/two_examples.md")]
struct TwoExamples;
