//! Tests of event-driven programs, without sleeping and without a server.
//!
//! A [`TestBus`] runs the program's own subscriptions on the in-process broker. Publishing on it resolves when
//! the whole cascade is over: every handler, every event that a handler published, every retry. With the clock of
//! tokio paused, delayed retries take no time; handlers that do I/O are tested on real time.
//!
//! ```
//! use eventbus::{Bus, Event, subscribe};
//! use eventbus_testing::TestBus;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
//! #[event(topic = "order.placed")]
//! struct OrderPlaced { id: u64 }
//!
//! #[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
//! #[event(topic = "order.shipped")]
//! struct OrderShipped { id: u64 }
//!
//! #[subscribe]
//! async fn ship(order: OrderPlaced) -> OrderShipped {
//!     OrderShipped { id: order.id }
//! }
//!
//! #[tokio::test(start_paused = true)]
//! async fn a_placed_order_is_shipped() {
//!     let bus = TestBus::start(Bus::builder().only([ship::SUBSCRIBER])).await;
//!     bus.publish(&OrderPlaced { id: 7 }).await;
//!     bus.assert_published(&OrderShipped { id: 7 });
//!     assert_eq!(bus.attempts(ship::SUBSCRIBER), 1);
//!     bus.assert_no_dead_letters();
//! }
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(async {
//! #     let bus = TestBus::start(Bus::builder().only([ship::SUBSCRIBER])).await;
//! #     bus.publish(&OrderPlaced { id: 7 }).await;
//! #     bus.assert_published(&OrderShipped { id: 7 });
//! #     assert_eq!(bus.attempts(ship::SUBSCRIBER), 1);
//! #     bus.assert_no_dead_letters();
//! # });
//! ```
//!
//! The Cargo feature `conformance` adds a module of that name: the suite that every broker passes, for authors of others.
//!
//! All tests of a binary share one registry, so a test chooses the subscriptions that it is about with
//! [`BusBuilder::only`](eventbus_core::BusBuilder::only).

#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod conformance;
mod record;
mod strict;
mod test_bus;

pub use record::HandledAttempt;
pub use test_bus::TestBus;
