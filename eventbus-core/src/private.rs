//! Used by generated code, and by nothing else: no promise is made about what is in here.

use crate::printable::printable;

pub use crate::backoff::Backoff;
pub use crate::blocking::blocking;
pub use crate::broker::Start;
pub use crate::check;
pub use crate::codec::Json;
pub use crate::delivery::Delivery;
pub use crate::envelope::ReadBacks;
pub use crate::error::DecodeError;
pub use crate::event::{Attributes, Event, EventMeta, IntoEvent, Key, Reader, Stored, decode_current, read};
pub use crate::extract::{FromBatch, FromDelivery};
pub use crate::handler::{StaticBatchHandler, StaticHandler};
pub use crate::outcome::{IntoOutcome, IntoOutcomes, Outcome};
pub use crate::registry::*;
pub use crate::state::State;
pub use crate::subscription::{Options, StateType, Subscription};
pub use crate::worker::Worker;
pub use crate::{__check as check_test, __submit as submit};
pub use serde_json;
pub use std::borrow::Cow;
pub use std::clone::Clone;
pub use std::convert::From;
pub use std::option::Option::{self, None, Some};
pub use std::result::Result::{self, Err, Ok};
pub use std::string::{String, ToString};
pub use std::sync::Arc;
pub use std::vec::Vec;
pub use std::{concat, env, file, module_path};

use std::time::Duration;
use tokio::runtime::Runtime;

/// What a crate without a catalog finds in place of one.
pub mod no_catalog {
    /// Every topic is known.
    pub const __EVENTBUS_CATALOG: &super::Catalog = &super::Catalog::OPEN;
}

/// How long tasks and blocking calls may go on after the end of `main`.
const LINGER: Duration = Duration::from_millis(500);

/// Runs the future of `#[eventbus::main]` on a runtime of several threads. The program ends with it: a thread that is
/// blocked, by a handler or by anything else, is not waited for.
pub fn block_on<T>(main: impl Future<Output = T>) -> T {
    struct Ending(Option<Runtime>);
    impl Drop for Ending {
        fn drop(&mut self) {
            if let Some(runtime) = self.0.take() {
                runtime.shutdown_timeout(LINGER);
            }
        }
    }

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ending = Ending(Some(runtime.expect("a tokio runtime starts")));
    ending.0.as_ref().expect("it was just put there").block_on(main)
}

/// Runs the checks that need no broker, for `check!`.
///
/// # Panics
/// Where they find a mistake; the message lists all of them.
pub fn check_census() {
    let subscriptions: Vec<_> = subscribers().iter().map(|subscriber| &subscriber.subscription).collect();
    let findings = crate::census::check(&subscriptions);
    findings.warnings.iter().for_each(|warning| eprintln!("warning: {}", printable(warning)));
    assert!(findings.mistakes.is_empty(), "{}", crate::error::StartupError::new(findings.mistakes));
}

/// Writes the test of `check!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __check {
    () => {
        #[test]
        fn eventbus_census() {
            $crate::__private::check_census();
        }
    };
}
