#![doc = include_str!("conformance.md")]

mod case;
mod cases;
mod process;
mod reader;
mod run;
mod seen;

#[doc(hidden)]
pub use process::another_process;
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

    /// How many events a case publishes that is about many. Default: 10,000, of which a broker that takes 1,000 in a second
    /// has handled all before the [patience](Self::PATIENCE) is at its end.
    const MANY: u64 = 10_000;

    /// How long a broker waits, as [`open`](Self::open) makes it, for a process that does not answer, before it gives
    /// others what that one has. A few seconds: a case handles an event for twice as long, and a busy machine may keep a
    /// process waiting for one. Default: 10 s.
    const LEASE: Duration = Duration::from_secs(10);

    /// A place of one run of one case, where no earlier run has left anything: the path of a file, an address, a name to put
    /// before others. It is a text, because other processes are told of it.
    ///
    /// The suite gives topics and groups names that no other run has. So brokers that keep apart what has different names
    /// may share one server, with nothing between them.
    fn place() -> impl Future<Output = String> + Send;

    /// Opens a broker on a place, as another process would: it shares what the place has with other brokers there, and
    /// nothing else. A broker that is not [durable](eventbus_core::broker::Features::durable) is opened once for a place.
    fn open(place: &str) -> impl Future<Output = Self::Broker> + Send;

    /// Removes a place, after its brokers were closed. Default: nothing.
    fn clean_up(place: &str) -> impl Future<Output = ()> + Send {
        let _ = place;
        async {}
    }
}

/// Makes a test of each case of the suite, for the brokers of a [`Fixture`]. See [the module](mod@crate::conformance).
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
                $crate::conformance::run::<$fixture>(::core::stringify!($case), ::core::module_path!());
            }
        )*)*

        #[test]
        #[ignore = "the other process of some cases, which run it by themselves"]
        fn another_process() {
            $crate::conformance::another_process::<$fixture>();
        }
    };
}
