//! eventbus on NATS JetStream: a stream of events, a durable consumer for each group, dead letters in a stream.
//!
//! ```no_run
//! # async fn connect() -> eventbus::Result<()> {
//! let bus = eventbus::Bus::connect("nats://localhost:4222").await?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod audit;
mod broker;
mod config;
mod connection;
mod dead_letters;
mod delivery;
mod groups;
mod intake;
mod notes;
mod publish;
mod pulls;
mod replay;
mod scan;
mod subscribe;
mod subscription;
mod topology;
mod wire;

pub use broker::NatsBroker;
pub use config::{NatsBrokerBuilder, Storage};
pub use wire::ContentMode;

eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "nats", open: broker::open_address });
eventbus_core::register_scheme!(eventbus_core::broker::Scheme { name: "tls", open: broker::open_address });
