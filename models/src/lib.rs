//! Models: the parts of `eventbus-core` on which threads meet, run under every order of their steps that shuttle
//! chooses. The sources are those of core; only what they import is another: locks, atomics, tasks and timers are
//! shuttle's, and what they pass along is as small as a model needs it.
//!
//! Each function is one scenario, and panics where something is lost or somebody waits for ever. `tests/models.rs` runs
//! them; a failure prints the schedule, by which `shuttle::replay` finds it again.

#![forbid(unsafe_code)]
// The unit tests of the sources run in their own crate.
#![cfg(not(test))]
#![allow(dead_code, reason = "a scenario uses a part of a source")]
#![allow(unreachable_pub, reason = "some sources are public in core")]

// What the sources import from tokio is here.
extern crate self as tokio;

#[path = "../../eventbus-core/src/counted.rs"]
mod counted;
#[path = "../../eventbus-core/src/gate.rs"]
mod gate;
mod handling;
#[path = "../../eventbus-core/src/line.rs"]
mod line;
mod lock;
#[path = "../../eventbus-core/src/memory/places.rs"]
mod places;
#[path = "../../eventbus-core/src/printable.rs"]
mod printable;
mod publishing;
mod stand_ins;
mod sync;
mod tasks;
#[path = "../../eventbus-core/src/waiters.rs"]
mod waiters;
mod worker;

pub use handling::*;
pub use publishing::*;

use stand_ins::{broker, delivery, error, event, foreign, handler, log, outcome, subscription};
use tasks::{runtime, task, time};
