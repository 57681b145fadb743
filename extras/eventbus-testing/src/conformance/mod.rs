#![doc = include_str!("conformance.md")]

mod case;
mod cases;
mod reader;
mod run;
mod seen;

#[doc(hidden)]
pub use run::{outcome, run};

use eventbus_core::Broker;
use std::future::Future;
use std::time::Duration;

/// Where the suite gets brokers from: what the author of a broker writes for [`conformance!`](crate::conformance!).
///
/// A fixture is never made; it is a name for these functions.
pub trait Fixture: Send + Sync + 'static {
    /// The broker that is held to the contract.
    type Broker: Broker;

    /// How long a case waits for what should happen soon, before it fails. Generous: it is met on a machine that does
    /// other things, by a server that does too. Default: 60 s.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A place of one run of one case, where no earlier run has left anything: the path of a file, an address, a name to put
    /// before others. It is a text, because other processes are told of it.
    ///
    /// The suite gives topics and groups names that no other run has. So brokers that keep apart what has different names
    /// may share one server, with nothing between them.
    fn place() -> impl Future<Output = String> + Send;

    /// Opens a broker on a place, as another process would: it shares what the place has with other brokers there, and
    /// nothing else. A broker that is not [durable](eventbus_core::broker::Features::durable) is opened once for a place.
    ///
    /// Where it waits for processes that no longer answer, it should wait for a few seconds only, and longer than a busy
    /// machine may keep a process waiting.
    fn open(place: &str) -> impl Future<Output = Self::Broker> + Send;

    /// Removes a place, after its brokers were closed. Default: nothing.
    fn clean_up(place: &str) -> impl Future<Output = ()> + Send {
        let _ = place;
        async {}
    }
}

/// Makes a test of each case of the suite, for the brokers of a [`Fixture`]. See [the module](crate::conformance).
#[macro_export]
macro_rules! conformance {
    ($fixture:ty) => {
        $crate::__conformance_cases! { [$crate::__conformance_tests] $fixture => }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($fixture:ty => $($room:ident { $($case:ident)* })*) => {
        $($(
            #[test]
            fn $case() {
                $crate::conformance::run::<$fixture>(::core::stringify!($case));
            }
        )*)*
    };
}
