//! Used by generated code, and by nothing else: no promise is made about what is in here.

pub use crate::backoff::Backoff;
pub use crate::check;
pub use crate::codec::Json;
pub use crate::delivery::Delivery;
pub use crate::error::DecodeError;
pub use crate::event::{Event, EventMeta, IntoEvent, Key};
pub use crate::extract::{FromBatch, FromDelivery};
pub use crate::handler::{StaticBatchHandler, StaticHandler};
pub use crate::outcome::{IntoOutcome, IntoOutcomes, Outcome};
pub use crate::registry::*;
pub use crate::state::State;
pub use crate::subscription::{Options, Start, StateType, Subscription};
pub use crate::worker::Worker;
pub use eventbus_grammar as grammar;
