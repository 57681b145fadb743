//! The contract, the registry and the delivery semantics of eventbus.
//!
//! Applications depend on `eventbus`, which re-exports what they need; brokers and other extensions depend on
//! this crate. Its modules stand on seven floors, and each uses only those below it:
//!
//! 1. words: events, topics, headers, envelopes, codecs, errors
//! 2. the contract of brokers, and the in-process broker
//! 3. subscriptions and their policy, as plain data
//! 4. publishing, deliveries, and what handlers take and return
//! 5. middleware, and workers: lanes, attempts, settlement
//! 6. the registry, its census, and the checks at compile time
//! 7. the bus

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
#[doc(hidden)]
pub mod aside;
mod backoff;
mod blocking;
pub mod broker;
mod bus;
mod causation;
pub mod census;
#[doc(hidden)]
pub mod check;
#[doc(hidden)]
pub mod choice;
mod codec;
#[doc(hidden)]
pub mod command_line;
#[doc(hidden)]
pub mod counted;
mod delivery;
mod envelope;
mod error;
mod event;
mod extract;
mod finite;
#[allow(dead_code, reason = "its callers follow")]
#[doc(hidden)]
pub mod foreign;
mod gate;
mod handler;
mod headers;
mod id;
mod line;
#[doc(hidden)]
pub mod lock;
#[doc(hidden)]
pub mod log;
#[doc(hidden)]
pub mod media_type;
pub mod memory;
pub mod middleware;
mod observe;
mod outcome;
mod paused;
#[doc(hidden)]
pub mod printable;
mod publisher;
mod registry;
#[doc(hidden)]
pub mod signals;
mod state;
#[doc(hidden)]
pub mod stderr;
mod subscription;
mod sync;
mod topic;
mod trace_context;
#[doc(hidden)]
pub mod waiters;
mod worker;

pub use backoff::Backoff;
pub use broker::{Broker, Start};
pub use bus::{
    Bus, BusBuilder, Health, On, Rebuilding, ReplayProgress, ReplayReport, Replaying, SubscriptionHandle,
    SubscriptionHealth, SubscriptionState, shutdown_signal,
};
pub use codec::{Codec, Json};
pub use delivery::Delivery;
pub use envelope::Envelope;
#[doc(hidden)]
pub use error::chain;
pub use error::{BoxError, BrokerError, DecodeError, Error, PublishError, Result, StartupError};
pub use event::{Event, EventMeta, IntoEvent, Key};
pub use extract::{Attempt, Batch, FromBatch, FromDelivery};
pub use headers::Headers;
pub use id::EventId;
pub use observe::{Attempted, Observer};
pub use outcome::{IntoOutcome, IntoOutcomes, Outcome, Permanent, Reason, SubscriberError};
pub use publisher::{Publish, Publisher, Publishing};
pub use registry::{Catalog, Subscriber};
pub use state::State;
pub use subscription::{Options, Policy, StateType, Subscription};
pub use topic::{Pattern, Topic, TopicError};

// They stand in signatures: payloads, and times.
#[doc(no_inline)]
pub use {bytes, jiff};
